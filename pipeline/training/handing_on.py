"""Write the trained network for the stages that follow."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

import dyrep
from pipeline.config import Config
from pipeline.networks import architectures
from pipeline.records import disk, rundir
from pipeline.training.learner import LearnerState


def hand_on(network: nn.Module, folder: Path, left: dict[str, str]) -> None:
    """Write weights and structure.

    Args:
        network: the network with its branches; the averaged one, if averages are kept.
        folder: the directory of the stage.
        left: the reason why a convolution has no branches, by its path.
    """
    rundir.write_json(folder / "structure.json", {**dyrep.structure(network), "left": left})
    tensors = {k: v.cpu().contiguous() for k, v in network.state_dict().items()}
    with disk.replacing(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary)


def network_of(config: Config, classes: int, saved: LearnerState) -> nn.Module:
    """Return the network of a checkpoint in the form in which it was validated, on the CPU."""
    network = architectures.build(config.model, classes, config.data.channels)
    dyrep.apply_structure(network, saved["structure"])
    weights = saved["model"]
    if averages := saved["ema"]:
        weights = {key.removeprefix("module."): value for key, value in averages.items()}
        del weights["n_averaged"]
    network.load_state_dict(weights, strict=True)
    return network
