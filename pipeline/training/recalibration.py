"""Recompute the running statistics of all batch norms at the end of an epoch.

The running averages of a training lag behind the weights. Recalibration sets the mean and variance
of every batch norm to their averages over some batches, with the current weights. It is done in
epochs after which nothing grows. The published commands for RepVGG do the same
(`--dyrep_recal_bn_every_epoch`, lib/models/utils/recal_bn.py of
github.com/hunto/image_classification_sota).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.config.train import Train
from pipeline.contract.world import World
from pipeline.networks.freezing import following
from pipeline.training.images import Images
from pipeline.training.state import State


def due(state: State, recipe: Train) -> bool:
    """Whether to recalibrate now, after the last step of an epoch."""
    if recipe.recalibrate is None or state.recalibrated == state.epoch + 1:
        return False
    until = recipe.recalibrate_until
    if until is not None and state.plain_epochs > until:
        return False
    goes_on = state.pace.steps_left(state.step) > 0
    return not (goes_on and state.growth.due(state.plain_epochs, state.pace.price))


def recalibrate(
    state: State, recipe: Train, world: World, images: Images, check_stop: Callable[[], None]
) -> None:
    """Recalibrate the network, and the averaged one if there is one; collective.

    Args:
        state: the state of the training; its `recalibrated` is updated.
        recipe: settings of the training.
        world: all processes; each of them calls this function.
        images: source of the batches.
        check_stop: called before each batch; may raise.
    """
    assert recipe.recalibrate is not None
    learner, epoch = state.learner, state.epoch + 1
    networks = dict.fromkeys((learner.model, learner.shipped))  # often one network
    with state.cost.changing(world, state.history.step_seconds), learner.compiler.aside():
        batches = images.apart(recipe.recalibrate, epoch, check_stop)
        average_statistics(list(networks), batches, world, learner.autocast())
    state.recalibrated = epoch


@torch.no_grad()
def average_statistics(
    networks: list[nn.Module],
    batches: Iterable[Tensor],
    world: World,
    autocast: AbstractContextManager[None],
) -> None:
    """Set the running statistics of all batch norms, except frozen ones, to means over batches.

    Collective: every process calls this, and gets the means over all processes.
    """
    norms = [norm for network in networks for norm in following(network)]
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(_averaging(network, norms))
        for batch in batches:
            with autocast:
                for network in networks:
                    network(batch)
    found = [t for norm in norms for t in (norm.running_mean, norm.running_var)]
    statistics = [tensor for tensor in found if tensor is not None]
    if statistics and not world.alone:
        whole = world.total(torch.cat([t.double() for t in statistics])) / world.world_size
        for own, shared in zip(statistics, whole.split([len(t) for t in statistics]), strict=True):
            own.copy_(shared)


@contextmanager
def _averaging(network: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Reset batch norms and let them average their inputs; all else is in eval mode."""
    flags = {module: module.training for module in network.modules()}
    own = [norm for norm in norms if norm in flags]
    momenta = [norm.momentum for norm in own]
    network.eval()
    for norm in own:
        norm.reset_running_stats()
        norm.momentum = None  # torch then computes the mean over all batches
        norm.train()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
        for norm, momentum in zip(own, momenta, strict=True):
            norm.momentum = momentum
