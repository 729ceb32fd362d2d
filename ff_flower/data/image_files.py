"""Readers of image files: folders with one folder per class, and ISIC 2019's official folder."""

import csv
import hashlib
import os
import re
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from filelock import FileLock

from ..errors import DataError
from .image_sets import ImageSet, Source, empty_like
from .kept_arrays import keep_arrays, kept_arrays

if TYPE_CHECKING:
    from PIL import Image

ISIC_CODES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")  # columns of the official CSV, in its order
ISIC_SIZE = 64  # pixels a side where data.size is 0
_SPLITS = ("train", "val", "test")
_ORIENTATION = 0x0112  # EXIF's tag
_GREYSCALE = {"1", "L", "LA"}
_DEEP = re.compile(r";16[BLN]")  # colours of 16 bits each, of which Pillow takes the upper 8
_EIGHT_BITS = _GREYSCALE | {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


def read_folder(path: Path, size: int) -> Source:
    """Read class folders, or ``train``, ``val`` and ``test`` folders (the last two optional) that hold class folders.

    Parameters
    ----------
    path : Path
        The folder; hidden files are ignored, every other file must be an image. Classes are the folders' names, sorted. What is
        transparent counts as opaque, and of several frames in a file the first is taken.
    size : int
        Pixels a side of the images returned; 0 keeps their own size, which must then be one and the same.

    Returns
    -------
    Source
        RGB images, or one channel if all files are greyscale.

    Raises
    ------
    DataError
        If the folder does not exist or holds no classes, if a class folder is empty or holds folders, if a file is no image of 8
        bits per channel, or if images of two sizes are to be kept as they are.
    PermissionError
        If the folder or a file in it may not be read.
    """
    if not path.is_dir():
        raise DataError(f"{path} does not exist; a folder of class folders is read there; correct the path")
    names = [folder.name for folder in _visible(path)]
    splits = tuple(split for split in _SPLITS if split in names) if "train" in names and set(names) <= set(_SPLITS) else ("",)
    files = {split: _class_files(path / split) for split in splits}
    classes = sorted({label for listing in files.values() for label in listing})
    everything = [file for listing in files.values() for paths in listing.values() for file in paths]
    mode = _common_mode(everything, size)
    sets = {split: _read_split(listing, classes, mode, size) for split, listing in files.items()}
    train = sets[splits[0]]
    return Source(train, sets.get("val", empty_like(train)), sets.get("test", empty_like(train)), classes=tuple(classes))


def read_isic(root: Path, cache: Path, size: int) -> Source:
    """Read ISIC 2019's training images, cropped to their central square and resized.

    Parameters
    ----------
    root : Path
        Folder with ``ISIC_2019_Training_Input/*.jpg``, ``ISIC_2019_Training_GroundTruth.csv`` and, if lesions are to stay on
        one side of every split, ``ISIC_2019_Training_Metadata.csv``.
    cache : Path
        Folder that keeps the resized images where ``root`` cannot be written to.
    size : int
        Pixels a side; 0 means `ISIC_SIZE`.

    Raises
    ------
    DataError
        If a file is missing, or a row of the ground truth has not exactly one of the eight classes.
    """
    size = size or ISIC_SIZE
    truth, metadata = (root / f"ISIC_2019_Training_{what}.csv" for what in ("GroundTruth", "Metadata"))
    if not truth.is_file():
        raise DataError(f"{truth} does not exist; ISIC 2019's official files are read there; unpack them or correct data.root")
    names, labels = _isic_labels(truth)
    store = root if os.access(root, os.W_OK) else cache
    store.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(truth.read_bytes()).hexdigest()[:16]
    kept = store / f"isic2019_{size}_{digest}.npz"
    with FileLock(store / f".{kept.name}.lock"):
        images = _kept_images(kept, (len(names), size, size, 3))
        if images is None:
            images = _isic_images(root / "ISIC_2019_Training_Input", names, size)
            keep_arrays(kept, "resized images are not kept, so every run makes them anew", images=images)
    train = ImageSet(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.tensor(labels))
    groups = _isic_lesions(metadata, names) if metadata.is_file() else None
    return Source(train, empty_like(train), empty_like(train), groups=groups)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _class_files(folder: Path) -> dict[str, list[Path]]:
    stray = [path for path in _visible(folder) if not path.is_dir()]
    if stray:
        raise DataError(f"{stray[0]} stands beside class folders; images stand in the folder of their class; move or remove it")
    listing = {path.name: _visible(path) for path in _visible(folder)}
    if not listing:
        raise DataError(f"{folder} holds no class folders; one folder per class is needed; create them")
    for name, files in listing.items():
        if not files:
            raise DataError(f"{folder / name} is empty; every class needs at least one image; add images or remove the folder")
        if deeper := [path for path in files if path.is_dir()]:
            raise DataError(
                f"{deeper[0]} is a folder within the class {name!r}; images stand in the folder of their class, below train, val "
                "and test where there are splits; move them there, or give the splits these names"
            )
    return listing


def _common_mode(files: Sequence[Path], size: int) -> str:
    """Return ``L`` when all files are greyscale, else ``RGB``; reads headers only."""
    from PIL import Image

    modes: set[str] = set()
    first: tuple[int, int] | None = None
    for file in files:
        try:
            with Image.open(file) as image:
                mode, shape = image.mode, image.size if size else _upright(image)
                deep = any(_DEEP.search(str(tile)) for tile in image.tile)
        except PermissionError:
            raise
        except _unreadable() as error:
            raise DataError(f"{file} is no image ({error}); class folders hold images only; remove or hide it") from error
        if deep or mode not in _EIGHT_BITS:
            mode = f"{mode} with 16 bits" if deep else mode
            raise DataError(f"{file} has pixels of mode {mode}; images have 8 bits per channel; convert it to greyscale or RGB")
        first = first or shape
        if not size and shape != first:
            raise DataError(
                f"{file} measures {shape[0]}x{shape[1]} pixels, {files[0]} {first[0]}x{first[1]}; images of one set share one "
                "size; resize them on reading with data.size"
            )
        modes.add(mode)
    return "L" if modes <= _GREYSCALE else "RGB"


def _unreadable() -> tuple[type[Exception], ...]:
    """Return what Pillow raises at damaged and at absurdly large images."""
    from PIL import Image

    return OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError


def _upright(image: "Image.Image") -> tuple[int, int]:
    """Return width and height of an image as it is looked at; cameras note how they were turned."""
    from PIL import Image

    turned = Image.Image.getexif(image).get(_ORIENTATION, 1) in (5, 6, 7, 8)  # that of PNG files decodes their pixels first
    width, height = image.size
    return (height, width) if turned else (width, height)


def _read_split(listing: dict[str, list[Path]], classes: list[str], mode: str, size: int) -> ImageSet:
    files = [(file, classes.index(label)) for label, paths in listing.items() for file in paths]
    with ThreadPoolExecutor() as pool:
        decoded = list(pool.map(lambda one: _read_file(one[0], mode, size), files))
    if odd := next((file for (file, _), one in zip(files, decoded, strict=True) if one.shape != decoded[0].shape), None):
        raise DataError(f"{odd} is turned by what stands behind its pixels; images of one set share one size; set data.size")
    pixels = np.stack(decoded)  # (n, H, W) or (n, H, W, 3)
    images = pixels[:, None] if mode == "L" else pixels.transpose(0, 3, 1, 2).copy()
    return ImageSet(torch.from_numpy(images), torch.tensor([label for _, label in files]))


def _read_file(file: Path, mode: str, size: int, crop: bool = False) -> np.ndarray:
    """Return the pixels of one file, resized to ``size`` unless it is 0; ``crop`` keeps the central square's proportions."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            if size:
                image.draft(mode, (2 * size, 2 * size))  # JPEG decodes to a smaller image at once
            converted = ImageOps.exif_transpose(image).convert(mode)
    except PermissionError:
        raise
    except _unreadable() as error:
        raise DataError(f"{file} cannot be read ({error}); images must be whole; replace or remove it") from error
    if size and crop:
        converted = ImageOps.fit(converted, (size, size), Image.Resampling.BILINEAR)
    elif size:
        converted = converted.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(converted)


def _isic_labels(truth: Path) -> tuple[list[str], list[int]]:
    names, labels = [], []
    with truth.open(newline="") as lines:
        for row in csv.DictReader(lines):
            marks = [code for code in ISIC_CODES if row.get(code) in ("1", "1.0")]
            if len(marks) != 1 or not row.get("image"):
                raise DataError(
                    f"{truth}: image {row.get('image')!r} has the classes {marks}; every row names an image and exactly one of "
                    f"{', '.join(ISIC_CODES)}; use the official file"
                )
            names.append(row["image"])
            labels.append(ISIC_CODES.index(marks[0]))
    if not names:
        raise DataError(f"{truth} has no rows; it lists the training images; use the official file")
    return names, labels


def _isic_lesions(metadata: Path, names: list[str]) -> np.ndarray:
    """Return int64 (n,): equal numbers for images of one lesion; an image without a lesion is a group of its own."""
    with metadata.open(newline="") as lines:
        lesions = {row.get("image"): row.get("lesion_id") for row in csv.DictReader(lines)}
    keys = [lesions.get(name) or f"image {name}" for name in names]
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _isic_images(folder: Path, names: list[str], size: int) -> np.ndarray:
    files = [folder / f"{name}.jpg" for name in names]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{missing[0]} and {len(missing) - 1} more do not exist; every row of the CSV has its image; unpack all")
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(lambda file: _read_file(file, "RGB", size, crop=True), files)))


def _kept_images(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the images resized earlier, or None when there are none or the file is damaged."""
    (images,) = kept_arrays(path, "images") or (None,)
    return images if images is not None and images.shape == shape and images.dtype == np.uint8 else None
