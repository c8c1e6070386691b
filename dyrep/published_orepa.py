"""Load weights of the published training-time networks of OREPA.

    github.com/JUGGHM/OREPA_CVPR2022       P.weight_orepa_origin, ..., P.vector, P.bn.weight, ...

P is the path of a conv of the network here. The norm that is part of a published block is here the
next norm behind P, in the order of the network's modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dyrep.block import place_block

MARK = ".weight_orepa_origin"
PLACES = {
    "weight_orepa_origin": "kxk.conv.weight",
    "weight_orepa_1x1": "1x1.conv.weight",
    "weight_orepa_avg_conv": "1x1_avg.reduce.weight",
    "weight_orepa_pfir_conv": "1x1_prior.reduce.weight",
    "weight_orepa_prior": "1x1_prior.prior",
    "weight_orepa_1x1_kxk_idconv1": "1x1_kxk.reduce.weight",
    "weight_orepa_1x1_kxk_conv2": "1x1_kxk.conv.weight",
    "weight_orepa_gconv_dw": "dw_1x1.expand.weight",
    "weight_orepa_gconv_pw": "dw_1x1.reduce.weight",
}
VECTOR = ("kxk", "1x1_avg", "1x1_prior", "1x1_kxk", "1x1", "dw_1x1")  # branches of its rows
CONSTANT = ("weight_orepa_avg_avg", "id_tensor")


def paths(state: Mapping[str, Tensor]) -> list[str]:
    """Return the paths at which a checkpoint has blocks of OREPA."""
    return [key.removesuffix(MARK) for key in state if key.endswith(MARK)]


def place(model: nn.Module, found: list[str], state: Mapping[str, Tensor]) -> dict[str, str]:
    """Put blocks at the paths of the checkpoint's blocks; return the norm behind each, by path.

    Raises:
        ValueError: a path is not that of a conv, or no norm is behind it.
    """
    free = {
        path: norm.num_features
        for path, norm in model.named_modules()
        if isinstance(norm, _BatchNorm) and f"{path}.running_mean" not in state
    }
    order = [path for path, _ in model.named_modules()]
    behind = {}
    for path in sorted(found, key=lambda path: order.index(path) if path in order else -1):
        conv = model.get_submodule(path) if path in order else None
        if not isinstance(conv, nn.Conv2d):
            raise ValueError(f"the checkpoint has a block at {path}, this network no convolution")
        later = order[order.index(path) :]
        norm = next((p for p in later if free.get(p) == conv.out_channels), None)
        if norm is None:
            raise ValueError(f"the checkpoint has a batch norm behind {path}, this network none")
        del free[norm]
        behind[path] = norm
    for path in found:
        place_block(model, path, [place.partition(".")[0] for place in PLACES.values()],
                    form="linear")  # fmt: skip
    return behind


def translated(
    model: nn.Module, behind: Mapping[str, str], state: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the keys and values of a checkpoint, converted to those of the network here."""
    for key, value in state.items():
        path, part = _parted(key, behind)
        if path is None:
            yield key, value
        elif part.startswith("bn."):
            yield f"{behind[path]}.{part.removeprefix('bn.')}", value
        elif part == "vector":
            for name, row in zip(VECTOR, value, strict=True):
                yield f"{path}.branches.{name}.scale", row
        elif part not in CONSTANT:
            if part == "weight_orepa_gconv_pw":
                value = _in_our_order(value, model.get_submodule(path).geometry.groups)  # type: ignore[union-attr,arg-type]
            yield f"{path}.branches.{PLACES[part]}", value


def _parted(key: str, behind: Mapping[str, str]) -> tuple[str | None, str]:
    for end in range(len(key)):
        if key[end] == "." and key[:end] in behind:
            return key[:end], key[end + 1 :]
    return None, key


def _in_our_order(kernel: Tensor, groups: int) -> Tensor:
    """Return a grouped 1x1 kernel with its outputs group by group; OREPA interleaves them."""
    return torch.cat([kernel[group::groups] for group in range(groups)])
