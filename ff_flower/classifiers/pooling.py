"""What many make together: the product of experts, the images they agree on, a node's real images beside synthetic ones."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import ImageSet

SURE = -1e6  # the logarithm of the smallest probability that an expert can give


def product_of_experts(logits: Sequence[Tensor]) -> Tensor:
    """Return the normalized log-probabilities of p(y|x) proportional to the geometric mean of the experts' p_i(y|x).

    Parameters
    ----------
    logits : sequence of Tensor
        One (n, K) tensor per expert. The mean of log-probabilities orders classes as their sum, the product, does, and its
        scale does not grow with the number of experts. Where an expert's logits are not finite it has no opinion: every class is
        as probable to it.
    """
    total = torch.zeros_like(logits[0], dtype=torch.float32)
    for expert in logits:
        shares = F.log_softmax(expert.float(), dim=1)
        sound = torch.isfinite(shares).all(dim=1, keepdim=True)
        total += torch.where(sound, shares, -math.log(shares.shape[1])).clamp_min(SURE)
    return F.log_softmax(total / len(logits), dim=1)


def pooled(logits: Sequence[Tensor]) -> Tensor:
    """Return the logits (n, K) of one classifier as they are, and of several their `product_of_experts`."""
    return logits[0] if len(logits) == 1 else product_of_experts(logits)


def agreeing(teacher: Tensor, labels: Tensor, least: float) -> tuple[Tensor, list[int]]:
    """Tell which images the pooled classifiers take for what their labels say.

    Parameters
    ----------
    teacher : Tensor
        (n, K) log-probabilities, as `product_of_experts` returns them.
    labels : Tensor
        (n,) int64.
    least : float
        Fewest probability of an image's own label, in [0, 1].

    Returns
    -------
    tuple of Tensor and list of int
        (n,) bool, and the labels of which no image reaches ``least``: they are kept whole, since a class without images
        cannot be learned.
    """
    agreed = teacher.gather(1, labels[:, None])[:, 0].exp() >= least
    whole = [label for label in torch.unique(labels).tolist() if not agreed[labels == label].any()]
    return agreed | torch.isin(labels, torch.tensor(whole, dtype=labels.dtype)), whole


def class_balanced(labels: Tensor) -> Tensor:
    """Return the chances (n,) float64 by which every class of ``labels`` (n,) is drawn equally often."""
    return torch.bincount(labels).double().reciprocal()[labels]


def real_and_synthetic(own: ImageSet, synthetic: ImageSet, share: float) -> tuple[ImageSet, Tensor]:
    """Join a node's real images with the synthetic set, every class being drawn equally often.

    Parameters
    ----------
    own : ImageSet
        The node's real images; may be empty.
    synthetic : ImageSet
        The class-balanced synthetic set of all classes.
    share : float
        Share of synthetic draws within the classes of which the node has real images, in [0, 1].

    Returns
    -------
    tuple of ImageSet and Tensor
        All images, the real ones first, and the chance (n,) of each to be drawn.
    """
    labels = torch.cat([own.labels, synthetic.labels])
    is_real = torch.arange(len(labels)) < len(own)
    weights = torch.zeros(len(labels), dtype=torch.float64)
    for label in torch.unique(labels).tolist():
        real, made = (labels == label) & is_real, (labels == label) & ~is_real
        part = 1.0 if not real.any() else share if made.any() else 0.0
        for group, mass in ((real, 1.0 - part), (made, part)):
            weights[group] = mass / max(1, int(group.sum()))
    return ImageSet(torch.cat([own.images, synthetic.images]), labels), weights
