"""Read what a report shows from a run directory; missing data are None or empty."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.config.base import STAGE_NAMES, Values
from pipeline.display.errors import UserError
from pipeline.display.masking import mask_yaml, masked
from pipeline.display.thinning import shown
from pipeline.records import rundir, store
from pipeline.records.named import time_again
from pipeline.records.schemas import Result
from pipeline.report.growth import Change, Choice, choices, layers

WHAT = {  # in the order of the tables
    "unfused": "as trained, with its branches",
    "fused": "plain convolutions",
    "compiled": "fused, torch.compile",
    "cuda_graphs": "fused, torch.compile with CUDA graphs",
    "tf32": "fused, TF32",
    "channels_last": "fused, channels last",
    "bfloat16": "fused, bfloat16",
    "pt2": "fused, torch.export",
    "torchscript": "fused, TorchScript",
    "onnx": "fused, ONNX Runtime",
    "aotinductor": "fused, AOTInductor",
    "tensorrt": "fused, TensorRT",
    "int8": "fused, int8, ONNX Runtime",
    "plain": "the architecture without growth",
    "plain_folded": "plain, batch norms folded",
}


@dataclass
class Way:
    """One variant of the network, for example fused or int8: its accuracy and latency.

    `top1` and `agreement` (with fused) in percent, `ms` per batch by batch size (median).
    """

    name: str
    top1: float | None
    agreement: float | None
    ms: dict[int, float]
    speedup: dict[int, float]
    on_cpu: bool  # while the other variants ran on a GPU

    @property
    def what(self) -> str:
        """A description of the variant."""
        return WHAT.get(self.name, "") + (", on the CPU" if self.on_cpu else "")


@dataclass
class Story:
    """Everything that the report shows of one run."""

    run: dict[str, Any]
    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    root: Path = Path()
    results: dict[str, Result] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    growth: list[Change] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    noise: list[str] = field(default_factory=list)
    fusion: dict[str, Any] = field(default_factory=dict)
    judged: dict[str, Any] = field(default_factory=dict)
    timed: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)

    def metric(self, stage: str, name: str) -> float | None:
        """Return a metric of a finished stage."""
        result = self.results.get(stage)
        value = result.metrics.get(name) if result else None
        return None if value is None else float(value)

    @property
    def created(self) -> str:
        """The time of the first launch in readable form; unchanged if it is not a date."""
        written = str(self.run.get("created", ""))
        try:
            return f"{datetime.fromisoformat(written):%d %b %Y, %H:%M %Z}".strip()
        except ValueError:
            return written

    @property
    def batches(self) -> list[int]:
        """The batch sizes that were timed."""
        timed = self.results.get("latency")
        keys = [key for key in (timed.metrics if timed else ()) if "/b" in key]
        return sorted({int(key.split("/b")[1].split("/")[0]) for key in keys})

    @property
    def ways(self) -> list[Way]:
        """The variants that were timed, in the order of `WHAT`."""
        return [self._way(name) for name in WHAT if self._ms(name)]

    def _way(self, name: str) -> Way:
        ms, slow = self._ms(name), self._ms("unfused")
        top1, agreement = self.metric("eval", f"{name}/top1"), None
        for stage in ("eval", "latency"):
            agreement = self.metric(stage, f"{name}/agreement") if agreement is None else agreement
        if top1 is None and agreement == 100:
            top1 = self.metric("eval", "fused/top1")
        speedup = {batch: slow[batch] / value for batch, value in ms.items() if batch in slow}
        where = self.timed.get("computed_on", {})
        on_cpu = "cuda" in where.values() and where.get(name) == "cpu"
        return Way(name, top1, agreement, ms, speedup, on_cpu)

    def _ms(self, name: str) -> dict[int, float]:
        found = {batch: self.metric("latency", f"{name}/b{batch}/p50_ms") for batch in self.batches}
        return {batch: value for batch, value in found.items() if value is not None}

    @property
    def spent(self) -> str:
        """The cost of the training, in words; empty if it is not known."""
        steps, adjusting = (self.metric("train", n) for n in ("plain_steps", "adjusting_steps"))
        if steps is None:
            return ""
        sentence = f"The training cost {steps:,.0f} steps of the plain network"
        if adjusting is None:
            return sentence
        share = 100 * adjusting / steps if steps else 0.0
        return f"{sentence}, {share:.1f} % of it for growing, cutting and pricing"

    @property
    def shipped(self) -> str:
        """The epoch whose weights are shipped, in words; empty if training is not finished."""
        epochs, best = (self.metric("train", name) for name in ("epochs", "shipped_epoch"))
        if epochs is None:
            return ""
        if best is None:
            return f"The network of the last of {epochs:.0f} epochs is shipped"
        return (
            f"The network of epoch {best:.0f} of {epochs:.0f} is shipped. The epoch was chosen for "
            "its top-1 on the validation images; expect a little less on other images"
        )

    @property
    def device(self) -> str:
        """The device on which the latencies were measured."""
        timed = self.results.get("latency")
        return str((timed.environment if timed else {}).get("device", "unknown device"))

    def speedup(self, batch: int) -> float | None:
        """Return the ratio of the median latencies, unfused to fused."""
        slow = self.metric("latency", f"unfused/b{batch}/p50_ms")
        fast = self.metric("latency", f"fused/b{batch}/p50_ms")
        return slow / fast if slow and fast else None

    @property
    def time_again(self) -> str:
        """The command that repeats the latency stage."""
        return time_again(rundir.run_dir(self.root, self.run["name"]))

    @property
    def headlines(self) -> list[tuple[str, str, str]]:
        """The headline numbers, each as value, name and explanation."""
        found: list[tuple[str, str, str]] = []
        top1, unfused = self.metric("eval", "fused/top1"), self.metric("eval", "unfused/top1")
        if top1 is not None and unfused is not None:
            images = self.metric("eval", "images") or 0
            found.append(
                (f"{top1:.2f} %", "top-1, fused", f"unfused {unfused:.2f} %, {images:.0f} images")
            )
            agreement = self.metric("eval", "agreement") or 0.0
            found.append((f"{agreement:.2f} %", "agreement", "of predictions, fused with unfused"))
        ratios = [(batch, self.speedup(batch)) for batch in self.batches]
        if self.noise:
            found.append(("noisy", "latency", "time it again on a quiet machine, see Gains"))
        elif ratios and ratios[0][1]:
            others = ", ".join(f"{r:.1f}x at {b}" for b, r in ratios[1:] if r)
            first = f"at batch {ratios[0][0]}" + (f"; {others}" if others else "")
            found.append((f"{ratios[0][1]:.1f}x", "faster once fused", first))
        before, after = (self.metric("fuse", n) for n in ("parameters_unfused", "parameters"))
        if before and after:
            found.append((short(after), "parameters, fused", f"{short(before)} while training"))
        return found


def read(run: Path) -> Story:
    """Read a run directory; a stage counts as finished if its result exists."""
    config = mask_yaml(rundir.read_text(run / "config.yaml"))
    facts = masked(rundir.read_json(run / "run.json"))
    story = Story(facts, config, _settings(run), rundir.absolute(run).parents[1])
    for name in STAGE_NAMES:
        path = run / name / rundir.RESULT
        if path.exists():
            story.results[name] = store.read(Result, path.parent)
        else:
            story.missing.append(name)
    for row in rundir.read_lines(run / "train" / rundir.HISTORY):
        if row["kind"] == "epoch":
            story.epochs.append(row)
        elif shown(row["step"]):  # a short training shows every step
            story.steps.append(row)
    story.growth = list(rundir.read_lines(run / "train" / rundir.GROWTH))
    story.choices = list(choices(story.growth))
    story.layers = layers(story.growth)
    story.left = _left(_json_of(run, story, "train", "structure.json").get("left", {}))
    story.fusion = _json_of(run, story, "fuse", "fusion.json")
    story.judged = _json_of(run, story, "eval", "eval.json")
    story.timed = _json_of(run, story, "latency", "latency.json")
    if (profile := run / "train" / "profile.json").exists():
        story.profile = rundir.read_json(profile)
    story.noise = story.timed.get("noise", [])
    return story


def _settings(run: Path) -> Values:
    """Return the sections of the configuration; none if it is damaged, as it is only shown."""
    try:
        tree = masked(rundir.read_yaml(run / "config.yaml"))
    except UserError:
        return {}
    return {key: value for key, value in tree.items() if isinstance(value, dict)}


def _json_of(run: Path, story: Story, stage: str, name: str) -> dict[str, Any]:
    """Return the JSON file `name` of a finished stage; an empty dict if there is none."""
    path = run / stage / name
    return rundir.read_json(path) if stage in story.results and path.exists() else {}


def _left(left: dict[str, str]) -> list[str]:
    """Return one line per reason for having no branches, with the convolutions it applies to."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in left.items():
        by_reason.setdefault(reason, []).append(path)
    return [
        f"Convolutions without branches: {', '.join(paths)} ({reason})"
        for reason, paths in by_reason.items()
    ]


def short(number: float) -> str:
    """Return a count with three digits, like 289k or 1.03M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            value = number / size
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}{unit}"
    return f"{number:.0f}"
