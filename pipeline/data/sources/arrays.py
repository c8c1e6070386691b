"""Read arrays or generate images, encoded as PNG or JPEG: digits, CIFAR, synthetic."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.sources.base import Item, Listing, lacking
from pipeline.data.sources.tree import File, content, fact
from pipeline.display.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from pipeline.config.data import Cifar as CifarSettings
    from pipeline.config.data import Images
    from pipeline.config.data import Synthetic as SyntheticSettings


def png(pixels: np.ndarray) -> bytes:
    """Encode grey (H, W) or RGB (H, W, 3) uint8 pixels as PNG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class Digits:
    """The handwritten digits of scikit-learn, 8x8 and grey (UCI ML repository)."""

    def __init__(self, data: Images) -> None:
        pass

    @cached_property
    def _bunch(self) -> Any:
        from sklearn.datasets import load_digits

        return load_digits()

    def count(self) -> int:
        return 1797

    def listing(self) -> Listing:
        items = [Item(f"digits-{n:04d}", int(label)) for n, label in enumerate(self._bunch.target)]
        return Listing(classes=tuple("0123456789"), splits={"all": items})

    def read(self, name: str) -> bytes:
        import numpy as np

        image = self._bunch.images[int(name.removeprefix("digits-"))]
        return png(np.rint(image * (255 / 16)).astype(np.uint8))


class Cifar:
    """CIFAR-10 and CIFAR-100 as distributed for Python: the archive, or its extracted content."""

    def __init__(self, data: CifarSettings) -> None:
        self.root, self.name = Path(data.root), data.name

    @property
    def _known(self) -> Any:
        """Torchvision's class of the data set, which knows file names and MD5 sums."""
        from torchvision import datasets

        return datasets.CIFAR10 if self.name == "cifar10" else datasets.CIFAR100

    def count(self) -> int:
        archive = {"cifar10": "cifar-10", "cifar100": "cifar-100"}[self.name]
        folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[self.name]
        if not any((self.root / name).exists() for name in (f"{archive}-python.tar.gz", folder)):
            raise UserError(
                f"{lacking(self.root, f'{archive}-python.tar.gz or {folder}/')}; get the archive "
                "from https://www.cs.toronto.edu/~kriz/cifar.html, and point data.root at the "
                "folder that you put it in"
            )
        return 60_000

    def listing(self) -> Listing:
        self.count()
        meta = self._files[self._known.meta["filename"]]
        splits = {
            split: [Item(f"{split}-{n:05d}", label) for n, label in enumerate(labels)]
            for split, (_, labels) in self._arrays.items()
        }
        return Listing(
            classes=tuple(meta[self._known.meta["key"]]), splits=splits, others=self._there()
        )

    def read(self, name: str) -> bytes:
        split, _, number = name.partition("-")
        pixels = self._arrays[split][0][int(number)]
        return png(pixels.reshape(3, 32, 32).transpose(1, 2, 0))

    def _there(self) -> list[File]:
        """Return the files of the data set."""
        names = [self._known.filename]
        if (self.root / self._known.base_folder).is_dir():
            batches = [*self._known.train_list, *self._known.test_list]
            names = [f"{self._known.base_folder}/{name}" for name, _ in batches]
        return [fact(self.root, name) for name in names]

    @cached_property
    def _arrays(self) -> dict[str, tuple[np.ndarray, list[int]]]:
        """Return pixels (N, 3072) uint8 and labels of both splits."""
        import numpy as np

        found = {}
        for split, batches in (("train", self._known.train_list), ("val", self._known.test_list)):
            loaded = [self._files[name] for name, _ in batches]
            labels = [n for one in loaded for n in one.get("labels", one.get("fine_labels"))]
            found[split] = np.concatenate([one["data"] for one in loaded]), labels
        return found

    @cached_property
    def _files(self) -> dict[str, Any]:
        """Return the content of the batches, by name, after a check of their MD5 sums.

        Raises:
            UserError: a file is missing or was changed.
        """
        known = self._known
        sums = dict([*known.train_list, *known.test_list])
        sums[known.meta["filename"]] = known.meta["md5"]
        folder = self.root / known.base_folder
        if folder.is_dir():
            read = {name: (folder / name) for name in sums}
            missing = [path for path in read.values() if not path.exists()]
            if missing:
                raise UserError(f"{missing[0]} is missing; extract {known.filename} again")
            raw = {name: content(path) for name, path in read.items()}
        else:
            archive = self.root / known.filename
            check_sum(archive, content(archive), known.tgz_md5)
            with tarfile.open(archive) as tar:
                members = {name: tar.extractfile(f"{known.base_folder}/{name}") for name in sums}
                raw = {name: member.read() for name, member in members.items() if member}
        for name, data in raw.items():
            check_sum(folder / name, data, sums[name])
        # safe to unpickle: the files have the MD5 sums that their authors published
        return {name: pickle.loads(data, encoding="latin1") for name, data in raw.items()}


def check_sum(path: Path, content: bytes, md5: str) -> None:
    """Check that a file has the MD5 sum that its authors published.

    Raises:
        UserError: the file has another sum.
    """
    found = hashlib.md5(content).hexdigest()
    if found != md5:
        raise UserError(f"{path} is damaged (MD5 {found} instead of {md5}); get it again")


class Synthetic:
    """Images of noise and a wave, whose direction is the class: learnable, of any size."""

    def __init__(self, data: SyntheticSettings) -> None:
        self._data = data

    def count(self) -> int:
        return self._data.images

    def listing(self) -> Listing:
        count, classes = self._data.images, self._data.classes
        items = [Item(f"synthetic-{n:08d}", n % classes) for n in range(count)]
        names = tuple(f"wave-{label:03d}" for label in range(classes))
        return Listing(classes=names, splits={"all": items})

    def read(self, name: str) -> bytes:
        """Return a JPEG with the file size of a photograph: noise with a falling spectrum."""
        import numpy as np
        from PIL import Image

        number = int(name.removeprefix("synthetic-"))
        height, width = self._data.height, self._data.width
        random = np.random.default_rng(number)
        angle = np.pi * (number % self._data.classes) / self._data.classes
        y, x = np.mgrid[:height, :width] / max(height, width)
        wave = np.sin(16 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) + random.uniform(0, 6))
        pixels = 128 + 40 * wave[..., None] + 40 * _pink(random, height, width)
        stream = io.BytesIO()
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(stream, "JPEG", quality=92)
        return stream.getvalue()


def _pink(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return pink noise (H, W, 3) with mean 0 and standard deviation 1."""
    import numpy as np

    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(random.standard_normal((3, height, width))) / frequency
    spectrum[:, 0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(height, width)).transpose(1, 2, 0)
    scaled: np.ndarray = noise / noise.std()
    return scaled
