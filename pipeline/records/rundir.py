"""Build all paths below a root, and read and write the files there.

    <root>/stages/<stage>-<fingerprint>/    stage.yaml where.yaml jobs.jsonl attempt events.jsonl
                                            progress.json logs/ result.json and the stage's outputs
    <root>/runs/<name>/                     config.yaml run.json report.html, links to stages
    <root>/data/<fingerprint>/              manifest.json quarantine.jsonl shards
    <root>/cache/                           compiled code, and caches of libraries without a HOME
    <root>/code/<hash>/  <root>/slurm/      code that jobs run, and submitit's files
    <root>/sweeps/<date>/                   results of a search with Optuna

No other module builds a path, so the layout can be changed here alone.
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
from pipeline.display.errors import UserError, link_to_nothing, unreadable
from pipeline.records import disk, schemas
from slurm import files
from slurm.records import EVENTS as EVENTS
from slurm.records import JOBS as JOBS
from slurm.records import PROGRESS as PROGRESS

RESULT = "result.json"
STAGE = "stage.yaml"
WHERE = "where.yaml"
LOCK = ".lock"
HISTORY = "history.jsonl"
GROWTH = "growth.jsonl"
MANIFEST = "manifest.json"

MOST_NESTED = 10_000  # nesting depth of a YAML file; beyond it libyaml overflows the stack

Parsed = tuple[Any, schemas.Record | None]  # the content of a file, raw and as a record


def absolute(path: str | Path, start: Path | None = None) -> Path:
    """Return a path as absolute, without resolving links.

    Args:
        path: may begin with `~`.
        start: base of a relative path; the current directory if None.

    Raises:
        UserError: the current directory is gone, or the path is an address such as s3://….
    """
    disk.refuse_address(path)
    given = Path(path)
    with suppress(RuntimeError):  # no such user: `~name` is an ordinary name
        given = given.expanduser()
    whole = os.path.normpath((start or here()) / given)
    return Path("/" + whole.lstrip("/"))  # pathlib keeps two leading slashes


def here() -> Path:
    """Return the current directory.

    Raises:
        UserError: the current directory is gone.
    """
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UserError("the directory you are in is gone; cd to one that is there") from None


def shown(path: Path) -> Path:
    """Return a path relative to the current directory if that is shorter."""
    start = here()
    return path.relative_to(start) if path.is_relative_to(start) and path != start else path


def stage_dir(root: Path, stage: str, fingerprint: str) -> Path:
    """Return the stage directory of a fingerprint."""
    return root / "stages" / f"{stage}-{fingerprint}"


def run_dir(root: Path, name: str) -> Path:
    """Return the directory of a named run."""
    return root / "runs" / name


def check_links(root: Path, *below: str) -> None:
    """Check a root and its folders, which may be links to other disks.

    Raises:
        UserError: one of them is a dangling link.
    """
    if lost := link_to_nothing(root, *(root / name for name in below)):
        raise lost


def data_dir(root: Path, fingerprint: str, repeat: int = 0) -> Path:
    """Return the directory of prepared data; data that are prepared again get a new one."""
    return root / "data" / (f"{fingerprint}.{repeat}" if repeat else fingerprint)


def code_dir(root: Path, digest: str) -> Path:
    """Return the folder of code snapshots for pending jobs."""
    return _own_path(root / "code" / digest)


def job_dir(root: Path) -> Path:
    """Return the folder of submitit's files. Jobs unpickle them, so others must not write there."""
    return _own_path(root / "slurm")


def cache_dir(root: Path) -> Path:
    """Return the folder where libraries cache downloads and compiled code, which is executed."""
    return _own_path(root / "cache")


def _own_path(path: Path) -> Path:
    """Return `path`, or a path beside it if another user of a shared root owns `path`."""
    try:
        taken = path.lstat().st_uid != os.geteuid()
    except FileNotFoundError:
        taken = False
    return path.with_name(f"{path.name}-{os.geteuid()}") if taken else path


def log_file(directory: Path, attempt: int, rank: int = 0, node: int = 0) -> Path:
    """Return the log of one rank of an attempt; rank 0 shares it with the parent process.

    On nodes other than the first, the parent process has its own log.
    """
    suffix = f".node{node}" if node else f".rank{rank}" if rank else ""
    return directory / "logs" / f"attempt-{attempt:03d}{suffix}.log"


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Write a whole file, atomically."""
    with disk.replacing(path, private) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, settings: Mapping[str, object] | None = None) -> None:
    """Write a JSON file, atomically; private if the settings in it contain a secret."""
    write_text(path, to_json(value, indent=2) + "\n", any(masking.found(settings or {})))


def to_json(value: Any, indent: int | None = None) -> str:
    """Return standard JSON: nan and infinity, which JSON lacks, become null."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_numbers(value), indent=indent, allow_nan=False)


def _numbers(value: Any) -> Any:
    """Return a copy in which nan and infinity are None."""
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
    """Return the content of a JSON file, raw and as a record."""
    return _parsed(path, read_text(path))


def _parsed(path: Path, text: str | bytes, line: int = 0) -> Parsed:
    try:
        value = json.loads(text if isinstance(text, str) else text.decode())
        return value, schemas.record(path.name, value)
    except (ValueError, RecursionError) as error:
        raise damaged(path, error, line) from None


def write_yaml(path: Path, value: Any) -> None:
    """Write a YAML file atomically, keys in order; private if it contains a secret."""
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
    """Return the content of a YAML file, raw and as a record."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a comparison reads thousands
    text = read_text(path)
    if sum(map(text.count, ("[", "{", "- "))) > MOST_NESTED:
        raise damaged(path, ValueError("nested too deeply"))
    try:
        value = yaml.load(text, Loader=loader)
        return value, schemas.record(path.name, value)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception, line: int = 0) -> UserError:
    """Return the error for a damaged file, or for one of its lines."""
    why = " ".join(str(error).split())
    if line:
        return UserError(f"{path} line {line} is damaged ({why}); restore or remove that line")
    remade = path.name in (RESULT, STAGE)  # a launch can make these files again
    cure = f"{path} and launch again" if remade else f"{path.parent} to start over"
    return UserError(f"{path} is damaged ({why}); restore it, or remove {cure}")


def there(path: Path) -> bool:
    """Whether a path exists, including a dangling link or an entry that may not be read."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # not a possible file name
        return False
    except OSError:
        return True  # reading it raises the error
    return True


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is damaged, not readable, or not a regular file.
    """
    with reading(path) as file:
        try:
            return file.read().decode()
        except UnicodeDecodeError as error:
            raise damaged(path, error) from None


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading bytes.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is not readable, or not a regular file.
    """
    try:
        with files.opened(path) as file:
            yield file
    except PermissionError as error:
        raise unreadable(path, error) from None
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError) and not path.is_symlink():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
        raise damaged(path, ValueError(error.strerror)) from None


def append_line(path: Path, row: Mapping[str, object]) -> None:
    """Append one JSON line in a single write, so that lines of two writers never mix."""
    files.append(path, to_json(row) + "\n")


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the rows of a JSON-lines file; skip a row that a kill or a power cut left incomplete.

    Raises:
        UserError: a line is damaged in another way.
    """
    return (row for row, _ in parse_lines(path))


def parse_lines(path: Path) -> Iterator[Parsed]:
    """Yield each row of a JSON-lines file, raw and as a record."""
    if not there(path):
        return
    with reading(path) as lines:
        for number, line in enumerate(lines, start=1):
            row = line.lstrip(b"\0")  # zeros that a power cut left in place of earlier rows
            if row.endswith(b"\n") and row != b"\n":
                yield _parsed(path, row, number)
