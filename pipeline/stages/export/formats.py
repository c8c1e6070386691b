"""List the export formats in a table; each exported file contains its model card.

To add a format, add a row here and a loader in `pipeline.stages.export.runtime`.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.stages.export import runtime
from pipeline.stages.export.equalize import equalized
from pipeline.stages.export.runtime import CARD

TRT_USUAL, TRT_MOST = 8, 256  # images per call: number that TensorRT optimizes for, and largest one
ENOUGH = 99.0  # if so many percent of images keep their class in int8, there is no equalization


@dataclass(frozen=True, kw_only=True)
class Source:
    """The input of an export: a network on the CPU in eval mode, example images, and its card."""

    network: nn.Module
    images: Tensor
    card: str
    opset: int
    calibration: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    `file` is the name of its file below the stage directory. `write` makes the file and may return
    a note. `needs` are the modules that writing takes; `install` is the command that installs them.
    `exact`: whether the scores equal those of the network up to rounding.
    """

    file: str
    write: Callable[[Source, Path], str | None]
    needs: tuple[str, ...] = ()
    install: str = "pip install onnx onnxruntime onnxscript"
    exact: bool = True

    def missing(self) -> str | None:
        """Return the missing requirements of the format and their cure; None if all are there."""
        lacking = [name for name in self.needs if not _found(name)]
        return f"{', '.join(lacking)} not found: {self.install}" if lacking else None


def _found(name: str) -> bool:
    """Whether a module, a compiler or a GPU is available."""
    if name == "CUDA device":
        return torch.cuda.is_available()
    return find_spec(name) is not None or shutil.which(name) is not None


def program(source: Source, most: int | None = None) -> torch.export.ExportedProgram:
    """Return the network as a graph of ATen operators for any number of images, or up to `most`."""
    batch = torch.export.Dim("batch", min=1, max=most)
    return torch.export.export(source.network, _example(source), dynamic_shapes=({0: batch},))


def _example(source: Source) -> tuple[Tensor]:
    """Return two images, because from one torch.export would infer a constant batch size."""
    return (torch.cat([source.images[:1]] * 2),)


def _pt2(source: Source, path: Path) -> None:
    torch.export.save(program(source), path, extra_files={CARD: source.card})


def _onnx(source: Source, path: Path) -> None:
    import onnx

    made = torch.onnx.export(
        source.network, _example(source), dynamo=True, opset_version=source.opset,
        dynamic_shapes=({0: "batch"},), input_names=["images"], output_names=["scores"],
        external_data=False, verbose=False,
    )  # fmt: skip
    assert made is not None
    proto = made.model_proto
    onnx.helper.set_model_props(proto, {CARD: source.card})
    onnx.save(proto, path)


def _torchscript(source: Source, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, but still required
        traced = torch.jit.trace(source.network, _example(source))
        torch.jit.save(traced, path, _extra_files={CARD: source.card})


def _aotinductor(source: Source, path: Path) -> None:
    metadata = {"aot_inductor.metadata": {CARD: source.card}}
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch._inductor.aoti_compile_and_package(
        program(_moved(source, here)), package_path=str(path), inductor_configs=metadata
    )


def _moved(source: Source, device: torch.device) -> Source:
    network = deepcopy(source.network).to(device)
    return replace(source, network=network, images=source.images.to(device))


def _tensorrt(source: Source, path: Path) -> None:
    import torch_tensorrt

    image = source.images.shape[1:]
    given = torch_tensorrt.Input(
        min_shape=(1, *image), opt_shape=(TRT_USUAL, *image), max_shape=(TRT_MOST, *image),
        dtype=torch.float32,
    )  # fmt: skip
    exported = program(_moved(source, torch.device("cuda")), TRT_MOST)
    engine = torch_tensorrt.dynamo.compile(exported, inputs=[given], disable_tf32=True)
    extra = {CARD: source.card}
    torch_tensorrt.save(engine, str(path), arg_inputs=[given], extra_files=extra)


def _int8(source: Source, path: Path) -> str | None:
    """Quantize weights per output channel, and activations by their range on training images.

    The channels of a fused kernel can differ by orders of magnitude (`fusion.json` has the ranges),
    and int8 predictions then collapse. If predictions change, the network is equalized first.
    """
    agreed = _quantize(source, source.network, path)
    if agreed >= ENOUGH:
        return None
    other = path.with_name(f"equalized.{path.name}")
    better = _quantize(source, equalized(source.network, *_example(source)), other)
    if better > agreed:
        other.replace(path)
    return (
        f"as it was, {agreed:.1f} % of the training images kept their class; with equalized "
        f"channels {better:.1f} %, so these were {'taken' if better > agreed else 'not taken'}"
    )


def _quantize(source: Source, network: nn.Module, path: Path) -> float:
    """Write a quantized network; return the percent of calibration images that keep their class."""
    from onnxruntime import quantization

    assert source.calibration is not None
    batches = source.calibration.split(32)
    with TemporaryDirectory() as folder:
        plain, ready = f"{folder}/plain.onnx", f"{folder}/ready.onnx"
        _onnx(replace(source, network=network), Path(plain))
        quantization.shape_inference.quant_pre_process(plain, ready)
        quantization.quantize_static(ready, str(path), _reader(batches), per_channel=True)
    run = runtime.load(path).network
    with torch.inference_mode():
        same = [run(batch).argmax(1) == source.network(batch).argmax(1) for batch in batches]
    return 100 * torch.cat(same).double().mean().item()


def _reader(batches: Sequence[Tensor]) -> Any:
    """Return a reader from which ONNX Runtime gets one batch of calibration images per call."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        left = iter(batches)

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.left, None)
            return None if batch is None else {"images": batch.numpy()}

    return Reader()


FORMATS: dict[str, Format] = {
    "pt2": Format(file="model.pt2", write=_pt2),
    "onnx": Format(file="model.onnx", write=_onnx, needs=("onnx", "onnxscript", "onnxruntime")),
    "int8": Format(
        file="model.int8.onnx", write=_int8, needs=("onnx", "onnxscript", "onnxruntime"),
        exact=False,
    ),
    "torchscript": Format(file="model.ts", write=_torchscript),
    "aotinductor": Format(
        file="model.aoti.pt2", write=_aotinductor, needs=("g++",), install="apt install g++"
    ),
    "tensorrt": Format(
        file="model.trt.pt2", write=_tensorrt, needs=("CUDA device", "torch_tensorrt"),
        install="pip install torch-tensorrt, on a machine with a GPU", exact=False,
    ),
}  # fmt: skip
