"""Losses as functions of logits and the images' indices: what a variant of training changes."""

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(labels: Tensor, smoothing: float = 0.0) -> Loss:
    """Return the loss against ``labels`` (n,) int64, as a function of logits (b, K) and the images' indices (b,)."""
    return lambda logits, index: F.cross_entropy(logits, labels[index], label_smoothing=smoothing)


def distillation(teacher: Tensor, temperature: float, labels: Tensor | None = None, hard_share: float = 0.0) -> Loss:
    """Return T^2 KL(teacher || student) at temperature T, mixed with the cross entropy (Hinton et al. 2015, arXiv 1503.02531).

    Parameters
    ----------
    teacher : Tensor
        (n, K) logits or log-probabilities of the images.
    temperature : float
        Divides both sides' logits.
    labels : Tensor, optional
        (n,) int64, the labels of the cross entropy.
    hard_share : float
        Share of the cross entropy in [0, 1]; the divergence has the rest.
    """
    targets = F.softmax(teacher.float() / temperature, dim=1)

    def soft(logits: Tensor, index: Tensor) -> Tensor:
        return temperature**2 * F.kl_div(F.log_softmax(logits / temperature, dim=1), targets[index], reduction="batchmean")

    if labels is None or hard_share == 0:
        return soft
    hard = cross_entropy(labels)
    return lambda logits, index: (1 - hard_share) * soft(logits, index) + hard_share * hard(logits, index)


def proximal(base: Loss, network: nn.Module, mu: float) -> Loss:
    """Return ``base`` plus FedProx's mu/2 ||w - w_t||^2 (Li et al. 2018, arXiv 1812.06127), w_t being the weights of now."""
    weights = list(network.parameters())
    anchors = [weight.detach().clone() for weight in weights]

    def loss(logits: Tensor, index: Tensor) -> Tensor:
        distance = sum((weight - anchor).square().sum() for weight, anchor in zip(weights, anchors, strict=True))
        return base(logits, index) + mu / 2 * cast(Tensor, distance)

    return loss
