"""Running an exported file, whatever its format. Imports nothing of this project.

    python -I runtime.py FILE IMAGES SCORES

reads IMAGES (an .npy of (N, 3, H, W) float32) and writes the scores (N, classes) to SCORES: the
proof that a file stands alone.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import torch
from torch import Tensor

CARD = "card.json"
OURS = {"dyrep", "pipeline"}
Network = Callable[[Tensor], Tensor]


class Loaded(NamedTuple):
    """What a file holds.

    `network` maps images (N, 3, H, W) to scores (N, classes), which are where the images are;
    `card` is JSON; `device` is the type of the one it computes on, None: where its images are.
    """

    network: Network
    card: str
    device: str | None


class Elsewhere(Exception):
    """A file was built for a device that is not here."""


def exact_float32() -> None:
    """Have a GPU compute float32 in float32; torch lets it round to 10 bits (TF32) in places."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def load(path: Path, threads: int | None = None) -> Loaded:
    """Return the network in a file.

    Args:
        path: An exported file; its name tells the format.
        threads: Of ONNX Runtime, which has its own; None: as many as torch uses.

    Raises:
        ValueError: the file is damaged, or of no format known here.
        ModuleNotFoundError: what runs the format is not installed; says how to get it.
        Elsewhere: it was built for a GPU, and there is none.
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
    except Elsewhere:
        raise
    except Exception as error:  # each runtime has its own for a damaged file
        raise ValueError(
            f"{path} is damaged ({str(error).strip().splitlines()[0]}); export it again"
        ) from error


def _onnx(path: Path, threads: int) -> Loaded:
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

    on_gpu = "CUDAExecutionProvider" in session.get_providers()
    card = session.get_modelmeta().custom_metadata_map.get(CARD, "{}")
    return Loaded(run, card, "cuda" if on_gpu else "cpu")


def _pt2(path: Path, threads: int) -> Loaded:
    found = {CARD: ""}
    module = torch.export.load(path, extra_files=found).module()
    return Loaded(_following(module), found[CARD], None)


def _tensorrt(path: Path, threads: int) -> Loaded:
    import torch_tensorrt

    _check_device(path, "cuda")
    found = {CARD: ""}
    module = torch_tensorrt.load(str(path), extra_files=found).module().cuda()

    def run(images: Tensor) -> Tensor:
        scores: Tensor = module(images.cuda())
        return scores.to(images.device)

    return Loaded(run, found[CARD], "cuda")


def _aotinductor(path: Path, threads: int) -> Loaded:
    with ZipFile(path) as archive:  # before it is loaded: on another device that is no mere error
        (name, *_) = [name for name in archive.namelist() if name.endswith("_metadata.json")]
        told = json.loads(archive.read(name))
    built_for = told["AOTI_DEVICE_KEY"]
    _check_device(path, built_for)
    network: Any = torch._inductor.aoti_load_package(str(path))

    def run(images: Tensor) -> Tensor:
        scores: Tensor = network(images.to(built_for))
        return scores.to(images.device)

    return Loaded(run, told.get(CARD, "{}"), built_for)


def _check_device(path: Path, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise Elsewhere(f"{path} was built for a GPU, and there is none here")


def _torchscript(path: Path, threads: int) -> Loaded:
    found = {CARD: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = torch.jit.load(path, _extra_files=found)
    text: Any = found[CARD]
    return Loaded(_following(module), text.decode() if isinstance(text, bytes) else text, None)


def _following(module: torch.nn.Module) -> Network:
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


LOADERS: dict[str, Callable[[Path, int], Loaded]] = {
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
    exact_float32()
    network = load(file).network
    batches = torch.from_numpy(numpy.load(images)).split(64)
    with torch.inference_mode():
        found = torch.cat([network(batch) for batch in batches])
    if OURS & sys.modules.keys():
        raise RuntimeError(f"{file} does not stand alone: it imports {OURS & sys.modules.keys()}")
    numpy.save(scores, found.numpy())


if __name__ == "__main__":
    main()
