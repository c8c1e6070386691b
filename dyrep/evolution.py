"""Sum saliency during training, and grow and cut branches at adjustments: the class DyRep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dyrep import calibration, eligible, expansion, pruning, surgery, wrappers
from dyrep.base import Form, RepBlock
from dyrep.block import blocks, called, grown_depth, require_branches, require_form
from dyrep.branches import ALL_BRANCHES
from dyrep.budget import Budget, Measure, extra_cost, input_shapes
from dyrep.cost import cost
from dyrep.events import Event
from dyrep.linear import scales
from dyrep.optimizers import refuse_whole
from dyrep.proof import noise, relative_error
from dyrep.saliency import Saliency
from dyrep.state import EvolverState
from dyrep.transaction import all_or_nothing


class DyRep:
    """Grows the most salient convs and cuts weak branches (Huang et al., CVPR 2022, algorithm 1).

    Args:
        model: The bare network, not wrapped in DistributedDataParallel or torch.compile.
        optimizer: The optimizer, updated with each change: new parameters join a group, momenta
            stay.
        ema: An averaged copy of the model, updated as well: a
            `torch.optim.swa_utils.AveragedModel`, or a network with the same names.
        saliency: The score by which convs are ranked; see `dyrep.saliency`.
        branches: Branches of a grown conv; branches that the conv cannot take are left out.
        form: Form of the blocks: `batchnorm`, as published, or `linear`, composed into one kernel,
            which costs little and keeps the function exactly, even in train mode.
        strength: Strength of a new branch; see `expansion.grow`; None: the default of the form.
        adjust_interval: Epochs between adjustments.
        last_adjust_epoch: Number of epochs after which the structure is fixed.
        grow: Number of convs grown per adjustment.
        cut_std, cut_ratio: Thresholds of the published cutting rule. A branch of a linear block
            is cut if it weighs less than `cut_ratio` of its weight when it was new.
        max_cost: Limit on the cost of the network, as a multiple of its plain form; a conv that
            would exceed it is not grown. None: no limit.
        cost: Unit of `max_cost`: `flops` of a forward, or `seconds` of forward and backward.
        seed: Seed of new weights; the same on every rank.

    `left` maps the path of each conv that gets no branches to the reason.

    Raises:
        TypeError: the model is wrapped, or the optimizer keeps parameters beside its groups.
        ValueError: the saliency, a branch, the form or the cost is unknown, the strength is not
            above 0, the model has blocks of another form, or optimizer or average belong to another
            model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        ema: nn.Module | None = None,
        saliency: str = "gain",
        branches: Sequence[str] = ALL_BRANCHES,
        form: Form = "batchnorm",
        strength: float | None = None,
        adjust_interval: int = 5,
        last_adjust_epoch: int = 100,
        grow: int = 1,
        cut_std: float = 0.02,
        cut_ratio: float = 0.1,
        max_cost: float | None = None,
        cost: Measure = "flops",
        seed: int = 0,
    ) -> None:
        surgery.refuse_wrapped(model)
        require_form(model, form)
        if strength is not None and not 0 < strength < math.inf:
            raise ValueError(f"strength={strength}; use a number above 0")
        if adjust_interval < 1:
            raise ValueError(f"adjust_interval={adjust_interval}; use 1 or more epochs")
        require_branches(branches, form)
        if optimizer is not None:
            refuse_whole(optimizer, model)
        if optimizer is not None and not surgery.optimizes(optimizer, model):
            raise ValueError(
                "the optimizer holds no parameter of this model; build it on this model"
            )
        self.model, self.optimizer, self.branches = model, optimizer, tuple(branches)
        self.ema = None if ema is None else surgery.bare(ema)
        if self.ema is not None and _names(self.ema) != _names(model):
            raise ValueError("ema is not an average of this model: its parameters have other names")
        self.adjust_interval, self.last_adjust_epoch = adjust_interval, last_adjust_epoch
        self.grow, self.cut_std, self.cut_ratio, self.seed = grow, cut_std, cut_ratio, seed
        self.form, self.strength = form, strength
        self.budget = Budget(max_cost, cost, form)
        self.adjustments = 0
        self.left: dict[str, str] = {}
        self._began = pruning.known({}, model)
        self._saliency = Saliency(saliency)
        self._watch()
        left = eligible.unfit_convs(model)
        if not blocks(model) and {path for path, _ in eligible.convs(model)} <= left.keys():
            eligible.warn_of_nothing(left)

    def accumulate(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Add the gradients of this step; call it once per step, between backward and optimizer.

        Args:
            scaler: Scaler of the loss, unless `scaler.unscale_(optimizer)` was called before.
        """
        self._saliency.accumulate(scaler)

    def due(self, epoch: int) -> bool:
        """Whether to adjust after `epoch`, counted from 0."""
        return (epoch + 1) % self.adjust_interval == 0 and epoch < self.last_adjust_epoch

    def adjust(self, calibration: Iterable[Tensor] | None = None) -> list[Event]:
        """Grow, then cut, then start a new interval; return one event per changed layer.

        Args:
            calibration: Input batches of the model, on its device; each rank brings batches of its
                own, the same number on each. Linear blocks need none: with None, the errors in
                events are measured on noise, and `flops` of events are unknown.

        Afterwards, wrap the model in DistributedDataParallel again.

        Raises:
            TypeError, ValueError: a batch is not a tensor of finite values, or makes a layer get
                values that are not finite; or batches are missing that batch norms, `max_cost` or a
                saliency per FLOP need. Whatever is raised, the networks are as they were.
        """
        batches = self._checked(calibration)
        generator = torch.Generator().manual_seed(
            (self.seed * 1_000_003 + self.adjustments) % 2**63
        )
        self.left = eligible.unfit_convs(self.model)
        parameters = dict(self.model.named_parameters())
        networks = [self.model] if self.ema is None else [self.model, self.ema]
        with (
            torch.inference_mode(False),  # tensors made in inference mode cannot be trained
            all_or_nothing(*networks),
            torch.random.fork_rng(devices=[]),  # building a branch draws from the global generator
        ):
            events = [*self._grow_best(batches, generator), *self._cut(batches)]
        if self.optimizer is not None:
            strengths = scales(self.model).values()
            surgery.follow(self.optimizer, self.model, parameters, strengths)
        wrappers.outdate(self.model, parameters, self.ema)
        self.adjustments += 1
        self._began = pruning.known(self._began, self.model)
        self._watch()
        return events

    def _checked(self, batches: Iterable[Tensor] | None) -> list[Tensor]:
        if batches is not None:
            return calibration.checked(batches)
        for needed, why in (
            (self.form == "batchnorm", "batch norms need statistics"),
            (self.budget.limit is not None, "max_cost is counted on one"),
            (self._saliency.per_flop, f"saliency {self._saliency.name} counts FLOPs on one"),
        ):
            if needed:
                raise ValueError(f"adjust() needs calibration batches: {why}")
        return []

    def state_dict(self) -> EvolverState:
        """Return the state to save in a checkpoint, beside model, structure and optimizer."""
        return {
            "adjustments": self.adjustments,
            "saliency": self._saliency.state_dict(),
            "plain_flops": self.budget.plain_flops,
            "began": self._began,
        }

    def load_state_dict(self, state: EvolverState) -> None:
        """Load a state; the model must already have the structure that it had at the save."""
        self.adjustments = state["adjustments"]
        self._saliency.load_state_dict(state["saliency"])
        self.budget.plain_flops = state.get("plain_flops")
        self._began = pruning.known(state.get("began", {}), self.model)

    def _watch(self) -> None:
        unfit = eligible.unfit_convs(self.model)
        self._saliency.watch(
            {
                path: conv
                for path, conv in eligible.convs(self.model)
                if path not in unfit and grown_depth(self.model, path) < expansion.DEEPEST
            }
        )

    def _grow_best(self, batches: list[Tensor], generator: torch.Generator) -> Iterator[Event]:
        ranking = self._ranking(batches, generator)
        grown = 0
        for path, _ in ranking:
            if grown == self.grow:
                return
            if path in self.left:
                continue
            reason = self.budget.refusal(
                self.model, path, self.branches, batches[0] if batches else None, self.optimizer
            )
            if reason:
                self.left[path] = reason
                continue
            before = outputs(self.model, path, batches)
            block = expansion.grow(
                self.model, path, self.branches, batches, generator, self.form, self.strength
            )
            if self.ema is not None:
                expansion.grow_alike(self.ema, path, block)
            yield self._event("grow", path, block, before, ranking, batches)
            grown += 1

    def _ranking(
        self, batches: list[Tensor], generator: torch.Generator
    ) -> list[tuple[str, float]]:
        ranking = self._saliency.ranking(generator)
        if not self._saliency.per_flop:
            return ranking
        shapes = input_shapes(self.model, [path for path, _ in ranking], batches[0])
        worth = [
            (path, score / max(1, self._extra_flops(path, shapes[path])))
            for path, score in ranking
            if path in shapes
        ]
        return sorted(worth, key=lambda pair: -pair[1])

    def _extra_flops(self, path: str, shape: torch.Size) -> int:
        return extra_cost(self.model, path, self.branches, shape, self.form).flops

    def _cut(self, batches: list[Tensor]) -> Iterator[Event]:
        pruning.refresh(self.model, batches)
        weak = pruning.weak_in(self.model, self.cut_std, self.cut_ratio, self._began)
        for path, names in weak.items():
            before = outputs(self.model, path, batches)
            module = pruning.without(self.model, path, names, batches)
            if self.ema is not None:
                pruning.cut_alike(self.ema, path, names, module)
            yield self._event("cut", path, module, before, None, batches)

    def _event(
        self,
        action: Literal["grow", "cut"],
        path: str,
        module: nn.Module,
        before: tuple[Tensor, Tensor],
        ranking: list[tuple[str, float]] | None,
        batches: list[Tensor],
    ) -> Event:
        after = outputs(self.model, path, batches)
        spent = cost(self.model, batches[0]) if batches else None
        return Event(
            action=action,
            layer=path,
            branches=module.names if isinstance(module, RepBlock) else ["conv"],
            saliency=ranking,
            error_eval=relative_error(before[0], after[0]),
            error_train=relative_error(before[1], after[1]),
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            flops=spent.flops if spent else None,
        )


@torch.no_grad()
def outputs(model: nn.Module, path: str, batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the outputs of a layer in eval mode and with batch statistics; change nothing.

    The input is the first batch, or noise without batches. For a conv inside a linear block, the
    outputs of the block are returned.
    """
    found: list[Tensor] = []
    target = model.get_submodule(called(model, path))
    if not batches:
        given = target(noise(target))
        return given, given
    handle = target.register_forward_hook(lambda _, __, output: found.append(output))
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()
        model(batches[0])
        half = len(found)  # a layer may be called more than once
        with calibration.batch_statistics(model):
            calibration.run(model, batches[0])
    finally:
        for module, flag in flags.items():
            module.training = flag
        handle.remove()
    return found[0], found[half]


def _names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}
