"""``scale``: collecting and broadcasting N modules of M megabytes in real Flower, by both transports."""

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ff_flower.config import ImageShape, RunSpec
from ff_flower.errors import ConfigError, RunError

from ..processes.session import FlowerSession
from ..run import FAILED, execute, refusing, resolve_spec
from .memory import MemoryWatch
from .options import HOME, Markdown, Out, Write, finish, keep, tell
from .pipeline import changed, random_images
from .results import Results, Row, one_of, significant

RESULTS = Results("scale", "Collecting and broadcasting", ("nodes", "module MB", "transport"))
CLASSES = 10
TRANSPORTS = ("inline", "reference")


def scale(
    nodes: Annotated[int, typer.Option(help="Nodes, with one module each.")] = 100,
    megabytes: Annotated[float, typer.Option(help="Size of a module file, in 10**6 bytes.")] = 1.0,
    transports: Annotated[str, typer.Option(help="Transports, separated by commas.")] = ",".join(TRANSPORTS),
    write: Write = False,
    out: Out = HOME,
    markdown: Markdown = False,
) -> None:
    """Time how modules reach the server and all of them every node, and watch the memory of server and actors.

    The modules are Gaussian mixtures of random images, large by their principal components; classifiers train one step. A first
    run with the same images and the smallest modules tells what the server holds, and how long nodes work, without them.
    """
    with refusing():
        shape, components = module_shape(megabytes)
        chosen = one_of(transports, TRANSPORTS, "transport")
    with refusing(FAILED), tempfile.TemporaryDirectory(prefix="ff-scale-") as folder:
        spec = federation(Path(folder), nodes, shape, components)
        tell(f"{nodes} nodes x {megabytes} MB: images {shape}, {components} principal components; first with 1 component")
        least = measure(changed(spec, {"out": f"{folder}/least", "module.gaussian-mixture.components": 1}))
        found = RESULTS
        for transport in chosen:
            row = measure(changed(spec, {"out": f"{folder}/{transport}", "transport": transport}))
            added = float(row["server MB"] or 0) - float(least["server MB"] or 0)
            longer = float(row["broadcast s"] or 0) - float(least["broadcast s"] or 0)
            row |= {"broadcast more s": round(longer, 2), "server over set": significant(added / float(row["set MB"] or 1), 3)}
            kept = RESULTS.joined([{"nodes": nodes, "module MB": megabytes, "transport": transport, **row}])
            keep(kept, write, out)
            found = found.joined(kept.rows)
        finish(found, False, out, markdown)


def module_shape(megabytes: float) -> tuple[ImageShape, int]:
    """Return image shape and principal components with which a module's file has about so many megabytes.

    Raises
    ------
    ConfigError
        For less than 0.02 or more than 60 MB.
    """
    if not 0.02 <= megabytes <= 60:
        raise ConfigError(f"megabytes = {megabytes}: must be from 0.02 to 60; a module file may have at most 64")
    side = 16 if megabytes < 0.2 else 64 if megabytes < 4 else 128
    pixels = 3 * side * side
    return (3, side, side), max(1, round(megabytes * 1e6 / 2 / pixels) - 2)


def federation(folder: Path, nodes: int, shape: ImageShape, components: int) -> RunSpec:
    """Write random images of ten classes for ``nodes``, and return a run of which the modules' way is nearly everything."""
    path, each = folder / "images.npz", components + 4
    owners = -(-nodes // CLASSES) if nodes >= CLASSES else 1
    count = owners * min(nodes, CLASSES) * each
    labels = np.arange(count) % min(nodes, CLASSES)
    images = random_images(shape, count).permute(0, 2, 3, 1).numpy()
    arrays = {"train_images": images, "train_labels": labels}
    for split, size in (("val", 1), ("test", 2)):
        arrays |= {f"{split}_images": images[: size * CLASSES], f"{split}_labels": labels[: size * CLASSES]}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    settings = {
        "data.name": f"npz:{path}",
        "num-clients": nodes,
        "consensus": "none",
        "module.kind": "gaussian_mixture",
        "module.gaussian-mixture.components": components,
        "module.gaussian-mixture.mixtures": 1,
        "module.min-images": 2,
        "trust.probe": 0,
        "synthesis.samples-per-class": owners,
        "classifier.width": 8,
        "classifier.steps": 1,
        "classifier.batch-size": 8,
        "classifier.augment": "false",
    }
    return resolve_spec("", [f"{key}={value}" for key, value in settings.items()])


def measure(spec: RunSpec) -> Row:
    """Run ``spec`` in a session of its own; return seconds and megabytes.

    Raises
    ------
    RunError
        When the run fails, or nodes are missing.
    """
    with FlowerSession() as session, MemoryWatch(session.home) as watch:
        finished = execute(session, spec, tell=lambda line: None)
    if finished.metrics is None or finished.exit_code:
        raise RunError(f"the run failed: {finished.error or finished.metrics}; run it with ff-flower run to see more")
    modules = list((finished.directory / "modules").glob("*.safetensors"))
    peaks, waited = watch.megabytes(), finished.metrics["steps"]
    return {
        "set MB": significant(sum(path.stat().st_size for path in modules) / 1e6),
        "collect s": waited["collect"],
        "broadcast s": waited["broadcast"],
        "wire MB": significant((finished.metrics["bytes"]["up"] + finished.metrics["bytes"]["down"]) / 1e6),
        "run s": finished.metrics["seconds"]["total"],
        "server MB": peaks["server"],
        "actor MB": peaks["actor"],
        "shared MB": peaks["shared"],
        "all MB": peaks["all"],
    }
