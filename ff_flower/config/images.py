"""Which images a run learns from, and how they are split over its nodes."""

from typing import Annotated, Literal

from pydantic import Field

from .base import Count, Fraction, Positive, Spec
from .sites import OWN

LARGEST_SIDE = 1024  # pixels of an image that a manifest may tell of


class DataSpec(Spec):
    """Which images, and where they are.

    Attributes
    ----------
    name : str
        A name of the table in ``ff_flower.data.datasets``, ``npz:/path/file.npz``, ``folder:/path``, or ``sites``: every node
        brings its own images.
    root : str
        Folder of local copies; empty means the environment variable ``FF_DATA``, else ``~/.cache/ff-flower/data``.
    download : bool
        Whether a set that is not under ``root`` may be downloaded.
    size : int
        Height and width in pixels to which images are resized; 0 keeps their own. At 64, 128 and 224 MedMNIST sets are read
        from the larger files of MedMNIST+, where these are there or may be downloaded.
    augmentation : str
        What may happen to images in the training of classifiers without changing their labels, of all methods alike; a name of
        ``ff_flower.data.AUGMENTATIONS``, or ``auto``: as the table of image sets says, and ``none`` for images of your own.
    val_fraction : float
        Share of the training images held out for validation where no official validation split exists.
    test_fraction : float
        Share held out for testing where no official test split exists; this split does not depend on the seed.
    sites : str
        With ``sites`` in simulation: the nodes' images in order, ``north=folder:/a,south=npz:/b.npz``; in a deployment every
        SuperNode names its own, and this stays empty.
    classes : str
        With ``sites``: names of the classes that may occur, by label, separated by semicolons; empty takes what sites name.
    server_test : str
        With ``sites``: test images at the server, ``folder:`` or ``npz:`` with an absolute path; empty scores classifiers at the
        sites.
    """

    name: str = Field(default="digits", min_length=1)
    root: str = ""
    download: bool = True
    size: int = Field(default=0, ge=0, le=LARGEST_SIDE)
    augmentation: Literal["auto", "none", "digits", "natural", "dihedral", "scan", "mirrored-scan"] = "auto"
    val_fraction: Fraction = 0.1
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    sites: str = ""
    classes: str = ""
    server_test: str = ""

    @property
    def own(self) -> bool:
        """Whether every node brings its own images."""
        return self.name == OWN

    @property
    def elsewhere(self) -> bool:
        """Whether these are the sites of a deployment, for which no simulation can stand."""
        return self.own and not self.sites


class PartitionSpec(Spec):
    """How the training images are split over the nodes.

    Attributes
    ----------
    kind : str
        ``pathological`` (the paper's "silos", accepted too): ``classes_per_node`` classes each; ``dirichlet`` with
        concentration ``alpha``; ``iid``; ``shards`` with ``shards_per_node`` label-sorted shards each.
    classes_per_node : int
        Classes that each node holds where ``kind`` is ``pathological``; 1 makes labels mutually exclusive.
    alpha : float
        Concentration where ``kind`` is ``dirichlet``: the smaller, the fewer nodes share a class.
    shards_per_node : int
        Equal runs of the images, sorted by label, that each node gets where ``kind`` is ``shards``.
    """

    kind: Literal["pathological", "silos", "dirichlet", "iid", "shards"] = "pathological"
    classes_per_node: Count = 1
    alpha: Positive = 0.3
    shards_per_node: Count = 2
