"""Counts of right and wrong classes, which sites may add up without showing an image."""

import numpy as np
import torch
from torch import Tensor

from .classification import ClassificationMetrics


def confusion_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Return int64 (K, K): images by their class (rows) and their most probable class (columns).

    Parameters
    ----------
    logits : Tensor
        (n, K) logits or log-probabilities.
    labels : Tensor
        int64 (n,).
    """
    num_classes = logits.shape[1]
    pairs = labels * num_classes + logits.argmax(dim=1)
    return torch.bincount(pairs, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


def rounded_count(count: int, granularity: int) -> int:
    """Return ``count`` as the nearest multiple of ``granularity``, at least one of them; 0 stays 0."""
    return max(1, (2 * count + granularity) // (2 * granularity)) * granularity if count else 0


def rounded_rows(counts: Tensor, granularity: int) -> Tensor:
    """Return ``counts`` (K, K) with every row's sum rounded by `rounded_count` and shared out in the row's proportions.

    The remainders go to the largest fractions first, and to the left one of equal ones.
    """
    if granularity == 1:
        return counts
    rows = []
    for row in counts.double():
        total = int(row.sum())
        exact = row * (rounded_count(total, granularity) / max(total, 1))
        whole = exact.floor()
        order = torch.argsort(whole - exact, stable=True)
        whole[order[: round(float((exact - whole).sum()))]] += 1
        rows.append(whole)
    return torch.stack(rows).long()


def metrics_of_counts(counts: Tensor) -> ClassificationMetrics:
    """Return what (K, K) counts tell: all of `ClassificationMetrics` but the AUROC, which needs probabilities and is nan.

    Raises
    ------
    ValueError
        If nothing was counted.
    """
    if not int(counts.sum()):
        raise ValueError("a confusion matrix without images has no accuracy; hold out at least one image per class")
    matrix = counts.double().numpy()
    right, truth, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    present = truth > 0
    f1 = 2 * right[present] / (truth + predicted)[present]
    recall = np.divide(right, truth, out=np.full(len(matrix), np.nan), where=present)
    return ClassificationMetrics(
        accuracy=float(right.sum() / matrix.sum()),
        auroc=float("nan"),
        macro_f1=float(f1.mean()),
        per_class_recall=tuple(float(one) for one in recall),
    )
