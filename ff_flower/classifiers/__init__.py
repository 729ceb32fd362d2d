"""Classifiers: networks, losses, the one training loop, the product of experts and what is distilled from it."""

from .losses import Loss, cross_entropy, distillation, proximal
from .mixing import Mixing
from .networks import ConvolutionalClassifier, ResidualBlock, build_classifier, shapes_of, weights_file
from .pooling import agreeing, class_balanced, pooled, product_of_experts, real_and_synthetic
from .training import Schedule, batches, fit_classifier, predict, schedule_of, train

__all__ = [
    "ConvolutionalClassifier",
    "Loss",
    "Mixing",
    "ResidualBlock",
    "Schedule",
    "agreeing",
    "batches",
    "build_classifier",
    "class_balanced",
    "cross_entropy",
    "distillation",
    "fit_classifier",
    "pooled",
    "predict",
    "product_of_experts",
    "proximal",
    "real_and_synthetic",
    "schedule_of",
    "shapes_of",
    "train",
    "weights_file",
]
