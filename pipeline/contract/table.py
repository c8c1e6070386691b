"""List the five stages in a table; the body of each is the module of its name in `pipeline.stages`.

To add a stage, add a row here, a module in `pipeline.stages`, and its name to
`pipeline.config.base`.
"""

from __future__ import annotations

from pipeline.contract.stage import Stage

ELSEWHERE = ("data.root", "data.max_bad")  # their effect is part of the prepared data
FILES = ("model.pretrained", "method.structure")  # the fingerprint has the file's hash instead

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="prep",
            does="check the images and write them into shards",
            reads=("data", "prep"),
            outputs=("data/manifest.json", "data/*.tar", "data/*.idx", "data.html"),
            ignores=("data.image_size", "data.resize", "data.loader"),
            version=2,
        ),
        Stage(
            name="train",
            does="train, growing and cutting branches on the way",
            parents=("prep",),
            reads=("data", "model", "method", "train", "seed"),
            ignores=(*ELSEWHERE, *FILES),
            outputs=("model.safetensors", "structure.json", "history.jsonl"),
            processes=True,
            version=2,
        ),
        Stage(
            name="fuse",
            does="fold all branches into the plain network, prove it equal and export it",
            parents=("prep", "train"),
            reads=("data", "model", "fuse"),
            ignores=(*ELSEWHERE, *FILES),
            outputs=(
                "model.safetensors",
                "model.*",
                "MODEL_CARD.md",
                "fusion.json",
                "preprocess.json",
            ),
            version=4,
        ),
        Stage(
            name="eval",
            does="evaluate the unfused, the fused and the exported networks",
            parents=("prep", "train", "fuse"),
            reads=("data", "model", "eval"),
            ignores=(*ELSEWHERE, *FILES),
            outputs=("predictions.safetensors", "eval.json"),
            processes=True,
            version=3,
        ),
        Stage(
            name="latency",
            does="time the fused, the unfused, the plain and the exported networks",
            parents=("prep", "train", "fuse"),
            reads=("data", "model", "latency"),
            ignores=(*ELSEWHERE, *FILES),
            outputs=("latency.json",),
            version=5,
        ),
    )
}
