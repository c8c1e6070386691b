"""Export a fused network to every requested format; a failure of one does not affect the others."""

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

TOLERANCE = 1e-4  # largest accepted relative error of a float32 file
TRY = ".export-"


class Outcome(TypedDict, total=False):
    """The outcome of a format: its file and errors, or the reason it was `skipped` or `failed`."""

    file: str
    seconds: float
    max_abs_error: float
    max_rel_error: float
    flips: int
    note: str
    skipped: str
    failed: str


class ExportError(ArithmeticError):
    """An exported file computes another function than the network."""


def write(
    source: Source, folder: Path, formats: Sequence[str], images: torch.Tensor
) -> Iterator[tuple[str, Outcome]]:
    """Yield the name and the outcome of each format: its errors, or why there is no file.

    Args:
        source: the network to export.
        folder: the folder for the files; a file gets its name there only after it was verified.
        formats: names in `FORMATS`.
        images: real images (N, C, H, W), on which each file is compared with the network.

    Raises:
        ExportError: a file computes another function.
    """
    for leftover in folder.glob(f"{TRY}*"):  # left by a killed attempt
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
        except Exception as error:  # exporters raise anything; other files remain valid
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
    # exporters need the right suffix, so the file is written under its own name, then moved
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
