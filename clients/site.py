"""A node's own images."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ff_flower.config import RunSpec, Scalar, unknown_name
from ff_flower.data import ImageSet, Splits, cached_partition_indices, load_splits
from ff_flower.errors import ConfigError, RunError
from ff_flower.generative import KINDS
from ff_flower.run_directory import cache_root


@dataclass(frozen=True)
class Site:
    """What one node holds.

    Attributes
    ----------
    partition : int
        The node's partition.
    splits : Splits
        The whole image set as the simulation loads it: the label table, and the test set on which the node's classifier is
        scored. Nothing is ever fitted on it.
    own : ImageSet
        The node's share of the training images, without the classes that the run excludes; all that it learns from.
    kind : str
        The kind of module that the node fits.
    """

    partition: int
    splits: Splits
    own: ImageSet
    kind: str


def partition_of(node_config: Mapping[str, Scalar]) -> int:
    """Return the node's partition.

    Raises
    ------
    ConfigError
        When the node's configuration does not say which it is.
    """
    partition, nodes = node_config.get("partition-id"), node_config.get("num-partitions")
    if not isinstance(partition, int) or not isinstance(nodes, int) or not 0 <= partition < nodes:
        raise ConfigError(
            f"partition-id {partition!r} of num-partitions {nodes!r}: a node must know which of how many it is; start it with "
            '--node-config "partition-id=0 num-partitions=10"'
        )
    return partition


def kind_of(spec: RunSpec, node_config: Mapping[str, Scalar]) -> str:
    """Return the kind of module that a node fits: ``module.kind`` of its own ``node_config``, else of the run.

    A SuperNode without a GPU is started with ``--node-config "partition-id=3 num-partitions=10 module.kind='gaussian_mixture'"``;
    the settings of every kind are the run's.

    Raises
    ------
    ConfigError
        When the node's configuration names no kind.
    """
    kind = node_config.get("module.kind", spec.module.kind)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(
            f"node-config: {unknown_name('module.kind', str(kind), list(KINDS))}; start the node with one of these or without it"
        )
    return kind


def open_site(spec: RunSpec, node_config: Mapping[str, Scalar]) -> Site:
    """Load the images of the node that Flower's ``node_config`` describes.

    Raises
    ------
    ConfigError
        When the configuration does not say which partition this is, or names a kind of module that there is not.
    RunError
        When the federation has another number of nodes than the spec.
    """
    partition, nodes = partition_of(node_config), int(node_config["num-partitions"])
    kind = kind_of(spec, node_config)
    if nodes != spec.num_clients:
        raise RunError(
            f"the federation has {nodes} SuperNodes, num-clients is {spec.num_clients}: give both the same number "
            f"(--federation-config num-supernodes={spec.num_clients})"
        )
    splits = load_splits(spec.data, spec.seed)
    parts = cached_partition_indices(
        splits.train.labels.numpy(), nodes, spec.partition, spec.seed, cache=cache_root(spec) / "partitions"
    )
    own = splits.train.subset(parts[partition])
    if kept_out := spec.exclusion.labels(str(partition)):
        own = own.subset(np.flatnonzero(~np.isin(own.labels.numpy(), sorted(kept_out))))
    return Site(partition, splits, own, kind)
