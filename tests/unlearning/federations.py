"""Whole runs on local nodes, and how to forget in them, for the tests of unlearning."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from local_grid import LocalGrid, tiny

from clients.client_app import app
from ff_flower.registry import ModuleRegistry
from ff_flower.unlearning import Work, forget, open_run
from strategies.server_app import run

SEVERAL_CLASSES = {"num_clients": 5, "partition__classes_per_node": 2}
SHARED_CLASSES = {"num_clients": 3, "partition__kind": "dirichlet", "partition__alpha": 0.5}
AT_THE_SERVER = {"synthesis__site": "server", **SEVERAL_CLASSES}


def on_nodes(spec, tamper=None, asked=None):
    """Run ``spec`` on local nodes in a shuffled order; ``asked`` takes what they were asked."""
    grid = LocalGrid(app, spec.num_clients, shuffle=11, tamper=tamper)
    directory = run(grid, spec)
    if asked is not None:
        asked.extend(grid.asked)
    return directory


def made(folder, **changes):
    """Return the run directory of a tiny run in ``folder``."""
    return on_nodes(tiny(folder, **changes)).path


def three_classes(digits, path):
    """Write an npz file with the digits 0, 1 and 2, whose names no record but a run's has; return its path."""
    arrays = {}
    for split in ("train", "val", "test"):
        part = getattr(digits, split)
        kept = part.subset(part.labels < 3)
        arrays |= {f"{split}_images": kept.images.numpy()[:, 0], f"{split}_labels": kept.labels.numpy()}
    np.savez(path, **arrays)
    return path


def noting(path, **history):
    """Let the record of a run's environment say something else of its history; return the run."""
    record = path / "environment.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | history))
    return path


def copied(path, folder):
    """Return a run directory like ``path``, with its cache, in another folder, as if it had been made there."""
    shutil.copytree(path.parent, folder / "copy", symlinks=True)
    return noting(folder / "copy" / path.name, caches=[str(folder / "copy" / "cache")])


def work(tamper=None, asked=None, scratch=None):
    """Return how these tests rebuild: on local nodes; ``scratch`` is the folder of a run from scratch."""
    make = Work(lambda spec: on_nodes(spec, tamper, asked), None, "local nodes")
    if scratch is None:
        return make
    return replace(make, from_scratch=lambda spec: on_nodes(spec.model_copy(update={"out": str(scratch)})))


def forget_owner(path, *owners, **how):
    """Forget whole owners, rebuilding on local nodes."""
    return forget(path, owners, (), work(**how))


def scratch_without(path, folder, exclude):
    """Return the directory of a run from scratch, of the spec of ``path``, that excludes ``exclude``."""
    spec, _ = open_run(path)
    return on_nodes(spec.model_copy(update={"out": str(folder), "exclude": exclude}))


def modules_of(path, owner=None):
    """Return the manifests of a run's modules by id, of one owner or of all."""
    found = {module.module_id: module.manifest for module in ModuleRegistry(path / "modules")}
    return {name: one for name, one in found.items() if owner in (None, one.owner)}


def contents(path):
    """Return the bytes of every file of a run by name."""
    return {one.relative_to(path).as_posix(): one.read_bytes() for one in sorted(Path(path).rglob("*")) if one.is_file()}
