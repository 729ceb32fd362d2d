"""Classifiers of the server, scored on a site's held-out images."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ff_flower.classifiers import build_classifier, pooled, predict, shapes_of
from ff_flower.config import RunSpec
from ff_flower.errors import VerificationError
from ff_flower.federation import Tally
from ff_flower.messages import read_tensors
from ff_flower.metrics import confusion_counts, rounded_rows

from .site import Site


def tally(spec: RunSpec, site: Site, files: Mapping[str, bytes], device: torch.device) -> Tally:
    """Count right and wrong classes on the site's held-out images.

    Parameters
    ----------
    spec : RunSpec
        The run.
    site : Site
        The node.
    files : mapping from str to bytes
        Classifiers as safetensors files, named ``result/number``; several of one result vote as a product of experts.
    device : torch.device
        Where to work.

    Raises
    ------
    VerificationError
        When a file is no classifier of this run.
    """
    test = site.splits.test
    votes: dict[str, list[Tensor]] = defaultdict(list)
    for name, data in sorted(files.items()):
        votes[name.partition("/")[0]].append(predict(_classifier(spec, site, name, data), test.images, device))
    counts = {}
    for result, logits in votes.items():
        counts[result] = rounded_rows(confusion_counts(pooled(logits), test.labels), site.count_granularity).tolist()
    return Tally(partition=site.partition, counts=counts)


def _classifier(spec: RunSpec, site: Site, name: str, data: bytes) -> nn.Module:
    network = build_classifier(spec.classifier, site.splits.info.shape[0], site.splits.num_classes, seed=0)
    tensors = read_tensors(data)
    if shapes_of(tensors) != shapes_of(network.state_dict()):
        raise VerificationError("weights", f"{name!r} is no {spec.classifier.network} of this run; send the server's classifiers")
    network.load_state_dict(tensors)
    return network
