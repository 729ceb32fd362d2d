"""The node's side of the averaging baselines: local epochs from the global weights."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ff_flower.classifiers import Loss, Schedule, build_classifier, cross_entropy, proximal, train
from ff_flower.config import RunSpec
from ff_flower.seeding import derive_seed

from .site import Site


def local_update(
    spec: RunSpec, site: Site, weights: Mapping[str, Tensor], server_round: int, device: torch.device
) -> dict[str, Tensor]:
    """Train the global weights for ``averaging.local_epochs`` epochs on the node's own images.

    Parameters
    ----------
    spec : RunSpec
        The run; ``method = "fedprox"`` adds the proximal term.
    site : Site
        The node.
    weights : mapping from str to Tensor
        The global weights.
    server_round : int
        Flower's round, counted from 1; the learning rate falls by a half cosine over all rounds.
    device : torch.device
        Where to train.

    Returns
    -------
    dict
        The new weights, on the CPU; the global ones where the node holds no images.
    """
    network = build_classifier(spec.classifier, site.splits.info.shape[0], site.splits.num_classes, seed=0)
    network.load_state_dict(dict(weights))
    if not len(site.own):
        return dict(network.state_dict())
    network.to(device)
    loss: Loss = cross_entropy(site.own.labels.to(device), spec.classifier.label_smoothing)
    if spec.method == "fedprox":
        loss = proximal(loss, network, spec.averaging.proximal_mu)
    batch = min(spec.classifier.batch_size, len(site.own))
    cooling = 0.5 * (1 + math.cos(math.pi * (server_round - 1) / spec.averaging.rounds))
    schedule = Schedule(
        steps=spec.averaging.local_epochs * math.ceil(len(site.own) / batch),
        batch_size=batch,
        learning_rate=spec.averaging.learning_rate * cooling,
        weight_decay=spec.averaging.weight_decay,
        momentum=spec.averaging.momentum,
    )
    seed = derive_seed(spec.seed, "averaging", site.partition, server_round)
    policy = site.splits.info.augmentation
    train(network, site.own.images, loss, spec.classifier, schedule, policy=policy, seed=seed, device=device)
    return {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
