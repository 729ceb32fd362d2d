"""What every strategy needs to know of nodes: that all are there, and what they replied, in partition order."""

import logging
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import DEFAULT_TTL, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.superlink.grid import InMemoryGrid

from ff_flower.errors import RunError, VerificationError
from ff_flower.reports import Answer, plain_text

from .arrivals import ArrivalGrid

logger = logging.getLogger("flwr")

REGISTRATION_SECONDS = 60.0
STANDSTILL_SECONDS = 10.0


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


def wait_for_nodes(
    grid: Grid, expected: int, seconds: float = REGISTRATION_SECONDS, standstill: float | None = None, spare: int = 0
) -> list[int]:
    """Return the ids of exactly ``expected`` nodes, in ascending order; ``spare`` of them may be absent after the wait.

    Parameters
    ----------
    grid : Grid
        Where nodes register.
    expected : int
        How many there must be.
    seconds : float
        Longest wait for all of them.
    standstill : float, optional
        Longest wait for the next one after the first. Without it that is ``STANDSTILL_SECONDS`` in a simulation, which has then
        registered all that it ever will, and all of ``seconds`` in a deployment.
    spare : int
        Nodes that need not be there, since their owners are excluded.

    Raises
    ------
    RunError
        When there are fewer after the wait, or more. In a deployment more are waited for too: of a SuperNode that was killed and
        started again two are listed for a minute.
    """
    simulated = is_simulated(grid)
    if standstill is None:
        standstill = STANDSTILL_SECONDS if simulated else seconds
    began = changed = time.monotonic()
    ids = list(grid.get_node_ids())
    while len(ids) < expected or (len(ids) > expected and not simulated):
        now = time.monotonic()
        if now >= began + seconds or (ids and now > changed + standstill):
            break
        time.sleep(0.1)
        before, ids = len(ids), list(grid.get_node_ids())
        changed = changed if len(ids) == before else time.monotonic()
    if not expected - spare <= len(ids) <= expected:
        raise RunError(
            f"{len(ids)} SuperNodes are connected, num-clients is {expected}: the two must be equal; in a simulation add "
            f'--federation-config "num-supernodes={expected} client-resources-num-cpus=1"'
        )
    return sorted(ids)


def is_simulated(grid: Grid) -> bool:
    """Tell whether the nodes are of a simulation: Flower keeps their messages in the server's own memory."""
    return isinstance(grid.grid if isinstance(grid, ArrivalGrid) else grid, InMemoryGrid)


def instructions(content: RecordDict, nodes: Iterable[int], message_type: str, timeout: float) -> list[Message]:
    """Return a message to every node, all with the same records, to which a reply is valid as long as it is waited for.

    Flower refuses a reply beyond its message's time to live, which is twelve hours unless it is set.
    """
    ttl = max(float(DEFAULT_TTL), timeout)
    return [Message(content, dst_node_id=node, message_type=message_type, ttl=ttl) for node in nodes]


def in_partition_order(
    replies: Iterable[Message], asked: Sequence[int], num_clients: int, partitions: Mapping[int, int] | None = None
) -> tuple[dict[int, RecordDict], list[Failure]]:
    """Sort replies by partition, and name the nodes that gave none.

    Parameters
    ----------
    replies : iterable of Message
        In any order.
    asked : sequence of int
        Node ids that were asked.
    num_clients : int
        Number of partitions; a reply must come from one of 0 to ``num_clients - 1``.
    partitions : mapping from int to int, optional
        Partition by node id, where the server knows it, to say whose a failure is; such a node may claim no other.

    Returns
    -------
    tuple of dict and list
        Contents by partition, ascending; failures, one per error reply, doubtful claim of a partition, or silent node. Nothing
        is taken from a partition that two nodes claim, since node ids do not tell whose it is.
    """
    known = partitions or {}
    claims: dict[int, list[RecordDict]] = defaultdict(list)
    failures, silent = [], set(asked)
    for message in replies:
        silent.discard(message.metadata.src_node_id)
        claim = claim_of(message, num_clients, known)
        if isinstance(claim, Failure):
            failures.append(claim)
        else:
            claims[claim].append(message.content)
    for partition, several in claims.items():
        if len(several) > 1:
            reason = f"partition-id {partition} is claimed by {len(several)} nodes: give every SuperNode its own"
            failures += [Failure(partition, reason), *[Failure(-1, reason)] * (len(several) - 1)]
    failures += [Failure(known.get(node, -1), "no reply in time") for node in silent]
    contents = {partition: several[0] for partition, several in sorted(claims.items()) if len(several) == 1}
    return contents, sorted(failures, key=lambda failure: (failure.partition, failure.reason))


def claim_of(message: Message, num_clients: int, partitions: Mapping[int, int]) -> int | Failure:
    """Return the partition that a reply says it is of, or why it is of none; the parameters are those of `in_partition_order`."""
    node = message.metadata.src_node_id
    own = partitions.get(node, -1)
    if message.has_error():
        return Failure(own, last_line(message.error.reason or ""))
    claimed = message.content.metric_records.get("metrics", MetricRecord()).get("partition-id")
    if not isinstance(claimed, int) or not 0 <= claimed < num_clients:
        return Failure(own, f"partition-id {claimed!r:.80}: it must be 0 to {num_clients - 1}")
    if own not in (-1, claimed):
        return Failure(own, f"partition-id {claimed}: it is {own}'s node; it sends its own only")
    return claimed


def missing_nodes(failures: Sequence[Failure], present: Iterable[int], num_clients: int) -> list[Failure]:
    """Return a failure for every partition that is not ``present``: its own, else the reasons that have no partition."""
    own = {failure.partition: failure.reason for failure in failures if failure.partition >= 0}
    others = "; ".join(sorted({failure.reason for failure in failures if failure.partition < 0})) or "no reply"
    return [Failure(partition, own.get(partition, others)) for partition in sorted(set(range(num_clients)) - set(present))]


def check_answer(answer: Answer, partition: int, num_classes: int) -> None:
    """Refuse an answer that is not of ``partition``, or not about ``num_classes`` classes (VerificationError)."""
    if answer.partition != partition:
        raise VerificationError("report", f"an answer of partition {answer.partition} came from {partition}")
    if (recalls := len(answer.metrics["per_class_recall"])) != num_classes:
        raise VerificationError("report", f"an answer with {recalls} recalls; there are {num_classes} classes")


def last_line(reason: str) -> str:
    """Return the useful end of an error's text, without terminal colours and other control characters."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", reason)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return plain_text(lines[-1].removesuffix("'>")) if lines else "no reason given"
