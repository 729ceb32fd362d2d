"""The ServerApp: composition only. Read the spec, open the run directory, run the method, write what was found."""

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from ff_flower.accelerator import prepare
from ff_flower.config import RunSpec, from_run_config
from ff_flower.data import Splits, load_splits
from ff_flower.errors import FederatedFactoryError, RunError
from ff_flower.figures import label_distribution_figure
from ff_flower.metrics import Ledger
from ff_flower.reports import busy_seconds
from ff_flower.run_directory import RunDirectory, made_of
from ff_flower.unlearning import given_up, honour

from .baselines import run_averaging, run_centralized, run_local
from .consensus import Consensus
from .contributions import contributions, log_contributions
from .federated_factory import FederatedFactory
from .forgetting import tell_nodes
from .holdings import survey
from .nodes import is_simulated
from .outcome import Outcome
from .progress import Progress
from .scoring import score_at_sites

logger = logging.getLogger("flwr")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the method that the run configuration names."""
    try:
        run(grid, from_run_config(context.run_config))
    except FederatedFactoryError as error:
        logger.error("%s: %s", type(error).__name__, error)
        raise


def run(grid: Grid | None, spec: RunSpec) -> RunDirectory:
    """Run ``spec`` on the nodes of ``grid``, and return its run directory.

    What the run directory has forgotten takes no part, whatever the spec says; see `ff_flower.unlearning`.

    Parameters
    ----------
    grid : Grid, optional
        The nodes; without them only what the server alone can make from its modules is made.
    spec : RunSpec
        What to run.

    Raises
    ------
    FederatedFactoryError
        When the spec does not fit the images, these are not those with which the run began, too little arrives to go on, or
        another server is at work on the run.
    """
    splits = None if spec.data.own else load_splits(spec.data, spec.seed)
    directory = RunDirectory.open(spec)
    logger.info("run directory: %s", directory.path)
    with directory.alone():
        return _resume(grid, spec, directory, splits)


def _hold_images(directory: RunDirectory, splits: Splits) -> None:
    """Note which images the run is made of; RunError where it began with others."""
    held, digest = directory.path / "images.json", splits.digest()
    if not held.exists():
        directory.write_json(held.name, {"sha256": digest})
    elif not made_of(directory.path, digest):
        remedy = "put them back, or keep the runs apart: set out or FF_RUNS to another folder"
        raise RunError(f"the images of {splits.info.name} are not those with which {directory.path} began; {remedy}")


def _resume(grid: Grid | None, spec: RunSpec, directory: RunDirectory, splits: Splits | None) -> RunDirectory:
    """Make what the run directory does not have yet."""
    began, asked = time.time(), spec
    spec = honour(directory, spec)
    if splits is not None:
        _hold_images(directory, splits)
    if directory.is_done("run", spec.digest()):
        logger.info("every stage of this spec is done and verified; nothing to do; to make it anew, remove %s", directory.path)
        return directory
    directory.withdraw(["run"])
    directory.describe(asked, deployed=grid is not None and not is_simulated(grid))
    progress = Progress(directory)
    with progress.told():
        outcome = _make(grid, spec, directory, splits, progress)
        outcome.write(time.time() - began)
        if outcome.whole:
            directory.finish("run", spec.digest(), directory.outputs(), time.time() - began)
    log_contributions(outcome.nodes, outcome.info.classes)
    return directory


def _make(grid: Grid | None, spec: RunSpec, directory: RunDirectory, splits: Splits | None, progress: Progress) -> Outcome:
    """Make every result of a run that is not done yet."""
    if splits is None:
        progress.enter("introductions")
    holdings = survey(grid, spec, directory, splits)
    splits, counts = holdings.splits, holdings.counts
    progress.names = holdings.roll.federation.sites if holdings.roll else ()
    device = prepare(spec, spec.server_threads)
    ledger = Ledger.read(directory.path / "ledger.jsonl")
    resumed = bool(directory.receipts())
    outcome = Outcome(
        spec, splits.info, directory, ledger, roll=holdings.roll, empty=holdings.empty, progress=progress, resumed=resumed
    )
    outcome.notes += holdings.notes
    _show_labels(directory, splits.info.classes, counts)
    if grid is not None:
        METHODS[spec.method](grid, splits, outcome, device)
    elif spec.method == "federated-factory":
        restore_factory(splits, outcome, device)
    else:
        raise RunError(f"{spec.method} needs nodes, and no federation is at hand; run the spec in Flower")
    return outcome


def _show_labels(directory: RunDirectory, classes: Sequence[str], counts: np.ndarray) -> None:
    """Write who holds what, and draw it where it is not drawn yet."""
    table, picture = directory.path / "label_distribution.json", directory.path / "label_distribution.png"
    before = table.read_bytes() if table.exists() and picture.exists() else b""
    if directory.write_json(table.name, {"classes": list(classes), "counts": counts.tolist()}).read_bytes() != before:
        label_distribution_figure(counts, classes, picture)


def run_factory(grid: Grid, splits: Splits, outcome: Outcome, device: torch.device) -> None:
    """Run FederatedFactory: one round, then consensus at the server."""
    strategy = _strategy(splits, outcome, device)
    tell_nodes(grid, outcome.spec, outcome.directory, outcome.roll)
    strategy.start(grid, ArrayRecord(), num_rounds=1, timeout=outcome.spec.timeout)
    _conclude(strategy, splits, outcome, device, grid)


def restore_factory(splits: Splits, outcome: Outcome, device: torch.device) -> None:
    """Make again what the server alone can make from modules and answers that it has.

    It goes on without the nodes that the run does without already; RunError where it lacks another's.
    """
    strategy = _strategy(splits, outcome, device)
    strategy.restore({int(partition): reason for partition, reason in given_up(outcome.directory).items()})
    _conclude(strategy, splits, outcome, device)


def _strategy(splits: Splits, outcome: Outcome, device: torch.device) -> FederatedFactory:
    one = outcome
    return FederatedFactory(one.spec, splits.info, one.directory, one.ledger, device, one.roll, progress=one.progress)


def _conclude(
    strategy: FederatedFactory, splits: Splits, outcome: Outcome, device: torch.device, grid: Grid | None = None
) -> None:
    """Take the account of a round, and make the results that the server makes; ``grid`` reaches sites that score them."""
    outcome.rounds, outcome.missing, outcome.steps = 1, strategy.missing, strategy.steps
    collection = strategy.collection
    outcome.quarantined, outcome.declined, outcome.fallbacks = (
        collection.refused,
        collection.declined(),
        collection.fallbacks(),
    )
    outcome.notes += collection.notes
    answers = list(strategy.answers.values())
    peaks = [report.peak_memory for report in collection.reports.values()] + [answer.peak_memory for answer in answers]
    outcome.peak_memory = max(peaks, default=0)
    outcome.seconds["fit"] = busy_seconds([report.work for report in collection.reports.values()])
    outcome.seconds["vetting"] = collection.vetting_seconds
    outcome.seconds["client-synthesis"] = busy_seconds([answer.synthesis for answer in answers])
    outcome.seconds["client-training"] = busy_seconds([answer.training for answer in answers])
    outcome.labels = collection.registry.labels()
    _note_lost_classes(outcome)
    strategy.progress.enter("results")
    consensus = Consensus(strategy, splits, outcome, device)
    consensus.conclude()
    score_at_sites(grid, outcome, consensus.waiting)
    names = outcome.roll.federation.sites if outcome.roll else ()
    modules = {partition: collection.modules_of(partition) for partition in collection.reports}
    outcome.nodes = contributions(names, modules, collection.reports, strategy.answers, outcome.ledger)


METHODS: dict[str, Callable[[Grid, Splits, Outcome, torch.device], None]] = {
    "federated-factory": run_factory,
    "fedavg": run_averaging,
    "fedprox": run_averaging,
    "local": run_local,
    "centralized": run_centralized,
}


def _note_lost_classes(outcome: Outcome) -> None:
    """Say which classes have no module because of who is excluded."""
    classes, there = outcome.info.classes, outcome.labels or ()
    for label in sorted(set(range(len(classes))) - set(there)) if outcome.spec.exclude else ():
        text = f"class {classes[label]!r} has no module, with {outcome.spec.exclude} excluded: no result knows it"
        outcome.notes.append(text)
        logger.warning(text)
