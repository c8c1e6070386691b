"""Run the experiments of the paper through all stages on a CPU, at a fraction of their images.

This shows only that each experiment can be run: the images are synthetic, smaller and fewer, so the
accuracies mean nothing. DyRep grows after every epoch but the last. Nothing is exported.

    python -m benchmarks.paper --json benchmarks/results/paper.json
    python -m benchmarks.paper --share 0.01 --pixels 224 --epochs 1 imagenet_resnet18

An experiment that is in the file already is left out. Each row has its time and source revision.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import evidence
from pipeline.contract.table import STAGES
from pipeline.records import rundir, store
from pipeline.records.schemas import Result

EXPERIMENTS = (
    "cifar10_vgg16", "cifar100_vgg16", "imagenet_mobilenet_v1", "imagenet_resnet18",
    "imagenet_resnet34", "imagenet_resnet50", "imagenet_repvgg_a2", "imagenet_repvgg_b2g4",
    "imagenet_repvgg_b3",
)  # fmt: skip
IMAGES = {"cifar10": (60_000, 10), "cifar100": (60_000, 100), "imagenet": (1_331_167, 1000)}
FEWEST = 10  # fewest images of a class, because some of each class are held out
HELD_OUT = 0.15
NAME = "paper"
SMALL = (
    "train.warmup_epochs=0", "train.recalibrate_until=null", "fuse.exports=[]",
    "fuse.images=16", "latency.also=[]", "latency.batch_sizes=[1]",
    "latency.repeats=10", "tracking=disabled",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", nargs="*", default=EXPERIMENTS, metavar="EXPERIMENT")
    parser.add_argument("--method", default="dyrep", help="(default: dyrep)")
    parser.add_argument("--share", type=float, default=0.001, help="of the images (default: 0.001)")
    parser.add_argument("--pixels", type=int, default=32, help="of ImageNet's (default: 32)")
    parser.add_argument("--epochs", type=int, default=2, help="(default: 2)")
    parser.add_argument("--batch", type=int, default=32, help="(default: 32)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = json.loads(options.json.read_text())["runs"] if _there(options.json) else []
    for experiment in options.experiments:
        if experiment in (row["experiment"] for row in rows):
            continue
        row = {**run(experiment, options), "made": evidence.made()}
        print(json.dumps(row), flush=True)
        rows.append(row)
        if options.json:
            evidence.write(options.json, {"runs": rows})
    return max(row["exit_code"] for row in rows)


def _there(file: Path | None) -> bool:
    return file is not None and file.is_file()


def settings(experiment: str, options: argparse.Namespace) -> list[str]:
    """Return the settings that make an experiment small."""
    data = experiment.partition("_")[0]
    whole, classes = IMAGES[data]
    images = max(20 * FEWEST, round(whole * options.share))
    pixels = options.pixels if data == "imagenet" else 32
    grows = options.method in ("dyrep", "grow") and options.epochs > 1
    window = ["method.adjust_interval=1", f"method.last_adjust_epoch={options.epochs - 1}"]
    return [
        f"experiment={experiment}", f"method={options.method}", "data=synthetic",
        f"data.images={images}", f"data.classes={min(classes, images // FEWEST)}",
        f"data.val_fraction={HELD_OUT}", f"data.image_size={pixels}",
        f"data.height={pixels}", f"data.width={pixels}",
        f"train.epochs={options.epochs}",
        f"train.batch_size={options.batch}", f"eval.batch_size={options.batch}",
        *SMALL, *(window if grows else []),
    ]  # fmt: skip


def run(experiment: str, options: argparse.Namespace) -> dict[str, object]:
    """Launch an experiment and return the results of its stages."""
    chosen = settings(experiment, options)
    with tempfile.TemporaryDirectory(prefix="paper-") as root:
        words = [*chosen, f"root={root}", f"name={NAME}"]
        launch = [sys.executable, "-m", "pipeline.launch", *words]
        done = subprocess.run(launch, capture_output=True, text=True, env={**os.environ})
        found = rundir.run_dir(Path(root), NAME)
        results = {
            stage: store.read(Result, found / stage)
            for stage in STAGES
            if (found / stage / rundir.RESULT).exists()
        }
        metrics = {stage: result.metrics for stage, result in results.items()}
    figures = {
        "steps": metrics.get("train", {}).get("steps"),
        "grown": metrics.get("train", {}).get("grown"),
        "cut": metrics.get("train", {}).get("cut"),
        "parameters_unfused": metrics.get("fuse", {}).get("parameters_unfused"),
        "parameters": metrics.get("fuse", {}).get("parameters"),
        "max_rel_error": metrics.get("fuse", {}).get("max_rel_error"),
        "flips": metrics.get("fuse", {}).get("flips"),
    }
    return {
        "experiment": experiment,
        "method": options.method,
        "settings": chosen,
        "exit_code": done.returncode,
        "stages": {stage: round(result.seconds, 1) for stage, result in results.items()},
        **figures,
        **({"said": done.stdout[-1000:] + done.stderr[-1000:]} if done.returncode else {}),
    }


if __name__ == "__main__":
    sys.exit(main())
