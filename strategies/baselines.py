"""Runs of the other methods: averaging, local-only and centralized."""

import time

import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from ff_flower.classifiers import fit_classifier, predict, weights_file
from ff_flower.data import Splits
from ff_flower.errors import ConfigError, RunError, VerificationError
from ff_flower.messages import read_answer, request_records
from ff_flower.metrics import ClassificationMetrics, classification_metrics, mean_metrics
from ff_flower.reports import busy_seconds
from ff_flower.seeding import derive_seed

from .arrivals import ArrivalGrid
from .averaging import RepeatableAveraging, RoundHistory
from .nodes import Failure, check_answer, in_partition_order, instructions, missing_nodes, wait_for_nodes
from .outcome import Outcome


def run_averaging(grid: Grid, splits: Splits, outcome: Outcome, device: torch.device) -> None:
    """Run FedAvg or FedProx; report the last round, and beside it the round that validation data prefer."""
    spec, began = outcome.spec, time.time()
    if not len(splits.val):
        raise ConfigError(
            f"{spec.method} reports the round of best validation accuracy, and {splits.info.name} has no validation images here; "
            "set data.val-fraction above 0"
        )
    outcome.ledger.transfers.clear()  # rounds are not resumed, so nothing of an earlier attempt counts
    for record in ("metrics.json", "rounds.json"):  # of classifiers that the first round overwrites
        (outcome.directory.path / record).unlink(missing_ok=True)
    strategy = RepeatableAveraging(spec, outcome.ledger)
    history = RoundHistory(spec, splits, outcome.directory, device)
    if outcome.progress is not None:
        outcome.progress.enter("rounds")
    initial = ArrayRecord(history.initial().state_dict())
    strategy.start(grid, initial, spec.averaging.rounds, spec.timeout, evaluate_fn=history.evaluate)
    outcome.rounds, outcome.missing = spec.averaging.rounds, strategy.missing
    outcome.seconds["rounds"] = time.time() - began
    outcome.record("last_round", history.test[-1], up=["weights"], down=["weights"])
    best = history.test[history.best_round - 1].as_dict() | {"round": history.best_round}
    outcome.record("best_round", best, up=["weights"], down=["weights"])
    values = zip(history.val_accuracy, history.test, strict=True)
    outcome.directory.write_json("rounds.json", [{"val_accuracy": val, "test_accuracy": test.accuracy} for val, test in values])


def run_local(grid: Grid, splits: Splits, outcome: Outcome, device: torch.device) -> None:
    """Let every node fit a classifier on its own images alone, and report the mean of those that hold any."""
    spec = outcome.spec
    nodes = wait_for_nodes(grid, spec.num_clients, spec.connect_timeout)
    content = request_records(spec, range(spec.num_clients))
    messages = instructions(content, nodes, "evaluate.local", spec.timeout)
    replies = ArrivalGrid(grid).send_and_receive(messages, timeout=spec.timeout)
    contents, failures = in_partition_order(replies, nodes, spec.num_clients)
    scores, answers = {}, []
    for partition, reply in contents.items():
        if partition in outcome.empty:
            continue
        try:
            answer, _ = read_answer(reply)
            check_answer(answer, partition, splits.num_classes)
        except VerificationError as error:
            failures.append(Failure(partition, str(error)))
            continue
        scores[partition] = ClassificationMetrics.from_dict(answer.metrics)
        answers.append(answer)
    if outcome.empty:
        which = ", ".join(map(str, sorted(outcome.empty)))
        outcome.notes.append(f"the mean leaves out nodes that hold no images and so learn nothing alone: {which}")
    outcome.missing = missing_nodes(failures, scores.keys() | outcome.empty, spec.num_clients)
    if not scores:
        raise RunError(f"no node answered: {outcome.missing[0].reason}")
    outcome.seconds["training"] = busy_seconds([answer.training for answer in answers])
    outcome.peak_memory = max(answer.peak_memory for answer in answers)
    outcome.record("local", mean_metrics(list(scores.values())))


def run_centralized(grid: Grid, splits: Splits, outcome: Outcome, device: torch.device) -> None:
    """Fit one classifier on all training images at the server: what no federation can be expected to beat."""
    spec, began = outcome.spec, time.time()
    seed = derive_seed(spec.seed, "classifier", "centralized")
    policy = splits.info.augmentation
    network = fit_classifier(splits.train, spec.classifier, splits.num_classes, policy=policy, seed=seed, device=device)
    outcome.seconds["training"] = time.time() - began
    outcome.directory.write("classifiers/centralized.safetensors", weights_file(network.state_dict()))
    test = predict(network, splits.test.images, device)
    outcome.record("centralized", classification_metrics(test, splits.test.labels))
