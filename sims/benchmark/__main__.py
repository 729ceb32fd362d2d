"""The commands of ``python -m sims.benchmark``."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from ff_flower.errors import FederatedFactoryError
from ff_flower.generative import KINDS
from ff_flower.machine import usable_cores

from ..run import PARTIAL, Settings, refusing, resolve_spec
from . import curve as curves
from . import grouped, memorization, quality, sharing, throughput
from .growth import growth
from .options import HOME, Markdown, Out, Preset, Quick, Repeats, Write, finish, keep, refuse_toys, tell
from .pipeline import QUICK, Workers, changed, fitted_files, trained_kinds
from .results import one_of, shares, whole_numbers
from .scale import scale
from .soak import soak

ALL_KINDS, ALL_SETS, ALL_BUDGETS = ",".join(KINDS), ",".join(curves.SETTINGS), ",".join(map(str, curves.BUDGETS))
SAMPLED = ",".join(quality.SAMPLERS)
app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measurements of modules and federations.")
app.command()(scale)
app.command()(growth)
app.command()(soak)

Run = Annotated[str, typer.Option(help="Take settings and modules of this run directory in place of fitting modules.")]
Kinds = Annotated[str, typer.Option(help="Kinds, separated by commas.")]
Sizes = Annotated[str, typer.Option(help="Sizes, separated by commas; by default what the device can do.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[int, typer.Option(help="Torch threads.")]


@app.command()
def modules(
    kinds: Kinds = ALL_KINDS,
    sizes: Sizes = "",
    device: Device = "auto",
    threads: Threads = 1,
    batch_size: Annotated[int, typer.Option(help="Images per training step; 0 is 64 on a CPU, 512 on a GPU.")] = 0,
    seconds: Annotated[float, typer.Option(help="Length of each training that is timed.")] = 10.0,
    compile_on_cpu: Annotated[bool, typer.Option("--compile-on-cpu", help="Compile training on a CPU too.")] = False,
    repeats: Repeats = 5,
    quick: Quick = False,
    write: Write = False,
    out: Out = HOME,
    markdown: Markdown = False,
) -> None:
    """Measure speed, size, memory, and the share of the machine's matrix-product rate, for each kind and size."""
    with refusing():
        refuse_toys(quick, write, out)
        gpu = _device(device) == "cuda"
        chosen = one_of(sizes or ("tiny,small,base,large" if gpu else "tiny,small"), list(throughput.SHAPES), "size")
        batch = 8 if quick else batch_size or (512 if gpu else 64)
        length, times = (0.1, 1) if quick else (seconds, repeats)
        rows = throughput.loads(
            one_of(kinds, list(KINDS), "kind"),
            chosen,
            batch=batch,
            seconds=length,
            repeats=times,
            threads=threads,
            device=device,
            compile_on_cpu=compile_on_cpu,
        )
        found = throughput.measure_modules(rows, not quick, lambda row: keep(row, write, out))
        finish(found, write, out, markdown)


@app.command()
def evaluations(
    run: Run = "",
    preset: Preset = "",
    settings: Settings = None,
    numbers: Annotated[str, typer.Option("--evaluations", help="Network evaluations per sample.")] = "6,8,12,18,35,99",
    samplers: Annotated[str, typer.Option(help="Samplers, separated by commas; by default all of the kind.")] = "",
    baseline: Annotated[bool, typer.Option("--baseline", help="Compare the default sampler with the paper's instead.")] = False,
    repeats: Repeats = 3,
    quick: Quick = False,
    write: Write = False,
    out: Out = HOME,
    markdown: Markdown = False,
) -> None:
    """Score the server's classifier by sampler and by network evaluations per sample."""
    with _measuring(quick, write, out) as workers:
        spec, files = quality.modules_of(run, preset, [*_quick(quick), *(settings or ())], workers)
        if baseline:
            found = quality.measure_baseline(spec, files, repeats, workers, timed=64 if quick else 512)
        else:
            known = quality.SAMPLERS[quality.sampled_kind(spec)]
            chosen = one_of(samplers, known, "sampler") if samplers else known
            found = quality.measure_evaluations(
                spec, files, chosen, whole_numbers(numbers, "evaluations"), repeats, workers, lambda row: keep(row, write, out)
            )
        finish(found, write, out, markdown)


@app.command()
def pool(
    run: Run = "",
    preset: Preset = "",
    settings: Settings = None,
    numbers: Annotated[str, typer.Option("--evaluations", help="Network evaluations per sample.")] = "3,4,6,8,12,18",
    repeats: Repeats = 3,
    quick: Quick = False,
    write: Write = False,
    out: Out = HOME,
    markdown: Markdown = False,
) -> None:
    """Score the server's classifier on more and cheaper, or fewer and dearer samples, at equal cost of synthesis."""
    with _measuring(quick, write, out) as workers:
        spec, files = quality.modules_of(run, preset, [*_quick(quick), *(settings or ())], workers)
        chosen = whole_numbers(numbers, "evaluations")
        found = quality.measure_pool(spec, files, chosen, repeats, workers, lambda row: keep(row, write, out))
        finish(found, write, out, markdown)


@app.command()
def wire(
    preset: Preset = "",
    settings: Settings = None,
    repeats: Repeats = 3,
    quick: Quick = False,
    write: Write = False,
    out: Out = HOME,
    markdown: Markdown = False,
) -> None:
    """Score the server's classifier by the type of the weights in the module files."""
    with _measuring(quick, write, out) as workers:
        spec, files = quality.modules_of("", preset, [*_quick(quick), *(settings or ())], workers)
        finish(quality.measure_wire(spec, files, repeats, workers), write, out, markdown)


@app.command()
def switches(
    run: Run = "",
    preset: Preset = "",
    settings: Settings = None,
    switch: Annotated[
        list[str] | None, typer.Option(help="Setting of the classifier to try alone, like classifier.mixup=0.4; may be repeated.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Train the classifiers of so many nodes of one class each; 0: the server's.")] = 0,
    repeats: Repeats = 3,
    quick: Quick = False,
    write: Write = False,
    out: Out = HOME,
    markdown: Markdown = False,
) -> None:
    """Score the server's classifier, or nodes', on validation images with one setting changed at a time."""
    with _measuring(quick, write, out) as workers:
        spec, files = quality.modules_of(run, preset, [*_quick(quick), *(settings or ())], workers)
        tried = switch or quality.TRIED
        found = quality.measure_switches(spec, files, tried, nodes, repeats, workers, lambda row: keep(row, write, out))
        finish(found, write, out, markdown)


@app.command()
def synthesis(
    preset: Preset = "",
    settings: Settings = None,
    nodes: Annotated[int, typer.Option(help="Simulated nodes.")] = 10,
    processes: Annotated[int, typer.Option(help="Worker processes; -1 is one per core, 0 works in this one.")] = -1,
    repeats: Repeats = 3,
    quick: Quick = False,
    write: Write = False,
    out: Out = HOME,
    markdown: Markdown = False,
) -> None:
    """Time the synthesis of many nodes of one machine against that of one."""
    with refusing():
        refuse_toys(quick, write, out)
        spec = resolve_spec(preset, [*_quick(quick), *(settings or ())])
        brief = {f"module.{kind}.steps": 4 for kind in trained_kinds()}  # the time of sampling does not depend on training
        spec = changed(spec, {**brief, "num-clients": nodes})
        width = processes if processes >= 0 else _width(quick)
        with Workers(width) as workers:
            files = fitted_files(spec, workers)
        finish(sharing.measure_synthesis(spec, files, nodes, width, repeats), write, out, markdown)


@app.command()
def batched(
    kinds: Kinds = SAMPLED,
    sizes: Sizes = "",
    count: Annotated[int, typer.Option("--modules", help="Modules of one architecture.")] = 10,
    device: Device = "auto",
    threads: Threads = 1,
    repeats: Repeats = 3,
    quick: Quick = False,
    write: Write = False,
    out: Out = HOME,
    markdown: Markdown = False,
) -> None:
    """Time sampling modules one after the other against all at once over stacked weights."""
    with refusing():
        refuse_toys(quick, write, out)
        default = "tiny,small,base" if _device(device) == "cuda" else "tiny" if quick else "tiny,small"
        rows = throughput.loads(
            one_of(kinds, list(quality.SAMPLERS), "kind"),
            one_of(sizes or default, list(throughput.SHAPES), "size"),
            batch=8,
            seconds=0.0,
            repeats=1 if quick else repeats,
            threads=threads,
            device=device,
        )
        finish(grouped.measure_batched(rows, 2 if quick else count), write, out, markdown)


@app.command("memorization")
def memorized(
    preset: Preset = "",
    settings: Settings = None,
    images: Annotated[int, typer.Option(help="Images that a module is fitted to; a class needs twice as many.")] = 66,
    samples: Annotated[int, typer.Option(help="Samples of each module.")] = 256,
    holdouts: Annotated[str, typer.Option(help="Values of module.holdout, separated by commas.")] = "0.1,0",
    quick: Quick = False,
    write: Write = False,
    out: Out = HOME,
    markdown: Markdown = False,
) -> None:
    """Tell whether samples of small classes are nearer to the images that were fitted than to as many others."""
    with _measuring(quick, write, out) as workers:
        spec = resolve_spec(preset, [*_quick(quick), *(settings or ())])
        found = memorization.measure_memorization(
            spec, 8 if quick else images, 8 if quick else samples, shares(holdouts, "holdouts"), workers
        )
        finish(found, write, out, markdown)


@app.command()
def curve(
    datasets: Annotated[str, typer.Option(help="Data sets, separated by commas.")] = ALL_SETS,
    kinds: Kinds = ALL_KINDS,
    budgets: Annotated[str, typer.Option(help="Seconds, separated by commas.")] = ALL_BUDGETS,
    settings: Settings = None,
    again: Annotated[bool, typer.Option("--again", help="Measure again what OUT holds already.")] = False,
    quick: Quick = False,
    write: Write = False,
    out: Out = HOME,
    markdown: Markdown = False,
) -> None:
    """Run the whole of Flower for each kind, data set and budget of seconds; table, and with --write a plot too.

    With --write, points that OUT/curve.json holds are not measured again, so that they can be filled in one by one. Exit
    code: 0 all points are there; 3 a run failed.
    """
    failed = False
    with refusing():
        refuse_toys(quick, write, out)
        found = curves.RESULTS.read(out) if write else curves.RESULTS
        names, chosen = one_of(datasets, list(curves.SETTINGS), "data set"), one_of(kinds, list(KINDS), "kind")
        points = list(product(names, chosen, whole_numbers(budgets, "budgets")))
        for name, kind, budget in points:
            if not again and found.find(data_set=name, kind=kind, budget_s=budget):
                continue
            base = curves.base_spec(name, kind, [*_quick(quick), *(settings or ())])
            spec = base if quick else curves.plan(base, budget, curves.measure_rates(base))
            spec = changed(spec, {"out": str(Path(spec.out) / "benchmark" / f"{name}-{kind}-{budget}")})
            tell(f"{name}, {kind}, {budget} s")
            same = None if again or quick else curves.measured_alike(found, spec, budget)
            try:
                row = curves.RESULTS.joined([same or curves.measure_point(spec, budget, curves.run_in_flower)])
            except FederatedFactoryError as error:
                tell(f"    {error}")
                failed = True
                continue
            found = row.keep(out) if write else found.joined(row.rows)
            if write:
                curves.draw_curve(found.rows, out / "curve.png")
        finish(found, False, out, markdown)
    raise typer.Exit(PARTIAL if failed else 0)


@contextmanager
def _measuring(quick: bool, write: bool, out: Path) -> Iterator[Workers]:
    """Return workers, end in one sentence what is refused, and refuse to keep toys."""
    with refusing(), Workers(_width(quick)) as workers:
        refuse_toys(quick, write, out)
        yield workers


def _device(name: str) -> str:
    from ff_flower.accelerator import select_device

    return select_device(name).type


def _width(quick: bool) -> int:
    return 0 if quick or _device("auto") == "cuda" else usable_cores()


def _quick(quick: bool) -> list[str]:
    return [f"{key}={value}" for key, value in QUICK.items()] if quick else []


if __name__ == "__main__":
    app()
