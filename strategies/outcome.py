"""What a run found: results, seconds and bytes, written as ``metrics.json``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ff_flower.config import RunSpec
from ff_flower.data import DatasetInfo
from ff_flower.metrics import ClassificationMetrics, Ledger
from ff_flower.run_directory import RunDirectory

from .introductions import Roll
from .nodes import Failure
from .progress import Progress


@dataclass
class Outcome:
    """The growing account of one run.

    Attributes
    ----------
    spec : RunSpec
        The run.
    info : DatasetInfo
        Its image set.
    directory : RunDirectory
        Where it is written.
    ledger : Ledger
        Every transfer.
    results : dict
        Metrics by the name of what was scored.
    seconds : dict
        Seconds by stage, during which at least one process worked on it.
    steps : dict
        Seconds of the round's two steps: ``collect``, from the first node's begin until the server has verified the last
        module, and ``broadcast``, until it has the last answer; what nodes do meanwhile is in ``seconds`` too.
    rounds : int
        Flower rounds that were needed.
    missing : list of Failure
        Nodes without a usable reply.
    quarantined, declined, fallbacks : list of dict
        Refused module files, classes without a module, and classes with one of a simpler kind, with reasons.
    notes : list of str
        Anything else that a reader of the results should know.
    peak_memory : int
        Most bytes that a node's process held, see `FitReport`; 0 where no node told.
    labels : tuple of int, optional
        Classes that have a module, which are the label table of the results. A classifier keeps an output for every class of the
        data set all the same, since labels are part of module files; None where there are no modules.
    synthetic_digest : str
        SHA-256 of the server's synthetic set; empty where it made none.
    roll : Roll or None
        The sites, where nodes bring their own images.
    empty : frozenset of int
        Partitions without training images.
    progress : Progress or None
        Tells of the run while it runs.
    nodes : list of dict
        What each node contributed, see `contributions`.
    unscored : bool
        Whether classifiers wait for sites that score them.
    resumed : bool
        Whether a stage was taken over from an earlier session, so that the total of seconds is not the whole run's.
    """

    spec: RunSpec
    info: DatasetInfo
    directory: RunDirectory
    ledger: Ledger
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    rounds: int = 0
    missing: list[Failure] = field(default_factory=list)
    quarantined: list[dict[str, object]] = field(default_factory=list)
    declined: list[dict[str, object]] = field(default_factory=list)
    fallbacks: list[dict[str, object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    peak_memory: int = 0
    labels: tuple[int, ...] | None = None
    synthetic_digest: str = ""
    roll: Roll | None = None
    empty: frozenset[int] = frozenset()
    progress: Progress | None = None
    nodes: list[dict[str, Any]] = field(default_factory=list)
    unscored: bool = False
    resumed: bool = False

    @property
    def whole(self) -> bool:
        """Whether nothing is missing that another session could add."""
        return not (self.missing or self.quarantined or self.unscored)

    def record(
        self, name: str, metrics: ClassificationMetrics | Mapping[str, Any], up: Sequence[str] = (), down: Sequence[str] = ()
    ) -> None:
        """Add a result with the bytes that it needed.

        Parameters
        ----------
        name : str
            For example ``server`` or ``product_of_experts``.
        metrics : ClassificationMetrics or mapping
            The scores.
        up, down : sequence of str
            Kinds of payload in the ledger without which the result would not be there.
        """
        values = dict(metrics) if isinstance(metrics, Mapping) else metrics.as_dict()
        sent = {"up": self.ledger.total("up", up), "down": self.ledger.total("down", down)}
        self.results[name] = values | {"bytes": sent}

    def _labels(self) -> Sequence[int]:
        return range(len(self.info.classes)) if self.labels is None else self.labels

    def write(self, total_seconds: float) -> None:
        """Write ``metrics.json`` and ``ledger.jsonl``."""
        spec = self.spec
        values = {
            "method": spec.method,
            "dataset": self.info.name,
            "partition": spec.partition_name,
            "seed": spec.seed,
            "spec_digest": spec.digest(),
            "settings_digest": spec.model_copy(update={"seed": 0}).digest(),
            "num_clients": spec.num_clients,
            "classes": list(self.info.classes),
            "sites": list(self.roll.federation.sites) if self.roll else [],
            "label_table": {str(label): self.info.classes[label] for label in self._labels()},
            "excluded": spec.exclude.split(",") if spec.exclude else [],
            "synthetic_digest": self.synthetic_digest,
            "results": self.results,
            "seconds": {"total": round(total_seconds, 2)} | {name: round(value, 2) for name, value in self.seconds.items()},
            "steps": self.steps,
            "bytes": self.ledger.totals(),
            "rounds": self.rounds,
            "nodes": self.nodes,
            "unscored": self.unscored,
            "resumed": self.resumed,
            "missing": [asdict(failure) for failure in self.missing],
            "quarantined": self.quarantined,
            "declined": self.declined,
            "fallbacks": self.fallbacks,
            "notes": self.notes,
            "peak_memory": self.peak_memory,
        }
        self.ledger.write(self.directory.path / "ledger.jsonl")
        self.directory.write_json("metrics.json", values)
