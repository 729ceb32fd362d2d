"""Frozen, validated specs: the one source of every default.

A run is described by one `RunSpec`. It is read from Flower's flat run configuration (``"module.edm.steps" = 300``) by
`from_run_config`, written back by `RunSpec.flat`, and saved with the result. ``pyproject.toml`` repeats the defaults only
because Flower refuses keys that do not stand there; a test holds the two equal.
"""

from .base import Scalar, Spec, unknown_name
from .modules import (
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
    DataSpec,
    DistillationSpec,
    Method,
    PartitionSpec,
    RunSpec,
    SynthesisSpec,
    from_run_config,
)

__all__ = [
    "SIZES",
    "AveragingSpec",
    "ClassifierSpec",
    "DataSpec",
    "DistillationSpec",
    "EDMSpec",
    "FlowSpec",
    "GaussianMixtureSpec",
    "ImageShape",
    "Kind",
    "KindSpec",
    "Method",
    "ModuleSpec",
    "PartitionSpec",
    "RunSpec",
    "Scalar",
    "Spec",
    "SynthesisSpec",
    "TrainingSpec",
    "UNetSpec",
    "VAESpec",
    "from_run_config",
    "unknown_name",
]
