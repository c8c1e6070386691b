"""Change whole training batches on the device: progressive resizing, mixup, cutmix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import interpolate

from pipeline.config.train import Augment, Train
from pipeline.data.loaders.base import Batch

if TYPE_CHECKING:
    from torchvision.transforms import v2

STEP = 8  # pixels; the sides of progressive images are multiples of it


class Mixing:
    """Changes batches according to `train.augment`: mixup, cutmix, progressive.

    Mixing draws from torch's generator, whose state is part of every checkpoint.
    """

    def __init__(self, recipe: Train, classes: int, image_size: int) -> None:
        self._recipe, self._size = recipe, image_size
        self._mix = _mix(recipe.augment, classes)

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """Return the batch to train on; its labels are probabilities if images were mixed."""
        images, labels, numbers = batch
        side = self.side(epoch)
        if side != self._size:
            images = interpolate(
                images, size=(side, side), mode="bilinear", antialias=True, align_corners=False
            )
        if self._mix:
            images, labels = self._mix(images, labels)
        return Batch(images, labels, numbers)

    def side(self, epoch: int) -> int:
        """Return the side of the images in an epoch (from 0), in pixels: it grows to full size."""
        first = self._recipe.augment.progressive
        if first is None or self._recipe.epochs == 1:
            return self._size
        side = first + (self._size - first) * epoch / (self._recipe.epochs - 1)
        return self._size if side >= self._size else max(STEP, round(side / STEP) * STEP)


def _mix(augment: Augment, classes: int) -> v2.Transform | None:
    """Return the transform that mixes the images of a batch; None without mixup and cutmix."""
    if not (augment.mixup or augment.cutmix):
        return None
    from torchvision.transforms import v2  # takes half a second, so only if it is needed

    kinds: list[v2.Transform] = []
    if augment.mixup:
        kinds.append(v2.MixUp(alpha=augment.mixup, num_classes=classes))
    if augment.cutmix:
        kinds.append(v2.CutMix(alpha=augment.cutmix, num_classes=classes))
    return v2.RandomChoice(kinds)
