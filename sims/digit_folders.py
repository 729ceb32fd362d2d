"""Class folders of real images for demonstrations: scikit-learn's digits as PNG files."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ff_flower.config import DataSpec
from ff_flower.data import load_splits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_digit_folders(root: Path, classes: Mapping[str, Iterable[int]], per_class: int = 200) -> dict[str, Path]:
    """Write one folder per site, with a folder of PNG files per class.

    Parameters
    ----------
    root : Path
        Where the sites' folders are made.
    classes : mapping from str to iterable of int
        The digits of each site.
    per_class : int
        Most images of a class; there are about 180 of each.

    Returns
    -------
    dict
        The folder of each site.
    """
    from PIL import Image

    splits = load_splits(DataSpec(), seed=0)
    folders = {}
    for site, digits in classes.items():
        folders[site] = root / site
        for digit in digits:
            folder = folders[site] / NAMES[digit]
            folder.mkdir(parents=True)
            images = [image for part in (splits.train, splits.val, splits.test) for image in part.of_label(digit).images]
            for number, image in enumerate(images[:per_class]):
                Image.fromarray(image[0].numpy()).save(folder / f"patient-{site}-{digit}-{number:04d}.png")
    return folders
