"""Test that the tables of events in docs/recovery.md agree with the code that writes events."""

import ast
import re
from collections import defaultdict

from tests.launcher import PROJECT

ROW = re.compile(r"^\| `(\w+)` \| `([\w/.]+)` \| [^|]+ \|(.*)\|$", re.MULTILINE)


def documented():
    """Return the fields that docs/recovery.md lists for each event and the file that writes it."""
    text = (PROJECT / "docs" / "recovery.md").read_text().partition("## Events")[2]
    rows = ROW.findall(text)
    outside = {(name, file): re.sub(r"\([^)]*\)", "", fields) for name, file, fields in rows}
    assert len(outside) == len(rows)
    return {key: set(re.findall(r"`(\w+)`", fields)) for key, fields in outside.items()}


def fields(call):
    """Return the names of a call's keyword arguments, and the keys of a mapping: `**{"a": …}`."""
    passed = {word.arg for word in call.keywords if word.arg}
    mappings = [node for word in call.keywords if not word.arg for node in ast.walk(word.value)]
    keys = [key for node in mappings if isinstance(node, ast.Dict) for key in node.keys]
    return passed | {key.value for key in keys}


def written():
    """Return the fields that the code gives to each event in the file that writes it."""
    found = defaultdict(set)
    for package in ("pipeline", "slurm"):
        for path in (PROJECT / package).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text())):
                if not isinstance(call, ast.Call):
                    continue
                function = getattr(call.func, "attr", getattr(call.func, "id", ""))
                by_name = [it.value for it in call.keywords if it.arg == "event"]
                names = call.args if function in ("event", "_note") else by_name
                for name in names:
                    if isinstance(name, ast.Constant) and function != "Event":
                        file = str(path.relative_to(PROJECT))
                        found[name.value, file] |= fields(call) - {"event", "time"}
    return dict(found)


def test_the_tables_list_every_event_with_its_writer_and_fields():
    assert written() == documented()
