"""Write and read prepared data: shuffled WebDataset shards with a DALI index, and one manifest.

    <root>/data/<fingerprint>/
        manifest.json            classes, counts, mean and std, and per shard: images, bytes, sha256
        quarantine.jsonl         images that were left out, and why
        passed_over.jsonl        files and folders that are not images, and why
        remarks.jsonl            oddities of images that were kept
        source.gz                the files that were read, with size and time (see sources.changes)
        train-00000.tar .idx     members NNNNNNNN.png or .jpg, .cls (label as text), .target
        val-00000.tar   .idx

`.target` holds label and image number as two little-endian int32. It exists because DALI reads only
bytes, and because an evaluation that counts each image once must know which image it saw.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from pipeline.display.errors import UserError
from pipeline.records import disk, rundir

VERSION = 2
MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}
"""The mode in which Pillow returns an image of so many channels."""


@dataclass(frozen=True)
class Shard:
    """One tar file of a split."""

    name: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of train or val, in order; `counts` are the images of each class."""

    images: int
    shards: tuple[Shard, ...]
    counts: tuple[int, ...]
    pixels: int


@dataclass(frozen=True)
class Manifest:
    """The content of a prepared folder.

    Args:
        mean, std: per channel that the network sees (RGB, or grey), on the scale from 0 to 1.
        size: (height, width) of all images; None if they differ.
        parameters: settings that decided the content.
        source: number, bytes and a digest of the files that were read; None in older folders.
        passed_over: number of files and folders that are not images.
    """

    classes: tuple[str, ...]
    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: dict[str, Split]
    parameters: dict[str, Any]
    source: dict[str, Any] | None = None
    passed_over: int = 0
    version: int = VERSION

    @property
    def channels(self) -> int:
        """The number of channels of an image that the network sees: 3 (RGB) or 1 (grey)."""
        return len(self.mean)

    def save(self, folder: Path) -> None:
        """Write `manifest.json`."""
        rundir.write_json(folder / rundir.MANIFEST, asdict(self), settings=self.parameters)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `manifest.json`.

        Raises:
            UserError: the folder holds no manifest of this version.
        """
        try:
            raw = rundir.read_json(folder / rundir.MANIFEST)
            splits = {
                name: Split(
                    images=split["images"],
                    shards=tuple(Shard(**shard) for shard in split["shards"]),
                    counts=tuple(split["counts"]),
                    pixels=split["pixels"],
                )
                for name, split in raw["splits"].items()
            }
            size = tuple(raw["size"]) if raw["size"] else None
            return cls(**{**raw, "splits": splits, "classes": tuple(raw["classes"]), "size": size})
        except (OSError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder} holds no readable {rundir.MANIFEST} ({error}); launch with again=[prep]"
            ) from None


def damage(folder: Path, split: str) -> str | None:
    """Return the damage of a split's shards since they were written; None if they are intact.

    The text names the images that can no longer be decoded.
    """
    for shard in Manifest.load(folder).splits[split].shards:
        path = folder / shard.name
        if not path.exists():
            return f"{path} is gone"
        if disk.sha256(path) != shard.sha256:
            images = ", ".join(_undecodable(path)) or "no single image"
            return f"{path} was changed since it was written; not readable in it: {images}"
    return None


def _undecodable(path: Path) -> Iterator[str]:
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if Path(member.name).suffix in (".png", ".jpg"):
                    try:
                        Image.open(io.BytesIO(tar.extractfile(member).read())).load()  # type: ignore[union-attr]
                    except (OSError, SyntaxError):
                        yield member.name
    except tarfile.TarError:
        yield "the rest of the file"


class Writer:
    """Writes one shard; the shard and its index get their final names when they are complete."""

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, path.with_name(f".{path.name}.{os.getpid()}")
        self._file = self._temporary.open("wb")
        self._size, self._digest = 0, hashlib.sha256()
        self._index: list[str] = []

    def add(self, number: int, data: bytes, extension: str, label: int) -> None:
        """Append an image: the encoded picture, its label as text, and `.target`."""
        members = {
            extension: data,
            "cls": str(label).encode(),
            "target": struct.pack("<ii", label, number),
        }
        line, pieces, end = [], [], self._size
        for kind, content in members.items():
            padding = bytes(-len(content) % tarfile.BLOCKSIZE)
            pieces += [_header(number, kind, len(content)), content, padding]
            line.append(f"{kind} {end + tarfile.BLOCKSIZE} {len(content)} {number:08d}.{kind}")
            end += tarfile.BLOCKSIZE + len(content) + len(padding)
        self._index.append(" ".join(line))
        self._write(b"".join(pieces))

    def close(self) -> Shard | None:
        """Finish the shard and return it; None if it holds no image."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))  # the end of a tar file
        self._write(bytes(-self._size % tarfile.RECORDSIZE))
        self._file.close()
        if not self._index:
            self._temporary.unlink()
            return None
        text = "\n".join([f"v1.2 {len(self._index)}", *self._index])
        rundir.write_text(self._path.with_suffix(".idx"), text + "\n")
        disk.sync(self._temporary)
        self._temporary.rename(self._path)
        return Shard(self._path.name, len(self._index), self._size, self._digest.hexdigest())

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self._size += len(content)


def _header(number: int, kind: str, size: int) -> bytes:
    """Return the header of a member: tarfile's header, with name, size and checksum filled in.

    tarfile's own header code costs 2 % of the decoding time.
    """
    header = bytearray(_blank(kind))
    header[:8] = b"%08d" % number
    header[124:135] = b"%011o" % size
    header[148:156] = b" " * 8  # the checksum counts its own field as spaces
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@cache
def _blank(kind: str) -> bytes:
    """Return the header of an empty member, without time and owner, so that it never varies."""
    return tarfile.TarInfo(f"{0:08d}.{kind}").tobuf(tarfile.USTAR_FORMAT)


class Pictures:
    """The images of a split, by their index in its shards."""

    def __init__(self, folder: Path, split: Split) -> None:
        self._entries = [
            (str(folder / shard.name), *entry)
            for shard in split.shards
            for entry in _index((folder / shard.name).with_suffix(".idx"))
        ]

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, index: int) -> bytes:
        """Return the encoded picture at an index."""
        path, offset, size, _ = self._entries[index]
        return os.pread(_file(path), size, offset)

    def target(self, index: int) -> tuple[int, int]:
        """Return the label and image number at an index."""
        path, _, _, offset = self._entries[index]
        label, number = struct.unpack("<ii", os.pread(_file(path), 8, offset))
        return label, number


def picture(path: Path, number: int) -> bytes | None:
    """Return the encoded picture of an image number; None if the shard does not contain it."""
    for line in path.with_suffix(".idx").read_text(encoding="utf-8").splitlines()[1:]:
        _, offset, size, name, *_ = line.split()
        if name.startswith(f"{number:08d}."):
            with path.open("rb") as file:
                file.seek(int(offset))
                return file.read(int(size))
    return None


def _index(path: Path) -> list[tuple[int, int, int]]:
    """Return offset and size of each picture in a shard, and the offset of its target."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        words = line.split()
        members = {words[n]: (int(words[n + 1]), int(words[n + 2])) for n in range(0, 12, 4)}
        found.append((*(members.get("png") or members["jpg"]), members["target"][0]))
    return found


@cache
def _file(path: str) -> int:
    """Open a shard, once per process."""
    return os.open(path, os.O_RDONLY)


def images_in(path: Path) -> Iterator[tuple[int, bytes, str, int]]:
    """Yield number, encoded picture, its extension and label of the images in a shard."""
    with tarfile.open(path) as tar:
        found: dict[str, bytes] = {}
        for member in tar:
            kind = member.name.rpartition(".")[2]
            found[kind] = tar.extractfile(member).read()  # type: ignore[union-attr]
            if kind == "target":
                extension = "png" if "png" in found else "jpg"
                label, number = struct.unpack("<ii", found["target"])
                yield number, found[extension], extension, label
                found = {}
