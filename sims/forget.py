"""``ff-flower forget``: take an owner's contribution out of a run, make again what depended on it, and certify that."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ff_flower.config import RunSpec
from ff_flower.errors import ConfigError, RunError
from ff_flower.run_directory import RunDirectory
from ff_flower.unlearning import Forgetting, Tombstone, Work, forget, open_run, waits_for_nodes

from .processes.session import FlowerSession
from .run import FAILED, execute, refusing

Run = Annotated[Path, typer.Argument(help="A run directory; it may have been moved.")]
Owners = Annotated[list[str] | None, typer.Option("--owner", help="An owner, all of whose part is forgotten; may be repeated.")]
Modules = Annotated[list[str] | None, typer.Option("--module", help="A module's id or its beginning; may be repeated.")]
Reason = Annotated[str, typer.Option(help="Why, for the certificate.")]
DoRebuild = Annotated[
    bool,
    typer.Option(
        "--rebuild/--no-rebuild", help="Learn again what was learned from it; else the next run of the same settings does."
    ),
]
Prove = Annotated[bool, typer.Option("--prove", help="Compare with a run from scratch in which the forgotten had never been.")]
Tell = Callable[[str], None]


def main(
    run: Run,
    owner: Owners = None,
    module: Modules = None,
    reason: Reason = "",
    rebuild: DoRebuild = True,
    prove: Prove = False,
) -> None:
    """Forget an owner, or single modules, of a run; without either, finish what was interrupted.

    No generative module is fitted for it. Exit code: 0 all is done and certified; 1 the request stands, but could not be carried
    out to its end, or the result differs from a run from scratch; 2 the request is refused and nothing was touched.
    """
    with refusing():
        spec, path = open_run(run)
        with tempfile.TemporaryDirectory(prefix="ff-proof-") as folder:
            work = plan_work(
                spec, path, requested=bool(owner or module), rebuild=rebuild, proof=Path(folder) if prove else None, tell=_print
            )
            done = forget(path, owner or (), module or (), work, reason)
    report(done)
    if done.error or done.differing or done.unproven:
        raise typer.Exit(FAILED)


def plan_work(spec: RunSpec, run: Path, *, requested: bool, rebuild: bool, proof: Path | None, tell: Tell) -> Work:
    """Choose how to rebuild: in this process where the server alone works, in a simulation where nodes must.

    Parameters
    ----------
    spec : RunSpec
        Of the run, as `open_run` gives it.
    run : Path
        Its directory.
    requested : bool
        Whether anybody is named, or only an unfinished request is to be finished.
    rebuild : bool
        Whether to rebuild.
    proof : Path, optional
        Folder for a run from scratch to compare with; None makes none.
    tell : callable from str
        Receives progress.

    Raises
    ------
    ConfigError
        When a comparison is asked for that cannot be made.
    """
    directory = RunDirectory(run)
    deployed = spec.data.elsewhere or directory.deployed
    if proof is not None and (deployed or not rebuild):
        why = "the nodes of this run are elsewhere" if deployed else "without rebuilding there is nothing to compare"
        raise ConfigError(f"--prove makes a run from scratch in simulation, and {why}; leave it out")
    tombstone = Tombstone.read(run)
    answers_go = spec.synthesis.site == "client" and (requested or not tombstone.purged)
    asks_nodes = answers_go or waits_for_nodes(directory, tombstone.effective(spec))
    if not rebuild:
        return Work()
    if deployed and asks_nodes:
        tell(
            "the nodes of this run are elsewhere: run the same settings there once more, which tells the nodes and rebuilds, and "
            f"then `ff-flower forget {run}`, which writes the certificate"
        )
        return Work()
    scratch = None if proof is None else lambda other: _in_flower(other, tell, proof)
    if asks_nodes:
        return Work(lambda one: _in_flower(one, tell), scratch, "the nodes of a simulation in Flower, and the server")
    return Work(_at_the_server, scratch, "the server alone")


def report(done: Forgetting) -> None:
    """Print what came of a request."""
    for note in done.notes:
        print(note)
    if not (done.certificates or done.error):
        print("nothing was changed")
    for certificate in done.certificates:
        print(f"certificate: {certificate} and {certificate.with_suffix('.html').name} beside it")
    if done.error:
        print(f"the request stands, but is not carried out to its end: {done.error}", file=sys.stderr)
    elif done.certificates and not done.rebuilt:
        print("nothing was made again yet: the next run of these settings does that, without what is forgotten")
    if done.unproven:
        print(f"it is forgotten and made again, but the run from scratch failed: {done.unproven}", file=sys.stderr)
    for one in done.differing:
        print(f"{one.name} differs from the run from scratch", file=sys.stderr)


def _at_the_server(spec: RunSpec) -> None:
    from strategies.server_app import run

    run(None, spec)


def _in_flower(spec: RunSpec, tell: Tell, out: Path | None = None) -> RunDirectory:
    """Run ``spec`` in a simulation, perhaps with its results elsewhere; RunError where it fails."""
    there = spec if out is None else spec.model_copy(update={"out": str(out)})
    with FlowerSession() as session:
        finished = execute(session, there, tell=tell, logs=Path(spec.out))
    if finished.metrics is None:
        raise RunError(finished.error)
    return RunDirectory(finished.directory)


def _print(line: str) -> None:
    print(line, flush=True)
