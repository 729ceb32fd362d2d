"""Before a round with sites that bring their own images: who they are, and the label table of them all."""

import json
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.serverapp import Grid

from ff_flower.config import RunSpec, class_names
from ff_flower.errors import RunError, VerificationError
from ff_flower.federation import Enrolment, Federation, Introduction, enrol
from ff_flower.messages import read_introduction, request_records
from ff_flower.run_directory import RunDirectory

from .arrivals import ArrivalGrid
from .nodes import STANDSTILL_SECONDS, Failure, instructions, last_line

logger = logging.getLogger("flwr")

KEPT = "sites.json"
AGAIN_SECONDS = 10.0
SILENT_SECONDS = 30.0  # after which the log says that nodes are waited for
INTRODUCTION_SECONDS = 600.0  # to look through a site's folder; who is silent for longer holds the others up no more


@dataclass(frozen=True)
class Roll:
    """The sites of a run, as they introduced themselves.

    Attributes
    ----------
    federation : Federation
        Label table and partitions.
    nodes : mapping from int to int
        Flower's node id by partition, of the sites that are connected and take part.
    introductions : mapping from str to Introduction
        What sites said of themselves, by name, in this session or an earlier one.
    refused : tuple of Failure
        Nodes that do not take part, with reasons.
    notes : tuple of str
        What a person should look at.
    """

    federation: Federation
    nodes: Mapping[int, int]
    introductions: Mapping[str, Introduction]
    refused: tuple[Failure, ...]
    notes: tuple[str, ...]

    @property
    def partitions(self) -> dict[int, int]:
        """The partition by Flower's node id: ``nodes`` the other way round."""
        return {node: partition for partition, node in self.nodes.items()}

    def owners(self, spec: RunSpec) -> list[str]:
        """Return the sites' names by partition.

        Places that nobody has taken are those of sites that the run excludes and that never came; beyond these they have no name.
        """
        absent = sorted(spec.exclusion.owners - set(self.federation.sites))
        names = [*self.federation.sites, *absent, *[""] * spec.num_clients]
        return names[: spec.num_clients]

    def counts(self, num_clients: int) -> np.ndarray:
        """Return int64 (num_clients, K): training images per site and class, as the sites rounded them."""
        counts = np.zeros((num_clients, len(self.federation.classes)), dtype=np.int64)
        for partition, name in enumerate(self.federation.sites):
            for label, images in self.introductions[name].counts.items() if name in self.introductions else ():
                counts[partition, self.federation.classes.index(label)] = images
        return counts


def call_roll(grid: Grid | None, spec: RunSpec, directory: RunDirectory) -> Roll:
    """Ask every connected node who it is, and give the sites their partitions, kept in the run directory.

    Without a grid the roll is that of the run directory, with nobody connected. Owners that the spec excludes need not be there.

    Raises
    ------
    RunError
        With fewer sites than ``min_nodes`` (0: than ``num_clients``), naming why the others do not take part.
    """
    known, earlier = _kept(directory)
    if grid is None:
        if known is None:
            raise RunError(f"{directory.path}: no site has introduced itself yet; run the spec in Flower")
        return Roll(known, {}, earlier, (), ())
    least = max(1, (spec.min_nodes or spec.num_clients) - len(spec.exclusion.owners))
    told, enrolment = _meet(grid, spec, known)
    federation, refused = enrolment.federation, dict(enrolment.refused)
    failures = _failures(told, refused)
    accepted = {node: one for node, one in told.items() if isinstance(one, Introduction) and one.name not in refused}
    present = {federation.partition(one.name): node for node, one in accepted.items()}
    introductions = earlier | {one.name: one for one in accepted.values()}
    reasons = list(dict.fromkeys(failure.reason for failure in failures))
    taking_part = [one for one in accepted.values() if one.name not in spec.exclusion.owners]
    if len(taking_part) < least:
        remedy = "" if spec.min_nodes else " (all; min-nodes allows fewer)"
        said = "; ".join([f"{len(told)} SuperNodes are connected", *reasons])
        raise RunError(f"{len(taking_part)} of {spec.num_clients} sites take part, {least} must{remedy}: {said}")
    strangers = [] if len(present) < spec.num_clients else [f"a node is left out: {reason}" for reason in reasons]
    if known and known.classes != federation.classes:  # a classifier for fewer classes is none for these
        directory.withdraw([stage for stage in directory.receipts() if not stage.startswith("fit-")])
    stay = [one.model_dump() for name, one in sorted(introductions.items()) if name not in spec.exclusion.owners]
    kept = {"federation": federation.model_dump(), "introductions": stay}
    directory.write_json(KEPT, kept)
    for partition in sorted(present):
        one = introductions[federation.sites[partition]]
        held = ", ".join(f"{name} ({count})" for name, count in sorted(one.counts.items()))
        logger.info("introductions: node %d is site %s: %s", partition, one.name, held)
    for note in enrolment.notes:
        logger.warning("introductions: %s", note)
    notes = (*enrolment.notes, *strangers)
    return Roll(federation, dict(sorted(present.items())), introductions, tuple(failures), notes)


def _meet(grid: Grid, spec: RunSpec, known: Federation | None) -> tuple[dict[int, Introduction | Failure], Enrolment]:
    """Let every node introduce itself when it connects, until sites have taken all places or the wait is over.

    Nodes that are no site of this run, for example those of another one, take nobody's place. Who is left out is asked again
    every ten seconds, so that a site that is mended in time takes part.

    Returns
    -------
    tuple of dict and Enrolment
        What nodes told, or why they told nothing, by node id; who takes part.
    """
    standstill = STANDSTILL_SECONDS if spec.data.sites else spec.connect_timeout
    told: dict[int, Introduction | Failure] = {}
    logged: set[Failure] = set()
    began = changed = asked = time.monotonic()
    while True:
        connected = sorted(grid.get_node_ids())
        told = {node: one for node, one in told.items() if node in connected}
        introductions = [one for one in told.values() if isinstance(one, Introduction)]
        enrolment = enrol(introductions, spec.num_clients, class_names(spec.data.classes), known, spec.exclusion.owners)
        refused = dict(enrolment.refused)
        for failure in sorted(set(_failures(told, refused)) - logged, key=str):
            logger.warning("introductions: %s", failure.reason)
            logged.add(failure)
        names = {one.name for one in introductions} - refused.keys()
        if len(names) >= spec.num_clients - len(spec.exclusion.owners - names):
            return told, enrolment
        now = time.monotonic()
        left_out = {node for node, one in told.items() if isinstance(one, Failure) or one.name in refused}
        again = left_out if now >= asked + AGAIN_SECONDS else set()
        if nodes := [node for node in connected if node not in told or node in again]:
            replies, asked = _introduce(grid, spec, nodes), time.monotonic()
            changed = changed if replies.items() <= told.items() else asked
            told |= replies
        elif now >= began + spec.connect_timeout or (told and now > changed + standstill):
            return told, enrolment
        else:
            time.sleep(0.1)


def _introduce(grid: Grid, spec: RunSpec, nodes: list[int]) -> dict[int, Introduction | Failure]:
    """Return what ``nodes`` tell of themselves, or why they do not, by node id."""
    content = request_records(spec, ())
    patience = min(spec.timeout, max(spec.connect_timeout, INTRODUCTION_SECONDS))
    messages = instructions(content, nodes, "query.introduce", patience)
    told: dict[int, Introduction | Failure] = dict.fromkeys(nodes, Failure(-1, "a node did not introduce itself in time"))

    def wait(silent: Collection[int]) -> None:
        text = "introductions: %d of %d nodes have not answered; they are waited for until %.0f s have passed"
        logger.warning(text, len(silent), len(nodes), patience)

    for reply in ArrivalGrid(grid, wait=wait, quiet_seconds=SILENT_SECONDS).send_and_receive(messages, timeout=patience):
        node = reply.metadata.src_node_id
        if reply.has_error():
            told[node] = Failure(-1, f"a node cannot take part: {last_line(reply.error.reason or '')}")
            continue
        try:
            told[node] = read_introduction(reply.content)
        except VerificationError as error:
            told[node] = Failure(-1, f"an introduction is refused: {error}")
    return told


def _failures(told: Mapping[int, Introduction | Failure], refused: Mapping[str, str]) -> list[Failure]:
    """Return why nodes do not take part, in an order that does not depend on theirs."""
    failures = [one for one in told.values() if isinstance(one, Failure)]
    failures += [Failure(-1, f"site {name!r} is refused: {reason}") for name, reason in refused.items()]
    return sorted(failures, key=lambda failure: failure.reason)


def _kept(directory: RunDirectory) -> tuple[Federation | None, dict[str, Introduction]]:
    """Return table and introductions of an earlier session of the run."""
    if not (directory.path / KEPT).exists():
        return None, {}
    try:
        values = directory.read_json(KEPT)
        introductions = [Introduction.from_json(json.dumps(one)) for one in values["introductions"]]
        return Federation.from_json(json.dumps(values["federation"])), {one.name: one for one in introductions}
    except (ValueError, LookupError, TypeError, VerificationError) as error:
        raise RunError(f"{directory.path / KEPT}: not as it was written ({error}); remove the run directory") from error
