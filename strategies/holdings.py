"""Who holds which images before a run: nodes of a partitioned image set, or sites that bring their own."""

from dataclasses import dataclass

import numpy as np
from flwr.serverapp import Grid

from ff_flower.config import RunSpec
from ff_flower.data import Splits, cached_partition_indices, label_distribution, own_info, server_splits
from ff_flower.errors import ConfigError
from ff_flower.run_directory import RunDirectory, cache_root

from .introductions import Roll, call_roll


@dataclass(frozen=True)
class Holdings:
    """The images of a run, as far as the server knows them.

    Attributes
    ----------
    splits : Splits
        The whole image set of a simulation; with sites that bring their own only test images, where the server has any.
    counts : ndarray
        int64 (num_clients, K): training images per owner and class, without what the run excludes.
    roll : Roll or None
        The sites that bring their own images.
    notes : tuple of str
        What a reader of the results should know.
    """

    splits: Splits
    counts: np.ndarray
    roll: Roll | None = None
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> frozenset[int]:
        """The partitions without training images."""
        return frozenset(np.flatnonzero(self.counts.sum(axis=1) == 0).tolist())


def survey(grid: Grid | None, spec: RunSpec, directory: RunDirectory, splits: Splits | None = None) -> Holdings:
    """Find out who holds what.

    Parameters
    ----------
    grid : Grid, optional
        The nodes; without them sites are those that the run directory knows.
    spec : RunSpec
        The run.
    directory : RunDirectory
        Keeps the sites.
    splits : Splits, optional
        The whole image set of a simulation; None where nodes bring their own.

    Raises
    ------
    FederatedFactoryError
        When the images cannot be read or split, too few sites take part, or the spec excludes who is not there.
    """
    if splits is not None:
        owners = [str(partition) for partition in range(spec.num_clients)]
        _check_exclusion(spec, owners, splits.num_classes)
        labels, cache = splits.train.labels.numpy(), cache_root(spec) / "partitions"
        parts = cached_partition_indices(labels, spec.num_clients, spec.partition, spec.seed, cache=cache)
        counts = label_distribution(labels, parts, splits.num_classes)
        return Holdings(splits, _without_excluded(spec, owners, counts))
    roll = call_roll(grid, spec, directory)
    info = own_info(spec.data, roll.federation.classes, roll.federation.image_shape)
    owners = roll.owners(spec)
    _check_exclusion(spec, owners, len(info.classes))
    held, left_out = server_splits(spec.data, info)
    notes = [f"data.server-test: images of class {name!r} are left out, since no site has it" for name in left_out]
    counts = _without_excluded(spec, owners, roll.counts(spec.num_clients))
    return Holdings(held, counts, roll, (*roll.notes, *notes))


def _check_exclusion(spec: RunSpec, owners: list[str], num_classes: int) -> None:
    """Refuse to exclude who is not there, or from a method that has no owners (ConfigError)."""
    exclusion = spec.exclusion
    if exclusion and spec.method != "federated-factory":
        raise ConfigError(f"exclude = {spec.exclude!r}: must be empty for {spec.method}; only federated-factory has owners")
    if unknown := exclusion.unknown(owners):
        there = f"0 to {spec.num_clients - 1}" if not spec.data.own else ", ".join(filter(None, owners))
        raise ConfigError(f"exclude = {spec.exclude!r}: {', '.join(unknown)} must be owners, {there}")
    if labels := sorted({label for _, label in exclusion.classes if label >= num_classes}):
        raise ConfigError(f"exclude = {spec.exclude!r}: {labels} must be labels, 0 to {num_classes - 1}")


def _without_excluded(spec: RunSpec, owners: list[str], counts: np.ndarray) -> np.ndarray:
    """Return the counts with zeros for the classes of whom that take no part."""
    excluded = [[spec.exclusion.covers(owner, label) for label in range(counts.shape[1])] for owner in owners]
    return np.where(excluded, 0, counts)
