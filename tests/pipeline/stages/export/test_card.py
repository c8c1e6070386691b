"""Test `stages.export.card`: the model card, which each exported file contains."""

from types import SimpleNamespace

from pipeline.stages.export import card


def test_a_card_holds_no_secret_of_the_networks_arguments(monkeypatch, tmp_path):
    splits = dict.fromkeys(("train", "val"), SimpleNamespace(images=1))
    manifest = SimpleNamespace(classes=["a"], splits=splits)
    trained = SimpleNamespace(metrics={"top1": 1.0, "top5": 1.0})
    monkeypatch.setattr(card.Manifest, "load", lambda _: manifest)
    monkeypatch.setattr(card.store, "read", lambda *_: trained)
    monkeypatch.setattr(card.preprocess, "describe", lambda *_: {})
    settings = {"name": "custom", "args": {"width": 8, "hub_token": "hunter2"}}
    config = SimpleNamespace(
        model=SimpleNamespace(model_dump=lambda **_: settings, pretrained_sha256=None),
        data=SimpleNamespace(channels=1, image_size=8, name="digits"),
        fuse=SimpleNamespace(fold_bn=True, licence=None),
    )
    parents = {"prep": tmp_path, "train": tmp_path}
    context = SimpleNamespace(config=config, parents=parents)
    fusion = {"parameters": 1, "flops": 1, "max_rel_error": 0.0}
    description = card.describe(context, fusion, 1)
    assert description["architecture"] == {
        "name": "custom",
        "args": {"width": 8, "hub_token": "***"},
    }
