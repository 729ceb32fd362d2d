"""Metrics: how well a classifier does, and what the wire carried."""

from .classification import ClassificationMetrics, classification_metrics, mean_metrics
from .communication import Ledger, Transfer

__all__ = ["ClassificationMetrics", "Ledger", "Transfer", "classification_metrics", "mean_metrics"]
