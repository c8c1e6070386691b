"""Read Fashion-MNIST of Debian's package: 10,000 training images and the 10,000 test images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional

from benchmarks.gpu_campaign.whole import idx
from pipeline.display.errors import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
MEAN, STD = 0.286, 0.353  # of the 60,000 training images
SHIFT = 2  # largest shift to each side, pixels


@dataclass(frozen=True)
class Images:
    """Normalised images (N, 1, 28, 28) and their labels (N,)."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def read(folder: Path, train: int, test: int) -> Images:
    """Return the first images of each part.

    Raises:
        UserError: a file is missing.
    """
    return Images(*_part(folder, "train", train), *_part(folder, "t10k", test))


def _part(folder: Path, part: str, count: int) -> tuple[Tensor, Tensor]:
    files = [folder / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{file} is not there; install Fashion-MNIST (apt install dataset-fashion-mnist) "
                "or name the folder of its four files with --data"
            )
    images, labels = (torch.from_numpy(idx(file)[:count].copy()) for file in files)
    return images.float().div(255).sub(MEAN).div(STD)[:, None], labels.long()


def augment(images: Tensor, generator: Generator) -> Tensor:
    """Flip half of the images (N, 1, H, W) and shift each by up to two pixels."""
    count, _, height, width = images.shape
    flip = torch.rand(count, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = functional.pad(images, [SHIFT] * 4, value=-MEAN / STD)
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    everyone = torch.arange(count)[:, None, None]
    return padded[everyone, 0, rows[:, :, None], columns[:, None, :]][:, None]
