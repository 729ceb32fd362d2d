"""How well a classifier does, by scikit-learn's metrics."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassificationMetrics:
    """Metrics of one classifier on one labelled set, all in [0, 1].

    Attributes
    ----------
    accuracy : float
        Share of images whose most probable class is right.
    auroc : float
        Area under the ROC curve: of the second class for two classes, else the unweighted mean of one against the rest;
        nan where fewer than two classes stand in the set.
    macro_f1 : float
        Unweighted mean of the classes' F1.
    per_class_recall : tuple of float
        Share of each class's images that is found; nan for a class that is not in the set.
    """

    accuracy: float
    auroc: float
    macro_f1: float
    per_class_recall: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with None for nan."""
        values = asdict(self) | {"per_class_recall": list(self.per_class_recall)}
        return {key: _without_nan(value) for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `as_dict` wrote."""
        numbers = {name: _with_nan(values[name]) for name in ("accuracy", "auroc", "macro_f1")}
        return cls(**numbers, per_class_recall=tuple(_with_nan(recall) for recall in values["per_class_recall"]))


def classification_metrics(logits: Tensor, labels: Tensor) -> ClassificationMetrics:
    """Score (n, K) logits or log-probabilities against (n,) labels.

    Where they are not finite, every class counts as equally probable.
    """
    from sklearn.metrics import f1_score, recall_score, roc_auc_score

    num_classes = logits.shape[1]
    shares = torch.softmax(logits.double(), dim=1)
    shares = torch.where(torch.isfinite(shares).all(dim=1, keepdim=True), shares, 1 / num_classes)
    probabilities, truth, predicted = shares.numpy(), labels.numpy(), logits.argmax(dim=1).numpy()
    present = np.unique(truth)
    auroc = float("nan")
    if len(present) > 1:
        one_against_rest = [roc_auc_score(truth == label, probabilities[:, label]) for label in present]
        auroc = float(one_against_rest[-1] if num_classes == 2 else np.mean(one_against_rest))
    recall = recall_score(truth, predicted, labels=range(num_classes), average=None, zero_division=0.0)
    return ClassificationMetrics(
        accuracy=float((truth == predicted).mean()),
        auroc=auroc,
        macro_f1=float(f1_score(truth, predicted, labels=present, average="macro", zero_division=0.0)),
        per_class_recall=tuple(float(r) if label in present else float("nan") for label, r in enumerate(recall)),
    )


def mean_metrics(several: list[ClassificationMetrics]) -> dict[str, Any]:
    """Return the means over classifiers, and the standard deviation of their accuracies; recalls over those that know them."""
    return {
        "accuracy": float(np.mean([m.accuracy for m in several])),
        "accuracy_std": float(np.std([m.accuracy for m in several])),
        "auroc": _without_nan(float(np.mean([m.auroc for m in several]))),
        "macro_f1": float(np.mean([m.macro_f1 for m in several])),
        "per_class_recall": [_mean_of_known(recalls) for recalls in zip(*(m.per_class_recall for m in several), strict=True)],
    }


def _mean_of_known(values: tuple[float, ...]) -> float | None:
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else None


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _with_nan(value: float | None) -> float:
    return float("nan") if value is None else value
