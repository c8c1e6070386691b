"""Build a small network, its settings, and a file with its weights."""

import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file

from pipeline.config.model import Model
from pipeline.networks import architectures


def model(family="vgg", name="v", **more):
    more = {"widths": [[4], [6]]} if family == "vgg" and not more else more
    return TypeAdapter(Model).validate_python({"family": family, "name": name, **more})


def network(classes=3, seed=0, **more):
    torch.manual_seed(seed)
    return architectures.build(model(**more), classes).eval()


def stored(folder, state, name="weights.safetensors"):
    save_file({key: value.contiguous() for key, value in state.items()}, folder / name)
    return folder / name
