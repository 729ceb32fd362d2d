"""``ff-flower validate``: the classifiers of finished runs, scored on validation images, by which settings may be chosen."""

import sys
from functools import cache
from pathlib import Path
from typing import Annotated

import typer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ff_flower.accelerator import select_device
from ff_flower.classifiers import build_classifier, pooled, predict
from ff_flower.config import RunSpec, from_run_config
from ff_flower.data import Splits
from ff_flower.errors import DataError, RunError
from ff_flower.metrics import classification_metrics, mean_metrics
from ff_flower.run_directory import read_spec

from .images import images_of
from .report import Metrics, distinct, load_metrics, show, summarize
from .run import refusing


def main(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    markdown: Annotated[bool, typer.Option(help="Print Markdown.")] = False,
) -> None:
    """Score the classifiers of runs on validation images, by which settings may be chosen; a report's test scores may not.

    Runs that keep no classifier are named and left out. The product of experts and the nodes' mean need the nodes' weights, which
    a run keeps where its consensus holds poe.
    """
    with refusing():
        scored = {run: validated(run) for run in distinct(runs)}
        found = [metrics for metrics in scored.values() if metrics["results"]]
        if without := [f"{run} ({metrics['method']})" for run, metrics in scored.items() if not metrics["results"]]:
            said = f"{', '.join(without)}: keeps no classifier to score; name runs that have files in classifiers/"
            if not found:
                raise DataError(said)
            print(said, file=sys.stderr)
    show([summarize(found, "On validation images: mean ± standard deviation over runs")], markdown=markdown)


def validated(run: Path) -> Metrics:
    """Return a run's metrics with the scores of its classifiers on validation images in the place of those on test images.

    Results whose classifiers the run does not keep are left out; there may be none.

    Parameters
    ----------
    run : Path
        The directory of a finished run.

    Raises
    ------
    DataError
        Where the run did not finish, its images have changed, or this machine has no validation images of its set.
    RunError
        Where a file is no classifier of this run.
    """
    metrics, spec = load_metrics(run), from_run_config(read_spec(run))
    splits = images_of(run, spec, "these hold out test images alone; validate a simulation")
    if not len(splits.val):
        raise DataError(f"{run}: {splits.info.name} has no validation images here; run it with data.val-fraction above 0")
    scores, device = {}, select_device(spec.device)

    @cache  # the nodes' classifiers stand behind two results
    def predicted(path: Path) -> Tensor:
        return predict(_classifier(path, spec, splits), splits.val.images, device)

    for name in metrics["results"]:
        logits = [predicted(path) for path in _voters(run, metrics, name)]
        if name == "client_mean" and logits:
            scores[name] = mean_metrics([classification_metrics(one, splits.val.labels) for one in logits])
        elif logits:
            scores[name] = classification_metrics(pooled(logits), splits.val.labels).as_dict()
    return {**metrics, "results": {name: {**metrics["results"][name], **values} for name, values in scores.items()}}


def _voters(run: Path, metrics: Metrics, name: str) -> list[Path]:
    """Return the files of the classifiers behind a result; none where the run keeps none of them."""
    answered = [one["partition"] for one in metrics.get("nodes", []) if one["accuracy"] is not None]
    nodes = [run / f"nodes/{partition}/weights.safetensors" for partition in answered]
    paths = nodes if name in ("client_mean", "product_of_experts") else [run / f"classifiers/{name}.safetensors"]
    return paths if any(path.is_file() for path in paths) else []


def _classifier(path: Path, spec: RunSpec, splits: Splits) -> nn.Module:
    network = build_classifier(spec.classifier, splits.info.shape[0], splits.num_classes, seed=0)
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{path}: is no {spec.classifier.network} of this run ({reason}); see `ff-flower verify`") from error
    return network
