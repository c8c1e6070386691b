"""Prove that a file equals the network: load it in another process, compare on real images."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy
import torch
from torch import Tensor

from dyrep.proof import relative_error
from pipeline.stages.export import runtime


@dataclass(frozen=True)
class Difference:
    """The difference between scores (N, classes) and the expected ones.

    Errors are maxima; `flips` is the number of images whose first class differs.
    """

    max_abs_error: float
    max_rel_error: float
    flips: int

    @classmethod
    def between(cls, expected: Tensor, actual: Tensor) -> Difference:
        """Compare scores of the same images."""
        return cls(
            (expected - actual).abs().max().item(),
            relative_error(expected, actual),
            int((expected.argmax(1) != actual.argmax(1)).sum()),
        )

    def as_dict(self) -> dict[str, float]:
        """Return the fields by name."""
        return asdict(self)


def scores_elsewhere(path: Path, images: Tensor) -> Tensor:
    """Return the scores of images, from a file run in a process that imports nothing of ours.

    Raises:
        RuntimeError: the file cannot be loaded or run there.
    """
    with TemporaryDirectory() as folder:
        given, found = Path(folder) / "images.npy", Path(folder) / "scores.npy"
        numpy.save(given, images.numpy())
        done = subprocess.run(
            [sys.executable, "-I", runtime.__file__, path.resolve(), given, found],
            cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode < 0:
            raise RuntimeError(f"it was ended by signal {-done.returncode}")
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise RuntimeError(lines[-1])
        return torch.from_numpy(numpy.load(found))
