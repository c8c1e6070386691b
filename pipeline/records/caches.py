"""Set the cache folders of libraries on a machine where HOME is not writable."""

from __future__ import annotations

import atexit
import os
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from pipeline.records import rundir

FOLDERS = {
    "XDG_CACHE_HOME": ".cache",
    "XDG_CONFIG_HOME": ".config",
    "XDG_DATA_HOME": ".local/share",
    "WANDB_CONFIG_DIR": ".config/wandb",
}


def set_folders(root: Path) -> None:
    """Set cache folders below `root` for this process and its children if HOME is not writable.

    Compiled code always goes there: PyTorch would load and run it from a predictable path in /tmp,
    where other users could plant theirs.
    """
    kept = rundir.cache_dir(root.absolute())
    kept = kept if _writable(kept) else _temporary() or kept
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kept / "torchinductor"))
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 (Path raises for a user without an entry)
    there = os.access(home, os.X_OK) and home.is_dir()
    for name, below in FOLDERS.items():
        chosen = os.environ.get(name)
        if not (_writable(Path(chosen)) if chosen else there and _writable(home / below)):
            os.environ[name] = str(kept / below)
    if not (there and _writable(home)):
        os.environ.setdefault("TRITON_HOME", str(kept))


@cache
def _temporary() -> Path | None:
    """Return a folder for a command that only reads a root it cannot write to."""
    with suppress(OSError):
        folder = mkdtemp(prefix="dyrep-cache-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)
    return None


def _writable(folder: Path) -> bool:
    """Whether a folder is writable or can be created."""
    # `Path.exists` raises below a folder of another user, such as the HOME that sudo leaves set
    there = next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK))
    open_to_us = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    return folder.is_absolute() and open_to_us and os.statvfs(there).f_blocks > 0  # not /proc, /sys
