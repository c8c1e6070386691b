"""Compute metrics from scores: accuracy, accuracy per class, calibration, confusion.

The `answers` of a network for N images are a table (N, 6) float64: the five best classes, -1 if
there are fewer, and the probability of the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOP = 5
WIDTH = TOP + 1
BINS = 15  # bins of confidence, as usual since Guo et al., "On Calibration …", ICML 2017


def answers(scores: Tensor) -> Tensor:
    """Return the table (N, 6) of scores (N, classes)."""
    probabilities = scores.double().softmax(dim=1)
    # topk is not reproducible for equal scores; a stable argsort is
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :TOP]
    filled = torch.nn.functional.pad(best, (0, TOP - best.shape[1]), value=-1)
    return torch.cat([filled.double(), probabilities.amax(dim=1, keepdim=True)], dim=1)


def accuracy(table: Tensor, label: Tensor) -> dict[str, float]:
    """Return top-1, top-5 and expected calibration error, in percent.

    Args:
        table: Answers (N, 6).
        label: (N,) int64.
    """
    from torchmetrics.functional.classification import binary_calibration_error  # takes seconds

    hits = table[:, :TOP].long() == label[:, None]
    confidence = table[:, -1].contiguous()
    return {
        "top1": 100 * hits[:, 0].double().mean().item(),
        "top5": 100 * hits.any(dim=1).double().mean().item(),
        "ece": 100 * binary_calibration_error(confidence, hits[:, 0].long(), BINS).item(),
    }


def per_class(table: Tensor, label: Tensor, classes: int) -> list[float | None]:
    """Return top-1 accuracy of each class in percent; None for one without images."""
    hits = (table[:, 0].long() == label).double()
    right, images = label.bincount(hits, classes), label.bincount(minlength=classes)
    return [
        100 * r / n if n else None for r, n in zip(right.tolist(), images.tolist(), strict=True)
    ]


def reliability(table: Tensor, label: Tensor) -> list[dict[str, float]]:
    """Return for each bin of confidence that is not empty: mean confidence, accuracy, images."""
    confidence, hit = table[:, -1], (table[:, 0].long() == label).double()
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    images = bins.bincount(minlength=BINS)
    sums = [bins.bincount(values, BINS).tolist() for values in (confidence, hit)]
    return [
        {"confidence": 100 * sure / n, "accuracy": 100 * right / n, "images": n}
        for sure, right, n in zip(*sums, images.tolist(), strict=True)
        if n
    ]


def confusion(table: Tensor, label: Tensor, classes: int) -> Tensor:
    """Return the confusion matrix (classes, classes): class in rows, prediction in columns."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix  # takes seconds

    counts: Tensor = multiclass_confusion_matrix(table[:, 0].long(), label, classes)
    return counts


def most_confused(counts: Tensor, limit: int) -> list[dict[str, int]]:
    """Return the most frequent confusions: label, predicted class, number of images."""
    off = counts - counts.diagonal().diag()
    order = off.flatten().argsort(descending=True, stable=True)[:limit].tolist()
    classes = len(counts)
    return [
        {"label": i // classes, "predicted": i % classes, "images": int(off.flatten()[i])}
        for i in order
        if off.flatten()[i] > 0
    ]
