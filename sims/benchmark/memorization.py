"""``memorization``: whether samples of a small class lie nearer to the images that they were fitted to than to others."""

import statistics

import numpy as np
import torch
from torch import Tensor

from ff_flower.config import RunSpec
from ff_flower.data import load_splits
from ff_flower.errors import ConfigError
from ff_flower.generative.diffusion import symmetric_copies
from ff_flower.seeding import generator, numpy_generator

from .pipeline import Workers, changed, fit_images
from .results import Results, Row, percent

RESULTS = Results(
    "memorization",
    "Samples that are nearer to the images fitted than to as many others of their class: 50 % where nothing is memorized",
    ("data set", "kind", "images", "steps", "held out"),
)


def measure_memorization(spec: RunSpec, images: int, samples: int, holdouts: list[float], workers: Workers) -> Results:
    """Fit a module to ``images`` images of each class, and ask whether its samples are nearer to these than to as many others.

    Images of a class are drawn at random; half of them are fitted. A sample that is a smooth average is as near to the one half
    as to the other, a copy is not: this is the null hypothesis of a three-sample test (Meehan et al. 2020, arXiv 2004.05675),
    with the half that was not fitted as the third sample. Distances are Euclidean over pixels, to the nearest of an image's
    copies under the symmetry that the module was fitted with.

    Parameters
    ----------
    spec : RunSpec
        Images, kind and settings of the modules, root seed.
    images : int
        Images that a module is fitted to. A class with fewer than twice as many is left out.
    samples : int
        Samples of each module.
    holdouts : list of float
        Values of ``module.holdout``, one row each.
    workers : Workers
        Fit the modules.

    Raises
    ------
    ConfigError
        Where no class has so many images.
    """
    held = torch.bincount(load_splits(spec.data, spec.seed).train.labels)
    classes = [label for label, count in enumerate(held.tolist()) if count >= 2 * images]
    if not classes:
        most = int(held.max())
        raise ConfigError(f"images = {images}: twice as many are needed of a class, which has {most} at most; ask for fewer")
    specs = [changed(spec, {"module.holdout": holdout}) for holdout in holdouts]
    shares = workers.map(share_nearer, [(one, label, images, samples) for one in specs for label in classes])
    rows: list[Row] = []
    for number, one in enumerate(specs):
        found = shares[number * len(classes) : (number + 1) * len(classes)]
        row: Row = {"data set": one.data.name, "kind": one.module.kind, "images": images}
        row |= {"steps": one.module.of_kind().flat().get("steps"), "held out": one.module.holdout, "classes": len(classes)}
        deviation = percent(statistics.stdev(found)) if len(found) > 1 else None
        rows.append(row | {"nearer to fitted %": percent(statistics.fmean(found)), "sd": deviation, "samples": samples})
    return RESULTS.joined(rows)


def share_nearer(spec: RunSpec, label: int, images: int, samples: int) -> float:
    """Fit a module to some images of a class; return the share of its samples that are nearer to these than to as many others."""
    whole = load_splits(spec.data, spec.seed).train.of_label(label).images
    drawn = torch.from_numpy(numpy_generator(spec.seed, "memorization", label).permutation(len(whole)).astype(np.int64))
    fitted, others = whole[drawn[:images]], whole[drawn[images : 2 * images]]
    module = fit_images(spec, label, fitted)
    made = module.sample(samples, generator(spec.seed, "sample", label))
    symmetry = str(module.spec.flat().get("symmetry", "none"))
    return nearer(made, *(torch.cat(list(symmetric_copies(part, symmetry))) for part in (fitted, others)))


def nearer(samples: Tensor, first: Tensor, second: Tensor) -> float:
    """Return the share of ``samples`` whose nearest image is among ``first`` and not ``second``, all (n, C, H, W) uint8.

    A sample that is as near to both counts half.
    """
    flat = [images.flatten(1).float() for images in (samples, first, second)]
    to_first, to_second = (torch.cdist(flat[0], images).amin(1) for images in flat[1:])
    return float(((to_first < to_second).float() + (to_first == to_second).float() / 2).mean())
