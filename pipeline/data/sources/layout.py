"""Check that a folder has the layout `train/CLASS/…` and `val/CLASS/…`, or `CLASS/…`.

Other layouts are refused with the command that fixes the folder or reads it. Otherwise a network
would be trained on the classes `train` and `test`.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from pipeline.data.sources.tree import folders
from pipeline.display.errors import UserError

NAMES = {
    "train": ("train", "training", "trn", "train_set", "trainset"),
    "val": ("val", "valid", "validation", "dev", "eval", "test", "testing", "test_set", "testset",
            "holdout"),
}  # fmt: skip
SPLITS = {name for names in NAMES.values() for name in names}


def check(root: Path, split: bool) -> None:
    """Check that the layout of a folder agrees with the settings.

    Args:
        root: the folder.
        split: whether prep splits the images (`data.val_fraction`), so that root holds the classes.

    Raises:
        UserError: the message says what the folder holds, and the cure.
    """
    if split:
        _check_classes(root)
    else:
        _check_splits(root)


def _check_splits(root: Path) -> None:
    if (root / "train").is_dir() and (root / "val").is_dir():
        _refuse_splits(root / "train")
        return
    if not root.is_dir():
        raise UserError(
            f"{root} is not a folder; data.root needs train/CLASS/IMAGE and val/… below it"
        )
    names = folders(root)
    missing = root / "val" if (root / "train").is_dir() else root / "train"
    cure = (
        _commands(root, names)
        or _further_down(root, names)
        or f"data.root needs train/CLASS/IMAGE and val/CLASS/… below it; or {_split(root, names)}"
    )
    raise UserError(f"{missing} is not a folder; {cure}")


def _split(root: Path, names: set[str]) -> str:
    """Return the settings with which the present folders can be read."""
    if "train" in names:
        return f"data.root={root / 'train'} data.val_fraction=0.1 splits train/"
    if not names:
        return "set data.val_fraction to split one folder"
    some = ", ".join(f"{name}/" for name in sorted(names)[:3])
    return f"data.val_fraction=0.1 takes {some}{', …' if len(names) > 3 else ''} for classes"


def _check_classes(root: Path) -> None:
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; data.root needs CLASS/IMAGE below it")
    _refuse_splits(root)
    names = folders(root)
    for name in sorted(names):
        below = {one for one in folders(root / name) if one.lower() in SPLITS}
        if len(below) > 1 or (len(names) == 1 and below):
            subfolders = " and ".join(f"{one}/" for one in sorted(below))
            raise UserError(
                f"{root / name} holds {subfolders}, which are splits: point data.root at it with "
                "data.val_fraction=null if it is not a class, or put its images into "
                f"{root}/train/{name}/ and {root}/val/{name}/"
            )


def _refuse_splits(path: Path) -> None:
    """Refuse a folder of classes that holds splits instead, of which it would make classes."""
    names = folders(path)
    if len(splits := {name for name in names if name.lower() in SPLITS}) < 2:
        return
    subfolders = " and ".join(f"{name}/" for name in sorted(splits))
    cure = _commands(path, names)
    cure = f"data.root={path} is where they are; {cure}" if cure and path.name == "train" else cure
    cure = cure or f"point data.root at one of them, e.g. {path / min(splits)}"
    raise UserError(f"{path} holds {subfolders}, which are splits and no classes; {cure}")


def hint(path: Path) -> str:
    """Return a hint where the missing class folders seem to be; "" if they are nowhere near."""
    names = sorted(folders(path))
    inner = path / names[0] if len(names) == 1 else None
    return f"; {inner} holds folders: are these the classes?" if inner and folders(inner) else ""


def _commands(root: Path, names: set[str]) -> str:
    """Return the commands that link folders of other names to train/ and val/; "" if none."""
    steps = []
    for split, known in NAMES.items():
        if split in names:
            continue
        lower = {name.lower(): name for name in names}
        there = next((lower[name] for name in known if name in lower), None)
        if there is None:
            return ""
        steps.append(f"ln -s {quote(there)} {quote(str(root / split))}")
    commands = f"`{' && '.join(steps)}`, then " if steps else ""
    return f"{commands}launch with data.val_fraction=null, which takes train/ and val/ as they are"


def _further_down(root: Path, names: set[str]) -> str:
    for name in sorted(names):
        below = {one.lower() for one in folders(root / name)}
        if below & set(NAMES["train"]) and below & set(NAMES["val"]):
            return f"{root / name} holds {', '.join(sorted(below))}: data.root={root / name}"
    return ""
