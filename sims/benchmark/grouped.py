"""``batched``: sampling modules of one architecture one after the other, or all at once over stacked weights.

A measurement only. Sampling stays per module: in a grouped evaluation a sample's last bits depend on which other modules
there are, and removing one owner's module would change the samples of all others.
"""

import statistics

import torch

from ff_flower.accelerator import compiles, low_precision, prepare
from ff_flower.config import RunSpec
from ff_flower.generative import BLOCK, build_module
from ff_flower.generative.diffusion import DiffusionModule
from ff_flower.seeding import generator

from .pipeline import changed, median_seconds, random_images
from .results import Results, Row, significant
from .throughput import Load, place
from .variants import one_after_the_other, stacked

RESULTS = Results(
    "batched", "Sampling one after the other, or over stacked weights", ("device", "kind", "size", "image", "modules")
)


def measure_batched(loads: list[Load], modules: int) -> Results:
    """Time both ways for each load in turn, 64 samples per module."""
    return RESULTS.joined(_measure(load, modules) for load in loads)


def _measure(load: Load, count: int) -> Row:
    device = prepare(changed(RunSpec(), {"device": load.device, "deterministic": False}), load.threads)
    images = random_images(load.shape)
    modules = []
    for seed in range(count):
        module = build_module(load.module(steps=2), load.shape, device, load.kind)
        assert isinstance(module, DiffusionModule)
        modules.append(module.fit(images, seed))
    noise = torch.randn((count, BLOCK, *load.shape), generator=generator(0)).to(device)
    together = stacked(modules)

    def in_turn() -> torch.Tensor:
        return one_after_the_other(modules, noise).cpu()  # waits for a GPU

    def at_once() -> torch.Tensor:
        with low_precision(device):
            return together(noise).cpu()

    difference = float((in_turn() - at_once()).abs().max())
    turns = [(median_seconds(in_turn, 1), median_seconds(at_once, 1)) for _ in range(load.repeats)]
    compiled = ", one after the other compiled" if compiles() and device.type == "cuda" else ""
    return {
        "device": place(load, device) + compiled,
        "kind": load.kind,
        "size": load.size,
        "image": "x".join(str(side) for side in load.shape),
        "modules": count,
        "one after the other s": significant(statistics.median(one for one, _ in turns)),
        "stacked s": significant(statistics.median(two for _, two in turns)),
        "stacked takes": significant(statistics.median(two / one for one, two in turns), 3),
        "largest difference in grey levels": significant(127.5 * difference, 3),
    }
