"""Find settings that have no effect beside the others; on the command line they are refused.

A file of `conf/` may hold such a setting, because it can take effect with another choice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from pipeline.config.base import Flat, written


def idle(named: Collection[str], flat: Flat) -> dict[str, str]:
    """Return the named settings that have no effect, each with the message that refuses it.

    Args:
        named: dotted keys of the command line.
        flat: all settings; some may be missing, or of a wrong type.
    """
    return {
        key: f"{key}={written(flat[key])} does nothing: {why}; leave it out"
        for key, (idles, why) in IDLE.items()
        if key in named and key in flat and idles(flat)
    }


def _linear(flat: Flat) -> bool:
    return flat.get("method.kind") == "grow" or flat.get("method.form") == "linear"


def _is_not(key: str, value: str) -> Callable[[Flat], bool]:
    return lambda flat: flat.get(key) != value


def _no_onnx(flat: Flat) -> bool:
    exports = flat.get("fuse.exports")
    return isinstance(exports, list) and not {"onnx", "int8", "tensorrt"} & {*map(str, exports)}


def _not_widened(flat: Flat) -> bool:
    branches = flat.get("method.branches")
    return isinstance(branches, list) and "1x1_kxk" not in branches


RESIZED = _is_not("train.augment.crop", "resized"), "it goes with train.augment.crop=resized"
IDLE: dict[str, tuple[Callable[[Flat], bool], str]] = {
    "method.cut_std": (
        _linear,
        "it is the rule for branches with batch norms, and linear ones are cut by method.cut_ratio",
    ),
    "method.calibration_batches": (
        _linear,
        "it sets the statistics of new batch norms, and linear branches have none",
    ),
    "method.widen_depthwise": (_not_widened, "method.branches has no 1x1_kxk, which it widens"),
    "train.augment.padding": (
        _is_not("train.augment.crop", "pad"),
        "it goes with train.augment.crop=pad",
    ),
    "train.augment.scale": RESIZED,
    "train.augment.ratio": RESIZED,
    "fuse.opset": (_no_onnx, "fuse.exports writes no ONNX"),
}
