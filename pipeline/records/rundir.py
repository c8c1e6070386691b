"""Every path and file name, and how our records are written and read.

    <root>/stages/<stage>-<fingerprint>/    stage.yaml where.yaml jobs.jsonl attempt events.jsonl
                                            progress.json logs/ result.json and what the stage makes
    <root>/runs/<name>/                     config.yaml run.json report.html, links to stages
    <root>/data/<fingerprint>/              manifest.json quarantine.jsonl shards
    <root>/cache/                           what libraries compile, or keep for want of a HOME
    <root>/code/<hash>/  <root>/slurm/      what jobs run, and what submitit leaves of them
    <root>/sweeps/<date>/                   what a search with Optuna found

Nobody else builds a path, so that a layout is changed here or nowhere.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from pipeline.display import masking
from pipeline.errors import UserError, link_to_nothing
from pipeline.records import disk, schemas
from slurm import files
from slurm.records import EVENTS as EVENTS
from slurm.records import JOBS as JOBS
from slurm.records import PROGRESS as PROGRESS

RESULT = "result.json"
STAGE = "stage.yaml"
WHERE = "where.yaml"
ATTEMPT = "attempt"
LOCK = ".lock"
HISTORY = "history.jsonl"
GROWTH = "growth.jsonl"
MANIFEST = "manifest.json"

MOST_NESTED = 10_000  # openings in a YAML file; libyaml runs out of stack and takes Python along

Parsed = tuple[Any, schemas.Record | None]  # what a file holds, and the record that it must be


def absolute(path: str | Path, start: Path | None = None) -> Path:
    """Return one spelling of a path, the same from any directory; links in it stay.

    Args:
        path: with `~` for a home, if you like.
        start: what a relative path is below; the present directory if None.
    """
    given = Path(path)
    with suppress(RuntimeError):  # nobody of that name: then it is a name like others
        given = given.expanduser()
    whole = os.path.normpath((start or Path.cwd()) / given)
    return Path("/" + whole.lstrip("/"))  # two slashes would stay two


def shown(path: Path) -> Path:
    """Return the shorter spelling of a path where the user stands."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) and path != here else path


def stage_dir(root: Path, stage: str, fingerprint: str) -> Path:
    """Return the one directory of a question."""
    return root / "stages" / f"{stage}-{fingerprint}"


def run_dir(root: Path, name: str) -> Path:
    """Return the directory of a named run."""
    return root / "runs" / name


def check_links(root: Path, *below: str) -> None:
    """Look at a root, and at what is below it and may lie on another disk.

    Raises:
        UserError: one is a link to what is not there.
    """
    if lost := link_to_nothing(root, *(root / name for name in below)):
        raise lost


def data_dir(root: Path, fingerprint: str, repeat: int = 0) -> Path:
    """Return the directory of prepared data; of data that were prepared again, one of its own."""
    return root / "data" / (f"{fingerprint}.{repeat}" if repeat else fingerprint)


def code_dir(root: Path, digest: str) -> Path:
    """Return where code is kept for jobs that wait."""
    return _mine(root / "code" / digest)


def job_dir(root: Path) -> Path:
    """Return where submitit keeps its files, which jobs un-pickle."""
    return _mine(root / "slurm")


def cache_dir(root: Path) -> Path:
    """Return where libraries keep what they compile and download; compiled code is run."""
    return _mine(root / "cache")


def _mine(path: Path) -> Path:
    """Return a path, or one beside it if another user of a shared root has that."""
    try:
        taken = path.lstat().st_uid != os.geteuid()
    except FileNotFoundError:
        taken = False
    return path.with_name(f"{path.name}-{os.geteuid()}") if taken else path


def log_file(directory: Path, attempt: int, rank: int = 0, node: int = 0) -> Path:
    """Return the log of one attempt; rank 0 shares it with the launcher of the processes.

    On other nodes than the first, that launcher has a log of its own.
    """
    suffix = f".node{node}" if node else f".rank{rank}" if rank else ""
    return directory / "logs" / f"attempt-{attempt:03d}{suffix}.log"


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Write a whole file, atomically."""
    with disk.replacing(path, private) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, atomically."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """Return JSON that every reader takes: nan and infinity, which it has not, are null."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_numbers(value), indent=indent, allow_nan=False)


def _numbers(value: Any) -> Any:
    """Return a copy in which what is no number is None."""
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is damaged.
    """
    return parse_json(path)[0]


def parse_json(path: Path) -> Parsed:
    """Return what a JSON file holds, as it is and as the record that it must be."""
    return _parsed(path, read_text(path))


def _parsed(path: Path, text: str | bytes, line: int = 0) -> Parsed:
    try:
        value = json.loads(text if isinstance(text, str) else text.decode())
        return value, schemas.check(path.name, value)
    except (ValueError, RecursionError) as error:
        raise damaged(path, error, line) from None


def write_yaml(path: Path, value: Any) -> None:
    """Write a YAML file, atomically, in the order of its keys; one with a secret, for us alone."""
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # a sweep writes thousands
    text = yaml.dump(value, Dumper=dumper, sort_keys=False)
    write_text(path, text, private=any(masking.found(value)))


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        UserError: it is damaged.
    """
    return parse_yaml(path)[0]


def parse_yaml(path: Path) -> Parsed:
    """Return what a YAML file holds, as it is and as the record that it must be."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a comparison reads thousands
    text = read_text(path)
    if sum(map(text.count, ("[", "{", "- "))) > MOST_NESTED:
        raise damaged(path, ValueError("nested too deeply"))
    try:
        value = yaml.load(text, Loader=loader)
        return value, schemas.check(path.name, value)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception, line: int = 0) -> UserError:
    """Return the refusal of a file that is not what we wrote, or of one of its lines."""
    why = " ".join(str(error).split())
    if line:
        return UserError(f"{path} line {line} is damaged ({why}); restore or remove that line")
    anew = path.name in (RESULT, STAGE)  # made again from what else there is
    cure = f"{path} and launch again" if anew else f"{path.parent} to begin anew"
    return UserError(f"{path} is damaged ({why}); restore it, or remove {cure}")


def there(path: Path) -> bool:
    """Whether something has this name, be it a link to nothing or behind a closed door."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # nothing can have such a name
        return False
    except OSError:
        return True  # who reads it is told
    return True


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        FileNotFoundError: it is not there.
        UserError: it is damaged, may not be read, or something else has its name.
    """
    with reading(path) as file:
        try:
            return file.read().decode()
        except UnicodeDecodeError as error:
            raise damaged(path, error) from None


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """Open a file to read its bytes.

    Raises:
        FileNotFoundError: it is not there.
        UserError: it may not be read, or something else has its name.
    """
    try:
        with files.opened(path) as file:
            yield file
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it readable") from None
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError) and not path.is_symlink():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
        raise damaged(path, ValueError(error.strerror)) from None


def append_line(path: Path, row: Mapping[str, object]) -> None:
    """Append one JSON line in a single write, so that lines of two writers never mix."""
    files.append(path, to_json(row) + "\n")


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the rows of a JSON-lines file; a last line cut off by a kill is left out.

    Raises:
        UserError: another line is damaged.
    """
    return (row for row, _ in parse_lines(path))


def parse_lines(path: Path) -> Iterator[Parsed]:
    """Yield each row of a JSON-lines file, as it is and as the record that it must be."""
    if not there(path):
        return
    with reading(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n"):
                yield _parsed(path, line, number)
