"""What a node says of its work: value objects that cross the wire as JSON and are kept in the run directory."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from .errors import VerificationError


@dataclass(frozen=True)
class Interval:
    """Begin and end of some work, in seconds since the epoch of the machine that did it."""

    began: float
    ended: float


@dataclass(frozen=True)
class Declined:
    """A class that a node holds, or was to hold, and fitted no module for.

    Attributes
    ----------
    label : int
        The class; -1 where the node has no images at all.
    reason : str
        Why, in one sentence.
    """

    label: int
    reason: str


LATEST = 1e11  # seconds since 1970: some three thousand years
LONGEST_TEXT = 500  # characters of a reason that a node gives
NO_IMAGES = Declined(-1, "the node holds no images")


@dataclass(frozen=True)
class Fallback:
    """A class whose module is of another kind than was asked for, and why, in one sentence."""

    label: int
    reason: str


@dataclass(frozen=True)
class FitReport:
    """A node's account of its modules.

    Attributes
    ----------
    partition : int
        The node's partition.
    label_counts : dict
        Images per label (keys are decimal text, as in JSON).
    modules : dict
        Module id per label.
    declined : tuple of Declined
        Classes without a module.
    work : Interval
        When the node worked.
    fallbacks : tuple of Fallback
        Classes with a module of a simpler kind than the node's.
    peak_memory : int
        Most bytes that the node's process held, on its GPU where it has one; 0 where that is not known.
    """

    partition: int
    label_counts: dict[str, int]
    modules: dict[str, str]
    declined: tuple[Declined, ...]
    work: Interval
    fallbacks: tuple[Fallback, ...] = ()
    peak_memory: int = 0

    @property
    def num_examples(self) -> int:
        """Images of the node."""
        return sum(self.label_counts.values())

    @property
    def labels(self) -> set[int]:
        """The classes that it speaks of, -1 among them where the node has no images."""
        told = {int(label) for label in (*self.label_counts, *self.modules)}
        return told | {one.label for one in self.declined} | {one.label for one in self.fallbacks}

    def without(self, labels: Collection[int]) -> "FitReport":
        """Return the report as it would be had the node never held images of ``labels``."""
        counts = {label: count for label, count in self.label_counts.items() if int(label) not in labels}
        declined = tuple(one for one in self.declined if one.label not in labels) if counts else (NO_IMAGES,)
        return replace(
            self,
            label_counts=counts,
            modules={label: module for label, module in self.modules.items() if int(label) not in labels},
            declined=declined,
            fallbacks=tuple(one for one in self.fallbacks if one.label not in labels),
        )

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; anything else is refused (VerificationError, rule ``report``)."""
        values = _object(text)
        try:
            return cls(
                partition=_whole(values["partition"]),
                label_counts={str(_label(k)): _whole(v) for k, v in values["label_counts"].items()},
                modules={str(_label(k)): str(v) for k, v in values["modules"].items()},
                declined=tuple(Declined(_label(d["label"], NO_IMAGES.label), _said(d["reason"])) for d in values["declined"]),
                work=_interval(values["work"]),
                fallbacks=tuple(Fallback(_label(f["label"]), _said(f["reason"])) for f in values["fallbacks"]),
                peak_memory=_whole(values["peak_memory"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise VerificationError("report", f"malformed fit report ({error!r:.200})") from error


@dataclass(frozen=True)
class Answer:
    """A node's account of its classifier.

    Attributes
    ----------
    partition : int
        The node's partition.
    metrics : dict
        Metrics on the test set, as `ClassificationMetrics.as_dict` gives them.
    synthetic_digest : str
        SHA-256 of the synthetic set it built; empty where it built none.
    synthesis, training : Interval
        When it synthesized and when it trained.
    peak_memory : int
        As in `FitReport`.
    """

    partition: int
    metrics: dict[str, Any]
    synthetic_digest: str
    training: Interval
    synthesis: Interval = field(default=Interval(0.0, 0.0))
    peak_memory: int = 0

    def to_json(self) -> str:
        """Return the answer as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; anything else is refused (VerificationError, rule ``report``)."""
        values = _object(text)
        try:
            metrics: dict[str, Any] = {name: _share(values["metrics"][name]) for name in ("accuracy", "macro_f1")}
            metrics["auroc"] = _share_or_none(values["metrics"]["auroc"])
            return cls(
                partition=_whole(values["partition"]),
                metrics=metrics | {"per_class_recall": [_share_or_none(r) for r in values["metrics"]["per_class_recall"]]},
                synthetic_digest=str(values["synthetic_digest"]),
                training=_interval(values["training"]),
                synthesis=_interval(values["synthesis"]),
                peak_memory=_whole(values["peak_memory"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise VerificationError("report", f"malformed answer ({error!r:.200})") from error


@dataclass(frozen=True)
class Forgotten:
    """A node's account of what it dropped when it was told to forget.

    Attributes
    ----------
    partition : int
        The node's partition.
    samples : dict
        Files of cached samples that were deleted, by module id; of every module that was to be forgotten.
    fits : int
        Files of fits that were deleted: unfinished ones, and what the server lacked.
    """

    partition: int
    samples: dict[str, int]
    fits: int

    def to_json(self) -> str:
        """Return the account as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; anything else is refused (VerificationError, rule ``report``)."""
        values = _object(text)
        try:
            samples = {str(module): _whole(count) for module, count in values["samples"].items()}
            return cls(_whole(values["partition"]), samples, _whole(values["fits"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VerificationError("report", f"malformed account of what was forgotten ({error!r:.200})") from error


def busy_seconds(intervals: list[Interval]) -> float:
    """Return the length of the union of ``intervals``: the time during which at least one worked."""
    total, reached = 0.0, float("-inf")
    for interval in sorted(intervals, key=lambda i: i.began):
        total += max(0.0, interval.ended - max(interval.began, reached))
        reached = max(reached, interval.ended)
    return total


def _object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VerificationError("report", f"not JSON ({error})") from error
    if not isinstance(values, dict):
        raise VerificationError("report", f"a JSON object is expected, this is a {type(values).__name__}")
    return values


def plain_text(text: str) -> str:
    """Return what a node says as one line of printable characters, no longer than a log and a terminal bear."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:LONGEST_TEXT]).strip()


def _said(value: Any) -> str:
    return plain_text(str(value))


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r:.80} is not a count below 2^63")
    return value


def _label(value: Any, least: int = 0) -> int:
    label = int(value)
    if not least <= label < 2**63:
        raise ValueError(f"{label!r:.80} is no label")
    return label


def _interval(values: Any) -> Interval:
    began, ended = float(values["began"]), float(values["ended"])
    if not (0 <= began < LATEST and 0 <= ended < LATEST):
        raise ValueError(f"{began} to {ended} are no seconds since 1970")
    return Interval(began, ended)


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{value!r:.80} is not in [0, 1]")
    return float(value)


def _share_or_none(value: Any) -> float | None:
    return None if value is None else _share(value)
