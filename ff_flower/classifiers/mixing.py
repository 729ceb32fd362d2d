"""Mixup and CutMix: batches in which every image holds a part of another."""

import math

from torch import Tensor, lerp

from ..config import ClassifierSpec
from ..seeding import numpy_generator


class Mixing:
    """Mixes each image of a batch with the one before it, and tells what share of it is its own.

    Mixup (Zhang et al. 2018, arXiv 1710.09412) blends the pixels, CutMix (Yun et al. 2019, arXiv 1905.04899) replaces a
    rectangle; both take one share per batch from a symmetric Beta distribution. With both switched on a fair coin chooses for
    each batch. Batches are drawn in random order, so the image before is a random partner.

    Parameters
    ----------
    spec : ClassifierSpec
        Gives ``mixup`` and ``cutmix``, the parameters of the Beta distributions; 0 switches off.
    seed : int
        Root of shares and rectangles.
    """

    def __init__(self, spec: ClassifierSpec, seed: int) -> None:
        self._ways = [(way, beta) for way, beta in ((_blend, spec.mixup), (_paste, spec.cutmix)) if beta > 0]
        self._random = numpy_generator(seed, "mixing")

    def __call__(self, images: Tensor) -> tuple[Tensor, float]:
        """Return the mixed images (b, C, H, W) and the share, in [0, 1], that image k has of itself.

        The rest is of image k - 1, and of the last one for k = 0: ``images.roll(1, 0)``. Off, or without a second image, the
        images come back as they are with a share of 1.
        """
        if not self._ways or len(images) < 2:
            return images, 1.0
        way, beta = self._ways[self._random.integers(len(self._ways))]
        share, down, across = self._random.beta(beta, beta), *self._random.random(2)
        return way(images, float(share), float(down), float(across))


def _blend(images: Tensor, share: float, down: float, across: float) -> tuple[Tensor, float]:
    return lerp(images.roll(1, 0), images, share), share


def _paste(images: Tensor, share: float, down: float, across: float) -> tuple[Tensor, float]:
    """Replace a rectangle of about 1 - share of the area around a point (down, across) in [0, 1), cut off at the border."""
    height, width = images.shape[-2:]
    top, bottom = _interval(height, share, down)
    left, right = _interval(width, share, across)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.roll(1, 0)[..., top:bottom, left:right]
    return mixed, 1.0 - (bottom - top) * (right - left) / (height * width)


def _interval(side: int, share: float, centre: float) -> tuple[int, int]:
    length, middle = round(side * math.sqrt(1.0 - share)), int(side * centre)
    first = middle - length // 2
    return max(0, first), min(side, first + length)
