"""Test `compare.settings`: groups are named by the settings in which they differ."""

from pipeline.compare import answer, collect, settings
from tests.runs import make_run


def test_groups_are_named_by_settings_within_a_choice(tmp_path):
    for number, (method, lr) in enumerate((("plain", 0.1), ("plain", 0.2), ("dyrep", 0.1))):
        make_run(
            tmp_path, f"r{number}", f"method={method}", top1=90 - number, changed={"train.lr": lr}
        )
    result = answer.answer("t", collect.read(collect.select(tmp_path, [], "g")), [], force=False)
    assert [group.label for group in result.groups] == [
        "method=plain train.lr=0.1", "method=plain train.lr=0.2", "method=dyrep train.lr=0.1",
    ]  # fmt: skip
    # two groups are plain, so none of them is the baseline
    assert "chosen after" in " ".join(result.notes)


def test_a_derived_setting_is_not_part_of_the_names_of_groups():
    rows = [("plain", [], False), ("plain", ["onnx"], True), ("grow", [], False)]
    keys = ["method.name", "fuse.exports", "eval.exports"]
    trees = [dict(zip(keys, row, strict=True)) for row in rows]
    assert settings.labels(trees, keys) == [
        "method=plain fuse.exports=[]",
        "method=plain fuse.exports=[onnx]",
        "method=grow fuse.exports=[]",
    ]


def test_values_are_spelled_as_on_the_command_line():
    trees = [{"method.max_cost": cost, "eval.exports": cost is None} for cost in (None, 1.5)]
    assert settings.labels(trees, ["method.max_cost", "eval.exports"]) == [
        "method.max_cost=null",
        "method.max_cost=1.5",
    ]
    assert settings.fits(trees[0], "method.max_cost", "null")


def test_a_file_is_named_by_its_path_and_not_by_its_hash():
    trees = [
        {"method.name": "plain", "model.pretrained": f, "model.pretrained_sha256": f * 9}
        for f in "ab"
    ]
    assert settings.labels(trees, ["model.pretrained", "model.pretrained_sha256"]) == [
        "model.pretrained=a",
        "model.pretrained=b",
    ]
    assert settings.labels(trees, ["model.pretrained_sha256"])[0].startswith("model.pretrained_sha")
