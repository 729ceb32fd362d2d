"""The one table of image sets, and how a `DataSpec` becomes training, validation and test images.

Official splits are kept. Where none exists, test images are held out by a fixed seed, the same in every run, and validation
images by the run's seed; both class by class.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from ..config import LARGEST_SIDE, LONGEST_NAME, DataSpec, is_name, unknown_name
from ..errors import ConfigError, DataError
from ..machine import path_of
from ..seeding import numpy_generator
from .image_files import ISIC_SIZE, read_folder, read_isic
from .image_sets import ImageSet, Source, held_out
from .loaders import read_digits, read_medmnist, read_npz, read_torchvision

SourceKind = Literal["scikit-learn", "medmnist", "torchvision", "isic", "npz", "folder", "sites"]

_TEST_SEED = 0
_CACHE = "~/.cache/ff-flower/data"


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of an image set without reading it.

    Attributes
    ----------
    name, title : str
        The name in configurations and the name in print.
    classes : tuple of str
        Names of the classes; labels are positions in it.
    shape : tuple of int
        Channels, height and width of the images.
    task : str
        MedMNIST's word for the task: ``binary-class``, ``multi-class`` or ``ordinal-regression``.
    licence : str
        Licence of the images as their publishers state it.
    augmentation : str
        Name of the policy in ``AUGMENTATIONS``.
    source : str
        Which reader reads the set.
    citation : str
        Where the images were published; empty for private ones.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    task: str
    licence: str
    augmentation: str
    source: SourceKind
    citation: str


@dataclass(frozen=True)
class Splits:
    """Training, validation (perhaps empty) and test images of one shape; ``info.shape`` is that of these images."""

    info: DatasetInfo
    train: ImageSet
    val: ImageSet
    test: ImageSet

    @property
    def num_classes(self) -> int:
        """Number of classes, with or without images."""
        return len(self.info.classes)

    def digest(self) -> str:
        """Return the SHA-256 of all images and labels, and of how they are split."""
        return hashlib.sha256("".join(part.digest() for part in (self.train, self.val, self.test)).encode()).hexdigest()


def _medmnist(
    title: str, classes: str, channels: int, augmentation: str, citation: str, task: str = "multi-class"
) -> DatasetInfo:
    name = title.split(",")[0].lower()
    cited = f"Yang et al., MedMNIST v2, Scientific Data 10:41, 2023; {citation}"
    licence = "CC BY-NC 4.0" if name == "dermamnist" else "CC BY 4.0"
    return DatasetInfo(
        name, title, tuple(classes.split("; ")), (channels, 28, 28), task, licence, augmentation, "medmnist", cited
    )


_DIGITS = tuple("0123456789")
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CLOTHES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_LESIONS = (
    "melanoma", "melanocytic nevus", "basal cell carcinoma", "actinic keratosis", "benign keratosis", "dermatofibroma",
    "vascular lesion", "squamous cell carcinoma",
)  # fmt: skip
_FINDINGS = (
    "atelectasis; cardiomegaly; effusion; infiltration; mass; nodule; pneumonia; pneumothorax; consolidation; edema; emphysema; "
    "fibrosis; pleural; hernia"
)
_ORGANS = "bladder; femur-left; femur-right; heart; kidney-left; kidney-right; liver; lung-left; lung-right; pancreas; spleen"
_TISSUES = (
    "adipose; background; debris; lymphocytes; mucus; smooth muscle; normal colon mucosa; cancer-associated stroma; "
    "colorectal adenocarcinoma epithelium"
)
_CELLS = (
    "basophil; eosinophil; erythroblast; immature granulocytes(myelocytes, metamyelocytes and promyelocytes); lymphocyte; "
    "monocyte; neutrophil; platelet"
)
_KIDNEY = (
    "Collecting Duct, Connecting Tubule; Distal Convoluted Tubule; Glomerular endothelial cells; Interstitial endothelial cells; "
    "Leukocytes; Podocytes; Proximal Tubule Segments; Thick Ascending Limb"
)
_DERMA = (
    "actinic keratoses and intraepithelial carcinoma; basal cell carcinoma; benign keratosis-like lesions; dermatofibroma; "
    "melanoma; melanocytic nevi; vascular lesions"
)
_BREAST = "malignant; normal, benign"
_OCT = "choroidal neovascularization; diabetic macular edema; drusen; normal"
_KERMANY = "Kermany et al., Cell 172, 2018"
_LITS = "Bilic et al., Medical Image Analysis 84, 2023"

# No flips where left and right are told apart (digits, organs, chests); chestmnist has many findings per image, of which
# the images with at most one are taken, as the class of that finding or "no finding".
_ENTRIES = (
    DatasetInfo("digits", "Optical digits", _DIGITS, (1, 8, 8), "multi-class", "CC BY 4.0", "digits", "scikit-learn",
                "Alpaydin and Kaynak, UCI Machine Learning Repository, 1998"),
    DatasetInfo("mnist", "MNIST", _DIGITS, (1, 28, 28), "multi-class", "CC BY-SA 3.0", "digits", "torchvision",
                "LeCun et al., Proceedings of the IEEE 86, 1998"),
    DatasetInfo("fashion-mnist", "Fashion-MNIST", _CLOTHES, (1, 28, 28), "multi-class", "MIT", "natural", "torchvision",
                "Xiao et al., arXiv 1708.07747, 2017"),
    DatasetInfo("cifar10", "CIFAR-10", _CIFAR, (3, 32, 32), "multi-class", "not stated", "natural", "torchvision",
                "Krizhevsky, Learning multiple layers of features from tiny images, 2009"),
    DatasetInfo("isic2019", "ISIC 2019", _LESIONS, (3, ISIC_SIZE, ISIC_SIZE), "multi-class", "CC BY-NC 4.0", "dihedral", "isic",
                "Tschandl et al., Scientific Data 5, 2018; Codella et al., ISBI 2018; Combalia et al., arXiv 1908.02288, 2019"),
    _medmnist("PathMNIST", _TISSUES, 3, "dihedral", "Kather et al., PLOS Medicine 16, 2019"),
    _medmnist("ChestMNIST, at most one finding", f"no finding; {_FINDINGS}", 1, "scan", "Wang et al., CVPR 2017"),
    _medmnist("DermaMNIST", _DERMA, 3, "dihedral", "Tschandl et al., Scientific Data 5, 2018"),
    _medmnist("OCTMNIST", _OCT, 1, "mirrored-scan", _KERMANY),
    _medmnist("PneumoniaMNIST", "normal; pneumonia", 1, "scan", _KERMANY, "binary-class"),
    _medmnist("RetinaMNIST", "0; 1; 2; 3; 4", 3, "mirrored-scan", "Liu et al., Patterns 3, 2022", "ordinal-regression"),
    _medmnist("BreastMNIST", _BREAST, 1, "mirrored-scan", "Al-Dhabyani et al., Data in Brief 28, 2020", "binary-class"),
    _medmnist("BloodMNIST", _CELLS, 3, "dihedral", "Acevedo et al., Data in Brief 30, 2020"),
    _medmnist("TissueMNIST", _KIDNEY, 1, "dihedral", "Woloshuk et al., Cytometry A 99, 2021"),
    _medmnist("OrganAMNIST", _ORGANS, 1, "scan", _LITS),
    _medmnist("OrganCMNIST", _ORGANS, 1, "scan", _LITS),
    _medmnist("OrganSMNIST", _ORGANS, 1, "scan", _LITS),
)  # fmt: skip

DATASETS: dict[str, DatasetInfo] = {entry.name: entry for entry in _ENTRIES}


def load_splits(spec: DataSpec, seed: int) -> Splits:
    """Read the images that ``spec`` names and hold out what has no official split.

    Parameters
    ----------
    spec : DataSpec
        ``name`` is one of `DATASETS`, ``npz:/path/file.npz`` or ``folder:/path``; relative paths start at the data root.
    seed : int
        The run's root seed; it decides which training images serve as validation images where no official ones exist. An
        official test split, or the one held out in its place, does not depend on it.

    Returns
    -------
    Splits
        Equal for equal arguments. What was read stays in memory for the next call in this process: do not write into it.

    Raises
    ------
    ConfigError
        If no set has that name.
    DataError
        If the root or a file does not exist, or holds something else than labelled images.
    """
    kind, colon, location = spec.name.partition(":")
    if spec.name not in DATASETS and not (colon and kind in ("npz", "folder") and location):
        raise ConfigError(unknown_name("data set", spec.name, [*DATASETS, "npz:/path/file.npz", "folder:/path"]))
    return _splits(spec, _data_root(spec), seed)


@lru_cache(maxsize=1)  # whatever nodes of a simulation a process serves, they ask for the same
def _splits(spec: DataSpec, root: Path, seed: int) -> Splits:
    return split_source(spec.name, _read(spec.name, root, spec.size, spec.download), spec, seed)


def read_source(location: str, spec: DataSpec) -> Source:
    """Read ``folder:/path`` or ``npz:/path/file.npz``, an absolute path, resized to ``spec.size`` unless it is 0."""
    return _read(location, Path("/"), spec.size, False)


def split_source(name: str, source: Source, spec: DataSpec, seed: int) -> Splits:
    """Hold out what has no official split, as in `load_splits`; ``name`` is the set's."""
    info = with_augmentation(_described(name, source), spec)
    _check_told(info)
    for part in (source.train, source.val, source.test):
        if len(part) and int(part.labels.max()) >= len(info.classes):
            found, allowed = int(part.labels.max()), len(info.classes)
            raise DataError(f"{name}: label {found}; its {allowed} classes count from 0; relabel these images")
    train, test, groups = source.train, source.test, source.groups
    if len(test) == 0:
        train, test, groups = _divided(train, groups, spec.test_fraction, numpy_generator(_TEST_SEED, "data", "test"))
    val = source.val
    if len(val) == 0:
        train, val, _ = _divided(train, groups, spec.val_fraction, numpy_generator(seed, "data", "val"))
    if len(test) == 0:
        raise DataError(f"{name}: no class has two images; one of each class is held out for testing; add images")
    return Splits(info, train, val, test)


def with_augmentation(info: DatasetInfo, spec: DataSpec) -> DatasetInfo:
    """Return ``info`` with the augmentation that ``spec`` names; ``auto`` leaves the set's own."""
    return info if spec.augmentation == "auto" else replace(info, augmentation=spec.augmentation)


def _data_root(spec: DataSpec) -> Path:
    default = path_of(_CACHE)
    chosen = spec.root or os.environ.get("FF_DATA", "")
    root = path_of(chosen) if chosen else default
    if root == default:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{root} cannot be made ({error.strerror}); image sets are kept there; set data.root or FF_DATA"
            ) from error
    if not root.is_dir():
        origin = "data.root" if spec.root else "FF_DATA"
        raise DataError(f"{root} does not exist; {origin} names the folder of local copies; create it or correct {origin}")
    return root


@lru_cache(maxsize=2)
def _read(name: str, root: Path, size: int, download: bool) -> Source:
    """Read and resize a set, once per process."""
    kind, _, location = name.partition(":")
    path = root / path_of(location)
    findings = len(DATASETS[name].classes) - 1 if name == "chestmnist" else 0
    readers: dict[str, Callable[[], Source]] = {
        "scikit-learn": read_digits,
        "medmnist": lambda: read_medmnist(name, root, size, download, findings),
        "torchvision": lambda: read_torchvision(name, root, download),
        "isic": lambda: read_isic(root, path_of(_CACHE), size),
        "npz": lambda: read_npz(path),
        "folder": lambda: read_folder(path, size),
    }
    try:
        source = readers[DATASETS[name].source if name in DATASETS else kind]()
    except PermissionError as error:
        raise DataError(
            f"{error.filename} cannot be read or written ({error.strerror}); give the user of this process the right to"
        ) from error
    return source.resized(size) if size else source


def _described(name: str, source: Source) -> DatasetInfo:
    """Return the table's entry for the shape that was read, or one made of the file itself (its name without the folders)."""
    channels, height, width = source.train.images.shape[1:]
    if name in DATASETS:
        return replace(DATASETS[name], shape=(channels, height, width))
    kind, _, location = name.partition(":")
    highest = max(int(part.labels.max()) for part in (source.train, source.val, source.test) if len(part))
    classes = source.classes or tuple(str(label) for label in range(highest + 1))
    task = "binary-class" if len(classes) == 2 else "multi-class"
    title = Path(location).name
    reader: SourceKind = "npz" if kind == "npz" else "folder"
    return DatasetInfo(f"{kind}:{title}", title, classes, (channels, height, width), task, "not stated", "none", reader, "")


def _check_told(info: DatasetInfo) -> None:
    """Refuse what no module's manifest can tell of (DataError)."""
    for what, name in (("image set", info.name), *(("class", one) for one in info.classes)):
        if not is_name(name):
            raise DataError(f"{what} {name[:LONGEST_NAME]!r}; a name has 1 to {LONGEST_NAME} printable characters; rename it")
    height, width = info.shape[1:]
    if max(height, width) > LARGEST_SIDE:
        raise DataError(f"{info.name}: {width} x {height} pixels; images have at most {LARGEST_SIDE} a side; set data.size")


def _divided(
    images: ImageSet, groups: np.ndarray | None, fraction: float, rng: np.random.Generator
) -> tuple[ImageSet, ImageSet, np.ndarray | None]:
    """Return the images kept, the images held out, and the groups of those kept."""
    held = held_out(images.labels.numpy(), groups, fraction, rng)
    return images.subset(~held), images.subset(held), None if groups is None else groups[~held]
