"""Prepared data on disk: shuffled WebDataset shards with a DALI index, and one manifest.

    <root>/data/<fingerprint>/
        manifest.json            classes, counts, mean and std, and per shard: images, bytes, sha256
        quarantine.jsonl         what was left out, and why
        train-00000.tar .idx     members NNNNNNNN.png, .cls (label as text), .target
        val-00000.tar   .idx

`.target` holds label and image number as two little-endian int32, because DALI reads bytes, and
because an evaluation that counts each image once has to know which image it saw.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sysconfig
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline import rundir
from pipeline.data.sources import Sample
from pipeline.errors import UserError

VERSION = 1


@dataclass(frozen=True)
class Shard:
    """One tar file of a split."""

    name: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of train or val, in order."""

    images: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds; mean and std are per channel (RGB) on the scale 0 to 1."""

    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    splits: dict[str, Split]
    parameters: dict[str, Any]
    version: int = VERSION

    def save(self, folder: Path) -> None:
        """Write `manifest.json`."""
        rundir.write_json(folder / rundir.MANIFEST, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `manifest.json`.

        Raises:
            UserError: the folder holds no manifest of this version.
        """
        try:
            raw = rundir.read_json(folder / rundir.MANIFEST)
            splits = {
                name: Split(split["images"], tuple(Shard(**shard) for shard in split["shards"]))
                for name, split in raw["splits"].items()
            }
            return cls(**{**raw, "splits": splits, "classes": tuple(raw["classes"])})
        except (OSError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder} holds no readable {rundir.MANIFEST} ({error}); launch stage=prep anew"
            ) from None


def damage(folder: Path, split: str) -> str | None:
    """Return what happened to the shards of a split since they were written; None if nothing.

    Names the images that cannot be decoded any more.
    """
    for shard in Manifest.load(folder).splits[split].shards:
        path = folder / shard.name
        if not path.exists():
            return f"{path} is gone"
        if rundir.sha256(path) != shard.sha256:
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


def write_split(
    folder: Path, split: str, samples: Iterator[tuple[int, Sample]], images: int, per_shard: int
) -> Split:
    """Write numbered samples of one split as shards of at most `per_shard` images."""
    shards = []
    for number in range(-(-images // per_shard)):
        path = folder / f"{split}-{number:05d}.tar"
        count = min(per_shard, images - number * per_shard)
        _write_shard(path, [next(samples) for _ in range(count)])
        shards.append(Shard(path.name, count, path.stat().st_size, rundir.sha256(path)))
    return Split(images, tuple(shards))


def _write_shard(path: Path, samples: Sequence[tuple[int, Sample]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index, sample in samples:
            _add(tar, f"{index:08d}.{sample.extension}", sample.data)
            _add(tar, f"{index:08d}.cls", str(sample.label).encode())
            _add(tar, f"{index:08d}.target", struct.pack("<ii", sample.label, index))
    rundir.sync(path)
    _write_index(path)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time, no owner: the same images make the same bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _write_index(path: Path) -> None:
    """Write the index beside a shard with DALI's own tool."""
    tool = Path(sysconfig.get_path("scripts")) / "wds2idx"
    index = path.with_suffix(".idx")
    done = subprocess.run([tool, path, index], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"wds2idx failed on {path}: {done.stderr.strip()}")
    rundir.sync(index)
