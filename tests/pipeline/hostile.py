"""Make hostile files that run code when they are loaded, and model cards with wrong entries."""

import io
import json
import os

import torch
from torch import nn

from pipeline.records import rundir

CARD = {
    "preprocess": {
        "resize": 8, "image_size": 8, "interpolation": "bilinear",
        "mean": [0.0] * 3, "std": [1.0] * 3, "classes": ["a", "b"],
    },
    "architecture": {"name": "v", "family": "vgg", "widths": [[2]]},
}  # fmt: skip


class Pickled:
    """An object whose pickle creates the folder `mark` when it is loaded."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def pickled(mark):
    stream = io.BytesIO()
    torch.save(Pickled(mark), stream)
    return stream.getvalue()


class Script(nn.Module):
    """A TorchScript module that writes the file `mark` when it is loaded."""

    def __init__(self, mark):
        super().__init__()
        self.mark = str(mark)

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return self.mark, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.mark = state[0]
        self.training = state[1]
        torch.save(torch.ones(1), state[0])


def deep(value):
    return json.loads(json.dumps(CARD)) | value


def unread(folder):
    """Return a folder of data with an empty manifest; commands read the network's file first."""
    folder.mkdir()
    (folder / rundir.MANIFEST).write_text("{}")
    return folder
