"""Check that only this user can change a directory, because its files decide what we run."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

OTHERS = stat.S_IRWXG | stat.S_IRWXO
WRITERS = stat.S_IWGRP | stat.S_IWOTH


def flaw(directory: Path, closed: int = OTHERS) -> str | None:
    """Return why other users can change the content of a directory; None if they cannot.

    Links are not followed, and nothing in the directory is read before this check.

    Args:
        directory: must exist.
        closed: permission bits that group and others must not have.
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
    """Return the parent directory in which another user can replace this directory, if any."""
    return next((above for above in directory.absolute().parents if writers(above)), None)


def writers(directory: Path) -> str | None:
    """Return a text that says who else can rename or replace entries of a directory; else None.

    In a sticky directory, such as /tmp, users can do that only with their own entries.
    """
    facts = directory.stat()
    sticky = facts.st_mode & stat.S_ISVTX and facts.st_uid in (0, os.geteuid())
    return None if sticky else adders(directory)


def adders(directory: Path) -> str | None:
    """Return a text that says who else can add entries to a directory, as all can in /tmp."""
    facts = directory.stat()
    if facts.st_uid not in (0, os.geteuid()):
        return owner(facts.st_uid)
    if facts.st_mode & stat.S_IWOTH:
        return "everybody"
    return _group(facts.st_gid) if facts.st_mode & stat.S_IWGRP else None


def _group(gid: int) -> str | None:
    """Return a text that names a group; None if it is the private group of this user."""
    try:
        group = grp.getgrgid(gid)
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"group {gid}"
    own = group.gr_name == name and set(group.gr_mem) <= {name}
    return None if own else f"group {group.gr_name}"


def owner(uid: int) -> str:
    """Return a text that names the user of a user id."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def umask() -> int:
    """Return the permission bits that this process takes from the files it makes."""
    current = os.umask(0o077)
    os.umask(current)
    return current


def keep_out() -> None:
    """Have this process and its children make nothing that everybody may write to."""
    os.umask(umask() | stat.S_IWOTH)


def own(directory: Path) -> None:
    """Make a directory and its parents, and close it to other users.

    Raises:
        PermissionError: the path belongs to another user or is not a directory.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    if wrong := flaw(directory, closed=0):
        raise PermissionError(0, wrong, str(directory))
    directory.chmod(0o700)
