"""Export a fused network to every format asked for; what fails or is missing harms no other."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

import torch

from pipeline.display.errors import Interrupted, gist
from pipeline.records import disk
from pipeline.stages.export.formats import FORMATS, Format, Source
from pipeline.stages.export.verify import Difference, scores_elsewhere

TOLERANCE = 1e-4  # largest relative error of a file that holds float32
TRY = ".export-"


class Outcome(TypedDict, total=False):
    """What came of a format: a file and its errors, or why it was `skipped` or `failed`."""

    file: str
    seconds: float
    max_abs_error: float
    max_rel_error: float
    flips: int
    note: str
    skipped: str
    failed: str


class ExportError(ArithmeticError):
    """An exported file computes something else than the network."""


def write(
    source: Source, folder: Path, formats: Sequence[str], images: torch.Tensor
) -> Iterator[tuple[str, Outcome]]:
    """Yield the name and the outcome of each format: its errors, or why there is no file.

    Args:
        source: What is exported.
        folder: Where the files go; none that is not right ever stands there.
        formats: Names in `FORMATS`.
        images: Real ones (N, 3, H, W), on which the file is compared with the network.

    Raises:
        ExportError: a file computes something else.
    """
    for leftover in folder.glob(f"{TRY}*"):  # of an attempt that was killed
        shutil.rmtree(leftover)
    with torch.inference_mode():
        expected = torch.cat([source.network(batch) for batch in images.split(64)])
    for name in formats:
        chosen = FORMATS[name]
        missing = chosen.missing()
        if missing:
            yield name, {"skipped": missing}
            continue
        try:
            yield name, _one(name, chosen, source, folder, images, expected)
        except (ExportError, OSError, Interrupted):
            raise
        except Exception as error:  # each exporter has its own; the other files are good without
            yield name, {"failed": f"{gist(error)}"}


def _one(
    name: str,
    chosen: Format,
    source: Source,
    folder: Path,
    images: torch.Tensor,
    expected: torch.Tensor,
) -> Outcome:
    start = time.perf_counter()
    path = folder / chosen.file
    # the exporters go by the ending of a name, so the file gets its own before it gets its place
    with disk.replacing(path) as temporary, TemporaryDirectory(prefix=TRY, dir=folder) as inside:
        made = Path(inside) / chosen.file
        note = chosen.write(source, made)
        difference = Difference.between(expected, scores_elsewhere(made, images))
        if chosen.exact and not difference.max_rel_error <= TOLERANCE:
            raise ExportError(
                f"{chosen.file} differs by {difference.max_rel_error:.1e} from the network "
                f"(allowed {TOLERANCE:.0e}); leave {name} out of fuse.exports"
            )
        made.replace(temporary)
    outcome: Outcome = {
        "file": chosen.file,
        "seconds": round(time.perf_counter() - start, 1),
        "max_abs_error": difference.max_abs_error,
        "max_rel_error": difference.max_rel_error,
        "flips": difference.flips,
    }
    if note:
        outcome["note"] = note
    return outcome
