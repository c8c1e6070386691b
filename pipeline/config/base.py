"""Define types and base classes for all sections."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticKnownError

StageName = Literal["prep", "train", "fuse", "eval", "latency"]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)
Branch = Literal["kxk", "1x1", "1x1_kxk", "1x1_avg", "1xk", "kx1", "identity"]
OfLinear = Literal["1x1_prior", "dw_1x1"]  # branches that only linear blocks have
Form = Literal["batchnorm", "linear"]
ExportFormat = Literal["pt2", "onnx", "int8", "torchscript", "aotinductor", "tensorrt"]
Variant = Literal[
    "plain_folded", "compiled", "cuda_graphs", "channels_last", "tf32", "bfloat16", ExportFormat
]  # fmt: skip
PARALLEL = ("train", "eval")  # stages that run in several processes
Values = dict[str, Any]  # nested settings by name, unchecked
Flat = dict[str, Any]  # settings by dotted key
Share = Annotated[float, Field(gt=0, lt=1)]


def _whole(value: Any) -> Any:
    """Refuse true and 1.0 where a `Literal` takes a whole number; both equal 1 in Python."""
    if isinstance(value, bool | float):
        raise PydanticKnownError("int_type")
    return value


Whole = BeforeValidator(_whole)


def written(value: Any) -> str:
    """Return a value in the notation of the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{written(item)}' for key, item in value.items())}}}"
    return json.dumps(value) if isinstance(value, bool) or value is None else str(value)


class Section(BaseModel):
    """A section of the configuration: no unknown keys, no silent conversions, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Target(Section):
    """A function or class by its Python name; `pipeline.custom` finds, copies and calls it.

    `code` is the hash of the copy of its files, or the release of the installed package. When the
    configuration is composed, a null is replaced by the hash of the files at that time.
    """

    target: str
    args: dict[str, Any] | None
    code: str | None

    @field_validator("target")
    @classmethod
    def _names_one(cls, value: str) -> str:
        if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", value):
            raise ValueError(
                f"'{value}' is not of the form package.module:function, e.g. mymodule:build"
            )
        return value

    @field_validator("code")
    @classmethod
    def _is_a_copy(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-f]{12}|[\w.-]+==[\w.+!-]+", value):
            raise ValueError(
                f"'{value}' is not a copy of code; leave it out for the code as it is now, or give "
                "that of an earlier run, from its config.yaml"
            )
        return value
