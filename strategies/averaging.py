"""FedAvg and FedProx: Flower's own strategies, made to repeat to the last bit."""

import logging
from collections.abc import Iterable
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from torch import nn

from ff_flower.classifiers import build_classifier, predict, weights_file
from ff_flower.config import RunSpec
from ff_flower.data import Splits
from ff_flower.errors import RunError, VerificationError
from ff_flower.messages import count_bytes, request_records
from ff_flower.metrics import ClassificationMetrics, Ledger, classification_metrics
from ff_flower.run_directory import RunDirectory
from ff_flower.seeding import derive_seed

from .arrivals import ArrivalGrid
from .nodes import Failure, in_partition_order, missing_nodes, wait_for_nodes

logger = logging.getLogger("flwr")

# NumPy reads the header of an array as a Python expression, and some bytes as an archive.
UNREADABLE: tuple[type[Exception], ...] = (TypeError, ValueError, LookupError, ArithmeticError, EOFError, OSError, MemoryError)
UNREADABLE += (RuntimeError, SyntaxError, TokenError, BadZipFile)


class RepeatableAveraging(FedAvg):
    """Flower's FedAvg over all nodes, summing in the order of partitions.

    FedProx differs from FedAvg at the nodes alone, which add the proximal term; Flower's ``FedProx`` sends them its weight, here
    the spec that every request carries does.

    Parameters
    ----------
    spec : RunSpec
        The run.
    ledger : Ledger
        Notes every transfer.
    """

    def __init__(self, spec: RunSpec, ledger: Ledger) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
        self.spec, self.ledger = spec, ledger
        self.missing: list[Failure] = []
        self._asked: list[int] = []
        self._sent = ArrayRecord()

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds as Flower does, but wait for nobody to whom Flower could not send: its own grid would end the run."""
        return super().start(ArrivalGrid(grid), *args, **kwargs)

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Send the global weights to every node that is there; who is gone is missing.

        A node that has restarted since the last round takes part under its other id, as soon as the former one is not listed.
        """
        if not self._asked:
            self._asked = wait_for_nodes(grid, self.spec.num_clients, self.spec.connect_timeout)
        elif 0 < len(there := sorted(grid.get_node_ids())) <= self.spec.num_clients:
            self._asked = there
        content = request_records(self.spec, range(self.spec.num_clients), server_round)
        content["arrays"] = self._sent = arrays
        num_bytes = count_bytes(content, "arrays")
        everybody = len(self._asked) == self.spec.num_clients
        for partition in range(len(self._asked)):  # who of them has which partition only the replies tell
            self.ledger.add("down", "weights", num_bytes, partition if everybody else -1, server_round)
        return self._construct_messages(content, self._asked, "train.average")

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what arrived, in the order of partitions.

        Raises
        ------
        RunError
            When no node answered.
        """
        replies = list(replies)
        contents, failures = in_partition_order(replies, self._asked, self.spec.num_clients)
        usable = {}
        for partition, content in contents.items():
            try:
                _check_update(content, self._sent)
            except VerificationError as error:
                failures.append(Failure(partition, str(error)))
                continue
            usable[partition] = content
            self.ledger.add("up", "weights", count_bytes(content, "arrays"), partition, server_round)
        missing = missing_nodes(failures, usable, self.spec.num_clients)
        for failure in missing:
            logger.warning("round %d: node %d is missing: %s", server_round, failure.partition, failure.reason)
        self.missing += [Failure(failure.partition, f"round {server_round}: {failure.reason}") for failure in missing]
        if not any(content.metric_records["metrics"]["num-examples"] for content in usable.values()):
            causes = sorted({failure.reason for failure in missing})
            raise RunError(f"round {server_round}: no node with images answered: {'; '.join(causes)}")
        by_content = {id(message.content): message for message in replies if message.has_content()}
        return super().aggregate_train(server_round, [by_content[id(content)] for content in usable.values()])


def _check_update(content: RecordDict, sent: ArrayRecord) -> None:
    """Refuse a reply that cannot be averaged (VerificationError): FedAvg itself would end the run."""
    metrics = content.metric_records["metrics"]
    records = [*content.array_records, *content.metric_records]
    if records != ["arrays", "metrics"] or set(metrics) != {"num-examples", "partition-id"}:
        found = f"{sorted(records)} with metrics {sorted(metrics)}"
        raise VerificationError("records", f"{found:.300}; a reply has 'arrays' and 'metrics' with num-examples and partition-id")
    num_examples = metrics["num-examples"]
    if not isinstance(num_examples, int) or num_examples < 0:
        raise VerificationError("num-examples", f"{num_examples!r:.80} is not a count")
    try:
        weights = {name: array.numpy() for name, array in content.array_records["arrays"].items()}
    except UNREADABLE as error:
        raise VerificationError("weights", f"they cannot be read ({error!r:.200})") from error
    forms = {name: (tuple(array.shape), array.dtype) for name, array in sent.items()}
    if {name: (getattr(array, "shape", None), str(getattr(array, "dtype", ""))) for name, array in weights.items()} != forms:
        raise VerificationError("weights", "their names, shapes or dtypes are not those of the global classifier")
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise VerificationError("weights", "every weight must be a finite floating number; lower averaging.learning-rate")


class RoundHistory:
    """Scores of the global classifier after each round, on validation and test data.

    The test score is only reported; the best round is chosen by validation accuracy.

    Parameters
    ----------
    spec : RunSpec
        The run.
    splits : Splits
        Gives validation and test sets.
    directory : RunDirectory
        Keeps the classifiers.
    device : torch.device
        Where to evaluate.
    """

    def __init__(self, spec: RunSpec, splits: Splits, directory: RunDirectory, device: torch.device) -> None:
        self.spec, self.splits, self.directory, self.device = spec, splits, directory, device
        self.test: list[ClassificationMetrics] = []
        self.val_accuracy: list[float] = []

    def initial(self) -> nn.Module:
        """Return the classifier with which round 1 begins."""
        seed = derive_seed(self.spec.seed, "classifier", "global")
        return build_classifier(self.spec.classifier, self.splits.info.shape[0], self.splits.num_classes, seed)

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Score the weights after ``server_round``, keeping the last and the best by validation accuracy."""
        if server_round == 0:
            return None
        network = self.initial()
        network.load_state_dict(arrays.to_torch_state_dict())
        val, test = (
            classification_metrics(predict(network, part.images, self.device), part.labels)
            for part in (self.splits.val, self.splits.test)
        )
        self.val_accuracy.append(val.accuracy)
        self.test.append(test)
        file = weights_file(network.state_dict())
        self.directory.write("classifiers/last_round.safetensors", file)
        if server_round == self.best_round:
            self.directory.write("classifiers/best_round.safetensors", file)
        return MetricRecord({"val-accuracy": val.accuracy, "test-accuracy": test.accuracy})

    @property
    def best_round(self) -> int:
        """The first round of highest validation accuracy, counted from 1."""
        return 1 + max(range(len(self.val_accuracy)), key=lambda i: (self.val_accuracy[i], -i))
