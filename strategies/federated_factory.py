"""The FederatedFactory strategy: one round that collects module files and broadcasts the full set."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from ff_flower.config import RunSpec
from ff_flower.data import DatasetInfo
from ff_flower.errors import RunError, VerificationError
from ff_flower.messages import (
    count_modules,
    module_records,
    read_answer,
    request_records,
    shared_store,
    signature_record,
)
from ff_flower.metrics import Ledger
from ff_flower.reports import Answer
from ff_flower.run_directory import RunDirectory, answer_inputs

from .answers import CARRIED, Shapes, check_files, expected_files
from .arrivals import ArrivalGrid
from .collection import Collection
from .introductions import Roll
from .nodes import Failure, check_answer, claim_of, in_partition_order, instructions, missing_nodes, wait_for_nodes
from .progress import Progress

logger = logging.getLogger("flwr")


class FederatedFactory(Strategy):
    """Collect one module file per (node, label), verify and register them, broadcast the set, take the nodes' answers.

    Run it with ``num_rounds=1``. What stands verified in the run directory is not asked for again.

    Parameters
    ----------
    spec : RunSpec
        The run.
    info : DatasetInfo
        The label table and image shape that modules must have.
    directory : RunDirectory
        Where files, reports and receipts are kept.
    ledger : Ledger
        Notes every transfer.
    device : torch.device
        Where samples are drawn for vetting.
    roll : Roll, optional
        The sites that take part, where nodes bring their own images.
    progress : Progress, optional
        Tells of the stages and of every arrival; without it one is made for the directory.

    Raises
    ------
    ConfigError
        When the settings of the run's kind of module cannot take the images.
    """

    def __init__(
        self,
        spec: RunSpec,
        info: DatasetInfo,
        directory: RunDirectory,
        ledger: Ledger,
        device: torch.device,
        roll: Roll | None = None,
        *,
        progress: Progress | None = None,
    ) -> None:
        self.spec, self.info, self.directory, self.ledger, self.roll = spec, info, directory, ledger, roll
        self.federation = roll.federation if roll else None
        self.collection = Collection(spec, info, directory, ledger, roll.owners(spec) if roll else None)
        self.device = device
        self.progress = progress or Progress(directory, self.federation.sites if self.federation else ())
        self.answers: dict[int, Answer] = {}
        self.missing: list[Failure] = []
        self._excluded = set(range(spec.num_clients)) - set(self.collection.participants)
        self._partitions = roll.partitions if roll else {}
        self._node_ids: dict[int, int] = {}
        self._failures: list[Failure] = []
        self._refused: dict[int, list[Failure]] = {}
        self._expected: Mapping[str, Shapes] = {}
        self._claims: dict[int, set[int]] = {}
        self._asked: list[int] = []
        self._take: Callable[[Message], None] = self._take_modules
        self.steps: dict[str, float] = {}
        self._asked_at = self._broadcast_at = time.time()

    def summary(self) -> None:
        """Log what the strategy will do."""
        spec = self.spec
        logger.info("\t├──> %d nodes, %s modules, %s", spec.num_clients, spec.module.kind, spec.data.name)
        logger.info("\t└──> synthesis at the %s, consensus: %s", spec.synthesis.site, spec.consensus)

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run the round as Flower does, but take every reply when it arrives, not when the last one has."""
        return super().start(ArrivalGrid(grid, self._arrived, self._waiting), *args, **kwargs)

    def _arrived(self, message: Message) -> None:
        self._take(message)

    def _waiting(self, nodes: Sized) -> None:
        self.progress.waiting_for(len(nodes))

    def restore(self, given_up: Mapping[int, str]) -> None:
        """Take over modules and answers that stand verified in the run directory, as a round does that has nobody to ask.

        Parameters
        ----------
        given_up : mapping from int to str
            Why nobody waits for a partition's node any more; what it did not give is missing.

        Raises
        ------
        RunError
            Where another node would have to be asked, or too little is there to go on.
        """
        wanted = {*self.collection.resume(), *self._unanswered()}
        if asked := sorted(wanted - given_up.keys()):
            raise RunError(f"nodes {asked} must be asked, and no federation is at hand; run the spec in Flower")
        self.missing = [Failure(partition, given_up[partition]) for partition in sorted(wanted)]
        self.collection.complete()
        self.collection.vet(self.device)
        self.collection.check_enough(self.missing)

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Ask the nodes whose modules are not registered yet to fit them."""
        held = self._labels_held()
        wanted = self.collection.resume(held)
        if not wanted and not self._unanswered():
            logger.info("fit: all modules and answers are registered and verified, nothing to ask")
            self._asked = []
            return []
        if self.roll:
            self._asked = list(self.roll.nodes.values())
        else:
            self._asked = wait_for_nodes(grid, self.spec.num_clients, self.spec.connect_timeout, spare=len(self._excluded))
        self._asked_at = time.time()
        logger.info("fit: %d of %d nodes have modules to fit", len(wanted), self.spec.num_clients)
        self.progress.enter("fit")
        self.progress.expect(wanted, {p: len(labels) for p, labels in held.items()}, at_once=self.spec.data.elsewhere)
        self._take = self._take_modules
        content = request_records(self.spec, wanted, server_round, self.federation)
        return instructions(content, self._asked, MessageType.TRAIN, self.spec.timeout)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Close the collection: name who is missing, quarantine what may not be used, and go on with the rest.

        Raises
        ------
        RunError
            With fewer than ``min_modules`` modules or ``min_classes`` classes.
        """
        replies = list(replies)
        contents, failures = in_partition_order(replies, self._asked, self.spec.num_clients, self._partitions)
        self._node_ids = {
            p: m.metadata.src_node_id for m in replies if m.has_content() for p, c in contents.items() if c is m.content
        }
        for partition in contents:
            failures += self._refused.get(partition, [])
        received = [partition for partition in contents if self._refused.get(partition) == []]
        if begins := [self.collection.reports[partition].work.began for partition in received]:
            ended = time.time()  # the nodes' clocks are their own
            self.steps["collect"] = round(ended - min(max(min(begins), self._asked_at), ended), 2)
        failures += self.roll.refused if self.roll else ()
        self._failures = failures
        self.missing = missing_nodes(failures, {*self.collection.reports, *self._excluded}, self.spec.num_clients)
        self.progress.missing(self.missing)
        if fallbacks := self.collection.fallbacks():
            logger.warning("fit: %d modules are of a simpler kind, for example %s", len(fallbacks), fallbacks[0]["reason"])
        self.collection.complete()
        self.progress.enter("vetting")
        self.collection.vet(self.device)
        self.ledger.write(self.directory.path / "ledger.jsonl")
        self.collection.check_enough(self.missing)
        return None, None

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Broadcast the full set of module files, the same records to every node that has not answered."""
        wanted = self._unanswered()
        if not wanted:
            self._asked = []
            return []
        for partition in wanted:
            self._drop_answer(partition)
        self._broadcast_at = time.time()
        self.progress.enter("answers")
        self._take, self._refused = self._take_answer, {}
        self._expected = expected_files(self.spec, self.info, self.collection.registry)
        content = request_records(self.spec, wanted, server_round, self.federation)
        content.update(module_records(self.collection.registry.files(), shared_store(self.spec)))
        content.update(signature_record(signatures := self.collection.registry.signatures()))
        receivers = {partition: self._node_ids[partition] for partition in wanted if partition in self._node_ids}
        self.progress.expect(receivers, {}, at_once=self.spec.data.elsewhere)
        self._asked = list(receivers.values())
        num_bytes, set_bytes = count_modules(content), self.collection.registry.num_bytes()
        for partition in receivers:
            self.ledger.add("down", "modules", num_bytes, partition, server_round)
            if "modules" not in content:
                self.ledger.add("read", "modules-down", set_bytes, partition, server_round)
            if signatures:
                self.ledger.add("down", "signatures", sum(len(one) for one in signatures.values()), partition, server_round)
        logger.info(
            "broadcast: %d modules, %.2f MB to each of %d nodes", len(self.collection.registry), num_bytes / 1e6, len(receivers)
        )
        return instructions(content, self._asked, MessageType.EVALUATE, self.spec.timeout)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Name the nodes whose answers are missing."""
        contents, failures = in_partition_order(replies, self._asked, self.spec.num_clients, self._known())
        for partition in contents:
            failures += self._refused.get(partition, [])
        self.answers = dict(sorted(self.answers.items()))
        if contents:
            self.steps["broadcast"] = round(time.time() - self._broadcast_at, 2)
        if self.spec.synthesis.site == "client":
            known = {*self.answers, *self._excluded, *(failure.partition for failure in self.missing)}
            silent = missing_nodes([*self._failures, *failures], known, self.spec.num_clients)
            self.missing = sorted(self.missing + silent, key=lambda failure: failure.partition)
            self.progress.missing(silent)
        self.ledger.write(self.directory.path / "ledger.jsonl")
        return None

    def _take_modules(self, message: Message) -> None:
        """Verify, register and write a node's modules as soon as they are here."""
        claim = claim_of(message, self.spec.num_clients, self._partitions)
        if isinstance(claim, Failure):
            self.progress.failed(claim)
            return
        claimants = self._claims.setdefault(claim, set())
        claimants.add(message.metadata.src_node_id)
        if len(claimants) > 1:
            if claim in self._refused:
                self.collection.give_up(claim)
        elif claim not in self.collection.reports and claim not in self._excluded:
            self._refused[claim] = self.collection.receive(claim, message.content)
            for failure in self._refused[claim]:
                self.progress.failed(failure)
            if not self._refused[claim]:
                self._tell_modules(claim)

    def _tell_modules(self, partition: int) -> None:
        modules, work = self.collection.modules_of(partition), self.collection.reports[partition].work
        labels = ", ".join(module.manifest.label_name for module in modules) or "none"
        shown = sum(module.manifest.images_shown for module in modules)
        self.progress.arrived(partition, f"modules of {labels}, {shown:,} images shown", work.ended - work.began)

    def _take_answer(self, message: Message) -> None:
        """Keep a node's answer, with its logits and classifier, as soon as it is here."""
        claim = claim_of(message, self.spec.num_clients, self._known())
        if isinstance(claim, Failure):
            self.progress.failed(claim)
            return
        try:
            self._keep_answer(claim, message.content)
        except VerificationError as error:
            self._refused[claim] = [Failure(claim, str(error))]
            self.progress.failed(self._refused[claim][0])
            return
        answer = self.answers[claim]
        score = f"classifier of {100 * answer.metrics['accuracy']:.2f} %"
        self.progress.arrived(claim, score, answer.training.ended - answer.synthesis.began)

    def _known(self) -> dict[int, int]:
        """Return the partitions of the nodes that were sent the modules."""
        return {node: partition for partition, node in self._node_ids.items()}

    def _labels_held(self) -> dict[int, set[int]]:
        """Return the labels of the classes that each connected site says it holds."""
        if self.roll is None:
            return {}
        table, told = self.roll.federation, self.roll.introductions
        return {p: {*map(table.classes.index, told[table.sites[p]].counts)} for p in self.roll.nodes}

    def modules_digest(self) -> str:
        """Return one digest of the spec and all registered modules: what every later stage depends on."""
        return self.collection.digest()

    def answer_inputs(self, partition: int) -> str:
        """Return the digest of what a node's answer depends on."""
        return answer_inputs(self.modules_digest(), partition)

    def _unanswered(self) -> list[int]:
        """Return the partitions whose answers are wanted and not in the run directory, and read those that are."""
        if self.spec.synthesis.site == "server":
            return []
        for partition in self.collection.participants:
            if self.directory.is_done(f"answer-{partition}", self.answer_inputs(partition)):
                text = (self.directory.path / f"nodes/{partition}/answer.json").read_text()
                self.answers[partition] = Answer.from_json(text)
        return [partition for partition in self.collection.participants if partition not in self.answers]

    def _drop_answer(self, partition: int) -> None:
        """Remove what a node answered to other modules, so that nobody takes it for an answer to these."""
        self.directory.withdraw([f"answer-{partition}"])
        for name in ("answer.json", *(f"{carried}.safetensors" for carried in CARRIED.values())):
            (self.directory.path / f"nodes/{partition}" / name).unlink(missing_ok=True)

    def _keep_answer(self, partition: int, content: RecordDict) -> None:
        answer, files = read_answer(content)
        check_answer(answer, partition, len(self.info.classes))
        check_files(files, self._expected)
        paths = [self.directory.write(f"nodes/{partition}/answer.json", answer.to_json().encode())]
        for name, data in files.items():
            self.ledger.add("up", name, len(data), partition)
            paths.append(self.directory.write(f"nodes/{partition}/{name}.safetensors", data))
            content.pop(name, None)
        self.ledger.write(self.directory.path / "ledger.jsonl")
        self.answers[partition] = answer
        seconds = answer.training.ended - answer.synthesis.began
        self.directory.finish(f"answer-{partition}", self.answer_inputs(partition), paths, seconds)
