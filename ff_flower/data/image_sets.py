"""Labelled images as value objects, and the two things done to them: held out and resized."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError


@dataclass(frozen=True)
class ImageSet:
    """Images with one label each.

    Attributes
    ----------
    images : Tensor
        uint8 (n, C, H, W) in [0, 255], with C = 1 or 3.
    labels : Tensor
        int64 (n,), not negative.

    Raises
    ------
    DataError
        If a shape, a dtype, a length or a label breaks these rules.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DataError(
                f"images are {images.dtype} of shape {tuple(images.shape)}; an image set holds uint8 (n, C, H, W) with "
                "C = 1 or 3; convert them first"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}; {len(images)} images need int64 labels of shape "
                f"({len(images)},); give one class index per image"
            )
        if len(labels) and int(labels.min()) < 0:
            raise DataError(f"label {int(labels.min())}; labels count from 0; drop or relabel these images")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor | np.ndarray | Sequence[int]) -> "ImageSet":
        """Return the images at ``indices`` (integers, in that order, or a boolean mask of shape (n,)), copied."""
        chosen = torch.as_tensor(indices)
        chosen = chosen if chosen.dtype == torch.bool else chosen.long()
        chosen = chosen.to(self.labels.device)
        return ImageSet(self.images[chosen], self.labels[chosen])

    def of_label(self, label: int) -> "ImageSet":
        """Return the images of one class, in order."""
        return self.subset(self.labels == label)

    def digest(self) -> str:
        """Return the SHA-256 of shape, images and labels."""
        content = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.labels):
            content.update(tensor.reshape(-1).numpy().data)
        return content.hexdigest()

    def to(self, device: str | torch.device) -> "ImageSet":
        """Return the set on ``device``."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Source:
    """What a reader found, before anything is resized or held out.

    Attributes
    ----------
    train, val, test : ImageSet
        The official splits; an empty set where there is none.
    classes : tuple of str or None
        Names of the classes where the source carries them.
    groups : ndarray or None
        int64 (len(train),): training images of equal number must stay on one side of every split.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet
    classes: tuple[str, ...] | None = None
    groups: np.ndarray | None = None

    def resized(self, size: int) -> "Source":
        """Return the source with square images of ``size`` pixels a side."""
        train, val, test = (ImageSet(resize(part.images, size), part.labels) for part in (self.train, self.val, self.test))
        return Source(train, val, test, self.classes, self.groups)


def concatenate(sets: Sequence[ImageSet]) -> ImageSet:
    """Return one set with the images of all ``sets``, in order.

    Raises
    ------
    DataError
        If there is no set, or if the images differ in channels or size.
    """
    shapes = sorted({tuple(part.images.shape[1:]) for part in sets})
    if len(shapes) != 1:
        raise DataError(f"image shapes {shapes}; sets that are joined share one shape; resize them with data.size")
    return ImageSet(torch.cat([part.images for part in sets]), torch.cat([part.labels for part in sets]))


def empty_like(images: ImageSet) -> ImageSet:
    """Return a set without images, of the same image shape."""
    return ImageSet(images.images[:0], images.labels[:0])


def resize(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images (n, C, H, W) to (n, C, size, size): bilinear, antialiased, 1,024 at a time."""
    if tuple(images.shape[-2:]) == (size, size):
        return images
    resized = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8)
    for start in range(0, len(images), 1024):
        chunk = images[start : start + 1024].to(torch.float32)
        scaled = F.interpolate(chunk, size=(size, size), mode="bilinear", antialias=True)
        resized[start : start + 1024] = scaled.round_().clamp_(0, 255).to(torch.uint8)
    return resized


def held_out(labels: np.ndarray, groups: np.ndarray | None, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Choose images to hold out, class by class, so that no group stands on both sides.

    Parameters
    ----------
    labels : ndarray
        int64 (n,).
    groups : ndarray or None
        int64 (n,), or None when every image is a group of its own.
    fraction : float
        Share of each class in [0, 1): at least one group of a class that has two, and at most all groups but one.
    rng : numpy.random.Generator
        Source of chance.

    Returns
    -------
    ndarray
        bool (n,), true for the images held out.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    held: list[np.ndarray] = []
    for label in np.unique(labels) if fraction > 0 else ():
        members, sizes = np.unique(groups[labels == label], return_counts=True)
        order = rng.permutation(len(members))
        fitting = int((np.cumsum(sizes[order]) <= round(fraction * sizes.sum())).sum())
        held.append(members[order][: min(max(fitting, 1), len(members) - 1)])
    return np.isin(groups, np.concatenate(held)) if held else np.zeros(len(labels), dtype=bool)
