"""Confusion counts: what they tell equals what the images tell, and rounding hides numbers without changing proportions much."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ff_flower.metrics import classification_metrics, confusion_counts, metrics_of_counts, rounded_count, rounded_rows


@pytest.mark.parametrize("absent", [False, True])
def test_counts_tell_what_the_images_tell(absent):
    """Accuracy, macro F1 and recalls of added counts equal scikit-learn's on all images; the AUROC is not known."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 4, generator=generator), torch.randint(0, 4 - absent, (60,), generator=generator)
    whole = classification_metrics(logits, labels)
    told = metrics_of_counts(confusion_counts(logits[:25], labels[:25]) + confusion_counts(logits[25:], labels[25:]))
    assert told.auroc != told.auroc
    assert (told.accuracy, told.macro_f1) == pytest.approx((whole.accuracy, whole.macro_f1))
    assert told.per_class_recall == pytest.approx(whole.per_class_recall, nan_ok=True)


def test_nothing_counted_is_refused():
    """Counts of no image have no accuracy."""
    with pytest.raises(ValueError, match="without images has no accuracy"):
        metrics_of_counts(torch.zeros(3, 3, dtype=torch.int64))


@pytest.mark.parametrize(("count", "granularity", "told"), [(0, 10, 0), (1, 10, 10), (14, 10, 10), (15, 10, 20), (37, 1, 37)])
def test_counts_are_rounded_to_multiples(count, granularity, told):
    """A number is told as the nearest multiple, half upwards; some images are never told as none."""
    assert rounded_count(count, granularity) == told


@given(st.lists(st.lists(st.integers(0, 500), min_size=3, max_size=3), min_size=3, max_size=3), st.integers(1, 50))
@settings(deadline=None)
def test_rounded_rows_keep_sums_and_proportions(rows, granularity):
    """Every row's sum is its rounded count, and no cell is further than one from its exact share."""
    counts = torch.tensor(rows)
    told = rounded_rows(counts, granularity)
    for exact, row in zip(counts.tolist(), told.tolist(), strict=True):
        total = rounded_count(sum(exact), granularity)
        assert sum(row) == total
        assert all(abs(cell - one * total / max(sum(exact), 1)) <= 1 for one, cell in zip(exact, row, strict=True))
