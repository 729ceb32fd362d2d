"""Classification metrics against hand calculations and counted pairs."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ff_flower.metrics import ClassificationMetrics, classification_metrics, mean_metrics


def _logits(predicted: list[int], num_classes: int) -> Tensor:
    """Return logits that are sure of the given classes."""
    return 10.0 * torch.nn.functional.one_hot(torch.tensor(predicted), num_classes)


def test_a_confusion_by_hand() -> None:
    """Truth 0 0 0 1 1 2 seen as 0 0 1 1 2 2: 4 of 6 right, recalls 2/3 1/2 1, F1 4/5 1/2 2/3."""
    metrics = classification_metrics(_logits([0, 0, 1, 1, 2, 2], 3), torch.tensor([0, 0, 0, 1, 1, 2]))
    assert metrics.accuracy == pytest.approx(4 / 6)
    assert metrics.per_class_recall == pytest.approx((2 / 3, 1 / 2, 1.0))
    assert metrics.macro_f1 == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)


def test_auroc_by_hand() -> None:
    """Of 2 x 2 pairs of a positive and a negative, three are in the right order: 3/4; a tie counts one half."""
    scores, labels = torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1])
    logits = torch.stack([torch.zeros(4), scores], dim=1)
    assert classification_metrics(logits, labels).auroc == pytest.approx(0.75)
    assert classification_metrics(torch.zeros(4, 2), labels).auroc == pytest.approx(0.5)


@settings(deadline=None, max_examples=30)
@given(labels=st.lists(st.integers(0, 3), min_size=2, max_size=20), seed=st.integers(0, 2**32), num_classes=st.integers(4, 5))
def test_auroc_is_the_share_of_ordered_pairs(labels: list[int], seed: int, num_classes: int) -> None:
    """One against the rest, averaged over the classes that occur: how often an image of the class outranks one of the rest."""
    logits = torch.randn((len(labels), num_classes), generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    probabilities, truth = logits.double().softmax(1), torch.tensor(labels)
    ranked = []
    for label in set(labels):
        of_class, rest = probabilities[truth == label, label], probabilities[truth != label, label]
        ranked.append((torch.sign(of_class[:, None] - rest[None]) / 2 + 0.5).mean())
    found = classification_metrics(logits, truth).auroc
    assert math.isnan(found) if len(ranked) == 1 else found == pytest.approx(float(sum(ranked) / len(ranked)))


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_perfect_and_inverted_classifiers(num_classes: int) -> None:
    """A perfect classifier has 1 everywhere; its negative ranks every pair wrongly and has AUROC 0."""
    labels = torch.arange(num_classes).repeat(3)
    logits = _logits(labels.tolist(), num_classes)
    perfect, inverted = classification_metrics(logits, labels), classification_metrics(-logits, labels)
    assert (perfect.accuracy, perfect.auroc, perfect.macro_f1) == (1.0, 1.0, 1.0)
    assert perfect.per_class_recall == (1.0,) * num_classes
    assert (inverted.accuracy, inverted.auroc, inverted.macro_f1) == (0.0, 0.0, 0.0)


def test_log_probabilities_score_like_logits() -> None:
    """A constant added to an image's logits changes nothing."""
    logits, labels = torch.randn((30, 4), generator=torch.Generator().manual_seed(0)), torch.arange(30) % 4
    assert classification_metrics(logits.log_softmax(1), labels) == classification_metrics(logits, labels)


def test_an_absent_class_has_no_recall() -> None:
    """A class without images has recall nan and counts in no mean, even where it is predicted."""
    metrics = classification_metrics(_logits([0, 1, 2, 1], 3), torch.tensor([0, 1, 1, 1]))
    assert metrics.per_class_recall[:2] == pytest.approx((1.0, 2 / 3)) and math.isnan(metrics.per_class_recall[2])
    assert metrics.macro_f1 == pytest.approx((1.0 + 4 / 5) / 2)
    assert metrics.auroc == pytest.approx((1.0 + (1 + 1 / 2 + 1) / 3) / 2)


def test_one_class_alone_has_no_auroc() -> None:
    """Where all images are of one class there is nothing to rank: AUROC is nan."""
    metrics = classification_metrics(_logits([0, 1], 2), torch.tensor([0, 0]))
    assert math.isnan(metrics.auroc) and metrics.accuracy == 0.5


def test_json_has_null_for_nan() -> None:
    """What is undefined is null in strict JSON, and reading brings the same metrics back."""
    metrics = ClassificationMetrics(0.5, float("nan"), 0.25, (1.0, float("nan")))
    text = json.dumps(metrics.as_dict(), allow_nan=False)
    assert json.loads(text) == {"accuracy": 0.5, "auroc": None, "macro_f1": 0.25, "per_class_recall": [1.0, None]}
    back = ClassificationMetrics.from_dict(json.loads(text))
    assert back.accuracy == 0.5 and math.isnan(back.auroc) and back.macro_f1 == 0.25
    assert back.per_class_recall[0] == 1.0 and math.isnan(back.per_class_recall[1])
    full = ClassificationMetrics(0.5, 0.75, 0.25, (1.0, 0.0))
    assert ClassificationMetrics.from_dict(full.as_dict()) == full


def test_the_mean_of_two_classifiers_by_hand() -> None:
    """Accuracies 0.5 and 0.7 have mean 0.6 and standard deviation 0.1; an undefined value makes its mean undefined, as null."""
    means = mean_metrics(
        [ClassificationMetrics(0.5, 0.6, 0.2, (1.0, float("nan"))), ClassificationMetrics(0.7, 0.8, 0.4, (0.5, float("nan")))]
    )
    assert means.pop("per_class_recall") == [pytest.approx(0.75), None]
    assert means == pytest.approx({"accuracy": 0.6, "accuracy_std": 0.1, "auroc": 0.7, "macro_f1": 0.3})
    assert mean_metrics([ClassificationMetrics(1.0, float("nan"), 1.0, (1.0,))])["auroc"] is None


def test_no_number_is_no_opinion() -> None:
    """Rows that are not finite count as equal probabilities: alone they rank nothing, and they end nothing."""
    labels, nothing = torch.tensor([0, 1, 0, 1]), torch.full((4, 2), torch.nan)
    assert classification_metrics(nothing, labels).auroc == 0.5
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [torch.inf, 0.0], [torch.nan, 0.0]])
    equal = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    assert classification_metrics(logits, labels).auroc == classification_metrics(equal, labels).auroc
