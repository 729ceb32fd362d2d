"""``curve``: downstream accuracy against total seconds, each point a whole run in Flower with settings made for its budget."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ff_flower.accelerator import prepare
from ff_flower.classifiers import build_classifier, cross_entropy, predict, schedule_of, train
from ff_flower.config import RunSpec, Scalar, TrainingSpec
from ff_flower.data import load_splits
from ff_flower.errors import RunError
from ff_flower.generative import BLOCK, build_module
from ff_flower.machine import usable_cores
from ff_flower.seeding import generator

from ..processes.session import FlowerSession
from ..report import Metrics, gaps
from ..run import execute
from .pipeline import changed, median_seconds, overlaid, random_images
from .results import Results, Row, percent

RESULTS = Results("curve", "Accuracy against total seconds", ("data set", "kind", "budget s"))
SHARES = {"fit": 0.52, "synthesis": 0.08, "nodes and server": 0.28, "student": 0.12}  # of the seconds that are left
OUTSIDE = 36.0  # seconds of a run that are none of its stages': Flower, Ray, imports, data
FEWEST, MOST = 64, 6000  # samples per class
PASSES, STEPS, STUDENT_STEPS = 2000, 5000, 12_500  # at most: of a fit over its images, of a classifier, of the student

BUDGETS = (60, 300, 900, 3600)
STUDENT: dict[str, Scalar] = {"distillation.temperature": 1.0, "distillation.min-agreement": 0.5, "distillation.hard-labels": 0.3}
SETTINGS: dict[str, dict[str, Scalar]] = {  # as in the presets of these data sets; all train classifiers at the default rate
    "digits": {"num-clients": 10},
    "mnist": {"num-clients": 10, "data.size": 14, **STUDENT},
    "bloodmnist": {"num-clients": 8, "data.size": 14, "synthesis.own-class": 0.0, "classifier.batch-size": 64, **STUDENT},
}
NETWORKS: dict[str, dict[str, Scalar]] = {  # of every kind that has such a key
    "digits": {"size": "tiny"},
    "mnist": {"size": "small", "batch-size": 32, "learning-rate": 2e-3},
    "bloodmnist": {
        "size": "small",
        "rank": 400,
        "symmetry": "dihedral",
        "batch-size": 32,
        "learning-rate": 2e-3,
        "sigma-min": 0.1,
        "sigma-max": 10.0,
    },
}

Run = Callable[[RunSpec], Metrics]


@dataclass(frozen=True)
class Rates:
    """What one unit of work costs on this machine.

    Attributes
    ----------
    sample, image : float
        Seconds to draw a sample and to classify an image, on one core.
    node_step, server_step : float
        Seconds per step of a classifier, on one core and on all.
    cores : int
        Cores that nodes share, each working on one; nodes that share a GPU share one.
    at_once : int
        Nodes that work at the same time.
    fitted, tested : int
        Training images of a class, on the average, and images on which every classifier is scored.
    """

    sample: float
    image: float
    node_step: float
    server_step: float
    cores: int
    at_once: int
    fitted: int
    tested: int


def base_spec(dataset: str, kind: str, settings: Sequence[str] = ()) -> RunSpec:
    """Return the run of a data set with modules of a kind, before a budget gives its steps and counts."""
    table, known = f"module.{kind.replace('_', '-')}", RunSpec().flat()
    networks = {f"{table}.{key}": value for key, value in NETWORKS[dataset].items() if f"{table}.{key}" in known}
    spec = changed(RunSpec(), {"data.name": dataset, "module.kind": kind, "consensus": "logits", **SETTINGS[dataset], **networks})
    return overlaid(spec, settings)


def plan(spec: RunSpec, budget: float, rates: Rates) -> RunSpec:
    """Return ``spec`` with the steps, seconds and counts that fill ``budget`` seconds.

    What no setting changes is taken off first: Flower's own seconds, vetting, and the scores of all classifiers. Kinds that train
    no network leave the seconds of the fit to the other stages. Where a stage meets its limit (samples, passes, steps), the run
    ends before its budget.
    """
    kind = spec.module.of_kind()
    shares = {stage: share for stage, share in SHARES.items() if isinstance(kind, TrainingSpec) or stage != "fit"}
    cores, classes = min(rates.cores, spec.num_clients), spec.num_clients * spec.partition.classes_per_node
    waves = spec.num_clients / cores
    left = max(budget - OUTSIDE - _vetting_and_scores(spec, rates, waves, classes), 0.25 * budget)
    seconds = {stage: left * share / sum(shares.values()) for stage, share in shares.items()}
    per_sample = classes * (rates.sample / cores + waves * rates.image)  # every node answers with its logits on all samples
    samples = round(seconds["synthesis"] / per_sample)
    both = rates.node_step * waves + rates.server_step
    changes: dict[str, Scalar] = {
        "synthesis.samples-per-class": min(MOST, max(FEWEST, samples)),
        "classifier.steps": min(STEPS, max(1, round(seconds["nodes and server"] / both))),
        "distillation.steps": min(STUDENT_STEPS, max(1, round(seconds["student"] / rates.server_step))),
    }
    if isinstance(kind, TrainingSpec):
        changes[f"module.{spec.module.kind}.steps"] = PASSES * rates.fitted // kind.batch_size
        changes["module.max-seconds"] = round(seconds["fit"] * min(rates.at_once, spec.num_clients) / classes, 2)
    return changed(spec, changes)


def measure_rates(spec: RunSpec, repeats: int = 3) -> Rates:
    """Time a block of samples and some steps of the classifier; this is planning, and not counted in a budget."""
    threads = torch.get_num_threads()
    device, at_once, splits = prepare(spec, 1), usable_cores(), load_splits(spec.data, spec.seed)  # the run's own kernels
    cores = 1 if device.type == "cuda" else at_once  # nodes share one GPU: two at once take twice as long
    shape, policy = splits.info.shape, splits.info.augmentation
    try:
        sample, image = _sample_seconds(spec, shape, device), _image_seconds(spec, shape, device, repeats)
        alone = _step_seconds(spec, shape, policy, device, repeats)
        torch.set_num_threads(cores)
        together = _step_seconds(spec, shape, policy, device, repeats)
    finally:
        torch.set_num_threads(threads)
    together = min(alone, max(together, alone / cores))  # a busy machine shows less than it can
    return Rates(sample, image, alone, together, cores, at_once, len(splits.train) // splits.num_classes, len(splits.test))


def measure_point(spec: RunSpec, budget: float, run: Run) -> Row:
    """Run ``spec``, planned for ``budget`` seconds, and return what it reached and how long it took, from start to end."""
    began = time.perf_counter()
    metrics = run(spec)
    seconds = time.perf_counter() - began
    server, student = metrics["results"]["server"], metrics["results"].get("student", {})
    files = server["bytes"]["up"] / (spec.num_clients * spec.partition.classes_per_node)
    row: Row = {"data set": spec.data.name, "kind": spec.module.kind, "budget s": round(budget), "seconds": round(seconds, 1)}
    for name, result in (("server", server), ("student", student)):
        row |= {f"{name} %": _percent(result.get("accuracy")), f"{name} AUROC %": _percent(result.get("auroc"))}
    return row | {"module kB": round(files / 1e3)} | _planned(spec)


def measured_alike(found: Results, spec: RunSpec, budget: float) -> Row | None:
    """Return the row of ``budget`` where another's was planned as ``spec`` is, with every stage at its limit; else None."""
    planned = {"data set": spec.data.name, "kind": spec.module.kind} | _planned(spec)
    alike = next((row for row in found.rows if planned.items() <= row.items()), None)
    return alike and alike | {"budget s": round(budget)}


def run_in_flower(spec: RunSpec) -> Metrics:
    """Run ``spec`` in a SuperLink of its own, from nothing: an earlier attempt's run directory and cache are removed.

    Raises
    ------
    RunError
        When it fails, or lacks nodes or modules.
    """
    shutil.rmtree(spec.out, ignore_errors=True)
    with FlowerSession() as session:
        finished = execute(session, spec, tell=lambda line: print(f"    {line}", flush=True))
    if finished.metrics is None:
        raise RunError(f"the run failed: {finished.error}; see {spec.out}")
    if lacking := gaps(finished.metrics):
        raise RunError(f"the run is partial: {'; '.join(lacking)}; see {spec.out}")
    return finished.metrics


def draw_curve(rows: Sequence[Row], picture: Path) -> None:
    """Draw accuracy against seconds: a panel per data set, a colour per kind, solid for the server's model."""
    from matplotlib.figure import Figure

    datasets = list(dict.fromkeys(str(row["data set"]) for row in rows))
    kinds = sorted({str(row["kind"]) for row in rows})
    budgets = sorted({float(row["budget s"] or 0) for row in rows})
    figure = Figure(figsize=(4 * len(datasets) + 2, 3.6), layout="constrained")
    panels = figure.subplots(1, len(datasets), squeeze=False)[0]
    for axes, dataset in zip(panels, datasets, strict=True):
        for colour, kind in enumerate(kinds):
            mine = sorted((row for row in rows if (row["data set"], row["kind"]) == (dataset, kind)), key=_seconds)
            for result, style in (("server", "-o"), ("student", "--s")):
                points = [(_seconds(row), row[f"{result} %"]) for row in mine if row[f"{result} %"] is not None]
                label = f"{kind}, {result}"
                if points:
                    axes.plot(*zip(*points, strict=True), style, color=f"C{colour}", markersize=4, label=label)
        axes.set(title=dataset, xscale="log", xlim=(budgets[0] / 1.5, budgets[-1] * 1.5), xlabel="minutes in all")
        axes.set_xticks(budgets, [f"{budget / 60:g}" for budget in budgets])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy, %")
    lines = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside right upper", fontsize="small")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=100)


def _planned(spec: RunSpec) -> Row:
    """Return the columns of what a budget decides."""
    counts: Row = {"fit s per class": spec.module.max_seconds, "samples per class": spec.synthesis.samples_per_class}
    return counts | {"classifier steps": spec.classifier.steps, "student steps": spec.distillation.steps}


def _vetting_and_scores(spec: RunSpec, rates: Rates, waves: float, classes: int) -> float:
    """Return the seconds of the server's two probes of all modules, on a node's threads, and of all classifiers' scores."""
    together = rates.server_step / rates.node_step
    return 2 * spec.trust.probe * classes * rates.sample + (waves + 2 * together) * rates.tested * rates.image


def _sample_seconds(spec: RunSpec, shape: tuple[int, int, int], device: torch.device) -> float:
    table = f"module.{spec.module.kind.replace('_', '-')}.steps"
    brief = changed(spec, {table: 1} if table in spec.flat() else {})
    module = build_module(brief.module, shape, device).fit(random_images(shape), 0)
    module.sample(1, generator(0))
    began = time.perf_counter()
    module.sample(BLOCK * module.batch_blocks, generator(0))
    return (time.perf_counter() - began) / (BLOCK * module.batch_blocks)


def _image_seconds(spec: RunSpec, shape: tuple[int, int, int], device: torch.device, repeats: int) -> float:
    """Return the seconds of classifying one image."""
    images, network = random_images(shape), build_classifier(spec.classifier, shape[0], 2, 0)
    return median_seconds(lambda: predict(network, images, device), repeats) / len(images)


def _step_seconds(spec: RunSpec, shape: tuple[int, int, int], policy: str, device: torch.device, repeats: int) -> float:
    """Return the seconds of one step of the classifier."""
    images, steps = random_images(shape), 4
    labels = torch.arange(len(images), device=device) % 2
    network, loss = build_classifier(spec.classifier, shape[0], 2, 0), cross_entropy(labels, 0.0)
    schedule = schedule_of(spec.classifier, steps)

    def work() -> None:
        train(network, images, loss, spec.classifier, schedule, policy=policy, seed=0, device=device)
        if device.type == "cuda":
            torch.cuda.synchronize()

    work()
    return median_seconds(work, repeats) / steps


def _percent(share: Any) -> float | None:
    return None if share is None else percent(share)


def _seconds(row: Row) -> float:
    return float(row["seconds"] or 0)
