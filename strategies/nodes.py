"""What every strategy needs to know of nodes: that all are there, and what they replied, in partition order."""

import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from ff_flower.errors import RunError

logger = logging.getLogger("flwr")

REGISTRATION_SECONDS = 60.0


@dataclass(frozen=True)
class Failure:
    """A node that gave no usable reply.

    Attributes
    ----------
    partition : int
        Its partition; -1 where the server cannot know it.
    reason : str
        Why, in one sentence.
    """

    partition: int
    reason: str


def wait_for_nodes(grid: Grid, expected: int, seconds: float = REGISTRATION_SECONDS) -> list[int]:
    """Return the ids of exactly ``expected`` nodes, in ascending order.

    Raises
    ------
    RunError
        When after ``seconds`` there are fewer, or when there are more.
    """
    end = time.monotonic() + seconds
    while len(ids := list(grid.get_node_ids())) < expected and time.monotonic() < end and not _stalled(len(ids), end):
        time.sleep(0.1)
    if len(ids) != expected:
        raise RunError(
            f"{len(ids)} SuperNodes are connected, num-clients is {expected}: the two must be equal; in a simulation add "
            f'--federation-config "num-supernodes={expected} client-resources-num-cpus=1"'
        )
    return sorted(ids)


def in_partition_order(replies: Iterable[Message], asked: Sequence[int]) -> tuple[dict[int, RecordDict], list[Failure]]:
    """Sort replies by partition, and name the nodes that gave none.

    Parameters
    ----------
    replies : iterable of Message
        In any order.
    asked : sequence of int
        Node ids that were asked.

    Returns
    -------
    tuple of dict and list
        Contents by partition, ascending; failures, one per error reply, second claim of a partition, or silent node.
    """
    contents: dict[int, RecordDict] = {}
    failures = []
    answered = set()
    for message in sorted(replies, key=lambda m: m.metadata.src_node_id):
        answered.add(message.metadata.src_node_id)
        if message.has_error():
            failures.append(Failure(-1, last_line(message.error.reason or "")))
            continue
        partition = message.content.metric_records.get("metrics", MetricRecord()).get("partition-id")
        if not isinstance(partition, int) or partition in contents:
            failures.append(Failure(-1, f"reply with partition-id {partition!r}, which is missing or taken"))
            continue
        contents[partition] = message.content
    failures += [Failure(-1, "no reply in time")] * len(set(asked) - answered)
    return dict(sorted(contents.items())), failures


def missing_nodes(failures: Sequence[Failure], present: Iterable[int], num_clients: int) -> list[Failure]:
    """Give the failures the partitions that are not ``present``, where one failure is left for one partition."""
    absent = sorted(set(range(num_clients)) - set(present))
    if len(absent) == len(failures) == 1:
        return [Failure(absent[0], failures[0].reason)]
    reasons = sorted({failure.reason for failure in failures}) or ["no reply"]
    return [Failure(partition, "; ".join(reasons)) for partition in absent]


def last_line(reason: str) -> str:
    """Return the useful end of an error's text, without terminal colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", reason)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return lines[-1].removesuffix("'>") if lines else "no reason given"


def _stalled(found: int, end: float) -> bool:
    """Tell whether a simulation has registered all the nodes it ever will: the number stood still for ten seconds."""
    return found > 0 and time.monotonic() > end - REGISTRATION_SECONDS + 10
