"""Test the studies: the images they use, the launches they plan, how they judge finished runs."""

import gzip
import struct

import pytest

from benchmarks.studies import ablations, common, methods
from pipeline.compare.collect import Run
from pipeline.display.errors import UserError
from pipeline.planning import named_run, sweep


def idx(sizes: tuple[int, ...], content: bytes) -> bytes:
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, 8, len(sizes), *sizes) + content


def test_a_part_of_the_data_is_the_first_images_and_their_labels(tmp_path):
    for part in ("train", "t10k"):
        for kind, content in {
            "images-idx3": idx((3, 2, 2), bytes(range(12))),
            "labels-idx1": idx((3,), b"\5\6\7"),
        }.items():
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    common.write_part(tmp_path, tmp_path / "part", (2, 1))
    images, labels = (
        (tmp_path / "part" / f"train-{kind}-ubyte").read_bytes()
        for kind in ("images-idx3", "labels-idx1")
    )
    assert images == idx((2, 2, 2), bytes(range(8)))
    assert labels == idx((2,), b"\5\6")


def test_missing_data_names_the_package(tmp_path):
    with pytest.raises(UserError, match="apt install dataset-fashion-mnist"):
        common.write_part(tmp_path, tmp_path / "part")


def run(method: str, seed: int, top1: float, start: str = "drawn") -> Run:
    settings = {"method.name": method, "method.start": start}
    return Run(name=f"{method}-s{seed}", state="done", seed=seed, settings=settings,
               wall_hours=0.5, metrics={"eval/fused/top1": top1, "train/top1": top1})  # fmt: skip


def test_methods_are_separated_by_start_and_tested_against_plain_seed_by_seed():
    runs = [
        *(run("plain", seed, 80.0 + seed) for seed in range(3)),
        *(run("plain", seed, 82.0 + seed + seed / 10, "identity") for seed in range(3)),
    ]
    found = {name: methods.named(runs, name) for name in ("plain", methods.STARTED)}
    assert [len(of) for of in found.values()] == [3, 3]
    test = common.versus(found, "plain", "eval/fused/top1")[methods.STARTED]
    assert test.difference == pytest.approx(2.1)
    assert test.verdict == "better"
    assert common.kept({"": test}, less=True)[""]["verdict"] == "worse"
    assert common.over(found["plain"], common.SECONDS).mean == 1800


@pytest.mark.parametrize("name", [n for n, v in ablations.VARIANTS.items() if v.after is None])
def test_each_variant_is_a_configuration(name, tmp_path):
    words = [*ablations.VARIANTS[name].words, *ablations.SETTINGS]
    named_run.settle(*sweep.single([*words, f"data.root={tmp_path}", f"root={tmp_path}"]))


def test_each_variant_is_launched_once_and_after_the_run_whose_weights_it_loads(tmp_path):
    launches = list(ablations.launches(ablations.AXES, 2, tmp_path))
    names = [word for words in launches for word in words if word.startswith("name=")]
    assert len(names) == len(set(names)) == 2 * len(ablations.VARIANTS)
    for words in launches:
        for word in words:
            if str(tmp_path) in word:
                began = word.rpartition("/")[2]
                assert names.index(f"name={began}") < names.index(
                    words[-len(ablations.SETTINGS) - 2]
                )


def test_the_variants_of_an_axis_are_tested_against_its_first():
    runs = {r.name: r for seed in range(3) for r in (
        run("dyrep", seed, 80.0 + seed), run("linear", seed, 81.0 + seed + seed / 10))}  # fmt: skip
    found = {"form": ablations.of_axis("form", runs)}
    answer = ablations.report(found)
    test = answer["against the first of the axis"]["form"]["linear"]
    assert test["difference"] == pytest.approx(1.1) and test["verdict"] == "better"
    assert len(answer["runs"]) == 6 and len(ablations.draw(found).axes[0].lines) == 2
    assert not ablations.of_axis("strength", runs)
