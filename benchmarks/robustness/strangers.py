"""Replay the tests of other users, bad input and odd machines in a fresh clone, as two users.

The command clones the last commit and runs the tests of each kind four times: as root and as an
ordinary user, on a machine whose name has an address and on one whose name has none. The ordinary
user has no home directory.

    python -m benchmarks.strangers /tmp/strangers --json benchmarks/results/strangers.json

It needs root, to become another user and to give the machine another name for these tests.
"""

import argparse
import os
import pwd
import subprocess
import sys
import time
from collections import Counter
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

from benchmarks import PROJECT, evidence

KINDS = {
    "other people: processes and ports": ["execution/test_processes"],
    "other people: code in files and folders": ["test_trust", "test_example", "test_planted"],
    "other people: names from outside": ["display/test_outside"],
    "other people: roots, caches, devices, secrets": [
        "records/test_caches", "execution/test_code_snapshot", "display/test_masking",
        "records/test_outfile",
    ],
    "commands: live runs, from anywhere": [
        "test_current_directory", "test_live_runs", "test_status_and_logs",
    ],
    "commands: damaged files, lost links, refused writes": [
        "test_damage", "test_links", "test_refused_writes",
    ],
    "commands: again, frozen settings, comparisons": [
        "planning/test_again", "compare/test_compare", "compare/test_front",
        "planning/test_taking_up",
    ],
    "commands: words and numbers": [
        "test_messages", "test_numbers", "training/test_nonfinite", "training/test_cost",
    ],
    "data": [
        "data/test_bad_images", "data/test_sources", "data/test_imagenet", "data/test_cifar",
        "stages/test_prep", "stages/test_prep_freshness", "stages/test_prep_killed",
        "planning/test_freshness",
    ],
    "settings": [
        "planning/test_arguments", "test_bad_input", "networks/test_architectures",
        "config/test_rules", "config/test_sense", "planning/test_sweep",
        "planning/outline/test_outline", "training/test_growable",
        "planning/test_config_dir", "config/test_idle",
    ],
    "machines: terminals, readers who leave, long histories": [
        "test_output", "tracking/test_thinning",
    ],
}  # fmt: skip
USERS = ("root", "nobody")
NAMES = {"resolves": None, "does not": "nowhere"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a new folder for the clone and the tests' files")
    parser.add_argument("--only", metavar="TEXT", default="", help="kinds with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root; use sudo, or a container")
    kinds = {kind: files for kind, files in KINDS.items() if options.only in kind}
    if not kinds:
        parser.error(f"--only {options.only} is in no kind: {', '.join(KINDS)}")
    clone = prepare(options.folder.resolve())
    found = {kind: [] for kind in kinds}
    for user, (label, name) in product(USERS, NAMES.items()):
        for kind, counts in replay(clone, kinds, user, name).items():
            found[kind].append({"user": user, "machine's name": label, **counts})
    show(found)
    if options.json:
        evidence.write(options.json, {"kinds": found})
    return 0 if all(row["failed"] == 0 for rows in found.values() for row in rows) else 1


def prepare(folder: Path) -> Path:
    """Clone the last commit to a folder that every user may read."""
    folder.mkdir(mode=0o755)
    subprocess.run(["git", "clone", "--quiet", PROJECT, folder / "clone"], check=True)
    return folder / "clone"


def replay(clone: Path, kinds: dict[str, list[str]], user: str, name: str | None) -> dict:
    """Run the tests of all kinds as one user; return counts by kind."""
    place = clone.parent / f"{user}-{name or 'named'}"
    place.mkdir()
    facts = pwd.getpwnam(user)
    os.chown(place, facts.pw_uid, facts.pw_gid)
    home = Path("/nonexistent") if facts.pw_uid else Path.home()
    environment = {**os.environ, "TMPDIR": str(place), "HOME": str(home), "USER": user}
    files = [f"tests/pipeline/{file}.py" for some in kinds.values() for file in some]
    pytest = [
        sys.executable, "-B", "-m", "pytest", "-q", "-n", "2",
        "-p", "no:cacheprovider", f"--junitxml={place / 'junit.xml'}", *files,
    ]  # fmt: skip
    become = [] if not facts.pw_uid else [
        "setpriv", f"--reuid={facts.pw_uid}", f"--regid={facts.pw_gid}", "--clear-groups",
    ]  # fmt: skip
    renamed = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name] if name else []
    began = time.monotonic()
    with (place / "log").open("w") as log:
        subprocess.run(
            [*renamed, *become, *pytest], cwd=clone, env=environment, stdout=log, stderr=log
        )
    print(f"{user}, name {name or 'as it is'}: {time.monotonic() - began:.0f} s, {place / 'log'}")
    return count(place / "junit.xml", kinds)


def count(junit: Path, kinds: dict[str, list[str]]) -> dict:
    """Return the numbers of passed, failed and skipped tests, by kind."""
    kind_of = {file: kind for kind, files in kinds.items() for file in files}
    counts = {kind: Counter(passed=0, failed=0, skipped=0) for kind in kinds}
    for case in ElementTree.parse(junit).iter("testcase"):
        file = "/".join(case.get("classname", "").split(".")[2:])  # without tests.pipeline
        ends = {child.tag for child in case}
        end = (
            "failed"
            if ends & {"failure", "error"}
            else "skipped"
            if "skipped" in ends
            else "passed"
        )
        counts[kind_of[file]][end] += 1
    return counts


def show(found: dict[str, list[dict]]) -> None:
    columns = [f"{user}, name {label}" for user, label in product(USERS, NAMES)]
    table = Table("kind", *columns, title="passed (skipped, failed)")
    for kind, rows in found.items():
        cells = [f"{row['passed']} ({row['skipped']}, {row['failed']})" for row in rows]
        table.add_row(kind, *cells)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
