"""``modules``: how fast each kind and size trains and samples, how large it is, and how well it uses the machine."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from ff_flower.accelerator import compiles, low_precision, peak_memory, prepare
from ff_flower.config import ImageShape, ModuleSpec, RunSpec, Scalar, TrainingSpec
from ff_flower.environment import processor
from ff_flower.generative import BLOCK, FitOptions, build_module
from ff_flower.seeding import generator

from .options import tell
from .pipeline import Workers, changed, median_seconds, module_file, random_images
from .results import Results, Row, significant

SHAPES: dict[str, ImageShape] = {"tiny": (1, 8, 8), "small": (3, 28, 28), "base": (3, 28, 28), "large": (3, 128, 128)}
RESULTS = Results("modules", "Speed, size and memory of each kind", ("device", "kind", "size", "image", "batch"))
COUNTED = 2  # images per step whose operations are counted
_MATRIX = {"cpu": 1536, "cuda": 8192}


@dataclass(frozen=True)
class Load:
    """What one row measures.

    Attributes
    ----------
    kind, size : str
        The module.
    shape : tuple of int
        (C, H, W) of its images.
    batch : int
        Images per training step.
    seconds : float
        Length of the training that is measured, about.
    repeats : int
        Samplings, of which the median is taken.
    threads : int
        Torch threads.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    compile_on_cpu : bool
        Whether training is compiled on a CPU too.
    """

    kind: str
    size: str
    shape: ImageShape
    batch: int
    seconds: float
    repeats: int
    threads: int
    device: str
    compile_on_cpu: bool = False

    def module(self, steps: int = 0, batch: int = 0) -> ModuleSpec:
        """Return the module's spec, with a budget for kinds that have one."""
        table = f"module.{self.kind.replace('_', '-')}"
        chosen: dict[str, Scalar] = {"size": self.size, "steps": steps, "batch-size": batch or self.batch}
        known = RunSpec().flat()
        return changed(RunSpec(), {f"{table}.{key}": value for key, value in chosen.items() if f"{table}.{key}" in known}).module


def loads(kinds: list[str], sizes: list[str], **common: int | float | str) -> list[Load]:
    """Return the rows to measure; a kind without sizes is measured on every size's images."""
    return [Load(kind, size, SHAPES[size], **common) for kind in kinds for size in sizes]  # type: ignore[arg-type]


def measure_modules(rows: list[Load], workers: bool, keep: Callable[[Results], None]) -> Results:
    """Measure one row after the other, with ``workers`` each in a process of its own, so that its memory is its own too.

    ``keep`` is given each row as soon as it is measured. What does not fit into a GPU is told, and left out.
    """
    found: list[Row] = []
    with Workers(int(workers), fresh=True) as one:
        for load in rows:
            try:
                found += one.map(measure_load, [(load,)])
            except torch.cuda.OutOfMemoryError as error:
                tell(
                    f"{load.kind}, {load.size}, batches of {load.batch}: {str(error).splitlines()[0]}; try a smaller --batch-size"
                )
                continue
            keep(RESULTS.joined(found[-1:]))
    return RESULTS.joined(found)


def measure_load(load: Load) -> Row:
    """Measure one kind and size."""
    device = prepare(changed(RunSpec(), {"device": load.device, "deterministic": False}), load.threads)
    before = peak_memory(device)
    images = random_images(load.shape)
    rate = _training_rate(load, images, device)
    module = build_module(load.module(steps=1), load.shape, device, load.kind)
    module.fit(images, 0)
    count = BLOCK * module.batch_blocks
    module.sample(count, generator(0))
    sampling = count / median_seconds(lambda: module.sample(count, generator(0)), load.repeats)
    peak = peak_memory(device) - before
    settings, state = module.spec.flat(), module.state()
    trained = isinstance(load.module(1).of_kind(load.kind), TrainingSpec)
    flops = operations_per_image(load, images) if trained else 0.0
    limit = matmul_rate(device, load.repeats)
    compiled = ", training compiled" if load.compile_on_cpu and trained and compiles() else ""
    uncompiled = "" if compiles() or not trained else ", uncompiled"
    return {
        "device": place(load, device) + (uncompiled if device.type == "cuda" else compiled),
        "kind": load.kind,
        "size": str(settings.get("size", "-")),
        "image": "x".join(str(side) for side in load.shape),
        "batch": load.batch if trained else len(images),
        "images/s training": significant(rate),
        "evaluations": int(settings.get("evaluations", 1)),
        "images/s sampling": significant(sampling),
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "file kB": round(len(module_file(module, 0, 0, "0", "none", "float16")) / 1e3),
        "peak MB": significant(peak / 1e6),
        "MFLOP per image": significant(flops / 1e6),
        "matmul GFLOP/s": significant(limit / 1e9),
        "share of it %": significant(100 * flops * rate / limit, 3) if trained else None,
    }


def place(load: Load, device: torch.device) -> str:
    """Return what computes: a GPU by its name, a processor by its name and the threads; rows of one are not those of another."""
    return torch.cuda.get_device_name() if device.type == "cuda" else f"{processor()}, threads: {load.threads}"


def operations_per_image(load: Load, images: torch.Tensor) -> float:
    """Return the floating-point operations of training per image: two steps less one, counted by torch on the CPU."""
    from torch.utils.flop_counter import FlopCounterMode

    def count(steps: int) -> int:
        module = build_module(load.module(steps, COUNTED), load.shape, "cpu", load.kind)
        with FlopCounterMode(display=False) as counter:
            module.fit(images, 0)
        return int(counter.get_total_flops())

    return (count(2) - count(1)) / COUNTED


def matmul_rate(device: torch.device, repeats: int) -> float:
    """Return the machine's operations per second in a large matrix product, of the type that training multiplies in."""
    side = _MATRIX[device.type]
    matrix = torch.randn(side, side, device=device)
    with low_precision(device):
        matrix = matrix.to((matrix[:8] @ matrix).dtype)
    calls = 20 if device.type == "cuda" else 1

    def multiply() -> None:
        for _ in range(calls):
            product = matrix @ matrix
        float(product[0, 0])  # waits for a GPU

    multiply()
    return calls * 2 * side**3 / median_seconds(multiply, max(3, repeats))


def _training_rate(load: Load, images: torch.Tensor, device: torch.device) -> float:
    """Return images shown per second, the median of three quarters of a fit; its first quarter warms up.

    A kind that is not trained in steps has no quarters: images per second of a whole second fit.
    """
    rate, steps = 0.0, 8
    for _ in range(2):
        marks: list[tuple[float, int]] = []

        def note(shown: int, share: float, loss: float, marks: list[tuple[float, int]] = marks) -> None:
            marks.append((time.perf_counter(), shown))

        module = build_module(load.module(steps), load.shape, device, load.kind)
        began = time.perf_counter()
        module.fit(images, 0, FitOptions(progress=note, compile_on_cpu=load.compile_on_cpu))
        if len(marks) < 2:  # not trained in steps
            rate = len(images) / (time.perf_counter() - began)
            continue
        pairs = pairwise(marks)
        rate = statistics.median((shown - earlier) / (end - begin) for (begin, earlier), (end, shown) in pairs)
        steps = max(8, round(load.seconds * rate / load.batch))
    return rate
