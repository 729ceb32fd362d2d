"""A node's own images."""

from collections.abc import Mapping
from dataclasses import dataclass

from ff_flower.config import RunSpec, Scalar
from ff_flower.data import ImageSet, Splits, cached_partition_indices, load_splits
from ff_flower.errors import RunError
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
        The node's share of the training images; all that it learns from.
    """

    partition: int
    splits: Splits
    own: ImageSet


def open_site(spec: RunSpec, node_config: Mapping[str, Scalar]) -> Site:
    """Load the images of the node that Flower's ``node_config`` describes.

    Raises
    ------
    RunError
        When the federation has another number of nodes than the spec.
    """
    partition, nodes = int(node_config["partition-id"]), int(node_config["num-partitions"])
    if nodes != spec.num_clients:
        raise RunError(
            f"the federation has {nodes} SuperNodes, num-clients is {spec.num_clients}: give both the same number "
            f"(--federation-config num-supernodes={spec.num_clients})"
        )
    splits = load_splits(spec.data, spec.seed)
    parts = cached_partition_indices(
        splits.train.labels.numpy(), nodes, spec.partition, spec.seed, cache=cache_root(spec) / "partitions"
    )
    return Site(partition, splits, splits.train.subset(parts[partition]))
