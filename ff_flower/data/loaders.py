"""Readers of array files: MedMNIST's npz and what the scientific Python packages bring or download."""

import os
import tempfile
import zipfile
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from ..errors import DataError
from .image_sets import ImageSet, Source, empty_like

SPLITS = ("train", "val", "test")
MEDMNIST_SIZES = (64, 128, 224)  # the larger images of MedMNIST+
_KEYS = tuple(f"{split}_{what}" for split in SPLITS for what in ("images", "labels"))


def read_npz(path: Path, findings: int = 0) -> Source:
    """Read an npz file with MedMNIST's keys.

    Parameters
    ----------
    path : Path
        File with ``{train,val,test}_images``, uint8 (n, H, W) or (n, H, W, C), and ``{train,val,test}_labels``, integers
        (n,) or (n, 1); zero rows say that there is no such split. The optional key ``label_names`` names the classes.
    findings : int
        When positive, labels are (n, findings) of 0 and 1: images with at most one finding are taken, as class 0 without
        and class 1 + i with finding i.

    Raises
    ------
    DataError
        If the file cannot be read without unpickling, lacks a key, or holds images or labels of another kind.
    PermissionError
        If it may not be read.
    """
    arrays = _arrays(path)
    sets = [_image_set(path, split, arrays, findings) for split in SPLITS]
    train, shape = sets[0], sets[0].images.shape[1:]
    if len(train) == 0:
        raise DataError(f"{path}: train_images has no rows; a data set needs training images; add them")
    for split, part in zip(SPLITS, sets, strict=True):
        if len(part) and part.images.shape[1:] != shape:
            raise DataError(
                f"{path}: {split}_images are {tuple(part.images.shape[1:])}, train_images {tuple(shape)} (channels, height, "
                "width); all images share one shape; resize them before saving"
            )
    val, test = (part if len(part) else empty_like(train) for part in sets[1:])
    return Source(train, val, test, classes=_label_names(path, arrays))


def read_digits() -> Source:
    """Read scikit-learn's digits: 1,797 scans of 8 x 8 pixels, 0..16 scaled to 0..255; no official split."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    train = ImageSet(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))
    return Source(train, empty_like(train), empty_like(train))


def read_medmnist(name: str, root: Path, size: int, download: bool, findings: int = 0) -> Source:
    """Read a MedMNIST set from ``root``, where it is first downloaded if it is missing and may be.

    Sizes 64, 128 and 224 read the larger images of MedMNIST+. Where their file neither exists nor may be downloaded, the
    images of 28 pixels are returned.

    Raises
    ------
    DataError
        If the file is missing and may not or cannot be downloaded.
    """
    larger = root / f"{name}_{size}.npz"
    small = root / f"{name}.npz"
    path = larger if size in MEDMNIST_SIZES and (larger.is_file() or download or not small.is_file()) else small
    if not path.is_file():
        if not download:
            raise DataError(f"{path} does not exist; without data.download a local copy is needed; put it there or allow it")
        _download_medmnist(name, path, size if path == larger else 28)
    return read_npz(path, findings)


def read_torchvision(name: str, root: Path, download: bool) -> Source:
    """Read MNIST, Fashion-MNIST or CIFAR-10: ``<root>/<name>.npz`` when it exists, else torchvision's files under ``root``.

    Raises
    ------
    DataError
        If neither exists and torchvision may not or cannot download its files.
    """
    local = root / f"{name}.npz"
    if local.is_file():
        return read_npz(local)
    from torchvision import datasets

    kind = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}[name]
    lock = FileLock(root / f".{name}.lock") if os.access(root, os.W_OK) else nullcontext()
    try:
        with lock:
            train, test = (kind(str(root), train=part, download=download) for part in (True, False))
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{name} is not under {root} and was not downloaded; torchvision's files or {local.name} are needed; put them "
            "there, or allow data.download where there is a network"
        ) from error
    parts = [ImageSet(_channels_first(np.asarray(part.data)), torch.as_tensor(part.targets).long()) for part in (train, test)]
    return Source(parts[0], empty_like(parts[0]), parts[1])


def _download_medmnist(name: str, path: Path, size: int) -> None:
    import medmnist

    kind = getattr(medmnist, medmnist.INFO[name]["python_class"])
    try:
        with FileLock(path.with_name(f".{path.name}.lock")), tempfile.TemporaryDirectory(dir=path.parent) as folder:
            if not path.is_file():
                kind(split="test", root=folder, download=True, size=size)
                Path(folder, path.name).replace(path)
    except (RuntimeError, OSError) as error:
        page = medmnist.INFO[name]["url"].split("/files")[0]
        resized = "" if size == 28 else f", or resize the small images of {name}.npz with data.download = false"
        raise DataError(
            f"{path} does not exist and was not downloaded; a local copy or a network is needed; get it from {page}{resized}"
        ) from error


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"{path} does not exist; an npz file with MedMNIST's keys is read there; correct the path")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in _KEYS if key not in archive]
            if missing:
                raise DataError(
                    f"{path}: no {', '.join(missing)}; the keys {', '.join(_KEYS)} are needed; add them, with zero rows where "
                    "there is no such split"
                )
            return {key: archive[key] for key in (*_KEYS, "label_names") if key in archive}
    except (DataError, PermissionError):
        raise
    except (ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); an npz holds plain arrays, no objects and no images of two sizes; save it "
            "again with numpy.savez_compressed"
        ) from error


def _image_set(path: Path, split: str, arrays: dict[str, np.ndarray], findings: int) -> ImageSet:
    images, labels = arrays.pop(f"{split}_images"), arrays.pop(f"{split}_labels")  # the copies below take their place
    channels = images.shape[3] if images.ndim == 4 else 1
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or channels not in (1, 3):
        raise DataError(
            f"{path}: {split}_images is {images.dtype} of shape {images.shape}; images are uint8 in [0, 255] of shape (n, H, W) "
            "or (n, H, W, C) with C = 1 or 3; convert them and save again"
        )
    if len(images) and images.max() == 1:
        raise DataError(
            f"{path}: {split}_images holds nothing above 1; images are uint8 in [0, 255], and these are on the scale of 0 to 1; "
            "multiply them by 255 before they become whole numbers, and save again"
        )
    wanted = [(len(images), findings)] if findings else [(len(images),), (len(images), 1)]
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape not in wanted:
        raise DataError(
            f"{path}: {split}_labels is {labels.dtype} of shape {labels.shape}; {len(images)} images need integers of shape "
            f"{' or '.join(map(str, wanted))}; save one label per image"
        )
    if findings:
        single = labels.sum(axis=1) <= 1
        images, labels = images[single], np.where(labels.any(axis=1), 1 + labels.argmax(axis=1), 0)[single]
    labels = labels.reshape(-1).astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise DataError(f"{path}: {split}_labels holds {labels.min()}; labels count from 0; drop or relabel these images")
    return ImageSet(_channels_first(images), torch.from_numpy(labels))


def _channels_first(images: np.ndarray) -> torch.Tensor:
    stacked = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(stacked))


def _label_names(path: Path, arrays: dict[str, np.ndarray]) -> tuple[str, ...] | None:
    names = arrays.get("label_names")
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind != "U" or len(set(names.tolist())) != len(names):
        raise DataError(
            f"{path}: label_names is {names.dtype} of shape {names.shape}; it holds one different text per class; save it with "
            "numpy.array([...], dtype=str)"
        )
    return tuple(names.tolist())
