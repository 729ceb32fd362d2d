"""The spec of a run, and how it is read from Flower's flat run configuration."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from ..errors import ConfigError
from .base import Count, Fraction, NonNegative, Positive, Scalar, Spec, unknown_name
from .exclusion import Exclusion
from .images import DataSpec, PartitionSpec
from .modules import ModuleSpec
from .sites import OWN, ManifestSpec, class_names, is_place, site_places
from .trust import TrustSpec

Method = Literal["federated-factory", "fedavg", "fedprox", "local", "centralized"]


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
        "real or synthetic" in place of the class, and against learning a class from few images; 0 takes real ones alone,
        which is a little better where a node holds a thousand or more of a class.
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
    learning_rate : float
        Peak of AdamW's one-cycle schedule.
    weight_decay : float
        Decoupled weight decay of AdamW.
    label_smoothing : float
        Share of the target that is spread over all classes.
    augment : bool
        Whether the data set's augmentation policy is applied, for all methods alike.
    mixup, cutmix : float
        Parameter of the Beta distribution from which mixup and CutMix take their shares, for all methods alike; 0 is off, and
        with both on a fair coin chooses for each batch.
    ema : float
        Share of the training over whose end the weights are averaged; 0 is off, as it is in the averaging baselines' local
        epochs, which are averaged over nodes.
    """

    network: Literal["cnn", "resnet18", "resnet50"] = "cnn"
    width: int = Field(default=32, ge=8, le=512, multiple_of=8)
    steps: Count = 300
    batch_size: Count = 64
    learning_rate: Positive = 2e-3
    weight_decay: NonNegative = 0.02
    label_smoothing: Fraction = 0.0
    augment: bool = True
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    ema: Fraction = 0.0


class DistillationSpec(Spec):
    """How the pooled logits become one student.

    Attributes
    ----------
    temperature : float
        Divides the logits of teacher and student.
    steps : int
        Optimizer steps; all else is as ``classifier`` says.
    hard_labels : float
        Share of the cross entropy with the synthetic labels beside the soft targets.
    min_agreement : float
        Synthetic images whose own label has less than this pooled probability are left out; a class of which none would be
        left is kept whole.
    """

    temperature: Positive = 2.0
    steps: Count = 300
    hard_labels: float = Field(default=0.0, ge=0, le=1)
    min_agreement: float = Field(default=0.0, ge=0, le=1)


class AveragingSpec(Spec):
    """Training of the averaging baselines; ``classifier.batch_size`` and ``augment`` hold here too.

    Attributes
    ----------
    rounds : int
        Averages of the nodes' weights.
    local_epochs : int
        Passes of each node over its own images between two averages, each of as many full batches as hold them all.
    learning_rate : float
        Rate of the local SGD in the first round; it falls by a half cosine over the rounds.
    momentum : float
        Nesterov momentum of the local SGD, which starts anew in each round.
    weight_decay : float
        L2 penalty of the local SGD.
    proximal_mu : float
        FedProx's weight of the proximal term.
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
    exclude : str
        Owners whose contribution takes no part, separated by commas: ``3`` is a whole owner, ``3/7`` owner 3's class with
        label 7. The run is as if these had never been there; only a site that has introduced itself in the first session keeps
        its place, and its classes' names theirs in the table. For ``federated-factory`` only.
    min_nodes : int
        Fewest sites with images of their own with which a run begins; 0 means all ``num_clients``.
    min_modules, min_classes : int
        Fewest verified modules and classes with which a run goes on.
    connect_timeout : float
        Seconds the server waits for the nodes to connect.
    timeout : float
        Seconds the server waits for the replies of one step.
    transport : str
        ``inline``: module files travel in the messages; ``reference``: their ids do, and the files lie in ``cache/modules`` under
        ``out``, for nodes and a server that share this folder (simulation, one cluster). The results are the same bytes.
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
    exclude: str = ""
    min_nodes: int = Field(default=0, ge=0, le=100_000)
    min_modules: Count = 1
    min_classes: Count = 2
    connect_timeout: Positive = 60.0
    timeout: Positive = 7200.0
    transport: Literal["inline", "reference"] = "inline"
    threads: int = Field(default=1, ge=1, le=1024)
    server_threads: int = Field(default=0, ge=0, le=1024)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    deterministic: bool = True
    out: str = ""
    data: DataSpec = DataSpec()
    partition: PartitionSpec = PartitionSpec()
    module: ModuleSpec = ModuleSpec()
    manifest: ManifestSpec = ManifestSpec()
    trust: TrustSpec = TrustSpec()
    synthesis: SynthesisSpec = SynthesisSpec()
    classifier: ClassifierSpec = ClassifierSpec()
    distillation: DistillationSpec = DistillationSpec()
    averaging: AveragingSpec = AveragingSpec()

    @field_validator("exclude")
    @classmethod
    def _one_text(cls, text: str) -> str:
        try:
            return str(Exclusion.parse(text))
        except ConfigError as error:
            raise ValueError("owners like 3, or owners and labels like 3/7, separated by commas") from error

    @property
    def exclusion(self) -> Exclusion:
        """What ``exclude`` says."""
        return Exclusion.parse(self.exclude)

    @property
    def participants(self) -> list[int]:
        """Partitions of the owners who take part, ascending."""
        return [partition for partition in range(self.num_clients) if str(partition) not in self.exclusion.owners]

    def excluding(self, more: Exclusion) -> "RunSpec":
        """Return this spec with ``more`` excluded beside what is already."""
        return self.model_copy(update={"exclude": str(self.exclusion | more)})

    def fit_digest(self) -> str:
        """Return the digest of what a fit depends on: a module is the same whoever else takes part."""
        return self.model_copy(update={"exclude": ""}).digest()

    def digest(self) -> str:
        """Return the SHA-256 of everything that can change a result (not where it is written or how long to wait)."""
        return spec_digest(self.flat())

    @property
    def partition_name(self) -> str:
        """How images came to be where they are: the kind of the partition, or ``sites`` that bring their own."""
        return OWN if self.data.own else self.partition.kind

    def for_nodes(self) -> "RunSpec":
        """Return what nodes are sent: those of a deployment have folders of their own, unless they share modules on a disk."""
        if not self.data.elsewhere:
            return self
        out = self.out if self.transport == "reference" else ""
        return self.model_copy(update={"out": out, "data": self.data.model_copy(update={"root": "", "server_test": ""})})

    def check_sites(self) -> None:
        """Refuse settings of sites with images of their own that contradict each other (ConfigError)."""
        data, places = self.data, site_places(self.data.sites)
        class_names(data.classes)
        if not data.own:
            keys: dict[str, Scalar] = {"data.sites": data.sites, "data.classes": data.classes, "min-nodes": self.min_nodes}
            keys |= {"data.server-test": data.server_test}
            if given := [key for key, value in keys.items() if value]:
                raise ConfigError(f"{', '.join(given)}: only where nodes bring their own images; set data.name = {OWN!r}")
            return
        if self.method != "federated-factory":
            raise ConfigError(f"method = {self.method!r}: must be 'federated-factory' where data.name = {OWN!r}; set that")
        if data.server_test and not is_place(data.server_test):
            example = "for example 'folder:/srv/test'"
            raise ConfigError(
                f"data.server-test = {data.server_test!r}: must be folder: or npz: with an absolute path; {example}"
            )
        if places and len(places) != self.num_clients:
            raise ConfigError(f"data.sites names {len(places)} sites: must be num-clients = {self.num_clients}; give both alike")
        if self.min_nodes > self.num_clients:
            raise ConfigError(f"min-nodes = {self.min_nodes}: must be at most num-clients = {self.num_clients}; lower it")


def spec_digest(flat: Mapping[str, Scalar]) -> str:
    """Return the SHA-256 of everything in a flat spec that can change a result, see `RunSpec.digest`."""
    aside = {"out", "timeout", "connect-timeout", "transport", "data.root", "data.download", "trust.public-keys"}
    aside |= {"module.checkpoint-seconds", "min-nodes", "min-modules", "min-classes"}
    kept = {key: value for key, value in flat.items() if key not in aside}
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
            problems.append(unknown_name("key", key, list(known), "ff-flower explain"))
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
    spec.check_sites()
    return spec


def _sentence(detail: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    rule = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    rule = rule.replace("a valid boolean", "true or false")
    default = RunSpec().flat().get(key)
    return f"{key} = {_written(detail['input'])}: must be {rule}" + (
        "" if default is None else f"; the default is {_written(default)}"
    )


def _written(value: Any) -> str:
    """Return a value as it is written in a preset or behind ``--set``."""
    return str(value).lower() if isinstance(value, bool) else repr(value)
