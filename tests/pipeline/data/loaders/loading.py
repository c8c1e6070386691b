"""Build loader specifications and augmentations, and compare batches, for the tests of the loaders."""

import torch

from pipeline.config.train import Augment
from pipeline.data.loaders.base import LoaderSpec

NONE = {
    "crop": "none", "scale": [0.08, 1.0], "ratio": [0.75, 1.333], "padding": 0, "rotate": 0.0,
    "translate": 0.0, "flip": False, "jitter": [0.0] * 4, "policy": None, "erase": 0.0, "cutout": 0,
    "mixup": 0.0, "cutmix": 0.0, "repeats": 1, "progressive": None,
}  # fmt: skip

KINDS = ("dali", "memory", "torch")

MUCH = {
    "dali": {"crop": "resized", "flip": True, "rotate": 10.0, "jitter": [0.2, 0.2, 0.2, 0.1]},
    "memory": {"crop": "pad", "padding": 3, "jitter": [0.2, 0.2, 0.2, 0.1], "flip": True, "rotate": 10.0, "translate": 0.1,
               "erase": 0.5, "cutout": 5},
    "torch": {"crop": "resized", "flip": True, "policy": "rand-m9-mstd0.5-inc1", "erase": 0.5,
              "cutout": 5, "cutout_clip": True, "repeats": 2},
}  # fmt: skip


def augment(**changes):
    return Augment(**{**NONE, **changes})


def spec(data, split="train", **changes):
    plain = {"batch_size": 8, "image_size": 24, "resize": 24, "augment": augment(), "seed": 5}
    if split == "val":
        plain["augment"] = None
    return LoaderSpec(folder=data, split=split, **{**plain, **changes})


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
