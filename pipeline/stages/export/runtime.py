"""Run an exported file of any format, without importing anything of this project.

    python -I runtime.py FILE IMAGES SCORES

reads IMAGES (an .npy of (N, C, H, W) float32) and writes the scores (N, classes) to SCORES. This
proves that the file is self-contained. FILE is trusted: most formats can contain code, see `KINDS`.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import torch
from torch import Tensor

CARD = "card.json"
LARGEST_CARD = 2**26  # bytes; a small archive can expand to more than the memory
OURS = {"dyrep", "pipeline"}
Network = Callable[[Tensor], Tensor]


class Loaded(NamedTuple):
    """The network in a file.

    `network` maps images (N, C, H, W) to scores (N, classes) on the device of the images. `device`
    is the type of device that it computes on; None: the device of the images.
    """

    network: Network
    device: str | None


class Kind(NamedTuple):
    """A format: `card` reads the model card without running code of the file; `load`, the network.

    `load` takes a number of threads, for runtimes that have threads of their own. `code` names the
    code that a file may hold and that runs when it is loaded; empty: none.
    """

    card: Callable[[Path], str]
    load: Callable[[Path, int], Loaded]
    code: str = ""


class Elsewhere(Exception):
    """A file was built for a device that this machine does not have."""


class Untrusted(Exception):
    """A file can contain code and is not trusted; the message names the cure."""


def exact_float32() -> None:
    """Compute float32 in full precision on a GPU, where torch partly defaults to TF32."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def card(path: Path) -> str:
    """Return the model card of a file as JSON, `{}` if it has none; no code of the file is run.

    Raises:
        ValueError: the file is damaged, or of no format known here.
        ModuleNotFoundError: the reader of the format is not installed; says how to get it.
    """
    kind = _kind(path)
    with _one_line_errors(path):
        return kind.card(path)


def load(path: Path, *, trust: bool = False, threads: int | None = None) -> Loaded:
    """Return the network in a file.

    Args:
        path: an exported file; the suffix of its name decides the format.
        trust: whether code in the file may run; if not, formats that can hold code are refused.
        threads: number of threads for ONNX Runtime; None: as many as torch uses.

    Raises:
        ValueError: the file is damaged, or of no format known here.
        Untrusted: the file may hold code; none has run.
        ModuleNotFoundError: the runtime of the format is not installed; says how to get it.
        Elsewhere: the file was built for a GPU that this machine does not have.
    """
    kind = _kind(path)
    with _one_line_errors(path):
        if kind.code and not trust:
            kind.card(path)  # so that a damaged file is reported as damaged
            raise Untrusted(
                f"{path} is not opened: it may hold {kind.code}, to run as you; add --trust if you "
                "know who made it, or take the .onnx or .safetensors file, which hold no code"
            )
        return kind.load(path, threads or torch.get_num_threads())


def _kind(path: Path) -> Kind:
    kind = next((kind for ending, kind in KINDS.items() if path.name.endswith(ending)), None)
    if kind is None:
        raise ValueError(f"{path}: no exported network; known are {', '.join(KINDS)}")
    if not path.is_file():
        raise ValueError(f"{path}: {'no regular file' if path.exists() else 'no such file'}")
    return kind


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Convert the errors of all runtimes for a damaged file to a ValueError of one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} needs {error.name}: pip install {error.name}", name=error.name
        ) from None
    except (Elsewhere, Untrusted):
        raise
    except Exception as error:
        (reason, *_) = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} is damaged ({reason}); export it again") from error


def _onnx_session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised, and would be printed beside that
    # threads that spin between calls would take cores from the rest of the process
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    known = {"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}
    providers = [p for p in known.items() if p[0] in onnxruntime.get_available_providers()]
    return onnxruntime.InferenceSession(path, options, providers=providers)


def _onnx_card(path: Path) -> str:
    text: str = _onnx_session(path, 1).get_modelmeta().custom_metadata_map.get(CARD, "{}")
    return text


def _onnx(path: Path, threads: int) -> Loaded:
    session = _onnx_session(path, threads)

    def run(images: Tensor) -> Tensor:
        (scores,) = session.run(None, {"images": images.cpu().numpy()})
        return torch.from_numpy(scores).to(images.device)

    on_gpu = "CUDAExecutionProvider" in session.get_providers()
    return Loaded(run, "cuda" if on_gpu else "cpu")


def _extra_card(path: Path) -> str:
    """Return the card that torch writes as an extra file into its archives."""
    return _member(path, f"/extra/{CARD}") or "{}"


def _member(path: Path, ending: str) -> str:
    """Return the text of the first archive member whose name ends so; "" if there is none."""
    with ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith(ending):
                if info.file_size > LARGEST_CARD:
                    raise ValueError(f"{info.filename} claims {info.file_size} bytes")
                return archive.read(info).decode()
    return ""


def _pt2(path: Path, threads: int) -> Loaded:
    return Loaded(_following(torch.export.load(path).module()), None)


def _tensorrt(path: Path, threads: int) -> Loaded:
    import torch_tensorrt

    _check_device(path, "cuda")
    module = torch_tensorrt.load(str(path)).module().cuda()

    def run(images: Tensor) -> Tensor:
        scores: Tensor = module(images.cuda())
        return scores.to(images.device)

    return Loaded(run, "cuda")


def _aotinductor_metadata(path: Path) -> dict[str, str]:
    metadata: dict[str, str] = json.loads(_member(path, "_metadata.json"))
    return metadata


def _aotinductor_card(path: Path) -> str:
    return _aotinductor_metadata(path).get(CARD, "{}")


def _aotinductor(path: Path, threads: int) -> Loaded:
    built_for = _aotinductor_metadata(path)["AOTI_DEVICE_KEY"]
    _check_device(path, built_for)  # first, because loading could crash the process
    network: Any = torch._inductor.aoti_load_package(str(path))

    def run(images: Tensor) -> Tensor:
        scores: Tensor = network(images.to(built_for))
        return scores.to(images.device)

    return Loaded(run, built_for)


def _check_device(path: Path, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise Elsewhere(f"{path} was built for a GPU, and there is none here")


def _torchscript(path: Path, threads: int) -> Loaded:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return Loaded(_following(torch.jit.load(path)), None)


def _following(module: torch.nn.Module) -> Network:
    """Return a network that moves to the device of its images."""
    here = torch.device("cpu")

    def run(images: Tensor) -> Tensor:
        nonlocal here
        if images.device != here:
            module.to(images.device)
            here = images.device
        scores: Tensor = module(images)
        return scores

    return run


# torch.export.load unpickles, evaluates expressions and loads libraries from the archive;
# TorchScript has operators that read and write files, and can call them while it is loaded
KINDS: dict[str, Kind] = {
    ".onnx": Kind(_onnx_card, _onnx),
    ".aoti.pt2": Kind(_aotinductor_card, _aotinductor, "machine code"),
    ".trt.pt2": Kind(_extra_card, _tensorrt, "pickles and machine code"),
    ".pt2": Kind(_extra_card, _pt2, "pickles, expressions and machine code"),
    ".ts": Kind(_extra_card, _torchscript, "a program that reads and writes files"),
}


def main() -> None:
    """Run a file on images and write the scores.

    Raises:
        ValueError: the file is damaged.
        RuntimeError: running the file has imported code of this project.
    """
    import numpy

    file, images, scores = map(Path, sys.argv[1:])
    exact_float32()
    network = load(file, trust=True).network
    batches = torch.from_numpy(numpy.load(images)).split(64)
    with torch.inference_mode():
        found = torch.cat([network(batch) for batch in batches])
    if OURS & sys.modules.keys():
        raise RuntimeError(f"{file} does not stand alone: it imports {OURS & sys.modules.keys()}")
    numpy.save(scores, found.numpy())


if __name__ == "__main__":
    main()
