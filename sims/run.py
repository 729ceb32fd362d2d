"""The main job, ``python -m sims.run``: one run in a private SuperLink, its result table, and an honest exit code."""

import math
import os
import re
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ff_flower.config import Exclusion, RunSpec, from_run_config, unknown_name
from ff_flower.errors import ConfigError, FederatedFactoryError, RunError
from ff_flower.machine import path_of, usable_cores, visible_gpus
from ff_flower.run_directory import RunDirectory, cache_root, drop_finished_fits, run_path

from .defaults import TABLE, check_keys, flatten
from .processes.log_filter import LogFilter
from .processes.session import FlowerSession
from .processes.superlink import RunOutcome
from .report import Metrics, gaps, load_metrics, run_tables, show

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set a key over the preset, like --set seed=1; may be repeated. Keys: `ff-flower explain`."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Remove what an earlier run of the same settings left, and make it anew.")]

APP = Path(__file__).resolve().parents[1]
PRESETS = Path(__file__).resolve().parent / "presets"
FAILED, REFUSED, PARTIAL = 1, 2, 3


@dataclass(frozen=True)
class Resources:
    """What Ray reserves for each client; as many clients work at once as the machine has such shares.

    Attributes
    ----------
    cpus : int
        Cores per client.
    gpus : float
        Share of a GPU per client. At 0 nothing is reserved: clients use the first GPU all the same when there is one,
        as many at once as there are cores; 0.25 lets four share a GPU at a time.
    """

    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no machine, or not this one, can give: Ray would start no client, and the run would fail at once."""
        cores = usable_cores()
        if not 1 <= self.cpus <= cores:
            raise ConfigError(f"cpus-per-client = {self.cpus}: must be from 1 to {cores}, the cores of this machine; take 1")
        if not 0 <= self.gpus < math.inf or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ConfigError(
                f"gpus-per-client = {self.gpus}: must be a share from 0 to 1, or whole GPUs; take 0 for no reservation"
            )
        if self.gpus and self.gpus > (seen := visible_gpus()):
            rule = f"at most {seen}, the GPUs of this machine" if seen else "0 on this machine, where torch sees no GPU"
            raise ConfigError(f"gpus-per-client = {self.gpus}: must be {rule}; take 0, and clients use what there is")


@dataclass(frozen=True)
class Finished:
    """A run that has ended.

    Attributes
    ----------
    directory : pathlib.Path
        Its run directory; meaningless when ``metrics`` is None.
    metrics : mapping or None
        Contents of its ``metrics.json``; None where the run failed.
    error : str
        Why it failed; empty otherwise.
    log : tuple of str
        Flower's raw log, line by line.
    """

    directory: Path
    metrics: Metrics | None
    error: str
    log: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 for a whole run, 1 for a failed one, 3 for one that lacks nodes or modules."""
        if self.metrics is None:
            return FAILED
        return PARTIAL if gaps(self.metrics) else 0


def presets() -> dict[str, Path]:
    """Return the presets' files by name, sorted."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}


def resolve_spec(preset: str = "", settings: Sequence[str] = ()) -> RunSpec:
    """Build the spec of a run: the defaults, changed by ``preset``, changed by ``settings``.

    Parameters
    ----------
    preset : str
        Name of a file in ``sims/presets``, or a path that ends in ``.toml``; empty for none.
    settings : sequence of str
        ``key=value`` each; the value is TOML, or else a plain string. Of a key that takes text it is text in any case, as
        written where TOML would read something else, such as the number of a site.

    Returns
    -------
    RunSpec
        With absolute folders, since the processes of a run start elsewhere.

    Raises
    ------
    ConfigError
        For an unknown preset or key, or a value of the wrong type or out of range.
    """
    flat, defaults = _preset_keys(preset) if preset else {}, RunSpec().flat()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting!r}: must be key=value, for example seed=1")
        key, text = key.strip(), text.strip()
        value = _toml_value(text)
        flat[key] = text if isinstance(defaults.get(key), str) and not isinstance(value, str) else value
    spec = from_run_config(flat)
    out = path_of(spec.out or os.environ.get("FF_RUNS") or "runs").resolve()
    folders = {"data.root": spec.data.root, "trust.public-keys": spec.trust.public_keys}
    absolute = {key: str(path_of(folder).resolve()) if folder else "" for key, folder in folders.items()}
    return from_run_config({**spec.flat(), "out": str(out), **absolute})


def start_afresh(spec: RunSpec) -> None:
    """Remove the run directory of ``spec``, cached samples of its modules, and what its nodes keep of finished fits.

    Raises
    ------
    RunError
        Where another process works on it, it cannot be removed, or it says what was forgotten, which must not come back.
    """
    from ff_flower.unlearning import Tombstone, drop_copies

    path = run_path(spec)
    if not path.is_dir():
        drop_finished_fits(spec)
        return
    if forgotten := Tombstone.read(path).exclusion:
        remedy = "take another folder by out or FF_RUNS"
        raise RunError(f"{path}: {forgotten} was forgotten here, and a fresh run would bring it back; {remedy}")
    with RunDirectory(path).alone():
        try:
            drop_copies(cache_root(spec), Exclusion(), {file.stem for file in (path / "modules").glob("*.safetensors")})
            drop_finished_fits(spec)
            shutil.rmtree(path)
        except OSError as error:
            raise RunError(f"{error.filename}: cannot be removed ({error.strerror}); make the folder writable") from error


def execute(
    session: FlowerSession,
    spec: RunSpec,
    resources: Resources | None = None,
    *,
    tell: Callable[[str], None] = print,
    verbose: bool = False,
    logs: Path | None = None,
) -> Finished:
    """Run ``spec`` to its end.

    Parameters
    ----------
    session : FlowerSession
        An open session; it may be used for one run after the other.
    spec : RunSpec
        With absolute folders, as `resolve_spec` makes it.
    resources : Resources, optional
        What each client reserves.
    tell : callable from str
        Receives progress, line by line.
    verbose : bool
        Whether Flower's and Ray's whole log is told.
    logs : Path, optional
        Folder of ``failed.log``; by default that of the run directories.

    Raises
    ------
    RunError
        Where Flower refused the run or was lost.
    """
    share = resources or Resources()

    def submit(stream: Callable[[str], None]) -> RunOutcome:
        return session.run(
            APP, spec.flat(), num_supernodes=spec.num_clients, num_cpus=share.cpus, num_gpus=share.gpus, stream=stream
        )

    return follow(submit, spec, tell=tell, verbose=verbose, logs=logs)


def follow(
    submit: Callable[[Callable[[str], None]], RunOutcome],
    spec: RunSpec,
    *,
    tell: Callable[[str], None] = print,
    verbose: bool = False,
    logs: Path | None = None,
) -> Finished:
    """Tell what a run logs, and find what it leaves: its run directory, or ``failed.log`` beside it.

    Parameters
    ----------
    submit : callable
        Runs ``spec`` to its end; it is given what receives Flower's log, line by line.
    spec : RunSpec
        With absolute folders, as `resolve_spec` makes it.
    tell, verbose, logs
        As of `execute`.

    Raises
    ------
    RunError
        Where Flower refused the run or was lost.
    """
    quiet, log, named = LogFilter(), [], []

    def stream(line: str) -> None:
        log.append(line)
        for shown in quiet.feed(line):
            named.extend(re.findall(r"^run directory: (.+)$", shown))
            if not verbose:
                tell(shown)
        if verbose:
            tell(line)

    try:
        outcome = submit(stream)
    except RunError as lost:
        tell(keep_log(logs or Path(spec.out), [*log, str(lost)]))
        raise
    for shown in quiet.close():
        tell(shown)
    directory = Path(named[-1]) if named else run_path(spec)
    if outcome.completed:
        return Finished(directory.resolve(), load_metrics(directory), "", tuple(log))
    error = quiet.errors[-1] if quiet.errors else outcome.details or f"Flower ended it as {outcome.status}"
    if verbose or not quiet.errors:
        tell(f"ERROR: {error}")
    tell(keep_log(logs or Path(spec.out), log))
    return Finished(directory, None, error, tuple(log))


def keep_log(folder: Path, log: Sequence[str]) -> str:
    """Write the log of a run that failed to ``failed.log`` in a folder; return where it is, or why it is not there."""
    kept = folder / "failed.log"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("\n".join([*log, ""]), encoding="utf-8")
    except OSError as error:
        return f"{kept}: Flower's log cannot be written ({error.strerror})"
    return f"Flower's whole log: {kept}"


def main(
    preset: Annotated[str, typer.Option(help="Name of a preset (see `ff-flower presets`), or a path to a TOML file.")] = "",
    settings: Settings = None,
    cpus_per_client: Annotated[int, typer.Option(help="Cores that Ray reserves per client.")] = 1,
    gpus_per_client: Annotated[float, typer.Option(help="Share of a GPU that Ray reserves per client.")] = 0.0,
    verbose: Annotated[bool, typer.Option(help="Show Flower's and Ray's whole log.")] = False,
    fresh: Fresh = False,
) -> None:
    """Run FederatedFactory, or a baseline, in simulation and print its results.

    Exit code: 0 the run is whole; 1 it failed; 2 the settings are wrong; 3 nodes are missing or modules were quarantined.
    """
    began = time.monotonic()
    with refusing():
        spec, resources = resolve_spec(preset, settings or ()), Resources(cpus_per_client, gpus_per_client)
        check_keys(APP, spec.flat())
    with refusing(FAILED):
        if fresh:
            start_afresh(spec)
        print(f"{spec.method} on {spec.data.name}, {spec.num_clients} nodes, {spec.partition.kind}, seed {spec.seed}", flush=True)
        with FlowerSession() as session:
            finished = execute(session, spec, resources, tell=lambda line: print(line, flush=True), verbose=verbose)
        if finished.metrics is None:
            print("the run failed: see above", file=sys.stderr)
            raise typer.Exit(FAILED)
        print()
        show(run_tables(finished.metrics))
        print(wall_clock(time.monotonic() - began, finished.metrics))
        print(f"run directory: {finished.directory}")
        if finished.exit_code == PARTIAL:
            print("the run is partial:", *gaps(finished.metrics), sep="\n  ", file=sys.stderr)
        raise typer.Exit(finished.exit_code)


def wall_clock(seconds: float, metrics: Metrics) -> str:
    """Return what a run took from start to end, and how much of it none of its stages did, where all were made in that time."""
    stages, said = dict(metrics["seconds"]), f"wall clock: {seconds:.1f} s"
    total = stages.pop("total", 0.0)
    if metrics.get("resumed") or total > seconds:
        return f"{said}; some of the stages were made before"
    return f"{said}, of which {max(0.0, seconds - sum(stages.values())):.1f} s outside the stages (Flower, Ray, imports, images)"


@contextmanager
def refusing(exit_code: int = REFUSED) -> Iterator[None]:
    """Turn an error of this project into its message on stderr and ``exit_code``."""
    try:
        yield
    except FederatedFactoryError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(exit_code) from error


def _preset_keys(preset: str) -> dict[str, Any]:
    known = presets()
    path = path_of(preset) if preset.endswith(".toml") else known.get(preset)
    if path is None:
        raise ConfigError(unknown_name("preset", preset, list(known)))
    try:
        keys = flatten(tomllib.loads(path.read_text(encoding="utf-8")))
        return {key.removeprefix(f"{TABLE}."): value for key, value in keys.items()}  # as `ff-flower config` prints them, too
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); there are: {', '.join(known)}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: must be TOML ({error}); see sims/presets/tiny.toml") from error


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


if __name__ == "__main__":
    typer.run(main)
