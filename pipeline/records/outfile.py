"""Write the file of an option such as `--json FILE`, whatever kind of file FILE is."""

from __future__ import annotations

import codecs
import os
import sys
from pathlib import Path

from pipeline.display.errors import UserError, link_to_nothing
from pipeline.records import disk, rundir
from pipeline.records.schemas import Run

BEGIN = 1000  # bytes at the start of a file that are looked at
STARTS = {"JSON": (b"{", b"["), "HTML": (b"<",)}


def check(json: Path | None = None, html: Path | None = None) -> None:
    """Refuse a path that cannot be written, before its content is computed.

    Args:
        json: of the option `--json`.
        html: of the option `--html`.

    Raises:
        UserError: as `write` raises, the path is a folder, or both are one file.
    """
    if json and html and os.path.realpath(json) == os.path.realpath(html):
        raise UserError(f"--json and --html both name {json}; give each a file of its own")
    for path in filter(None, (json, html)):
        _check_dash(path)
        disk.refuse_address(str(path).replace(":/", "://", 1))  # pathlib leaves one slash
        try:
            there = _is_there(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; name another file") from None
        if not path.resolve().parent.is_dir() and (lost := link_to_nothing(path, *path.parents)):
            raise lost
        if path.is_dir():
            raise UserError(f"{path} is a folder; name a file in it")
        if there and not path.is_file():
            continue  # a device or a FIFO: opening it may wait for a reader
        if there and _descriptor(path) is None:
            _check_replaced(path, "JSON" if path is json else "HTML")
        above = next(folder for folder in path.resolve().parents if folder.exists())
        if not above.is_dir():
            raise UserError(f"{path}: {above} is not a folder; name another file")
        if refused := disk.refusal(above):
            why, *_ = str(refused).partition(";")
            raise UserError(f"{path} cannot be written: {why}; name another file")


def _check_replaced(path: Path, kind: str) -> None:
    """Refuse to replace a file of a run, or what an earlier call cannot have written.

    Raises:
        UserError: as `--json model.onnx`, where FILE was meant to be read.
    """
    if any(map(_is_ours, path.resolve().parents)):
        raise UserError(f"{path} is a file of a run; name another file")
    try:
        with path.open("rb") as file:
            begin = file.read(BEGIN).removeprefix(codecs.BOM_UTF8).lstrip()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name another file") from None
    if begin and not begin.startswith(STARTS[kind]):
        raise UserError(f"{path} is there and is not {kind}; name another file, or remove it")


def _is_ours(folder: Path) -> bool:
    """Whether a folder is that of a stage, a run or prepared images."""
    images = folder.parent.name == "data" and (folder / rundir.MANIFEST).exists()
    return images or any((folder / name).exists() for name in (rundir.STAGE, Run.FILE))


def _check_dash(path: Path) -> None:
    if str(path) == "-":
        raise UserError("- is not a file; /dev/stdout is standard output, ./- a file of that name")


def write(path: Path, text: str) -> None:
    """Write a text to the path that a user named.

    A regular file is replaced atomically, following links. A device, a FIFO or an open descriptor
    (/dev/stdout, /dev/fd/3) is written to and not replaced.

    Raises:
        UserError: the path cannot be written, or is `-`, which elsewhere means standard output.
        BrokenPipeError: the reader is gone.
    """
    _check_dash(path)
    try:
        if not _is_there(path):
            target = path.resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            rundir.write_text(target, text)
        elif (descriptor := _descriptor(path)) is not None:
            sys.stdout.flush()  # keep the order with what was printed before
            with open(descriptor, "w", encoding="utf-8", closefd=False) as stream:
                stream.write(text)
        elif path.is_file():
            rundir.write_text(path.resolve(), text)
        else:
            with path.open("w", encoding="utf-8") as stream:
                stream.write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name another file") from None


def _descriptor(path: Path) -> int | None:
    """Return the descriptor if a path is, or links to, an open descriptor of this process.

    Opening the path again would write from the start of a file that the descriptor appends to.
    """
    open_ones = Path("/proc/self/fd").resolve()
    while path.is_symlink():
        if path.parent.resolve() == open_ones:
            return int(path.name)
        path = path.parent / path.readlink()
    return None


def _is_there(path: Path) -> bool:
    """Whether a path exists, following links; a loop of links raises an OSError."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True
