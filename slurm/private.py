"""Whether a directory is ours alone: whoever else may change what is in it decides what we run."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

OTHERS = stat.S_IRWXG | stat.S_IRWXO
WRITERS = stat.S_IWGRP | stat.S_IWOTH


def flaw(directory: Path, closed: int = OTHERS) -> str | None:
    """Return why others may have put or may change what is in a directory; None if they cannot.

    It is looked at without following a link, and before anything in it is read.

    Args:
        directory: must exist.
        closed: what group and others may not have.
    """
    facts = directory.lstat()
    if stat.S_ISLNK(facts.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(facts.st_mode):
        return "is not a directory"
    if facts.st_uid != os.geteuid():
        return f"belongs to {owner(facts.st_uid)}"
    if facts.st_mode & closed:
        return f"is open to other users (mode {stat.S_IMODE(facts.st_mode):04o})"
    return None


def exchangeable(directory: Path) -> Path | None:
    """Return the directory above in which another user may put another in this one's place."""
    return next((above for above in directory.absolute().parents if writers(above)), None)


def writers(directory: Path) -> str | None:
    """Return who else may rename and replace what is in a directory, in words; None if nobody.

    In a sticky directory, such as /tmp, everybody may only do so with what is their own.
    """
    facts = directory.stat()
    if facts.st_uid not in (0, os.geteuid()):
        return owner(facts.st_uid)
    if facts.st_mode & stat.S_ISVTX:
        return None
    if facts.st_mode & stat.S_IWOTH:
        return "everybody"
    return _group(facts.st_gid) if facts.st_mode & stat.S_IWGRP else None


def _group(gid: int) -> str | None:
    """Return a group in words; None if it is the one that a user has to himself by convention."""
    try:
        group = grp.getgrgid(gid)
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"group {gid}"
    own = group.gr_name == name and set(group.gr_mem) <= {name}
    return None if own else f"group {group.gr_name}"


def owner(uid: int) -> str:
    """Return whom a user id belongs to."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def own(directory: Path) -> None:
    """Make a directory, and those above it, that only this user can enter; close one of ours.

    Raises:
        PermissionError: it is somebody else's, or no directory.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    if wrong := flaw(directory, closed=0):
        raise PermissionError(0, wrong, str(directory))
    directory.chmod(0o700)
