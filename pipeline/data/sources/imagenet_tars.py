"""Read ILSVRC 2012 in its original tar files, without extracting them.

`ILSVRC2012_img_train.tar` holds a tar file per class, `ILSVRC2012_img_val.tar` the validation
images. The classes of validation images come from a list, as for a flat folder.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pipeline.data.sources import imagenet, names, tars
from pipeline.data.sources.base import Item, Listing, Source
from pipeline.data.sources.imagenet import IMAGES, ImageNet
from pipeline.data.sources.tree import Row, fact, image
from pipeline.display.errors import UserError

if TYPE_CHECKING:
    import tarfile

    from pipeline.config.data import Images

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def source(data: Images) -> Source:
    """Return the source of ImageNet in tar files, or else of ImageNet in folders."""
    assert data.root is not None
    root = Path(data.root)
    there = any((root / name).is_file() for name in (TRAIN, VAL))
    if there and not (root / "train").is_dir():
        return ImageNetTars(root)
    return ImageNet(data)


class ImageNetTars:
    """ImageNet in two tar files; the one of training images holds a tar file per class."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def count(self) -> int:
        with self._opened(TRAIN) as stream:
            classes = self._classes(stream, [])
        self._validation(Listing(classes=tuple(classes), splits={}))
        return IMAGES

    def listing(self) -> Listing:
        passed: list[Row] = []
        offsets = array("q")
        with self._opened(TRAIN) as stream:
            classes = self._classes(stream, passed)
            items = [
                Item(name, label)
                for label, (wnid, inner) in enumerate(classes.items())
                for name in self._of_class(stream, wnid, inner, offsets, passed)
            ]
        found = Listing(
            classes=tuple(classes),
            splits={"train": items},
            passed=passed,
            offsets=offsets,
            others=[fact(self.root, name) for name in (TRAIN, VAL)],
        )
        self._validation(found)
        return found

    def read(self, name: str, offset: int) -> bytes:
        return tars.read(self.root / name.partition("/")[0], offset)

    def _opened(self, name: str) -> IO[bytes]:
        if not (self.root / name).is_file():
            raise UserError(
                f"{self.root / name} is missing beside its other half; get it from image-net.org"
            )
        return tars.opened(self.root / name)

    def _classes(self, stream: IO[bytes], passed: list[Row]) -> dict[str, tarfile.TarInfo]:
        """Return the tar file of each class, sorted by name."""
        where = self.root / TRAIN
        found: dict[str, tarfile.TarInfo] = {}
        for member in tars.members(stream, where, passed, TRAIN):
            wnid = member.name.rpartition("/")[2].removesuffix(tars.TAR)
            if not member.name.endswith(tars.TAR):
                passed.append({"name": f"{TRAIN}/{member.name}", "reason": "no .tar of a class"})
            elif found.setdefault(wnid, member) is not member:
                raise UserError(f"{where} has class {wnid!a} twice; get it again")
        names.check(set(found), where, "class")
        if len(found) < 2:
            raise UserError(f"{where} has {len(found)} tar files of classes; get it again")
        return dict(sorted(found.items()))

    def _of_class(
        self,
        stream: IO[bytes],
        wnid: str,
        inner: tarfile.TarInfo,
        offsets: array[int],
        passed: list[Row],
    ) -> list[str]:
        """Return the names of the images of a class; add their offsets to `offsets`."""
        where, found = self.root / TRAIN / inner.name, list[str]()
        stream.seek(inner.offset_data)
        for member in tars.members(stream, where, passed, f"{TRAIN}/{wnid}", inner.size):
            if member.offset_data + member.size > inner.offset_data + inner.size:
                raise UserError(f"{where} has no end-of-archive mark: it is damaged; get it again")
            name = f"{TRAIN}/{wnid}/{member.name.rpartition('/')[2]}"
            if not image(name):
                passed.append({"name": name, "reason": "no image by its name"})
                continue
            found.append(name)
            offsets.append(member.offset_data)
        if not found:
            raise UserError(f"{where} has no images; get it again")
        return found

    def _validation(self, listing: Listing) -> None:
        """Add the validation images to a listing, with classes from a list."""
        with self._opened(VAL) as stream:
            all_ = tars.members(stream, self.root / VAL, listing.passed, VAL)
            files = [member for member in all_ if image(member.name)]
        inside = [f"{VAL}/{member.name.rpartition('/')[2]}" for member in files]
        listing.splits["val"] = imagenet.listed_items(self.root, VAL, inside, listing)
        listing.offsets.extend(member.offset_data for member in files)
