"""Settings of the network and of the method that adds branches to it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipeline.config.base import Branch, Form, OfLinear, Section, Share, Target
from pipeline.config.rules import RESNETS

BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5]
BLOCKS += [(1024, 2), (1024, 1)]  # channels and stride of the 13 blocks of MobileNet
BEGUN = ("pretrained", "pretrained_sha256", "freeze")  # settings of the initial weights
ASIDE = (*BEGUN, "drop", "drop_path", "code")  # settings that do not change the architecture
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def widened(count: int, width: float) -> int:
    """Return the number of channels of a MobileNet layer, multiplied by `width`; at least 8."""
    return max(8, int(count * width))


class Network(Section):
    """Settings of all networks: initial weights, and parameters that are not trained.

    Args:
        pretrained: a file of weights; `pipeline.planning.starts` finds it for a run or a name.
        pretrained_sha256: hash of that file, so that a changed file is noticed.
        freeze: globs of names of parameters, or of the modules that hold them.
    """

    name: str
    pretrained: Annotated[str, Field(min_length=1)] | None = None
    pretrained_sha256: Digest | None = None
    freeze: list[Annotated[str, Field(min_length=1)]] = Field(default=[])

    @field_validator("freeze", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        """Accept a single glob, and numbers as names of modules in a Sequential."""
        globs = [] if value is None else value if isinstance(value, list) else [value]
        return [str(glob) if type(glob) is int else glob for glob in globs]


class Vgg(Network):
    """A VGG-style network with batch norm.

    Args:
        widths: channels of each convolution, by stage.
        hidden: outputs of a linear layer and ReLU before the classifier; null: no such layer.
        bias: whether convolutions have a bias.
    """

    family: Literal["vgg"]
    widths: list[list[PositiveInt]] = Field(min_length=1)
    hidden: PositiveInt | None = None
    bias: bool = True


class MobileNetV1(Network):
    """MobileNetV1, of depthwise and 1x1 convolutions; `small_stem`: stride 1 in the first."""

    family: Literal["mobilenet_v1"]
    width: PositiveFloat
    small_stem: bool


class Library(Network):
    """A classifier of timm or torchvision, by its name in the library.

    Args:
        drop: probability of dropout; null: the default of the network.
        drop_path: probability of stochastic depth for the last block; it is lower for earlier
            blocks. null: the default of the network.
    """

    drop: Share | None = None
    drop_path: Share | None = None


class Torchvision(Library):
    """A classifier of torchvision.

    `pipeline.config.rules` has replaced `small_stem: auto` by a value.
    """

    family: Literal["torchvision"]
    small_stem: bool

    @model_validator(mode="after")
    def _stem_can_be_small(self) -> Self:
        if self.small_stem and not re.match(RESNETS, self.name):
            raise ValueError(
                f"small_stem is for ResNets and {self.name} is none; set model.small_stem=false"
            )
        return self


class Timm(Library):
    """A classifier of timm.

    `own_branches`: whether a RepVGG trains with its 1x1 and identity branches, whatever the method.
    """

    family: Literal["timm"]
    own_branches: bool = False

    @model_validator(mode="after")
    def _has_branches(self) -> Self:
        if self.own_branches and not self.name.startswith("repvgg"):
            raise ValueError(
                f"own_branches is for RepVGG and {self.name} is none; set model.own_branches=false"
            )
        return self


class Custom(Network, Target):
    """A network that a function or class of the user returns for `num_classes`."""

    name: Literal["custom"]
    family: Literal["custom"]


Model = Annotated[Vgg | MobileNetV1 | Torchvision | Timm | Custom, Field(discriminator="family")]


class Starting(Section):
    """Settings of all methods: the initial kernels; see `dyrep.identity_start`."""

    name: str
    start: Literal["drawn", "identity"] = "drawn"


class Plain(Starting):
    """No extra branches."""

    kind: Literal["plain"]


class Static(Starting):
    """The same branches on every convolution from the first step."""

    kind: Literal["static"]
    form: Form = "batchnorm"
    branches: list[Branch | OfLinear] = Field(min_length=1)
    absorb: bool
    widen_depthwise: PositiveInt = 1

    @model_validator(mode="after")
    def _branches_of_the_form(self) -> Self:
        if self.form != "linear" and (alone := set(self.branches) & set(get_args(OfLinear))):
            raise ValueError(
                f"method.branches: {', '.join(sorted(alone))} are branches of linear blocks alone; "
                "set method.form=linear, or leave them out"
            )
        return self

    @model_validator(mode="after")
    def _norms_that_can_go(self) -> Self:
        if self.widen_depthwise > 1 and self.form == "linear":
            raise ValueError(
                f"widen_depthwise={self.widen_depthwise} is for branches with batch norms; with "
                "form=linear set method.widen_depthwise=1"
            )
        if self.absorb and self.form == "linear":
            raise ValueError(
                "absorb=true takes the batch norm behind a convolution away because each branch "
                "has its own; with form=linear none has: set method.absorb=false"
            )
        return self


class Structured(Starting):
    """The final branches of another run, with new weights from the first step.

    Args:
        structure: path of its `structure.json`; `pipeline.planning.starts` finds it by the run.
        structure_sha256: hash of that file, so that a changed file is noticed.
    """

    kind: Literal["structure"]
    structure: Annotated[str, Field(min_length=1)]
    structure_sha256: Digest | None = None


class Growing(Starting):
    """Settings of methods that grow and cut branches during training.

    `pipeline.config.rules` has replaced a null of `adjust_interval` or `last_adjust_epoch`.
    """

    adjust_interval: PositiveInt
    last_adjust_epoch: NonNegativeInt
    cost: Literal["flops", "seconds"]
    branches: list[Branch] = Field(min_length=1)
    grow: PositiveInt
    cut_std: NonNegativeFloat
    cut_ratio: NonNegativeFloat
    calibration_batches: PositiveInt


class DyRep(Growing):
    """Growth by all branches of a layer at once, as published; see `dyrep.DyRep`."""

    kind: Literal["dyrep"]
    form: Form = "batchnorm"
    saliency: Literal["gain", "gain_per_flop", "snip", "grad_norm", "synflow", "random"]
    max_cost: Annotated[float, Field(ge=1)] | None


class Grow(Growing):
    """Growth by the single branches with the most gain per cost, in a budget; see `dyrep.Grower`.

    `pipeline.config.rules` has replaced a null of `cost`.
    """

    kind: Literal["grow"]
    choose: Literal["worth", "random"]
    strength: PositiveFloat
    max_cost: Annotated[float, Field(ge=1)]


def added(method: Starting) -> list[str]:
    """Return the branches of a method that change a convolution which can take them.

    Growth adds a kxk branch only beside others, so it does not count there. A method without
    branches returns kxk, which every convolution larger than 1x1 can take.
    """
    names: list[str] = list(getattr(method, "branches", ["kxk"]))
    return [name for name in names if name != "kxk"] if isinstance(method, Growing) else names


Method = Annotated[Plain | Static | Structured | DyRep | Grow, Field(discriminator="kind")]
