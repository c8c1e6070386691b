"""The tables of all events in docs/recovery.md, compared with the code that writes them."""

import ast
import re
from collections import defaultdict

from tests.launcher import PROJECT

ROW = re.compile(r"^\| `(\w+)` \| `([\w/.]+)` \| [^|]+ \|(.*)\|$", re.MULTILINE)


def told():
    """Return the fields in the tables, by event and writer."""
    text = (PROJECT / "docs" / "recovery.md").read_text().partition("## Events")[2]
    rows = ROW.findall(text)
    outside = {(name, file): re.sub(r"\([^)]*\)", "", fields) for name, file, fields in rows}
    assert len(outside) == len(rows)
    return {key: set(re.findall(r"`(\w+)`", fields)) for key, fields in outside.items()}


def fields(call):
    """Return the names that a call passes, also in a mapping: `**{"name": …}`."""
    passed = {word.arg for word in call.keywords if word.arg}
    mappings = [node for word in call.keywords if not word.arg for node in ast.walk(word.value)]
    keys = [key for node in mappings if isinstance(node, ast.Dict) for key in node.keys]
    return passed | {key.value for key in keys}


def written():
    """Return the fields that the code passes to the events it names, by event and writer."""
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


def test_the_tables_have_every_event_its_writer_and_its_fields():
    assert written() == told()
