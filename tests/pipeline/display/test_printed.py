"""Test that commands print only text in which control characters were made visible."""

import ast

from tests.launcher import PROJECT

INSIDE = {"stages", "training", "data"}  # stages print to their log, which `logs` makes visible


def printed():
    """Yield the file, the line and the argument of each call of `print` outside stages."""
    root = PROJECT / "pipeline"
    for path in sorted(root.rglob("*.py")):
        if INSIDE & set(path.relative_to(root).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                yield f"{path.name}:{node.lineno}", node.args[0]


def test_commands_print_only_text_that_was_made_visible():
    for place, argument in printed():
        made = isinstance(argument, ast.Call) and ast.unparse(argument.func)
        shown = isinstance(argument, ast.Constant) or made in ("line", "visible", "json.dumps")
        assert shown, f"{place}: {ast.unparse(argument)}; use pipeline.display.outside.say"
