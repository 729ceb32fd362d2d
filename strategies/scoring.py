"""Classifiers scored where the images are: sites count right and wrong classes on what they hold out, the server adds up."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.serverapp import Grid
from torch import Tensor, nn

from ff_flower.classifiers import weights_file
from ff_flower.errors import VerificationError
from ff_flower.federation import Tally
from ff_flower.messages import count_bytes, file_record, read_tally, request_records
from ff_flower.metrics import ClassificationMetrics, metrics_of_counts

from .arrivals import ArrivalGrid
from .introductions import Roll
from .nodes import Failure, in_partition_order, instructions
from .outcome import Outcome

logger = logging.getLogger("flwr")


@dataclass(frozen=True)
class Voters:
    """The classifiers of one result, which the server has no images to score on.

    Attributes
    ----------
    name : str
        The result's name.
    networks : tuple of Module
        One, or several that vote as a product of experts.
    up, down : tuple of str
        Kinds of payload without which the result would not be there.
    extra : mapping
        What else is to be told of the result.
    """

    name: str
    networks: tuple[nn.Module, ...]
    up: tuple[str, ...]
    down: tuple[str, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


def score_at_sites(grid: Grid | None, outcome: Outcome, waiting: Sequence[Voters]) -> None:
    """Let the sites that take part score the classifiers ``waiting``, and record their results.

    Sites that are missing already are not waited for once more; one that does not score them, or is not connected, is missing
    from then on, so that the next session asks again. A result tells by whom it was scored; without a grid, or where no site
    answers, it has no scores.
    """
    if not waiting or outcome.roll is None:
        return
    tallies, failures = _ask(grid, outcome, outcome.roll, waiting) if grid else ({}, [])
    for failure in failures:
        logger.warning("node %d did not score the classifiers: %s", failure.partition, failure.reason)
    silent = [Failure(failure.partition, f"it did not score the classifiers: {failure.reason}") for failure in failures]
    outcome.missing = sorted([*outcome.missing, *silent], key=lambda failure: failure.partition)
    if grid is None:
        outcome.unscored = True
        outcome.notes.append(
            "the classifiers wait for the sites to score them: the next run of these settings in Flower asks them"
        )
    num_classes = len(outcome.info.classes)
    for voters in waiting:
        counts = sum((tally[voters.name] for tally in tallies.values()), torch.zeros(num_classes, num_classes, dtype=torch.int64))
        metrics = metrics_of_counts(counts) if int(counts.sum()) else _unknown(num_classes)
        told = {"scored_on": "sites", "scored_by": [outcome.roll.federation.sites[partition] for partition in tallies]}
        outcome.record(voters.name, metrics.as_dict() | dict(voters.extra) | told, up=voters.up, down=voters.down)


def _ask(
    grid: Grid, outcome: Outcome, roll: Roll, waiting: Sequence[Voters]
) -> tuple[dict[int, dict[str, Tensor]], list[Failure]]:
    """Return the sites' counts by partition and result, and the sites without any."""
    spec = outcome.spec
    gone = {failure.partition for failure in outcome.missing}
    excluded = spec.exclusion.owners
    nodes = {node: p for p, node in roll.nodes.items() if p not in gone and roll.federation.sites[p] not in excluded}
    content = request_records(spec, nodes.values(), federation=roll.federation)
    files = {f"{one.name}/{i}": weights_file(network.state_dict()) for one in waiting for i, network in enumerate(one.networks)}
    content["classifiers"] = file_record(files)
    num_bytes = count_bytes(content, "classifiers")
    for partition in nodes.values():
        outcome.ledger.add("down", "classifiers", num_bytes, partition)
    logger.info("scores: %d classifiers, %.2f MB to each of %d sites", len(files), num_bytes / 1e6, len(nodes))
    messages = instructions(content, nodes, "evaluate.score", spec.timeout)
    replies = ArrivalGrid(grid).send_and_receive(messages, timeout=spec.timeout)
    contents, failures = in_partition_order(replies, list(nodes), spec.num_clients, nodes)
    tallies = {}
    for partition, reply in contents.items():
        try:
            tallies[partition] = _checked(read_tally(reply), partition, waiting, len(outcome.info.classes))
        except VerificationError as error:
            failures.append(Failure(partition, str(error)))
    connected = {*nodes.values(), *gone}
    away = [p for p, site in enumerate(roll.federation.sites) if p not in connected and site not in excluded]
    return tallies, failures + [Failure(partition, "it is not connected") for partition in away]


def _checked(tally: Tally, partition: int, waiting: Sequence[Voters], num_classes: int) -> dict[str, Tensor]:
    """Return the counts (K, K) by result; VerificationError where they are not what was asked for."""
    if tally.partition != partition or set(tally.counts) != {voters.name for voters in waiting}:
        raise VerificationError(
            "tally", f"counts of node {tally.partition} for {sorted(tally.counts)!r:.200} came from {partition}"
        )
    for name, rows in tally.counts.items():
        if len(rows) != num_classes or any(len(row) != num_classes for row in rows):
            raise VerificationError("tally", f"the counts for {name!r} are not {num_classes} x {num_classes}")
    return {name: torch.tensor(rows) for name, rows in tally.counts.items()}


def _unknown(num_classes: int) -> ClassificationMetrics:
    nan = float("nan")
    return ClassificationMetrics(nan, nan, nan, (nan,) * num_classes)
