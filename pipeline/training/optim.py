"""Optimizer and learning rate of a recipe."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.config.train import Train


def build(model: nn.Module, train: Train) -> SGD:
    """Return SGD with weight decay on matrices and kernels, none on biases and norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return SGD(groups, lr=train.lr, momentum=train.momentum, nesterov=train.nesterov)


def averaged(model: nn.Module, train: Train) -> AveragedModel | None:
    """Return the exponential moving average of weights and running statistics, if asked for."""
    if train.ema is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(train.ema), use_buffers=True)


def schedule(optimizer: SGD, train: Train, steps_per_epoch: int) -> LambdaLR:
    """Return a linear warm-up followed by a cosine to zero, stepped once per optimizer step."""
    warmup, total = train.warmup_epochs * steps_per_epoch, train.epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return LambdaLR(optimizer, factor)
