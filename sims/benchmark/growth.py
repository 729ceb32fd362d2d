"""``growth``: what whole runs cost as their nodes become more."""

import shutil
import time
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from ff_flower.config import RunSpec
from ff_flower.errors import RunError

from ..processes.session import FlowerSession
from ..run import FAILED, Settings, execute, refusing, resolve_spec
from .memory import MemoryWatch
from .options import HOME, Markdown, Out, Write, finish, keep
from .pipeline import changed
from .results import Results, Row, one_of, percent, significant, whole_numbers
from .scale import TRANSPORTS

RESULTS = Results("growth", "Whole runs of more and more nodes", ("nodes", "transport"))
SETTINGS = (
    "module.kind=gaussian_mixture",
    "module.min-images=4",
    "partition.kind=dirichlet",
    "partition.alpha=0.3",
    "classifier.width=8",
    "classifier.steps=100",
    "distillation.steps=100",
)


def growth(
    nodes: Annotated[str, typer.Option(help="Numbers of nodes, separated by commas.")] = "10,30,100",
    transports: Annotated[str, typer.Option(help="Transports, separated by commas.")] = "inline",
    settings: Settings = None,
    write: Write = False,
    out: Out = HOME,
    markdown: Markdown = False,
) -> None:
    """Run the whole of FederatedFactory over digits, shared out by Dirichlet(0.3): minutes, and peak memory.

    Classifiers are small, so that what grows is the federation.
    """
    specs, found = [], RESULTS
    with refusing():
        base = resolve_spec("", [*SETTINGS, *(settings or ())])
        for count, transport in product(whole_numbers(nodes, "nodes"), one_of(transports, TRANSPORTS, "transport")):
            folder = Path(base.out) / "benchmark" / f"growth-{count}-{transport}"
            specs.append(changed(base, {"num-clients": count, "transport": transport, "out": str(folder)}))
    with refusing(FAILED):
        for spec in specs:
            row = RESULTS.joined([measure(spec)])
            keep(row, write, out)
            found = found.joined(row.rows)
        finish(found, False, out, markdown)


def measure(spec: RunSpec) -> Row:
    """Run ``spec`` from the beginning, its folder emptied, in a session of its own.

    Raises
    ------
    RunError
        When the run fails.
    """
    shutil.rmtree(spec.out, ignore_errors=True)
    began = time.monotonic()
    with FlowerSession() as session, MemoryWatch(session.home) as watch:
        finished = execute(session, spec, tell=lambda line: None)
    if finished.metrics is None:
        raise RunError(f"the run of {spec.num_clients} nodes failed: {finished.error}")
    metrics, peaks = finished.metrics, watch.megabytes()
    student = metrics["results"].get("student")
    return {
        "nodes": spec.num_clients,
        "transport": spec.transport,
        "modules": len(list((finished.directory / "modules").glob("*.safetensors"))),
        "missing": len(metrics["missing"]),
        "minutes": significant((time.monotonic() - began) / 60, 3),
        "collect s": metrics["steps"].get("collect"),
        "broadcast s": metrics["steps"].get("broadcast"),
        "server's part s": round(
            sum(metrics["seconds"].get(stage, 0.0) for stage in ("server-synthesis", "server", "student")), 2
        ),
        "MB up": significant(metrics["bytes"]["up"] / 1e6),
        "MB down": significant(metrics["bytes"]["down"] / 1e6),
        "server MB": peaks["server"],
        "actor MB": peaks["actor"],
        "all MB": peaks["all"],
        "server %": percent(metrics["results"]["server"]["accuracy"]),
        "student %": percent(student["accuracy"]) if student else None,
    }
