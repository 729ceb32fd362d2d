"""Before a round on a run that has forgotten somebody: every node that can be reached is told, and says what it dropped."""

import logging
from typing import Any

from flwr.serverapp import Grid

from ff_flower.config import RunSpec
from ff_flower.errors import VerificationError
from ff_flower.messages import forget_records, read_forgotten
from ff_flower.run_directory import RunDirectory
from ff_flower.unlearning import CONFIRMATIONS, Tombstone, participants

from .arrivals import ArrivalGrid
from .introductions import Roll
from .nodes import in_partition_order, instructions, is_simulated, wait_for_nodes

logger = logging.getLogger("flwr")

FORGET_SECONDS = 300.0  # deleting files is quick; a node that is busy for longer is named as not having confirmed


def tell_nodes(grid: Grid, spec: RunSpec, directory: RunDirectory, roll: Roll | None = None) -> None:
    """Tell the nodes what the run has forgotten, unless all of them have confirmed it already.

    What they answer is kept for the certificate: ``modules`` that were named and who was ``excluded``, the accounts ``confirmed``
    by partition, in this session or an earlier one, and the ``reasons`` of those that did not answer in this one. A simulation
    does not answer for the SuperNodes of a run: none is asked then, and the reason says so.

    Parameters
    ----------
    grid : Grid
        Where nodes are.
    spec : RunSpec
        The run, without what it has forgotten.
    directory : RunDirectory
        Has the tombstone.
    roll : Roll, optional
        The sites, where they bring their own images.

    Raises
    ------
    RunError
        When fewer nodes are connected than take part.
    """
    tombstone = Tombstone.read(directory.path)
    module_ids, excluded = list(tombstone.module_ids), str(tombstone.exclusion)
    kept = _confirmed(directory, module_ids, excluded)
    if not excluded or (kept is not None and set(participants(directory.path, spec)) <= set(kept)):
        return
    if directory.deployed and is_simulated(grid):
        reason = "this session simulates nodes, and those of the run are SuperNodes: run the same settings in their federation"
        logger.warning("forget: no node is asked: %s", reason)
        _note(directory, module_ids, excluded, kept or {}, [reason])
        return
    if roll is None:
        nodes = wait_for_nodes(grid, spec.num_clients, spec.connect_timeout, spare=len(spec.exclusion.owners))
    else:
        nodes = sorted(roll.nodes.values())
    content = forget_records(spec, module_ids, roll.federation if roll else None)
    patience = min(spec.timeout, FORGET_SECONDS)
    messages = instructions(content, nodes, "query.forget", patience)
    replies = ArrivalGrid(grid).send_and_receive(messages, timeout=patience)
    contents, failures = in_partition_order(replies, nodes, spec.num_clients, roll.partitions if roll else None)
    confirmed, reasons = dict(kept or {}), [failure.reason for failure in failures]
    for partition, reply in contents.items():
        try:
            account = read_forgotten(reply)
            if account.partition != partition or set(account.samples) != set(module_ids):
                raise VerificationError("report", f"node {partition} does not account for the modules that were named")
        except VerificationError as error:
            reasons.append(str(error))
            continue
        confirmed[str(partition)] = {"sample_files": sum(account.samples.values()), "fit_files": account.fits}
    logger.info(
        "forget: %d nodes confirm that they hold nothing of %d modules; %d were asked",
        len(confirmed),
        len(module_ids),
        len(nodes),
    )
    for reason in reasons:
        logger.warning("forget: a node did not confirm: %s", reason)
    _note(directory, module_ids, excluded, confirmed, reasons)


def _note(directory: RunDirectory, module_ids: list[str], excluded: str, confirmed: dict[str, Any], reasons: list[str]) -> None:
    """Keep what the nodes answered for the certificate."""
    values = {"modules": module_ids, "excluded": excluded, "confirmed": confirmed, "reasons": sorted(reasons)}
    directory.write_json(CONFIRMATIONS, values)


def _confirmed(directory: RunDirectory, module_ids: list[str], excluded: str) -> dict[str, Any] | None:
    """Return the accounts that nodes gave in earlier sessions of the same, by partition; None where nobody was asked."""
    if not (directory.path / CONFIRMATIONS).exists():
        return None
    kept = directory.read_json(CONFIRMATIONS)
    same = (kept["modules"], kept.get("excluded")) == (module_ids, excluded)
    return dict(kept["confirmed"]) if same else None
