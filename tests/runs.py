"""Run directories as the pipeline leaves them, made up in milliseconds."""

import functools
import hashlib
import json

import hydra
import yaml

from pipeline.planning.compose import CONF, to_config
from pipeline.records import rundir

STAGES = ("prep", "train", "fuse", "eval", "latency")
PARENTS = {
    "prep": (),
    "train": ("prep",),
    "fuse": ("train",),
    "eval": ("prep", "fuse"),
    "latency": ("fuse",),
}


@functools.cache
def composed(*overrides):
    """Return the configuration of a launch, as text."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        tree = hydra.compose("config", list(overrides), return_hydra_config=True)
    choices = dict(tree.hydra.runtime.choices)
    del tree.__dict__["_content"]["hydra"]
    return json.dumps(to_config(tree, choices, []).model_dump(mode="json"))


def make_run(
    root, name, *overrides, seed=0, group="g", top1=90.0, finished=STAGES, asked=STAGES,
    seconds=3600.0, gpus=0, metrics=None, changed=None, epochs=(50.0, 80.0), steps=3, command="launch",
):  # fmt: skip
    """Write one run; `finished` are its stages with a result, `changed` dotted settings."""
    config = json.loads(composed(*overrides)) | {"name": name, "group": group, "seed": seed}
    for key, value in (changed or {}).items():
        section, _, last = key.rpartition(".")
        (config[section] if section else config)[last] = value
    run = rundir.run_dir(root, name)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.dump(config, Dumper=yaml.CSafeDumper, sort_keys=False))
    facts = {
        "name": name, "group": group, "command": command, "source": {"revision": "abc"},
        "versions": {"torch": "2"}, "job_ids": [{"train": "7"}],
        "choices": {"data": "digits", "model": "vgg_small", "method": "dyrep"},
        "wandb": {"id": hashlib.sha256(name.encode()).hexdigest()[:12]},
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(facts))
    numbers = {
        "prep": {"val_images": 360},
        "train": {
            "loss": (100 - top1) / 50,
            "top1": top1,
            "grown": 2,
            "cut": 1,
            "plain_steps": 600.0,
        },
        "fuse": {
            "parameters": 300_000,
            "parameters_unfused": 450_000,
            "flops": 2e7,
            "flops_unfused": 3e7,
        },
        "eval": {"fused/top1": top1, "unfused/top1": top1, "images": 360},
        "latency": {"fused/b1/p50_ms": 0.5, "fused/b64/p50_ms": 20.0, "unfused/b1/p50_ms": 1.5},
    }
    fingerprint = "shared" if "prep" in finished else name
    names = {stage: f"{stage}-{hashlib.sha256(name.encode()).hexdigest()[:12]}" for stage in STAGES}
    names["prep"] = f"prep-{fingerprint}"
    for stage in asked:
        directory = root / "stages" / names[stage]
        directory.mkdir(parents=True, exist_ok=True)
        (run / stage).symlink_to(f"../../stages/{names[stage]}")
        if stage not in finished:
            continue
        begun = {"time": 0.0, "event": "began", "gpus": gpus, "nodes": ["n"]}
        ended = {"time": seconds, "event": "ended"}
        (directory / "events.jsonl").write_text(_lines([begun, ended] if gpus else []))
        told = {
            f.removeprefix(f"{stage}/"): v
            for f, v in (metrics or {}).items()
            if f.startswith(f"{stage}/")
        }
        result = {
            "stage": stage, "parents": {p: names[p] for p in PARENTS[stage] if p in asked},
            "seconds": seconds, "metrics": numbers[stage] | told, "environment": {"device": "CPU"},
        }  # fmt: skip
        (directory / "result.json").write_text(json.dumps(result))
    if "train" in asked:
        _curves(root / "stages" / names["train"], epochs, steps)
    return run


def _curves(train, epochs, steps):
    rows = []
    for epoch, top1 in enumerate(epochs, start=1):
        for step in range(steps):
            rows.append(
                {
                    "kind": "step",
                    "step": (epoch - 1) * steps + step + 1,
                    "epoch": epoch,
                    "loss": 1.5,
                    "lr": 0.1,
                }
            )
        rows.append(
            {
                "kind": "epoch",
                "step": epoch * steps,
                "epoch": epoch,
                "loss": 1.0,
                "val_loss": 1.0,
                "top1": top1,
                "branch_weights": {"features.3": {"1x1": 0.5 / epoch}},
            }
        )
    (train / "history.jsonl").write_text(_lines(rows))
    grown = {
        "epoch": 1,
        "step": steps,
        "parameters": 450_000,
        "flops": 3e7,
        "action": "grow",
        "layer": "features.3",
        "branches": ["kxk"],
        "saliency": [["features.3", 1.0]],
    }
    (train / "growth.jsonl").write_text(_lines([grown]))


def _lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)
