"""Partition theorems."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from ff_flower.config import PartitionSpec
from ff_flower.data import cached_partition_indices, label_distribution, partition_indices
from ff_flower.errors import PartitionError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 36))
EVERY_KIND = [
    PartitionSpec(kind="pathological"),
    PartitionSpec(kind="pathological", classes_per_node=3),
    PartitionSpec(kind="dirichlet", alpha=0.3),
    PartitionSpec(kind="iid"),
    PartitionSpec(kind="shards", shards_per_node=2),
]


def _equal(first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> bool:
    return len(first) == len(second) and all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("spec", EVERY_KIND, ids=lambda spec: f"{spec.kind}-{spec.classes_per_node}")
def test_partitions_are_disjoint_and_whole(spec: PartitionSpec) -> None:
    """Every image goes to exactly one node, as sorted int64 positions."""
    parts = partition_indices(LABELS, 12 if spec.classes_per_node == 1 else 10, spec, seed=0)
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(360))


@pytest.mark.parametrize("spec", EVERY_KIND, ids=lambda spec: f"{spec.kind}-{spec.classes_per_node}")
def test_seed_decides(spec: PartitionSpec) -> None:
    """Equal seeds give equal partitions and another seed gives another."""
    one, again, other = (partition_indices(LABELS, 20, spec, seed) for seed in (1, 1, 2))
    assert _equal(one, again) and not _equal(one, other)


def test_one_class_per_node_follows_the_class_number() -> None:
    """With as many nodes as classes, node p holds all images of class p, whatever the seed."""
    for seed in (0, 5):
        parts = partition_indices(LABELS, 10, PartitionSpec(), seed)
        assert np.array_equal(label_distribution(LABELS, parts, 10), 36 * np.eye(10, dtype=np.int64))


def test_silos_is_pathological() -> None:
    """The paper's word and the field's word give the same partition."""
    parts = [partition_indices(LABELS, 15, PartitionSpec(kind=kind), seed=3) for kind in ("silos", "pathological")]
    assert _equal(*parts)


def test_owners_of_a_class_share_it_equally() -> None:
    """With 25 nodes of one class each, the two or three owners of a class hold equal numbers, one image more or less."""
    counts = label_distribution(LABELS, partition_indices(LABELS, 25, PartitionSpec(), seed=0), 10)
    assert ((counts > 0).sum(axis=1) == 1).all()
    assert [sorted(column[column > 0].tolist()) for column in counts.T] == [[12, 12, 12]] * 5 + [[18, 18]] * 5


@pytest.mark.parametrize("classes_per_node", [2, 3, 10])
def test_nodes_hold_exactly_their_number_of_classes(classes_per_node: int) -> None:
    """Each of twelve nodes holds exactly k classes, the first of them its own number modulo the number of classes."""
    spec = PartitionSpec(classes_per_node=classes_per_node)
    counts = label_distribution(LABELS, partition_indices(LABELS, 12, spec, seed=4), 10)
    assert ((counts > 0).sum(axis=1) == classes_per_node).all()
    assert all(counts[node, node % 10] > 0 for node in range(12))


def test_nodes_fewer_than_classes_own_blocks() -> None:
    """Five nodes of two classes each own the ten classes in order, two by two, without overlap."""
    counts = label_distribution(LABELS, partition_indices(LABELS, 5, PartitionSpec(classes_per_node=2), seed=0), 10)
    assert np.array_equal(counts, 36 * np.kron(np.eye(5, dtype=np.int64), np.ones((1, 2), dtype=np.int64)))


def test_blocks_ignore_classes_without_images() -> None:
    """Classes that no training image bears need no owner."""
    labels = np.repeat([1, 4, 7, 9], 5)
    counts = label_distribution(labels, partition_indices(labels, 2, PartitionSpec(classes_per_node=2), seed=0), 10)
    assert [np.flatnonzero(row).tolist() for row in counts] == [[1, 4], [7, 9]]


def test_iid_is_near_uniform() -> None:
    """IID parts are equal in size, and each class is spread as a draw without replacement spreads it."""
    labels = np.repeat(np.arange(4), 1000)
    counts = label_distribution(labels, partition_indices(labels, 8, PartitionSpec(kind="iid"), seed=0), 4)
    assert (counts.sum(axis=1) == 500).all()
    deviation = np.sqrt(500 * 0.25 * 0.75 * 7 / 8)  # of the hypergeometric distribution, to 1 / 4000
    assert (abs(counts - 125) < 4 * deviation).all()


def test_dirichlet_allows_empty_nodes() -> None:
    """A hundred nodes at a small concentration leave some nodes empty and lose no image."""
    parts = partition_indices(LABELS, 100, PartitionSpec(kind="dirichlet", alpha=0.01), seed=0)
    sizes = [len(part) for part in parts]
    assert len(sizes) == 100 and min(sizes) == 0 and sum(sizes) == 360


def test_dirichlet_concentration_tends_to_iid() -> None:
    """At a huge concentration every node gets its share of every class; at a small one a node holds most of a class."""
    even, uneven = (
        label_distribution(LABELS, partition_indices(LABELS, 6, PartitionSpec(kind="dirichlet", alpha=alpha), seed=0), 10)
        for alpha in (1e6, 0.05)
    )
    assert abs(even - 6).max() <= 1
    assert uneven.max(axis=0).mean() > 0.6 * 36


def test_shards_bound_the_number_of_classes() -> None:
    """Shards no larger than a class give a node at most twice its number of shards in classes, and equal sizes."""
    parts = partition_indices(LABELS, 10, PartitionSpec(kind="shards", shards_per_node=2), seed=0)
    assert [len(part) for part in parts] == [36] * 10
    assert (label_distribution(LABELS, parts, 10) > 0).sum(axis=1).max() <= 4


def test_shards_leave_fewer_images_than_shards() -> None:
    """Shards that do not come out even leave out fewer images than there are shards."""
    parts = partition_indices(LABELS[:353], 7, PartitionSpec(kind="shards", shards_per_node=3), seed=0)
    assert 0 <= 353 - sum(len(part) for part in parts) < 21


@pytest.mark.parametrize(
    ("labels", "nodes", "spec", "says"),
    [
        (LABELS[:5], 6, PartitionSpec(kind="iid"), r"num-clients = 6; .* 5 training images"),
        (LABELS, 0, PartitionSpec(kind="iid"), "num-clients = 0"),
        (LABELS, 10, PartitionSpec(classes_per_node=11), r"classes-per-node = 11; .* 10 classes"),
        (LABELS, 4, PartitionSpec(classes_per_node=2), r"classes 8, 9 without an owner; .*num-clients"),
        (LABELS, 6, PartitionSpec(classes_per_node=2), r"classes [6-9, ]+ without an owner"),
        (LABELS, 361, PartitionSpec(), "num-clients = 361"),
        (LABELS, 200, PartitionSpec(kind="shards"), "400 shards"),
        (np.array([0, 0, 0, 1]), 4, PartitionSpec(), "Label: 1"),
        (np.zeros((4, 1), dtype=np.int64), 2, PartitionSpec(kind="iid"), r"\(4, 1\)"),
        (np.zeros(4), 2, PartitionSpec(kind="iid"), "float64"),
        (np.zeros(0, dtype=np.int64), 1, PartitionSpec(kind="iid"), r"\(0,\)"),
    ],
)
def test_impossible_partitions_are_refused(labels: np.ndarray, nodes: int, spec: PartitionSpec, says: str) -> None:
    """Too few images, classes or shards for the nodes, and classes without an owner, are refused by name."""
    with pytest.raises(PartitionError, match=says):
        partition_indices(labels, nodes, spec, seed=0)


@pytest.mark.parametrize("spec", EVERY_KIND, ids=lambda spec: f"{spec.kind}-{spec.classes_per_node}")
def test_cached_equals_computed(spec: PartitionSpec, tmp_path: Path) -> None:
    """The first call, the call that reads the file, and the computation agree; the cache keeps one file per argument set."""
    computed = partition_indices(LABELS, 20, spec, seed=0)
    calls = [cached_partition_indices(LABELS, 20, spec, 0, cache) for cache in (tmp_path, tmp_path, None)]
    assert all(_equal(call, computed) for call in calls)
    assert len(list(tmp_path.iterdir())) == 1
    cached_partition_indices(LABELS, 20, spec, 1, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, full_disk: Callable[..., NoReturn]
) -> None:
    """On a full disk every call makes the partition anew, the same one; nothing stays, and the log says why it takes longer."""
    spec = PartitionSpec(kind="iid")
    monkeypatch.setattr(np, "savez", full_disk)
    calls = [cached_partition_indices(LABELS, 2, spec, 0, tmp_path) for _ in range(2)]
    assert all(_equal(call, partition_indices(LABELS, 2, spec, 0)) for call in calls)
    assert list(tmp_path.iterdir()) == [] and "No space left on device" in caplog.text


def test_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    """A file that is cut, lacks a key, leaves the range, repeats an image or miscounts is not believed."""
    spec = PartitionSpec(kind="iid")
    computed = cached_partition_indices(LABELS, 2, spec, 0, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    assert _equal(cached_partition_indices(LABELS, 2, spec, 0, tmp_path), computed)
    for positions, sizes in (
        ([0, 360], [1, 1]),
        ([0, 0], [1, 1]),
        ([0, 1], [1, 2]),
        ([0, 1], [2]),
        ([0, 1], [3, -1]),
        ([0.0, 1.0], [1, 1]),
    ):
        np.savez(path, positions=np.array(positions), sizes=np.array(sizes))
        assert _equal(cached_partition_indices(LABELS, 2, spec, 0, tmp_path), computed)
    np.savez(path, positions=np.arange(2))
    assert _equal(cached_partition_indices(LABELS, 2, spec, 0, tmp_path), computed)


def test_distribution_counts_images() -> None:
    """The distribution of labels counts each node's images of each class, empty nodes and absent classes included."""
    labels = np.array([0, 1, 1, 3])
    parts = (np.array([0, 2]), np.array([], dtype=np.int64), np.array([1, 3]))
    assert label_distribution(labels, parts, 5).tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0]]
