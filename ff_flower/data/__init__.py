"""Image sets, their partition over the nodes, and what is done to pixels."""

from .datasets import DATASETS, DatasetInfo, Splits, load_splits
from .image_sets import ImageSet, concatenate
from .partitioners import cached_partition_indices, label_distribution, partition_indices
from .transforms import AUGMENTATIONS, AugmentationPolicy, augment, to_uint8, to_unit

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "AugmentationPolicy",
    "DatasetInfo",
    "ImageSet",
    "Splits",
    "augment",
    "cached_partition_indices",
    "concatenate",
    "label_distribution",
    "load_splits",
    "partition_indices",
    "to_uint8",
    "to_unit",
]
