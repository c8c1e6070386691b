"""Record the facts about a shard's images; compact, because there may be millions of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.shards import Shard
from pipeline.records import rundir

KEPT = np.dtype(
    [("number", "i8"), ("label", "i4"), ("height", "i4"), ("width", "i4"), ("pixels", "u8"),
     ("looks", "u8")]
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of one shard.

    Args:
        shard: the shard on disk; None if no image is left.
        kept: its images, in order, as `KEPT`; for `pixels` and `looks` see `examine.Good`.
        remarks: oddities of images, by image number.
        bad: name and reason of each image that was left out.
        histogram: (channels, 256) counts of values per channel.
        state: digest of the files that were read; see `build.Task`.
    """

    shard: Shard | None
    kept: np.ndarray
    remarks: dict[int, str]
    bad: list[dict[str, str]]
    histogram: np.ndarray
    state: str

    def save(self, path: Path) -> None:
        """Write the record as JSON."""
        rundir.write_json(
            path,
            {
                "shard": self.shard and vars(self.shard),
                "kept": self.kept.tolist(),
                "remarks": self.remarks,
                "bad": self.bad,
                "histogram": self.histogram.tolist(),
                "state": self.state,
            },
        )

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record that `save` wrote."""
        raw = rundir.read_json(path)
        return cls(
            shard=Shard(**raw["shard"]) if raw["shard"] else None,
            kept=np.array([tuple(row) for row in raw["kept"]], dtype=KEPT),
            remarks={int(number): text for number, text in raw["remarks"].items()},
            bad=raw["bad"],
            histogram=np.array(raw["histogram"]),
            state=raw["state"],
        )


def images(records: list[Record]) -> np.ndarray:
    """Return the images of several shards as one table."""
    return np.concatenate([record.kept for record in records] or [np.empty(0, KEPT)])
