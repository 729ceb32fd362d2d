"""Metrics: how well a classifier does, and what the wire carried."""

from .classification import ClassificationMetrics, classification_metrics, mean_metrics
from .communication import Ledger, Transfer
from .tallies import confusion_counts, metrics_of_counts, rounded_count, rounded_rows

__all__ = [
    "ClassificationMetrics",
    "Ledger",
    "Transfer",
    "classification_metrics",
    "confusion_counts",
    "mean_metrics",
    "metrics_of_counts",
    "rounded_count",
    "rounded_rows",
]
