"""A node's own images."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ff_flower.config import RunSpec, Scalar, unknown_name
from ff_flower.data import ImageSet, Splits, cached_partition_indices, load_splits
from ff_flower.errors import ConfigError, RunError
from ff_flower.federation import Federation
from ff_flower.generative import KINDS
from ff_flower.metrics import rounded_count
from ff_flower.run_directory import cache_root

from .own_data import count_granularity, place_of, splits_in_table


@dataclass(frozen=True)
class Site:
    """What one node holds.

    Attributes
    ----------
    partition : int
        The node's partition.
    splits : Splits
        The whole image set as the simulation loads it, or that of a site with images of its own: the label table, and the test
        set on which the node's classifier is scored. Nothing is ever fitted on it.
    own : ImageSet
        The node's share of the training images, without the classes that the run excludes; all that it learns from.
    kind : str
        The kind of module that the node fits.
    owner : str
        By which its modules are owned: the partition as text, or the name of a site with images of its own.
    count_granularity : int
        Multiples to which the node rounds numbers of images before it tells them.
    """

    partition: int
    splits: Splits
    own: ImageSet
    kind: str
    owner: str
    count_granularity: int = 1

    def told(self, count: int) -> int:
        """Return a number of images as the node tells it."""
        return rounded_count(count, self.count_granularity)


def find_partition(spec: RunSpec, node_config: Mapping[str, Scalar], federation: Federation | None) -> int:
    """Return the node's partition, which its configuration says, or the federation by the site's name.

    Raises
    ------
    ConfigError
        When neither does.
    """
    if not spec.data.own:
        return partition_of(node_config)
    if federation is None:
        raise ConfigError("the request names no federation, and data.name = 'sites'; the server introduces sites to each other")
    return federation.partition(place_of(spec, node_config).name)


def owner_of(partition: int, federation: Federation | None) -> str:
    """Return by what name a partition's modules are owned: its site's, else its number."""
    return str(partition) if federation is None else federation.sites[partition]


def partition_of(node_config: Mapping[str, Scalar]) -> int:
    """Return the partition that the node's configuration says.

    Raises
    ------
    ConfigError
        When it does not.
    """
    partition, nodes = node_config.get("partition-id"), node_config.get("num-partitions")
    if not isinstance(partition, int) or not isinstance(nodes, int) or not 0 <= partition < nodes:
        raise ConfigError(
            f"partition-id {partition!r} of num-partitions {nodes!r}: a node must know which of how many it is; start it with "
            "--node-config \"partition-id=0 num-partitions=10\", or set data.name = 'sites' where each brings its images"
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


def open_site(spec: RunSpec, node_config: Mapping[str, Scalar], federation: Federation | None = None) -> Site:
    """Load the images of the node that Flower's ``node_config`` describes.

    Parameters
    ----------
    spec : RunSpec
        The run.
    node_config : mapping from str to scalar
        The node's partition; with ``data.name = "sites"`` its name and the place of its images.
    federation : Federation, optional
        Label table and partitions, with ``data.name = "sites"``.

    Raises
    ------
    ConfigError
        When the configuration does not say which partition this is, or names a kind of module that there is not.
    RunError
        When the federation has another number of nodes than the spec.
    """
    partition, kind = find_partition(spec, node_config, federation), kind_of(spec, node_config)
    granularity = count_granularity(spec, node_config)
    if federation is not None:
        place = place_of(spec, node_config)
        splits = splits_in_table(spec, place, federation)
        return Site(partition, splits, _taking_part(spec, splits.train, place.name), kind, place.name, granularity)
    nodes = int(node_config["num-partitions"])
    if nodes != spec.num_clients:
        raise RunError(
            f"the federation has {nodes} SuperNodes, num-clients is {spec.num_clients}: give both the same number "
            f"(--federation-config num-supernodes={spec.num_clients})"
        )
    splits = load_splits(spec.data, spec.seed)
    parts = cached_partition_indices(
        splits.train.labels.numpy(), nodes, spec.partition, spec.seed, cache=cache_root(spec) / "partitions"
    )
    own = _taking_part(spec, splits.train.subset(parts[partition]), str(partition))
    return Site(partition, splits, own, kind, str(partition), granularity)


def _taking_part(spec: RunSpec, images: ImageSet, owner: str) -> ImageSet:
    """Return the images without the owner's classes that the run excludes."""
    kept_out = sorted(spec.exclusion.labels(owner))
    return images.subset(np.flatnonzero(~np.isin(images.labels.numpy(), kept_out))) if kept_out else images
