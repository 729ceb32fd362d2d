"""The ServerApp: composition only. Read the spec, open the run directory, run the method, write what was found."""

import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from ff_flower.accelerator import prepare
from ff_flower.config import RunSpec, from_run_config
from ff_flower.data import Splits, cached_partition_indices, label_distribution, load_splits
from ff_flower.errors import FederatedFactoryError
from ff_flower.figures import label_distribution_figure
from ff_flower.metrics import Ledger
from ff_flower.reports import busy_seconds
from ff_flower.run_directory import RunDirectory, cache_root

from .baselines import run_averaging, run_centralized, run_local
from .consensus import Consensus
from .federated_factory import FederatedFactory
from .outcome import Outcome

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


def run(grid: Grid, spec: RunSpec) -> RunDirectory:
    """Run ``spec`` on the nodes of ``grid``, and return its run directory.

    Raises
    ------
    FederatedFactoryError
        When the spec does not fit the images, or too little arrives to go on.
    """
    began = time.time()
    splits = load_splits(spec.data, spec.seed)
    directory = RunDirectory.open(spec)
    logger.info("run directory: %s", directory.path)
    if directory.is_done("run", spec.digest()):
        logger.info("every stage of this spec is done and verified; nothing to do")
        return directory
    parts = _partition(spec, splits)
    device = prepare(spec, spec.server_threads)
    outcome = Outcome(spec, splits.info, directory, Ledger.read(directory.path / "ledger.jsonl"))
    counts = label_distribution(splits.train.labels.numpy(), parts, splits.num_classes)
    directory.write_json("label_distribution.json", {"classes": list(splits.info.classes), "counts": counts.tolist()})
    if not (picture := directory.path / "label_distribution.png").exists():
        label_distribution_figure(counts, splits.info.classes, picture)
    METHODS[spec.method](grid, splits, outcome, device)
    outcome.write(time.time() - began)
    if not outcome.missing and not outcome.quarantined:
        directory.finish("run", spec.digest(), directory.outputs(), time.time() - began)
    return directory


def run_factory(grid: Grid, splits: Splits, outcome: Outcome, device: torch.device) -> None:
    """Run FederatedFactory: one round, then consensus at the server."""
    strategy = FederatedFactory(outcome.spec, splits.info, outcome.directory, outcome.ledger, device)
    strategy.start(grid, ArrayRecord(), num_rounds=1, timeout=outcome.spec.timeout)
    outcome.rounds, outcome.missing = 1, strategy.missing
    collection = strategy.collection
    outcome.quarantined, outcome.declined, outcome.fallbacks = (
        collection.refused,
        collection.declined(),
        collection.fallbacks(),
    )
    answers = list(strategy.answers.values())
    peaks = [report.peak_memory for report in collection.reports.values()] + [answer.peak_memory for answer in answers]
    outcome.peak_memory = max(peaks, default=0)
    outcome.seconds["fit"] = busy_seconds([report.work for report in collection.reports.values()])
    outcome.seconds["vetting"] = collection.vetting_seconds
    outcome.seconds["client-synthesis"] = busy_seconds([answer.synthesis for answer in answers])
    outcome.seconds["client-training"] = busy_seconds([answer.training for answer in answers])
    Consensus(strategy, splits, outcome, device).conclude()


METHODS: dict[str, Callable[[Grid, Splits, Outcome, torch.device], None]] = {
    "federated-factory": run_factory,
    "fedavg": run_averaging,
    "fedprox": run_averaging,
    "local": run_local,
    "centralized": run_centralized,
}


def _partition(spec: RunSpec, splits: Splits) -> tuple[np.ndarray, ...]:
    labels = splits.train.labels.numpy()
    return cached_partition_indices(labels, spec.num_clients, spec.partition, spec.seed, cache=cache_root(spec) / "partitions")
