"""The demonstration, ``python -m sims.deploy_demo``: three sites with real images, TLS and authentication, on this machine."""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from ff_flower.config import RunSpec
from ff_flower.errors import ConfigError, RunError
from ff_flower.registry import module_id

from .digit_folders import write_digit_folders
from .processes.deployment import Deployment, SiteNode
from .processes.session import FlowerSession
from .processes.superlink import RunOutcome
from .report import gaps, run_tables, show
from .run import APP, FAILED, PARTIAL, Finished, Settings, execute, follow, refusing, resolve_spec, start_afresh

SITES = {"Clinic-North": (0, 1, 2, 3), "Clinic-South": (4, 5, 6), "Clinic-West": (7, 8, 9)}
SETTINGS = ("data.name=sites", f"num-clients={len(SITES)}", "connect-timeout=90", "timeout=900", "server-threads=1")
FLOOR = 0.9  # least accuracy of the server's classifier with the settings above


def deploy(spec: RunSpec, folders: Mapping[str, Path], tell: Callable[[str], None], logs: Path | None = None) -> Finished:
    """Run ``spec`` on a SuperLink and one SuperNode per folder of images.

    Parameters
    ----------
    spec : RunSpec
        With ``data.name = "sites"`` and absolute folders.
    folders : mapping from str to Path
        Each site's class folders.
    tell : callable from str
        Receives progress, line by line.
    logs : Path, optional
        A folder that is there, for the logs of the SuperLink and the SuperNodes, however the run ends.

    Raises
    ------
    RunError
        Where a process does not come up, or Flower refuses the run.
    """
    sites = [SiteNode(name, {"data": f"folder:{folder}"}) for name, folder in folders.items()]
    with Deployment(sites) as deployment:
        tell(f"a SuperLink with TLS on port {deployment.port}; SuperNodes of {', '.join(folders)}, each with its registered key")

        def submit(stream: Callable[[str], None]) -> RunOutcome:
            deployment.await_nodes()
            return deployment.run(APP, spec.flat(), stream=stream)

        try:
            return follow(submit, spec, tell=tell)
        finally:
            if logs is not None:
                tell(_keep_logs(deployment, logs))


def rehearse(spec: RunSpec, folders: Mapping[str, Path], out: Path, tell: Callable[[str], None]) -> Finished:
    """Run ``spec`` in simulation on the same folders, its results under ``out``."""
    places = ",".join(f"{name}=folder:{folder}" for name, folder in folders.items())
    data = spec.data.model_copy(update={"sites": places})
    with FlowerSession() as session:
        rehearsal = spec.model_copy(update={"data": data, "out": str(out)})
        return execute(session, rehearsal, tell=tell, logs=Path(spec.out))


def differing(one: Path, other: Path) -> list[str]:
    """Return the names of the modules and classifiers in which two run directories differ, byte for byte."""
    files = [{path.relative_to(run).as_posix(): path.read_bytes() for path in _kept(run)} for run in (one, other)]
    return sorted(name for name in files[0].keys() | files[1].keys() if files[0].get(name) != files[1].get(name))


def check(finished: Finished, classes: int, floor: float) -> None:
    """See that every module arrived and that the server's classifier is right often enough.

    Raises
    ------
    RunError
        Naming what is missing or too low.
    """
    if finished.metrics is None:
        raise RunError(f"the deployment failed: {finished.error}")
    modules = list((finished.directory / "modules").glob("*.safetensors"))
    if missing := gaps(finished.metrics):
        raise RunError("the deployment is partial: " + "; ".join(missing))
    if len(modules) != classes or any(module_id(path.read_bytes()) != path.stem for path in modules):
        raise RunError(f"{len(modules)} modules arrived whole, {classes} classes were there; see the sites' logs (--keep-logs)")
    if (accuracy := finished.metrics["results"]["server"]["accuracy"]) < floor:
        raise RunError(f"the server's classifier reaches {accuracy:.3f}: must be at least {floor}; more steps may help")


def main(
    settings: Settings = None,
    per_class: Annotated[int, typer.Option(help="Most images of a class.")] = 200,
    floor: Annotated[float, typer.Option(help="Least accuracy of the server's classifier.")] = FLOOR,
    compare: Annotated[bool, typer.Option(help="Repeat the run in simulation and compare byte for byte.")] = False,
    keep_logs: Annotated[Path | None, typer.Option(help="Folder for the logs of all processes.")] = None,
) -> None:
    """Run three sites with images of their own on a SuperLink with TLS and authentication, check the result, stop everything.

    What an earlier demonstration with the same settings left is made anew: nothing there says of which images it was.

    Exit code: 0 all is well; 1 something failed; 2 the settings are wrong; 3 nodes or modules are missing.
    """
    began = time.monotonic()

    def tell(line: str) -> None:
        print(line, flush=True)

    with refusing():
        spec = resolve_spec("", [*SETTINGS, *(settings or ())])
        if keep_logs is not None:
            _make_folder(keep_logs)
    with refusing(FAILED), tempfile.TemporaryDirectory(prefix="ff-sites-") as folder:
        start_afresh(spec)
        folders = write_digit_folders(Path(folder), SITES, per_class)
        tell(f"class folders of real digits: {folder}")
        finished = deploy(spec, folders, tell, keep_logs)
        if finished.metrics is not None:
            tell("")
            show(run_tables(finished.metrics))
            if finished.exit_code == PARTIAL:
                tell("\n  ".join(["the run is partial:", *gaps(finished.metrics)]))
                raise typer.Exit(PARTIAL)
        check(finished, sum(map(len, SITES.values())), floor)
        if compare:
            tell("the same job in simulation")
            rehearsed = rehearse(spec, folders, Path(folder) / "rehearsal", tell)
            if rehearsed.metrics is None:
                raise RunError(f"the rehearsal failed: {rehearsed.error}")
            if names := differing(finished.directory, rehearsed.directory):
                raise RunError(f"deployment and simulation differ in {', '.join(names)}; threads and device must be equal")
            tell(f"modules and classifiers of deployment and simulation are equal: {len(_kept(finished.directory))} files")
    tell(f"wall clock: {time.monotonic() - began:.1f} s")
    tell(f"run directory: {finished.directory}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); name another folder behind --keep-logs") from error


def _keep_logs(deployment: Deployment, folder: Path) -> str:
    """Keep the logs of all processes; return where they are, or why they are not there: neither hides how the run ended."""
    try:
        kept = deployment.keep_logs(folder)
    except OSError as error:
        return f"{folder}: the logs cannot be kept ({error.strerror})"
    return f"{len(kept)} logs of the SuperLink and the SuperNodes: {folder}"


def _kept(run: Path) -> list[Path]:
    return [path for folder in ("modules", "classifiers", "nodes") for path in sorted((run / folder).rglob("*.safetensors"))]


if __name__ == "__main__":
    typer.run(main)
