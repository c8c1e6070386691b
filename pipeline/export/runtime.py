"""Running an exported file, whatever its format. Imports nothing of this project.

    python -I runtime.py FILE IMAGES SCORES

reads IMAGES (an .npy of (N, 3, H, W) float32) and writes the scores (N, classes) to SCORES: the
proof that a file stands alone.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CARD = "card.json"
OURS = {"dyrep", "pipeline"}
Network = Callable[[Tensor], Tensor]


def load(path: Path, threads: int | None = None) -> tuple[Network, str]:
    """Return a network that maps images (N, 3, H, W) to scores (N, classes), and its model card.

    Args:
        path: An exported file; its name tells the format.
        threads: Of ONNX Runtime, which has its own; None: as many as torch uses.

    Raises:
        ValueError: the file is damaged, or of no format known here.
        ModuleNotFoundError: what runs the format is not installed; says how to get it.
    """
    loader = next((load for ending, load in LOADERS.items() if path.name.endswith(ending)), None)
    if loader is None:
        raise ValueError(f"{path}: no exported network; known are {', '.join(LOADERS)}")
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    try:
        return loader(path, threads or torch.get_num_threads())
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} needs {error.name}: pip install {error.name}", name=error.name
        ) from None
    except Exception as error:  # each runtime has its own for a damaged file
        raise ValueError(
            f"{path} is damaged ({str(error).strip().splitlines()[0]}); export it again"
        ) from error


def _onnx(path: Path, threads: int) -> tuple[Network, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # threads that spin between calls take the cores of whatever else runs in the process
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    known = {"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}
    providers = [p for p in known.items() if p[0] in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(path, options, providers=providers)

    def run(images: Tensor) -> Tensor:
        (scores,) = session.run(None, {"images": images.cpu().numpy()})
        return torch.from_numpy(scores).to(images.device)

    return run, session.get_modelmeta().custom_metadata_map.get(CARD, "{}")


def _pt2(path: Path, threads: int) -> tuple[Network, str]:
    found = {CARD: ""}
    module = torch.export.load(path, extra_files=found).module()
    return _on_its_device(module), found[CARD]


def _tensorrt(path: Path, threads: int) -> tuple[Network, str]:
    import torch_tensorrt

    found = {CARD: ""}
    module = torch_tensorrt.load(str(path), extra_files=found).module().cuda()

    def run(images: Tensor) -> Tensor:
        scores: Tensor = module(images.cuda())
        return scores.to(images.device)

    return run, found[CARD]


def _aotinductor(path: Path, threads: int) -> tuple[Network, str]:
    network: Any = torch._inductor.aoti_load_package(str(path))
    told = network.get_metadata()
    built_for = told["AOTI_DEVICE_KEY"]

    def run(images: Tensor) -> Tensor:
        scores: Tensor = network(images.to(built_for))
        return scores.to(images.device)

    return run, told.get(CARD, "{}")


def _torchscript(path: Path, threads: int) -> tuple[Network, str]:
    found = {CARD: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = torch.jit.load(path, _extra_files=found)
    text: Any = found[CARD]
    return _on_its_device(module), text.decode() if isinstance(text, bytes) else text


def _on_its_device(module: torch.nn.Module) -> Network:
    """Return a network that goes where its images are."""
    here = torch.device("cpu")

    def run(images: Tensor) -> Tensor:
        nonlocal here
        if images.device != here:
            module.to(images.device)
            here = images.device
        scores: Tensor = module(images)
        return scores

    return run


LOADERS: dict[str, Callable[[Path, int], tuple[Network, str]]] = {
    ".onnx": _onnx,
    ".aoti.pt2": _aotinductor,
    ".trt.pt2": _tensorrt,
    ".pt2": _pt2,
    ".ts": _torchscript,
}


def main() -> None:
    """Run a file on images and leave the scores."""
    import numpy

    file, images, scores = map(Path, sys.argv[1:])
    torch.backends.cudnn.allow_tf32 = False  # compiled for a GPU: the same in float32
    network, _ = load(file)
    batches = torch.from_numpy(numpy.load(images)).split(64)
    with torch.inference_mode():
        found = torch.cat([network(batch) for batch in batches])
    if OURS & sys.modules.keys():
        raise RuntimeError(f"{file} does not stand alone: it imports {OURS & sys.modules.keys()}")
    numpy.save(scores, found.numpy())


if __name__ == "__main__":
    main()
