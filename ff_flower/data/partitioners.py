"""Which node holds which training images: flwr-datasets' partitioners over the labels.

Importing flwr-datasets takes seconds in every process, so `cached_partition_indices` keeps the outcome as a file.
"""

import hashlib
import warnings
from contextlib import suppress
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..config import PartitionSpec
from ..errors import PartitionError
from ..seeding import library_seed, numpy_generator
from .kept_arrays import keep_arrays, kept_arrays

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


def partition_indices(labels: np.ndarray, num_partitions: int, spec: PartitionSpec, seed: int) -> tuple[np.ndarray, ...]:
    """Split the images over the nodes.

    Parameters
    ----------
    labels : ndarray
        Integers (n,), the label of each training image.
    num_partitions : int
        Number of nodes, at least 1.
    spec : PartitionSpec
        ``pathological``: node p owns ``classes_per_node`` classes, beginning with class p modulo the number of classes; the
        others are drawn, except that nodes fewer than classes share them out in order when they come out even. Owners of a
        class share its images equally. ``dirichlet``: every class is shared out in proportions drawn from Dirichlet(alpha);
        nodes may stay empty. ``iid``: equal numbers of images drawn at random. ``shards``: ``shards_per_node`` equal runs of
        the label-sorted images each; fewer images than there are shards may remain unused.
    seed : int
        The run's root seed; it decides which images, and where classes or shards are drawn, which of them, go where.

    Returns
    -------
    tuple of ndarray
        One sorted int64 array of positions in ``labels`` per node; no position stands in two of them.

    Raises
    ------
    PartitionError
        If the images or classes do not suffice for the nodes, or a class would be left without an owner.
    """
    _check_labels(labels)
    _check_counts(labels, num_partitions, spec)
    order = numpy_generator(seed, "partition", "order").permutation(len(labels))
    column, classes_per_node = labels[order], spec.classes_per_node
    classes, ranks = np.unique(column, return_inverse=True)
    if _pathological(spec) and num_partitions * classes_per_node == len(classes):  # one owner each: blocks of consecutive classes
        column, classes_per_node = ranks // classes_per_node, 1
    partitioner = _partitioner(num_partitions, spec, classes_per_node, library_seed(seed, "partition", "library"))
    parts = tuple(np.sort(order[positions]) for positions in _assigned(partitioner, column, num_partitions, spec.kind))
    unowned = np.setdiff1d(classes, labels[np.concatenate(parts)])
    if _pathological(spec) and len(unowned):
        raise _without_owner(unowned, num_partitions, spec)
    return parts


def cached_partition_indices(
    labels: np.ndarray, num_partitions: int, spec: PartitionSpec, seed: int, cache: Path | None
) -> tuple[np.ndarray, ...]:
    """Return `partition_indices`, read from a file under ``cache`` when an equal call has left one there.

    Parameters
    ----------
    labels, num_partitions, spec, seed
        See `partition_indices`.
    cache : Path or None
        Folder of the files, created if needed; None computes anew. A file is keyed by the SHA-256 of all arguments and of
        the library's version, and replaced when it is damaged.
    """
    if cache is None:
        return partition_indices(labels, num_partitions, spec, seed)
    _check_labels(labels)
    key = hashlib.sha256(np.ascontiguousarray(labels, dtype=np.int64).tobytes())
    key.update(f"{num_partitions} {seed} {spec.model_dump_json()} {_library_version()}".encode())
    path = cache / f"partition-{key.hexdigest()}.npz"
    parts = _kept(path, len(labels), num_partitions, _state(path))
    if parts is None:
        parts = partition_indices(labels, num_partitions, spec, seed)
        sizes = np.array([len(part) for part in parts], dtype=np.int64)
        consequence = "a partition is not kept, so every process makes it anew"
        keep_arrays(path, consequence, positions=np.concatenate(parts), sizes=sizes)
    return parts


def label_distribution(labels: np.ndarray, parts: tuple[np.ndarray, ...], num_classes: int) -> np.ndarray:
    """Count the images of each class at each node: int64 (len(parts), num_classes)."""
    return np.stack([np.bincount(labels[part], minlength=num_classes) for part in parts]).astype(np.int64)


def _check_labels(labels: np.ndarray) -> None:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) == 0:
        raise PartitionError(
            f"labels are {labels.dtype} of shape {labels.shape}; they must be integers (n,), n >= 1; give one per image"
        )


def _check_counts(labels: np.ndarray, nodes: int, spec: PartitionSpec) -> None:
    classes = np.unique(labels)
    if not 1 <= nodes <= len(labels):
        raise PartitionError(
            f"num-clients = {nodes}; it must lie between 1 and the {len(labels)} training images; choose another"
        )
    shards = nodes * spec.shards_per_node
    if spec.kind == "shards" and shards > len(labels):
        raise PartitionError(
            f"{nodes} nodes x {spec.shards_per_node} = {shards} shards; the {len(labels)} training images allow one shard each; "
            "lower num-clients or partition.shards-per-node"
        )
    if not _pathological(spec):
        return
    if spec.classes_per_node > len(classes):
        raise PartitionError(
            f"partition.classes-per-node = {spec.classes_per_node}; it must not exceed the {len(classes)} classes of the "
            "training images; lower it"
        )
    reached = nodes * spec.classes_per_node
    if reached < len(classes):
        raise _without_owner(classes[reached:], nodes, spec)


def _without_owner(classes: np.ndarray, nodes: int, spec: PartitionSpec) -> PartitionError:
    return PartitionError(
        f"{nodes} nodes x {spec.classes_per_node} classes leave the classes {', '.join(map(str, classes))} without an owner; "
        "every class needs one; set num-clients to at least the number of classes, or num-clients x partition.classes-per-node "
        "equal to it"
    )


def _pathological(spec: PartitionSpec) -> bool:
    return spec.kind in ("pathological", "silos")


def _partitioner(nodes: int, spec: PartitionSpec, classes_per_node: int, seed: int) -> "Partitioner":
    from flwr_datasets import partitioner as library

    if spec.kind == "iid":
        return library.IidPartitioner(nodes)
    if spec.kind == "shards":
        return library.ShardPartitioner(nodes, "label", num_shards_per_partition=spec.shards_per_node, shuffle=False, seed=seed)
    if spec.kind == "dirichlet":
        return library.DirichletPartitioner(nodes, "label", alpha=spec.alpha, min_partition_size=0, shuffle=False, seed=seed)
    mode: Literal["deterministic", "first-deterministic"] = "deterministic" if classes_per_node == 1 else "first-deterministic"
    return library.PathologicalPartitioner(nodes, "label", classes_per_node, class_assignment_mode=mode, shuffle=False, seed=seed)


def _assigned(partitioner: "Partitioner", labels: np.ndarray, nodes: int, kind: str) -> list[np.ndarray]:
    """Run the library's partitioner over a table of labels and positions; return each node's positions."""
    from datasets import Dataset

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            partitioner.dataset = Dataset.from_dict({"label": labels, "position": np.arange(len(labels))})
            loaded = [partitioner.load_partition(node).with_format("numpy") for node in range(nodes)]
            return [np.asarray(part["position"][:], dtype=np.int64) for part in loaded]
    except ValueError as error:
        raise PartitionError(f"partition.kind = {kind!r} over {nodes} nodes: {error}") from error


@cache
def _library_version() -> str:
    return version("flwr-datasets")


def _state(path: Path) -> tuple[int, ...]:
    """Return what changes when a file does; nothing where there is none."""
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return ()


@lru_cache(maxsize=2)  # a process of a simulation asks for the same with every message
def _kept(path: Path, images: int, nodes: int, state: tuple[int, ...]) -> tuple[np.ndarray, ...] | None:
    """Return the partition kept at ``path``, or None when there is none or it is no partition of that many images."""
    found = kept_arrays(path, "positions", "sizes")
    if found is None:
        return None
    positions, sizes = found
    plain = all(array.dtype == np.int64 and array.ndim == 1 for array in (positions, sizes))
    if not plain or len(sizes) != nodes or (sizes < 0).any() or sizes.sum() != len(positions):
        return None
    if len(np.unique(positions)) != len(positions) or (len(positions) and not 0 <= positions.min() <= positions.max() < images):
        return None
    return tuple(np.split(positions, np.cumsum(sizes)[:-1]))
