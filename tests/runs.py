"""Write run directories as the pipeline leaves them, with invented numbers, in milliseconds."""

import functools
import hashlib
import json

from pipeline.contract.table import STAGES
from pipeline.planning import sweep
from pipeline.planning.compose import to_config
from pipeline.records import disk, rundir, store
from pipeline.records.schemas import Change, Point, Result, Run
from slurm.records import Event


@functools.cache
def composed(*overrides):
    """Return the configuration of a launch with these overrides, as JSON."""
    tree, choices, _ = sweep.single(list(overrides))
    return json.dumps(to_config(tree, choices, []).model_dump(mode="json"))


def make_run(
    root, name, *overrides, seed=0, group="g", top1=90.0, finished=tuple(STAGES), asked=tuple(STAGES),
    seconds=3600.0, gpus=0, metrics=None, changed=None, epochs=(50.0, 80.0), steps=3, command="launch",
):  # fmt: skip
    """Write a run; `finished` lists stages with a result, `changed` maps dotted keys to values."""
    config = json.loads(composed(*overrides)) | {"name": name, "group": group, "seed": seed}
    for key, value in (changed or {}).items():
        section, _, last = key.rpartition(".")
        (config[section] if section else config)[last] = value
    run = rundir.run_dir(root, name)
    run.mkdir(parents=True)
    rundir.write_yaml(run / "config.yaml", config)
    described = Run(
        name=name, group=group, command=command, source={"revision": "abc"},
        versions={"torch": "2"}, job_ids=[{"train": "7"}],
        choices={"data": "digits", "model": "vgg_small", "method": "dyrep"},
        wandb={"id": hashlib.sha256(name.encode()).hexdigest()[:12]},
    )  # fmt: skip
    store.write(described, run)
    numbers = {
        "prep": {"val_images": 360},
        "train": {
            "val_loss": (100 - top1) / 50,
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
    own = hashlib.sha256(name.encode()).hexdigest()[:12]
    prints = dict.fromkeys(STAGES, own) | {"prep": "shared" if "prep" in finished else name}
    places = {stage: rundir.stage_dir(root, stage, prints[stage]) for stage in STAGES}
    for stage in asked:
        places[stage].mkdir(parents=True, exist_ok=True)
        disk.link(run / stage, places[stage])
        if stage not in finished:
            continue
        (places[stage] / rundir.EVENTS).write_text("")
        if gpus:
            job = {"job": "7", "restart": 0}
            Event(event="began", time=0.0, gpus=gpus, nodes=["n"], **job).note(places[stage])
            Event(event="ended", time=seconds, **job).note(places[stage])
        extra = {
            f.removeprefix(f"{stage}/"): v
            for f, v in (metrics or {}).items()
            if f.startswith(f"{stage}/")
        }
        result = Result(
            stage=stage, fingerprint=prints[stage],
            parents={p: places[p].name for p in STAGES[stage].parents if p in asked},
            attempts=1, seconds=seconds, metrics=numbers[stage] | extra, outputs={},
            environment={"device": "CPU"},
        )  # fmt: skip
        store.write(result, places[stage])
    if "train" in asked:
        _curves(places["train"], epochs, steps)
    return run


def _curves(train, epochs, steps):
    for epoch, top1 in enumerate(epochs, start=1):
        last = epoch * steps
        for step in range(last - steps + 1, last + 1):
            store.note(Point(kind="step", step=step, epoch=epoch, loss=1.5, lr=0.1), train)
        weights = {"features.3": {"1x1": 0.5 / epoch}}
        end = Point(
            kind="epoch", step=last, epoch=epoch, loss=1.0, val_loss=1.0, top1=top1,
            branch_weights=weights,
        )  # fmt: skip
        store.note(end, train)
    grown = Change(
        epoch=1, step=steps, parameters=450_000, flops=3e7, action="grow", layer="features.3",
        branches=["kxk"], saliency=[["features.3", 1.0]],
    )  # fmt: skip
    store.note(grown, train)
