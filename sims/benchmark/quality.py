"""``evaluations``, ``pool``, ``wire`` and ``switches``: what samples, weights and settings do to downstream accuracy."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from ff_flower.config import RunSpec, Scalar, from_run_config
from ff_flower.data import ImageSet, load_splits
from ff_flower.errors import ConfigError, DataError
from ff_flower.registry import ModuleRegistry, encode_module
from ff_flower.run_directory import read_spec

from ..run import resolve_spec
from .pipeline import (
    Part,
    Sampling,
    Scores,
    Workers,
    fitted_files,
    opened,
    overlaid,
    sample_file,
    scores,
    synthetic_set,
    train_and_score,
    trained_kinds,
)
from .results import Results, Row, percent, significant

SAMPLERS = {"edm": ("heun", "dpmpp-2m"), "flow": ("midpoint", "euler")}
PAPER: dict[str, Scalar] = {"sampler": "heun", "evaluations": 99}
TRIED = ("classifier.mixup=0.4", "classifier.cutmix=1.0", "classifier.ema=0.2")
SAMPLES, OWN_CLASS = "synthesis.samples-per-class", "synthesis.own-class"
WIRE_TYPES = ("float32", "float16", "bfloat16")
_SAME = ("data set", "kind")
_COLUMNS: dict[Part, tuple[str, str]] = {"val": ("validation %", "validation sd"), "test": ("accuracy %", "sd")}
EVALUATIONS = Results(
    "evaluations",
    "Accuracy against network evaluations per sample",
    (*_SAME, "sampler", "evaluations", "steps", "samples per class"),
)
BASELINE = Results("baseline", "The default sampler against the paper's", (*_SAME, "sampling"))
POOL = Results("pool", "Fresh samples at equal cost: more samples per class, fewer evaluations for each", (*_SAME, "evaluations"))
SWITCHES = Results("switches", "Classifiers on validation images, one setting changed at a time", (*_SAME, "nodes", "switch"))
WIRE = Results("wire", "Accuracy by the type of the weights in the file", (*_SAME, "wire-dtype"))

Keep = Callable[[Results], None]


def modules_of(run: str, preset: str, settings: Sequence[str], workers: Workers) -> tuple[RunSpec, list[bytes]]:
    """Return a spec and the module files of all classes: those of the run directory ``run``, else fitted as the spec says.

    Raises
    ------
    DataError
        Where ``run`` holds no modules, or several of a class: each is asked for a whole class.
    """
    if not run:
        spec = resolve_spec(preset, settings)
        return spec, fitted_files(spec, workers)
    directory = Path(run)
    made = from_run_config(read_spec(directory))
    modules = list(ModuleRegistry.of_run(directory, made))
    if not modules:
        raise DataError(f"{run}: holds no modules; name the run directory of a federated-factory run")
    if len({module.manifest.label for module in modules}) < len(modules):
        raise DataError(f"{run}: several owners have modules of a class; name a run in which every class has one owner")
    return overlaid(made, settings), [module.read() for module in modules]


def measure_evaluations(
    spec: RunSpec,
    files: list[bytes],
    samplers: Sequence[str],
    evaluations: Sequence[int],
    repeats: int,
    workers: Workers,
    keep: Keep,
) -> Results:
    """Score the server's classifier on synthetic sets by each of ``samplers`` with every number of evaluations.

    The most evaluations come first, since how far a sampler's images are from those of its most is told too: all begin with the
    same noise. ``keep`` is given each row as soon as it is measured: the whole table takes minutes to hours.
    """
    found: list[Row] = []
    for sampler in samplers:
        finest: ImageSet | None = None
        for number in sorted(evaluations, reverse=True):
            changes: dict[str, Scalar] = {"sampler": sampler, "evaluations": number}
            made, seconds = synthetic_set(spec, files, Sampling(spec.synthesis.samples_per_class, changes), workers)
            finest = made if finest is None else finest
            [scored] = scores(spec, [made], repeats, workers)
            row: Row = {**_kind(spec), **changes, **_trained(spec), **_accuracy(scored)}
            row |= {"levels apart": _levels_apart(made, finest)}
            found.append(row | {"ms per sample": significant(1000 * seconds / len(made))})
            keep(EVALUATIONS.joined(found[-1:]))
    return EVALUATIONS.joined(found)


def measure_pool(
    spec: RunSpec, files: list[bytes], evaluations: Sequence[int], repeats: int, workers: Workers, keep: Keep
) -> Results:
    """Score the server's classifier on pools of different sizes that cost the same number of network evaluations to draw.

    The cost is that of ``spec``: its samples per class times its evaluations. The classifier takes the same steps on every
    pool, so that in a larger one it meets each sample less often.
    """
    own, found = _sampler(spec), list[Row]()
    cost = spec.synthesis.samples_per_class * int(own["evaluations"])
    seen = spec.classifier.steps * spec.classifier.batch_size / len(files)
    for number in evaluations:
        count, changes = max(1, round(cost / number)), own | {"evaluations": number}
        made, _ = synthetic_set(spec, files, Sampling(count, changes), workers)
        [scored] = scores(spec, [made], repeats, workers)
        row: Row = {**_kind(spec), **changes}
        row |= {"samples per class": count, "times each is seen": significant(seen / count)}
        found.append(row | _accuracy(scored))
        keep(POOL.joined(found[-1:]))
    return POOL.joined(found)


def measure_baseline(spec: RunSpec, files: list[bytes], repeats: int, workers: Workers, timed: int) -> Results:
    """Score and time the default sampler beside the paper's: 50 Heun steps, batches of 64, full precision, same modules.

    Both are timed in turn on ``timed`` samples of the first module, and the ratio is the median of the turns' ratios.
    """
    kind, count = sampled_kind(spec), spec.synthesis.samples_per_class
    paper = PAPER if kind == "edm" else {**PAPER, "sampler": SAMPLERS[kind][0]}
    chosen = {"default": Sampling(count, _sampler(spec)), "as the paper": Sampling(count, paper, full_precision=True)}
    made = {name: synthetic_set(spec, files, sampling, workers)[0] for name, sampling in chosen.items()}
    found = dict(zip(made, scores(spec, list(made.values()), repeats, workers), strict=True))
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(repeats):
        for name, sampling in chosen.items():
            task = (spec, files[0], Sampling(timed, sampling.changes, sampling.full_precision))
            seconds[name].append(workers.map(sample_file, [task])[0][1])
    slow, best = seconds["as the paper"], statistics.fmean(found["as the paper"]["test"])
    rows: list[Row] = []
    for name, sampling in chosen.items():
        row: Row = {**_kind(spec), "sampling": name, **sampling.changes}
        row |= {"ms per sample": significant(1000 * statistics.median(seconds[name]) / timed)}
        row |= {"times faster": significant(statistics.median(a / b for a, b in zip(slow, seconds[name], strict=True)))}
        rows.append(row | _accuracy(found[name]) | {"points lost": percent(best - statistics.fmean(found[name]["test"]))})
    return BASELINE.joined(rows)


def measure_wire(spec: RunSpec, files: list[bytes], repeats: int, workers: Workers) -> Results:
    """Score the server's classifier on samples of the same modules, their weights rounded to each type on the way.

    Classifiers differ by their training's chance more than samples do by rounding, so the samples' own difference from those of
    whole weights is told too: the mean over pixels, in levels of 0 to 255.
    """
    rounded = {dtype: [_rounded(data, dtype) for data in files] for dtype in WIRE_TYPES}
    sampling = Sampling(spec.synthesis.samples_per_class, {})
    sets = [synthetic_set(spec, rounded[dtype], sampling, workers)[0] for dtype in WIRE_TYPES]
    found = scores(spec, sets, repeats, workers)
    whole, rows = statistics.fmean(found[0]["test"]), []
    for dtype, made, scored in zip(WIRE_TYPES, sets, found, strict=True):
        size = max(len(data) for data in rounded[dtype])
        row: Row = {**_kind(spec), "wire-dtype": dtype, "largest file kB": round(size / 1e3), **_accuracy(scored)}
        lost = percent(whole - statistics.fmean(scored["test"]))
        rows.append(row | {"points lost": lost, "levels apart": _levels_apart(made, sets[0])})
    return WIRE.joined(rows)


def measure_switches(
    spec: RunSpec, files: list[bytes], switches: Sequence[str], nodes: int, repeats: int, workers: Workers, keep: Keep
) -> Results:
    """Score classifiers on validation images as ``spec`` says, and with each of ``switches``, ``KEY=VALUE``, alone.

    All are trained on samples of the same modules, and repetition i of all from the same seed.

    Parameters
    ----------
    spec : RunSpec
        The run.
    files : list of bytes
        A module of each class.
    switches : sequence of str
        Settings of the classifier, the number of samples or, for nodes, ``synthesis.own-class``.
    nodes : int
        How many nodes, each of which owns one class, train classifiers; 0 stands for the server alone.
    repeats : int
        Classifiers of each.
    workers : Workers
        Train them.
    keep : callable
        Is given each row as soon as it is measured.

    Raises
    ------
    ConfigError
        For another key, or where there are no validation images.
    """
    for switch in switches:
        if not switch.startswith("classifier.") and switch.partition("=")[0].strip() not in (SAMPLES, OWN_CLASS):
            raise ConfigError(f"switch {switch!r}: must be a key of classifier, {SAMPLES} or {OWN_CLASS}; others need whole runs")
    if not len(load_splits(spec.data, spec.seed).val):
        raise ConfigError(f"{spec.data.name}: holds no validation images, and test images choose nothing; set data.val-fraction")
    nodes = min(nodes, len(files))
    who: list[int | None] = [*range(nodes)] or [None]
    pools: dict[int, ImageSet] = {}
    found: list[Row] = []
    for switch in ("", *switches):
        one = overlaid(spec, [switch] if switch else [])
        count = one.synthesis.samples_per_class
        if count not in pools:
            changes = _sampler(one) if one.module.kind in SAMPLERS else {}
            pools[count], _ = synthetic_set(one, files, Sampling(count, changes), workers)
        images, labels = pools[count].images.numpy(), pools[count].labels.numpy()
        tasks = [(one, images, labels, number, ("val",), node) for node in who for number in range(repeats)]
        metrics = [found["val"] for found in workers.map(train_and_score, tasks)]
        row: Row = {**_kind(spec), "nodes": nodes, "switch": switch or "none"}
        row |= {"own-class": one.synthesis.own_class if nodes else None}
        row |= _trained(one)
        row |= _accuracy({"val": [float(each["accuracy"]) for each in metrics]})
        areas = [float(each["auroc"]) for each in metrics if each["auroc"] is not None]
        row |= {"validation AUROC %": percent(statistics.fmean(areas)) if areas else None}
        found.append(row)
        keep(SWITCHES.joined(found[-1:]))
    return SWITCHES.joined(found)


def _sampler(spec: RunSpec) -> dict[str, Scalar]:
    """Return the sampler of the spec and its evaluations, which need not be those that stand in the module files of a run."""
    settings = spec.module.of_kind(sampled_kind(spec)).flat()
    return {name: settings[name] for name in ("sampler", "evaluations")}


def _levels_apart(one: ImageSet, other: ImageSet) -> float:
    """Return the mean absolute difference of pixels, in levels of 0 to 255."""
    return significant(float((one.images.float() - other.images.float()).abs().mean()))


def _rounded(data: bytes, wire_dtype: str) -> bytes:
    manifest, state = opened(data)
    return encode_module(state, manifest.model_copy(update={"wire_dtype": wire_dtype}))


def sampled_kind(spec: RunSpec) -> str:
    """Return the kind of the spec, which must be one that evaluates a network many times (ConfigError)."""
    kind = spec.module.kind
    if kind not in SAMPLERS or kind not in trained_kinds():
        raise ConfigError(
            f"module.kind = {kind!r}: must be one of {', '.join(SAMPLERS)}; the others have no evaluations to choose"
        )
    return kind


def _kind(spec: RunSpec) -> Row:
    return {"data set": spec.data.name, "kind": spec.module.kind}


def _trained(spec: RunSpec) -> Row:
    return {"steps": spec.classifier.steps, "samples per class": spec.synthesis.samples_per_class}


def _accuracy(scored: Scores) -> Row:
    """Return mean and standard deviation on each part; what chooses a setting reads the validation images' columns."""
    row: Row = {}
    for part, (mean, deviation) in _COLUMNS.items():
        if accuracies := scored.get(part):
            row |= {mean: percent(statistics.fmean(accuracies))}
            row |= {deviation: percent(statistics.stdev(accuracies)) if len(accuracies) > 1 else None}
    return row | {"classifiers": len(next(iter(scored.values())))}
