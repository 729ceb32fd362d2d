"""Images that sites and the server bring themselves: read, split, and given the labels of the run's table."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..config import OWN, DataSpec, normal_form
from ..errors import DataError
from ..machine import path_of
from .datasets import DatasetInfo, Splits, read_source, split_source, with_augmentation
from .image_sets import ImageSet, concatenate, empty_like


def own_info(spec: DataSpec, classes: Sequence[str], shape: tuple[int, int, int]) -> DatasetInfo:
    """Describe the image set that all sites hold together.

    Parameters
    ----------
    spec : DataSpec
        Names the augmentation.
    classes : sequence of str
        Names of the classes, by label.
    shape : tuple of int
        (C, H, W) of the images.
    """
    task = "binary-class" if len(classes) == 2 else "multi-class"
    info = DatasetInfo(OWN, "images of the sites", tuple(classes), shape, task, "not stated", "none", OWN, "")
    return with_augmentation(info, spec)


def load_own(location: str, spec: DataSpec, seed: int) -> Splits:
    """Read the images of one site.

    Parameters
    ----------
    location : str
        ``folder:/path`` or ``npz:/path/file.npz``.
    spec : DataSpec
        Gives the size and the shares to hold out where the site has no ``train``, ``val`` and ``test`` of its own.
    seed : int
        The site's own seed; it decides which images serve for validation.

    Returns
    -------
    Splits
        With the site's own classes in ``info``, of which some may have no images.

    Raises
    ------
    DataError
        If the place does not hold labelled images, or a class's name cannot stand in a manifest.
    """
    return split_source(location, read_source(location, spec), spec, seed)


def class_counts(splits: Splits) -> dict[str, int]:
    """Return the training images per class, by the classes' names; a class without any is left out.

    Raises
    ------
    DataError
        If two classes differ only in how their names are encoded.
    """
    counts = torch.bincount(splits.train.labels, minlength=splits.num_classes).tolist()
    names = [normal_form(name) for name, count in zip(splits.info.classes, counts, strict=True) if count]
    if len(set(names)) < len(names):
        raise DataError("two classes have names that Unicode holds equal; every class has one name; join or rename them")
    return dict(zip(names, (count for count in counts if count), strict=True))


def in_table(splits: Splits, info: DatasetInfo) -> Splits:
    """Return the splits with the labels of ``info``.

    Raises
    ------
    DataError
        If the images have another shape, or a class has images and no place in the table.
    """
    _check_shape("images", splits.info.shape, info.shape)
    names, held_out = splits.info.classes, "no site trains on them; name them in data.classes, or take these images out"
    train = _relabelled(splits.train, names, info.classes, "start the run again with them")
    return Splits(info, train, *(_relabelled(part, names, info.classes, held_out) for part in (splits.val, splits.test)))


def server_splits(spec: DataSpec, info: DatasetInfo) -> tuple[Splits, list[str]]:
    """Return what the server holds of the sites' image set: test images where ``data.server_test`` names some, else nothing.

    Returns
    -------
    tuple of Splits and list of str
        Train and val are empty. The names are of classes in the test set that no site has; their images are left out.

    Raises
    ------
    DataError
        If the test set cannot be read, has images of another shape, or none of the run's classes.
    """
    nothing = ImageSet(torch.zeros((0, *info.shape), dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    if not spec.server_test:
        return Splits(info, nothing, nothing, nothing), []
    source = read_source(spec.server_test, spec)
    images = source.test if len(source.test) else concatenate([source.train, source.val])
    _check_shape("data.server-test: images", tuple(images.images.shape[1:]), info.shape)
    names = [normal_form(name) for name in source.classes or [str(label) for label in range(int(images.labels.max()) + 1)]]
    if (highest := int(images.labels.max())) >= len(names):
        raise DataError(f"data.server-test: label {highest}; its {len(names)} classes count from 0; relabel these images")
    known = torch.tensor([name in info.classes for name in names])
    present = sorted({names[label] for label in images.labels.tolist()})
    test = _relabelled(images.subset(known[images.labels]), names, info.classes, "")
    if not len(test):
        raise DataError(f"data.server-test: its classes are {', '.join(present)}; the sites have none of them; name them alike")
    return Splits(info, nothing, nothing, test), [name for name in present if name not in info.classes]


def _check_shape(what: str, shape: tuple[int, ...], wanted: tuple[int, int, int]) -> None:
    """Refuse images of another shape (C, H, W) than the run's (DataError)."""
    if shape != wanted:
        remedy = "set data.size" if shape[0] == wanted[0] else f"convert them to {'greyscale' if wanted[0] == 1 else 'RGB'}"
        raise DataError(f"{what} are {shape}, the run's {wanted} (channels, height, width); {remedy}")


def _relabelled(images: ImageSet, names: Sequence[str], table: Sequence[str], remedy: str) -> ImageSet:
    """Return the images with the labels that their classes' names have in ``table``; DataError with ``remedy`` for others."""
    if not len(images):
        return empty_like(images)
    places = {name: label for label, name in enumerate(table)}
    labels = torch.tensor([places.get(normal_form(name), -1) for name in names])[images.labels]
    if bool((labels < 0).any()):
        absent = sorted({normal_form(names[label]) for label in images.labels[labels < 0].tolist()})
        raise DataError(f"classes {', '.join(absent)} have no place among the run's; {remedy}")
    return ImageSet(images.images, labels)


def own_location(location: str) -> Path:
    """Return the path in ``folder:/path`` or ``npz:/path``."""
    return path_of(location.partition(":")[2])
