"""The study of all methods: its part of the data, and what it makes of finished runs."""

import gzip
import struct

import pytest

from benchmarks.studies import methods
from pipeline.compare.collect import Run
from pipeline.errors import UserError


def idx(sizes: tuple[int, ...], content: bytes) -> bytes:
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, 8, len(sizes), *sizes) + content


def test_a_part_is_the_first_images_and_their_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "SIZES", {"train": 2, "t10k": 1})
    for part in ("train", "t10k"):
        for kind, content in {
            "images-idx3": idx((3, 2, 2), bytes(range(12))),
            "labels-idx1": idx((3,), b"\5\6\7"),
        }.items():
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    methods.write_part(tmp_path, tmp_path / "part")
    images, labels = (
        (tmp_path / "part" / f"train-{kind}-ubyte").read_bytes()
        for kind in ("images-idx3", "labels-idx1")
    )
    assert images == idx((2, 2, 2), bytes(range(8)))
    assert labels == idx((2,), b"\5\6")


def test_missing_data_names_the_package(tmp_path):
    with pytest.raises(UserError, match="apt install dataset-fashion-mnist"):
        methods.write_part(tmp_path, tmp_path / "part")


def run(method: str, seed: int, top1: float, start: str = "drawn") -> Run:
    settings = {"method.name": method, "method.start": start}
    return Run(name="", state="done", seed=seed, settings=settings,
               metrics={"eval/fused/top1": top1})  # fmt: skip


def test_a_method_is_told_from_its_start_and_tested_against_plain_seed_by_seed():
    runs = [
        *(run("plain", seed, 80.0 + seed) for seed in range(3)),
        *(run("plain", seed, 82.0 + seed + seed / 10, "identity") for seed in range(3)),
        Run(name="", state="failed", seed=4),
    ]
    found = {name: methods.named(runs, name) for name in ("plain", methods.STARTED)}
    assert [len(of) for of in found.values()] == [3, 3]
    test = methods.versus(found)[methods.STARTED]
    assert test.difference == pytest.approx(2.1)
    assert test.verdict == "better"
