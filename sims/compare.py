"""The comparison, ``python -m sims.compare``: every method over seeds, the same images, network and transforms, one table."""

import sys
from functools import cache
from typing import Annotated, get_args

import typer

from ff_flower.config import DataSpec, Method, RunSpec, from_run_config, unknown_name
from ff_flower.errors import ConfigError, FederatedFactoryError
from ff_flower.run_directory import RunDirectory, made_of, run_path

from .processes.session import FlowerSession
from .report import Metrics, gaps, load_metrics, show, summarize
from .run import FAILED, PARTIAL, Fresh, Resources, Settings, execute, refusing, resolve_spec, start_afresh

METHODS = ",".join(get_args(Method))


def plan(base: RunSpec, methods: str, seeds: str) -> list[RunSpec]:
    """Return the runs of a comparison: ``base`` with every method and every seed, a seed's methods together.

    Parameters
    ----------
    base : RunSpec
        What all runs share.
    methods, seeds : str
        Separated by commas; what stands there twice is one.

    Raises
    ------
    ConfigError
        For an unknown method, or a seed that is no whole number.
    """
    known = list(get_args(Method))
    names = list(dict.fromkeys(name.strip() for name in methods.split(",")))
    for name in names:
        if name not in known:
            raise ConfigError(unknown_name("method", name, known))
    try:
        roots = list(dict.fromkeys(int(seed) for seed in seeds.split(",")))
    except ValueError as error:
        raise ConfigError(f"seeds = {seeds!r}: must be whole numbers separated by commas, for example 0,1,2") from error
    return [from_run_config({**base.flat(), "method": name, "seed": seed}) for seed in roots for name in names]


def finished(spec: RunSpec) -> Metrics | None:
    """Return the metrics of ``spec`` where its run directory holds them whole, so that it need not run again.

    A run of other images than this machine has now is none: it runs, and is refused with the remedy.

    Raises
    ------
    DataError
        Where the images cannot be read any more.
    """
    path = run_path(spec)
    if not path.is_dir() or not RunDirectory(path).is_done("run", spec.digest()):
        return None
    if not spec.data.own and not made_of(path, _images(spec.data, spec.seed)):
        return None
    return load_metrics(path)


def main(
    preset: Annotated[str, typer.Option(help="Name of a preset, or a path to a TOML file.")] = "",
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = METHODS,
    seeds: Annotated[str, typer.Option(help="Root seeds, separated by commas.")] = "0,1,2",
    settings: Settings = None,
    cpus_per_client: Annotated[int, typer.Option(help="Cores that Ray reserves per client.")] = 1,
    gpus_per_client: Annotated[float, typer.Option(help="Share of a GPU that Ray reserves per client.")] = 0.0,
    markdown: Annotated[bool, typer.Option(help="Print the table in Markdown.")] = False,
    fresh: Fresh = False,
) -> None:
    """Run every method with every seed and print means and standard deviations; what is already there is not run again.

    Exit code: 0 all runs are whole; 1 one failed; 2 the settings are wrong; 3 one lacks nodes or modules.
    """
    with refusing():
        specs = plan(resolve_spec(preset, settings or ()), methods, seeds)
        resources = Resources(cpus_per_client, gpus_per_client)
    runs: list[Metrics] = []
    exit_code = 0
    with refusing(FAILED), FlowerSession() as session:
        for number, spec in enumerate(specs, 1):
            print(f"[{number}/{len(specs)}] {spec.method} on {spec.data.name}, seed {spec.seed}", flush=True)
            try:
                if fresh:
                    start_afresh(spec)
                if fresh or (metrics := finished(spec)) is None:
                    ended = execute(session, spec, resources, tell=_indented)
                    metrics, code = ended.metrics, ended.exit_code
                    if code == PARTIAL and metrics is not None:
                        print("the run is partial:", *gaps(metrics), sep="\n    ", file=sys.stderr, flush=True)
                    exit_code = FAILED if FAILED in (code, exit_code) else max(code, exit_code)
            except FederatedFactoryError as error:
                print(f"    {error}", file=sys.stderr, flush=True)
                exit_code = FAILED
                continue
            runs += [metrics] if metrics is not None else []
    show([summarize(runs)], markdown=markdown)
    if exit_code:
        names = {FAILED: "a run failed", PARTIAL: "a run lacks nodes or modules"}
        print(f"{names[exit_code]}: see above", file=sys.stderr)
    raise typer.Exit(exit_code)


@cache  # a seed's methods share their images
def _images(data: DataSpec, seed: int) -> str:
    from ff_flower.data import load_splits  # imports torch

    return load_splits(data, seed).digest()


def _indented(line: str) -> None:
    print(f"    {line}", flush=True)


if __name__ == "__main__":
    typer.run(main)
