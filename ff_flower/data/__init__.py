"""Image sets, their partition over the nodes, and what is done to pixels."""

from .datasets import DATASETS, DatasetInfo, Splits, load_splits
from .image_sets import ImageSet, concatenate
from .own_images import class_counts, in_table, load_own, own_info, own_location, server_splits
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
    "class_counts",
    "concatenate",
    "in_table",
    "label_distribution",
    "load_own",
    "load_splits",
    "own_info",
    "own_location",
    "partition_indices",
    "server_splits",
    "to_uint8",
    "to_unit",
]
