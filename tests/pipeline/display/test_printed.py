"""What commands print was made visible."""

import ast

from tests.launcher import PROJECT

INSIDE = {"stages", "training", "data"}  # what a stage prints is in its log, and shown by `logs`


def printed():
    """Yield place and argument of each `print` in a command."""
    root = PROJECT / "pipeline"
    for path in sorted(root.rglob("*.py")):
        if INSIDE & set(path.relative_to(root).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                yield f"{path.name}:{node.lineno}", node.args[0]


def test_no_command_prints_what_was_not_made_visible():
    for place, told in printed():
        made = isinstance(told, ast.Call) and ast.unparse(told.func)
        shown = isinstance(told, ast.Constant) or made in ("line", "visible", "json.dumps")
        assert shown, f"{place}: {ast.unparse(told)}; use pipeline.display.outside.say"
