"""What every section shares."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

StageName = Literal["prep", "train", "fuse", "eval", "latency"]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)
Branch = Literal["kxk", "1x1", "1x1_kxk", "1x1_avg", "1xk", "kx1", "identity"]
Form = Literal["batchnorm", "linear"]
ExportFormat = Literal["pt2", "onnx", "int8", "torchscript", "aotinductor", "tensorrt"]
Variant = Literal[
    "plain_folded", "compiled", "cuda_graphs", "channels_last", "tf32", "bfloat16", ExportFormat
]  # fmt: skip
PARALLEL = ("train", "eval")  # stages that run in several processes
Values = dict[str, Any]  # settings by name, nested, of which nothing is checked
Share = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of the configuration: no unknown keys, no silent conversions, no changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
