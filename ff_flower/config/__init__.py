"""Frozen, validated specs: the one source of every default.

A run is described by one `RunSpec`. It is read from Flower's flat run configuration (``"module.edm.steps" = 300``) by
`from_run_config`, written back by `RunSpec.flat`, and saved with the result. ``pyproject.toml`` repeats the defaults only
because Flower refuses keys that do not stand there; a test holds the two equal.
"""

from .base import Scalar, Spec, unknown_name
from .exclusion import Exclusion
from .images import LARGEST_SIDE, DataSpec, PartitionSpec
from .modules import (
    HEADS,
    SIZES,
    EDMSpec,
    FlowSpec,
    GaussianMixtureSpec,
    ImageShape,
    Kind,
    KindSpec,
    ModuleSpec,
    TrainingSpec,
    UNetSpec,
    VAESpec,
)
from .run import (
    AveragingSpec,
    ClassifierSpec,
    DistillationSpec,
    Method,
    RunSpec,
    SynthesisSpec,
    from_run_config,
    spec_digest,
)
from .sites import LONGEST_NAME, OWN, OWNER, ManifestSpec, SitePlace, class_names, is_name, normal_form, site_name, site_places
from .trust import MAX_MODULE_MB, TrustSpec

__all__ = [
    "HEADS",
    "LARGEST_SIDE",
    "LONGEST_NAME",
    "MAX_MODULE_MB",
    "OWN",
    "OWNER",
    "SIZES",
    "AveragingSpec",
    "ClassifierSpec",
    "DataSpec",
    "DistillationSpec",
    "EDMSpec",
    "Exclusion",
    "FlowSpec",
    "GaussianMixtureSpec",
    "ImageShape",
    "Kind",
    "KindSpec",
    "ManifestSpec",
    "Method",
    "ModuleSpec",
    "PartitionSpec",
    "RunSpec",
    "Scalar",
    "SitePlace",
    "Spec",
    "SynthesisSpec",
    "TrainingSpec",
    "TrustSpec",
    "UNetSpec",
    "VAESpec",
    "class_names",
    "from_run_config",
    "is_name",
    "normal_form",
    "site_name",
    "site_places",
    "spec_digest",
    "unknown_name",
]
