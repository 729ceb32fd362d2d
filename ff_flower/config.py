"""Frozen, validated specs: the one source of every default.

A run is described by one `RunSpec`. It is read from Flower's flat run configuration (``"module.edm.steps" = 300``) by
`from_run_config`, written back by `RunSpec.flat`, and saved with the result. ``pyproject.toml`` repeats the defaults only
because Flower refuses keys that do not stand there; a test holds the two equal.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import ConfigError

Method = Literal["federated-factory", "fedavg", "fedprox", "local", "centralized"]
Scalar = str | int | float | bool

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Spec(BaseModel):
    """Base of all specs: immutable, strictly typed, no unknown keys; keys are written with hyphens outside."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, populate_by_name=True, alias_generator=lambda name: name.replace("_", "-")
    )

    def flat(self) -> dict[str, Scalar]:
        """Return the spec as Flower's flat mapping from dotted, hyphenated keys to scalars."""
        return dict(_flatten(self.model_dump(by_alias=True)))


class DataSpec(Spec):
    """Which images, and where they are.

    Attributes
    ----------
    name : str
        A name of the table in ``ff_flower.data.datasets``, ``npz:/path/file.npz`` or ``folder:/path``.
    root : str
        Folder of local copies; empty means the environment variable ``FF_DATA``, else ``~/.cache/ff-flower/data``.
    download : bool
        Whether a set that is not under ``root`` may be downloaded.
    size : int
        Height and width in pixels to which images are resized; 0 keeps their own.
    val_fraction : float
        Share of the training images held out for validation where no official validation split exists.
    test_fraction : float
        Share held out for testing where no official test split exists; this split does not depend on the seed.
    """

    name: str = Field(default="digits", min_length=1)
    root: str = ""
    download: bool = True
    size: int = Field(default=0, ge=0, le=1024)
    val_fraction: Fraction = 0.1
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2


class PartitionSpec(Spec):
    """How the training images are split over the nodes.

    Attributes
    ----------
    kind : str
        ``pathological`` (the paper's "silos", accepted too): ``classes_per_node`` classes each; ``dirichlet`` with
        concentration ``alpha``; ``iid``; ``shards`` with ``shards_per_node`` label-sorted shards each.
    """

    kind: Literal["pathological", "silos", "dirichlet", "iid", "shards"] = "pathological"
    classes_per_node: Count = 1
    alpha: Positive = 0.3
    shards_per_node: Count = 2


class EDMSpec(Spec):
    """Network, training and sampler of the ``edm`` module (Karras et al. 2022, arXiv 2206.00364).

    Attributes
    ----------
    channels, depth : int
        Width of the U-Net's upper level (multiple of 8) and residual blocks before the lower one.
    patch : int
        Side of the pixel blocks folded into channels before the first convolution.
    rank : int
        Directions of the Gaussian that the network corrects; 0 is EDM's own preconditioning, independent pixels.
    symmetry : str
        Under what the class's images may be turned without becoming improbable: ``none``, ``mirror`` (left and right), or
        ``dihedral`` (all eight symmetries of the square, as for cells).
    steps, batch_size : int
        Optimizer steps and images per step.
    learning_rate : float
        Peak of the AdamW learning rate.
    ema : float
        The moving average of the weights takes in a share 1 / (1 + ema t) of them at step t: it looks back over ema t steps.
    p_mean, p_std : float
        Mean and standard deviation of ln(sigma) in training (EDM, table 1), sigma in units of the class's deviation.
    sigma_min, sigma_max, rho : float
        Ends and curvature of the sampling schedule (EDM, equation 5), in the same units.
    sampling_steps : int
        Heun steps; each but the last costs two network evaluations.
    """

    channels: int = Field(default=16, ge=8, le=512, multiple_of=8)
    depth: int = Field(default=1, ge=1, le=8)
    patch: Literal[1, 2, 4] = 1
    rank: int = Field(default=32, ge=0, le=1024)
    symmetry: Literal["none", "mirror", "dihedral"] = "none"
    steps: Count = 250
    batch_size: Count = 64
    learning_rate: Positive = 3e-3
    ema: Fraction = 0.1
    p_mean: float = Field(default=-0.4, ge=-10, le=10)
    p_std: Positive = 1.4
    sigma_min: Positive = 0.05
    sigma_max: Positive = 10.0
    rho: Positive = 7.0
    sampling_steps: Count = 8

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"a schedule that falls: sigma-min {self.sigma_min} below sigma-max {self.sigma_max}")
        return self


class GaussianMixtureSpec(Spec):
    """PCA to ``components`` dimensions, then a mixture of at most ``mixtures`` Gaussians with full covariances.

    Attributes
    ----------
    components : int
        Largest number of principal components.
    mixtures : int
        Largest number of Gaussians; small classes get fewer, one per ``images_per_mixture`` images.
    images_per_mixture : int
        Images needed for each Gaussian.
    regularization : float
        Added to the covariances' diagonals, in units of whitened pixels.
    residual_noise : bool
        Whether the variance that PCA drops comes back as independent pixel noise.
    """

    components: Count = 32
    mixtures: Count = 8
    images_per_mixture: Count = 20
    regularization: Positive = 1e-3
    residual_noise: bool = False


class ModuleSpec(Spec):
    """The generative module that a node fits per local class."""

    kind: Literal["edm", "gaussian_mixture"] = "edm"
    min_images: Count = 10
    wire_dtype: Literal["float16", "float32"] = "float16"
    edm: EDMSpec = EDMSpec()
    gaussian_mixture: GaussianMixtureSpec = GaussianMixtureSpec()

    def of_kind(self) -> Spec:
        """Return the settings of the chosen kind alone."""
        chosen: Spec = getattr(self, self.kind)
        return chosen


class SynthesisSpec(Spec):
    """How much is synthesized and where.

    Attributes
    ----------
    site : str
        ``client``: every node synthesizes and fits a classifier, and so does the server; ``server``: the server alone
        does, strictly one upload.
    samples_per_class : int
        Images per class, shared among the owners of a class by their number of examples.
    own_class : float
        Share of a node's own classes' images that is synthetic beside its real ones, against learning
        "real or synthetic" in place of the class.
    """

    site: Literal["client", "server"] = "client"
    samples_per_class: Count = 500
    own_class: float = Field(default=0.5, ge=0, le=1)


class ClassifierSpec(Spec):
    """Network and training of every classifier: nodes', server's, student's and baselines'.

    Attributes
    ----------
    network : str
        ``cnn`` (small, GroupNorm), ``resnet18`` or ``resnet50`` (3x3 stem, GroupNorm).
    width : int
        Channels of the ``cnn``'s first level.
    steps, batch_size : int
        Optimizer steps and images per step.
    learning_rate, weight_decay, label_smoothing : float
        AdamW under a one-cycle schedule.
    augment : bool
        Whether the data set's augmentation policy is applied, for all methods alike.
    """

    network: Literal["cnn", "resnet18", "resnet50"] = "cnn"
    width: int = Field(default=32, ge=8, le=512, multiple_of=8)
    steps: Count = 300
    batch_size: Count = 64
    learning_rate: Positive = 2e-3
    weight_decay: NonNegative = 0.02
    label_smoothing: Fraction = 0.0
    augment: bool = True


class DistillationSpec(Spec):
    """How the pooled logits become one student: soft targets at ``temperature``, for ``steps`` optimizer steps."""

    temperature: Positive = 2.0
    steps: Count = 300


class AveragingSpec(Spec):
    """Rounds of the averaging baselines, local epochs in each, their SGD, and FedProx's weight of the proximal term.

    The learning rate falls by a half cosine over the rounds; ``classifier.batch_size`` and ``augment`` hold here too.
    """

    rounds: Count = 50
    local_epochs: Count = 1
    learning_rate: Positive = 0.2
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 5e-4
    proximal_mu: NonNegative = 0.1


class RunSpec(Spec):
    """One run, whole.

    Attributes
    ----------
    method : str
        ``federated-factory``, or the baselines ``fedavg``, ``fedprox``, ``local``, ``centralized``.
    seed : int
        The root of every random number.
    num_clients : int
        Nodes of the federation, which is the number of partitions.
    consensus : str
        What nodes answer after fitting their classifiers: ``none``, ``poe`` (weights, for the product of experts), ``logits``
        (on the shared synthetic set, for the student), or ``poe,logits``.
    min_modules, min_classes : int
        Fewest verified modules and classes with which a run goes on.
    timeout : float
        Seconds the server waits for the replies of one step.
    threads : int
        Torch threads of a node; results are equal to the last bit only for equal numbers.
    server_threads : int
        Torch threads of the server; 0 means all cores.
    device : str
        ``auto`` takes the first GPU when there is one.
    deterministic : bool
        Whether torch may only use algorithms that repeat to the last bit.
    out : str
        Folder of run directories; empty means ``FF_RUNS``, else ``runs`` in the working directory.
    """

    method: Method = "federated-factory"
    seed: int = Field(default=0, ge=0, lt=2**63)
    num_clients: int = Field(default=10, ge=1, le=100_000)
    consensus: Literal["none", "poe", "logits", "poe,logits"] = "poe,logits"
    min_modules: Count = 1
    min_classes: Count = 2
    timeout: Positive = 7200.0
    threads: int = Field(default=1, ge=1, le=1024)
    server_threads: int = Field(default=0, ge=0, le=1024)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    deterministic: bool = True
    out: str = ""
    data: DataSpec = DataSpec()
    partition: PartitionSpec = PartitionSpec()
    module: ModuleSpec = ModuleSpec()
    synthesis: SynthesisSpec = SynthesisSpec()
    classifier: ClassifierSpec = ClassifierSpec()
    distillation: DistillationSpec = DistillationSpec()
    averaging: AveragingSpec = AveragingSpec()

    def digest(self) -> str:
        """Return the SHA-256 of everything that can change a result (not where it is written or how long to wait)."""
        aside = {"out", "timeout", "data.root", "data.download"}
        kept = {key: value for key, value in self.flat().items() if key not in aside}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def from_run_config(run_config: Mapping[str, Scalar]) -> RunSpec:
    """Build the spec from Flower's flat run configuration.

    Parameters
    ----------
    run_config : mapping from str to scalar
        Dotted, hyphenated keys, for example ``{"module.edm.steps": 300}``; what is absent takes its default.

    Raises
    ------
    ConfigError
        For an unknown key, a value of the wrong type or out of range: one line each, naming key, value and rule.
    """
    nested: dict[str, Any] = {}
    known = RunSpec().flat()
    problems = []
    for key, value in run_config.items():
        if key not in known:
            problems.append(_unknown(key, list(known)))
            continue
        *tables, last = key.split(".")
        table = nested
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = value
    try:
        spec = RunSpec.model_validate(nested)
    except ValidationError as error:
        problems += [_sentence(dict(detail)) for detail in error.errors()]
    if problems:
        raise ConfigError("\n".join(problems))
    return spec


def unknown_name(what: str, name: str, known: list[str]) -> str:
    """Return the sentence that refuses ``name`` and lists what exists."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what} {name!r}{hint}; there are: {', '.join(sorted(known))}"


def _unknown(key: str, known: list[str]) -> str:
    return unknown_name("key", key, known)


def _sentence(detail: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    rule = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    default = RunSpec().flat().get(key)
    return f"{key} = {detail['input']!r}: must be {rule}" + ("" if default is None else f"; the default is {default!r}")


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
