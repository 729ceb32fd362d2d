"""``synthesis``: what many nodes of one machine pay for the same synthetic set."""

import os
import statistics
import tempfile
import time
from pathlib import Path

from ff_flower.accelerator import prepare
from ff_flower.config import RunSpec
from ff_flower.data import load_splits
from ff_flower.registry import Expectation, ModuleRegistry
from ff_flower.synthesis import SampleCache, allocate, synthesize

from .pipeline import Workers
from .results import Results, Row, significant

RESULTS = Results("synthesis", "Synthesis for many nodes of one machine", ("data set", "kind", "nodes", "processes"))


def measure_synthesis(spec: RunSpec, files: list[bytes], nodes: int, processes: int, repeats: int) -> Results:
    """Time the synthesis of one node and of ``nodes``, the latter in one process and in ``processes``, each with an empty cache.

    Every node receives the files, verifies them, and builds the whole set, as in a run.
    """
    cases = list(dict.fromkeys([(1, min(processes, 1)), (nodes, min(processes, 1)), (nodes, processes)]))
    seconds: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    with Workers(min(processes, 1)) as one, Workers(processes) as all_of_them:
        for workers, width in ((one, min(processes, 1)), (all_of_them, processes)):
            workers.map(_warm, [(spec,)] * width)
        _timed(spec, files[:1], 1, one)  # compiles where networks are compiled
        for _ in range(repeats):
            for case in cases:
                seconds[case].append(_timed(spec, files, case[0], one if case[1] <= 1 else all_of_them))
    rows: list[Row] = []
    for (count, width), times in seconds.items():
        ratios = [mine / alone for mine, alone in zip(times, seconds[cases[0]], strict=True)]
        row: Row = {"data set": spec.data.name, "kind": spec.module.kind, "nodes": count, "processes": max(width, 1)}
        row |= {"images": spec.synthesis.samples_per_class * len(files), "seconds": significant(statistics.median(times))}
        rows.append(row | {"times one node": significant(statistics.median(ratios), 3)})
    return RESULTS.joined(rows)


def synthesize_as_node(spec: RunSpec, files: list[bytes], partition: int, folder: str) -> str:
    """Verify the files and build the synthetic set as node ``partition`` does, and return its digest."""
    device = prepare(spec, spec.threads)
    info = load_splits(spec.data, spec.seed).info
    expectation = Expectation(info.name, spec.seed, info.shape, info.classes)
    with tempfile.TemporaryDirectory(prefix="ff-modules-") as place:
        registry = ModuleRegistry(Path(place))
        for data in files:
            registry.add(data, expectation)
        shares = allocate(list(registry), spec.synthesis.samples_per_class)
        first = partition * len(shares) // spec.num_clients
        return synthesize(registry, shares, spec.seed, SampleCache(Path(folder)), device, first).digest()


def _timed(spec: RunSpec, files: list[bytes], nodes: int, workers: Workers) -> float:
    with tempfile.TemporaryDirectory(prefix="ff-samples-") as folder:
        began = time.perf_counter()
        digests = workers.map(synthesize_as_node, [(spec, files, partition, folder) for partition in range(nodes)])
        ended = time.perf_counter()
    assert len(set(digests)) == 1, "nodes built different sets"
    return ended - began


def _warm(spec: RunSpec) -> int:
    """Import what a node needs and read its images, as the fit before the synthesis did."""
    prepare(spec, spec.threads)
    time.sleep(0.2)  # so that no process takes two of these
    return len(load_splits(spec.data, spec.seed).train) + os.getpid()
