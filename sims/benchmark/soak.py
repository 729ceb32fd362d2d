"""``soak``: run after run in one session, and whether anything is left behind."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ff_flower.errors import ConfigError, RunError

from ..processes.process_groups import process_groups
from ..processes.session import FlowerSession
from ..run import FAILED, execute, refusing, resolve_spec
from .memory import own_memory, session_processes
from .options import HOME, Markdown, Out, Write, finish, tell
from .pipeline import changed
from .results import Results, Row, significant

RESULTS = Results("soak", "Run after run in one session", ("after run",))
SETTLE_SECONDS = 30.0  # in which a run's processes must have ended
WARM_UP = 3  # runs before which nothing is compared
GROWTH = 1.0  # megabytes per run that count as growing
SETTINGS = (
    "num-clients=2",
    "partition.classes-per-node=5",
    "module.kind=gaussian_mixture",
    "module.gaussian-mixture.components=8",
    "synthesis.samples-per-class=10",
    "synthesis.site=server",
    "classifier.width=8",
    "classifier.steps=4",
)


@dataclass(frozen=True)
class Traces:
    """What exists between two runs of a session.

    Attributes
    ----------
    processes : int
        Living processes of the session.
    ports : int
        TCP ports on which they listen.
    folders : int
        Entries of the session's folder, which is the temporary folder of all its processes, and of Ray's in it.
    """

    processes: int
    ports: int
    folders: int


def soak(
    runs: Annotated[int, typer.Option(help="Consecutive runs.")] = 30,
    write: Write = False,
    out: Out = HOME,
    markdown: Markdown = False,
) -> None:
    """Run tiny federations one after the other; count processes, ports and temporary folders, and watch memory.

    Exit code: 0 nothing is left and memory is flat; 1 something grows or is left.
    """
    with refusing():
        if runs < WARM_UP + 2:
            raise ConfigError(f"runs = {runs}: must be at least {WARM_UP + 2}, of which {WARM_UP} warm up; take 30")
    with refusing(FAILED):
        with tempfile.TemporaryDirectory(prefix="soak-") as folder, FlowerSession() as session:
            home = session.home
            rows = _rows(session, folder, runs)
        left = _left(home)
        found = RESULTS.joined(rows)
        finish(found, write, out, markdown)
    problems = [*leaks(rows), *left]
    print(*(problems or [f"{runs} runs left nothing behind"]), sep="\n")
    raise typer.Exit(FAILED if problems else 0)


def leaks(rows: Sequence[Row]) -> list[str]:
    """Return one sentence for each count that is higher after the last run than after the warm-up, or memory that grows."""
    warm, last = rows[WARM_UP], rows[-1]
    counts = [name for name in ("processes", "ports", "folders") if int(last[name] or 0) > int(warm[name] or 0)]
    problems = [
        f"{name}: {warm[name]} after run {warm['after run']}, {last[name]} after run {last['after run']}" for name in counts
    ]
    for name in (name for name in last if name.endswith(" MB")):
        rate = _slope([float(row[name] or 0) for row in rows[WARM_UP:]])
        if rate > GROWTH:
            problems.append(f"{name}: grows by {rate:.2f} per run")
    return problems


def _rows(session: FlowerSession, folder: str, runs: int) -> list[Row]:
    base, rows = resolve_spec("", [*SETTINGS, f"out={folder}"]), []
    resting = None
    for number in range(runs + 1):
        began = time.monotonic()
        if number:
            finished = execute(session, changed(base, {"seed": number}), tell=lambda line: None)
            if finished.metrics is None or finished.exit_code:
                raise RunError(f"run {number} failed: {finished.error or 'it is partial'}")
        seconds = time.monotonic() - began
        traces = _settled(session.home, resting)
        resting = resting or traces
        memory = {process.role: process.private for process in session_processes(session.home)}
        row: Row = {"after run": number, "seconds": significant(seconds, 3)}
        row |= {"processes": traces.processes, "ports": traces.ports, "folders": traces.folders}
        row |= {f"{role} MB": significant(memory.get(role, 0) / 1e6) for role in ("superlink", "superexec")}
        row["this process MB"] = significant(own_memory() / 1e6)
        tell(", ".join(f"{name} {value}" for name, value in row.items()))
        rows.append(row)
    return rows


def _settled(home: Path, resting: Traces | None) -> Traces:
    """Return what there is once no more processes live than when the session rested first, or after a wait."""
    end = time.monotonic() + SETTLE_SECONDS
    while (traces := _traces(home)) and resting and traces.processes > resting.processes and time.monotonic() < end:
        time.sleep(0.2)
    return traces


def _traces(home: Path) -> Traces:
    processes = session_processes(home)
    inodes = {inode for process in processes for inode in _sockets(process.process_id)}
    folders = [entry for folder in (home, home / "ray") if folder.is_dir() for entry in folder.iterdir()]
    return Traces(len(processes), len(inodes & _listening()), len(folders))


def _left(home: Path) -> list[str]:
    """Return one sentence for each process group that lives after the session, and for its folder where that is there."""
    problems = [f"process group {group} lives" for group in sorted(process_groups(home))]
    return [*problems, f"{home} is left"] if home.exists() else problems


def _sockets(process_id: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for descriptor in Path(f"/proc/{process_id}/fd").iterdir():
            with suppress(OSError):
                found.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    return found


def _listening() -> set[str]:
    """Return the inodes of all TCP sockets that listen."""
    tables = [path for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.exists()]
    lines = [line.split() for path in tables for line in path.read_text().splitlines()[1:]]
    return {line[9] for line in lines if line[3] == "0A"}


def _slope(values: Sequence[float]) -> float:
    """Return the slope of the least-squares line through equally spaced ``values``."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    spread = sum((x - middle) ** 2 for x in range(len(values)))
    return sum((x - middle) * (value - mean) for x, value in enumerate(values)) / spread
