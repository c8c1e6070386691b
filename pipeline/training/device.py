"""Set up the device: number formats, kernels, and the memory format of images.

On a GPU they follow from `train.precision` and `train.deterministic`; on a CPU, torch's defaults
stay in force.
"""

from __future__ import annotations

import os

import torch

from pipeline.config.train import Train

TF32 = (8, 0)  # lowest compute capability with TF32


def configure(device: torch.device, recipe: Train) -> str:
    """Set torch up for a training, before its network is built; return a note, or nothing.

    This function uses the older names of the TF32 settings, because torch.compile of torch 2.10 to
    2.15 reads them, and fails if the new ones were set.
    """
    tf32 = recipe.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by torch
        torch.use_deterministic_algorithms(True)
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    if tf32 and not _has_tf32(device):
        return f"train.precision=tf32: {device.type} has no TF32, all is computed in float32"
    return ""


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= TF32


def layout(device: torch.device, recipe: Train) -> torch.memory_format:
    """Return the memory format of images (N, C, H, W) and kernels.

    The tensor cores of a GPU work on channels last. In float32 they are not used, and on a CPU
    channels last is not known to help.
    """
    tensor_cores = device.type == "cuda" and recipe.precision != "float32"
    return torch.channels_last if tensor_cores else torch.contiguous_format
