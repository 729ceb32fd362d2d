"""Everything that is rechecked of a run, in one list."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..classifiers import build_classifier, shapes_of
from ..config import ClassifierSpec
from ..errors import RunError, VerificationError
from ..metrics import Ledger, rounded_count
from ..registry import SignaturePolicy
from ..reports import Answer
from .contents import Finding, RunContents, check_files, check_receipts, is_plain
from .modules import check_forgotten, check_modules, check_quarantine, check_reports


def verify_run(path: Path, policy: SignaturePolicy) -> tuple[list[Finding], RunContents | None]:
    """Recheck every hash and every cross reference of a run directory; nothing in it is changed.

    Parameters
    ----------
    path : Path
        The run directory.
    policy : SignaturePolicy
        Whose signatures are believed, and whether every module must have one.

    Returns
    -------
    tuple of list and RunContents or None
        What was found, none for a whole run; and what was read, None where not even the spec could be.

    Raises
    ------
    RunError
        Where ``path`` is no folder.
    """
    if not path.is_dir():
        raise RunError(f"{path}: is no folder; name a run directory")
    run = RunContents.read(path)
    if isinstance(run, Finding):
        return [run], None
    checks = (
        *(check_files(run), check_modules(run, policy), check_reports(run), check_quarantine(run), check_forgotten(run)),
        *(check_receipts(run), check_results(run), check_answers(run), check_classifiers(run)),
    )
    return [finding for check in checks for finding in check], run


def check_results(run: RunContents) -> Iterator[Finding]:
    """Compare results, label table and ledger with each other."""
    metrics, held = run.json("metrics.json"), run.json("label_distribution.json")
    if not isinstance(metrics, dict):
        yield Finding(
            "metrics.json", "json", "there are no results: the run did not end, or they were removed", metrics is not None
        )
        return
    if run.current and metrics.get("spec_digest") != run.spec.digest():
        yield Finding("metrics.json", "spec", "its results are of another spec than spec.json's")
    classes, counts = [], {}
    if isinstance(held, dict) and _is_table(held.get("counts")):
        classes, counts = held.get("classes", []), dict(enumerate(held["counts"]))
    elif held is not None:
        yield Finding("label_distribution.json", "json", "its counts are no table of whole numbers")
    if metrics.get("classes") != classes:
        yield Finding("label_distribution.json", "label-table", "its classes are not those of metrics.json")
    for partition, report in run.reports.items() if run.federation is None else ():
        if not counts_agree(report.label_counts, counts.get(partition, []), run.spec.manifest.count_granularity):
            yield Finding(
                f"nodes/{partition}/fit.json", "label-table", "its images per class are not those of the label distribution"
            )
    if not is_plain(run.path / "ledger.jsonl", run.path):
        yield Finding("ledger.jsonl", "ledger", "it is missing, or no plain file")
        return
    try:
        totals = Ledger.read(run.path / "ledger.jsonl").totals()
    except (OSError, TypeError, RunError) as error:
        yield Finding("ledger.jsonl", "json", f"it cannot be read ({error})")
        return
    if totals != metrics.get("bytes"):
        yield Finding("ledger.jsonl", "ledger", f"its transfers add up to {totals}, metrics.json says {metrics.get('bytes')}")


def check_answers(run: RunContents) -> Iterator[Finding]:
    """Read the nodes' answers, and compare their synthetic sets and logits."""
    digests: dict[str, str] = {}
    num_classes = len(run.classes())
    rows = run.spec.synthesis.samples_per_class * len({module.manifest.label for module in run.in_order()})
    for path in run.plain_files("nodes/*/answer.json"):
        name = path.relative_to(run.path).as_posix()
        try:
            answer = Answer.from_json(path.read_text(encoding="utf-8"))
        except (VerificationError, OSError, UnicodeDecodeError) as error:
            yield Finding(name, "json", str(error))
            continue
        recalls = len(answer.metrics["per_class_recall"])
        if str(answer.partition) != path.parent.name or recalls != (num_classes or recalls):
            detail = f"it is of partition {answer.partition} and {recalls} classes; this run has {num_classes}"
            yield Finding(name, "answer", detail)
        digests[name] = answer.synthetic_digest
        logits = path.with_name("logits.safetensors")
        if is_plain(logits, run.path):
            shapes = {"logits": (rows, num_classes or recalls)}
            yield from _check_tensors(run, logits, shapes, torch.float16)
    common = Counter(digests.values()).most_common(1)
    for name, digest in digests.items():
        if digest != common[0][0]:
            detail = "its synthetic set is not that of most nodes; on other hardware it agrees up to rounding only"
            yield Finding(name, "synthetic-digest", detail, broken=False)


def check_classifiers(run: RunContents) -> Iterator[Finding]:
    """Load every classifier: of the run's network, and finite."""
    paths = [*run.plain_files("classifiers/*.safetensors"), *run.plain_files("nodes/*/weights.safetensors")]
    if not paths:
        return
    channels = {module.manifest.image_shape[0] for module in run.in_order()}
    if len(channels) != 1 or not run.classes():
        shapes = None  # baselines have no modules, and without the images nothing says how many channels they have
    else:
        shapes = network_shapes(run.spec.classifier, channels.pop(), len(run.classes()))
    for path in sorted(paths):
        yield from _check_tensors(run, path, shapes, torch.float32)


def network_shapes(spec: ClassifierSpec, channels: int, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a classifier's tensors, none of which is made: a file may name any number of classes."""
    with torch.device("meta"):
        return shapes_of(build_classifier(spec, channels, num_classes, seed=0).state_dict())


def counts_agree(told: Mapping[str, int], exact: Sequence[int], granularity: int) -> bool:
    """Tell whether a node with ``exact`` images per class may have told these numbers by label.

    It rounds to multiples of ``granularity``, or of a larger number of its own, which then divides the greatest common divisor of
    all that it tells. Of the multiples of this divisor, which are fewer, what it told is the nearest to each count all the more.
    So the divisor explains the numbers where anything does.
    """
    coarsest = math.gcd(*told.values()) or granularity
    held = {str(label): rounded_count(count, coarsest) for label, count in enumerate(exact)}
    return coarsest >= granularity and all(held.get(label) == count for label, count in told.items())


def _is_table(counts: Any) -> bool:
    """Tell whether these are rows of whole numbers."""
    rows = counts if isinstance(counts, list) else [counts]
    return all(isinstance(row, list) and all(type(count) is int and count >= 0 for count in row) for row in rows)


def _check_tensors(
    run: RunContents, path: Path, shapes: Mapping[str, tuple[int, ...]] | None, dtype: torch.dtype
) -> Iterator[Finding]:
    name = path.relative_to(run.path).as_posix()
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        yield Finding(name, "weights", f"it does not load ({str(error)[:120]})")
        return
    found = shapes_of(tensors)
    if shapes is not None and found != shapes:
        wrong = sorted(key for key in found.keys() | shapes.keys() if found.get(key) != shapes.get(key))
        yield Finding(name, "weights", f"{len(wrong)} tensors are not of this run's shapes, for example {wrong[0]!r}")
    if other := [tensor.dtype for tensor in tensors.values() if tensor.dtype != dtype]:
        yield Finding(name, "weights", f"a tensor is of {other[0]}; all of them must be of {dtype}")
    elif not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        yield Finding(name, "weights", "it holds NaN or infinity")
