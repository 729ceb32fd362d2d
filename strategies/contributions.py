"""What each node contributed to a run, for the end of the log and for ``metrics.json``."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ff_flower.metrics import Ledger
from ff_flower.registry import RegisteredModule
from ff_flower.reports import Answer, FitReport

logger = logging.getLogger("flwr")


def contributions(
    names: Sequence[str],
    modules: Mapping[int, Sequence[RegisteredModule]],
    reports: Mapping[int, FitReport],
    answers: Mapping[int, Answer],
    ledger: Ledger,
) -> list[dict[str, Any]]:
    """Return one record per node that sent a report or an answer, by partition.

    Parameters
    ----------
    names : sequence of str
        Names of the sites by partition, empty where nodes have none.
    modules : mapping from int to sequence of RegisteredModule
        The nodes' modules that the run uses, by partition.
    reports : mapping from int to FitReport
        The nodes' accounts of their modules, by partition.
    answers : mapping from int to Answer
        Their accounts of their classifiers, by partition.
    ledger : Ledger
        Every transfer.

    Returns
    -------
    list of dict
        ``partition``, ``name``, ``labels`` of its modules in use, ``images`` (as the node told them), ``images_shown`` in its
        fits, ``fit_seconds``, ``bytes_up``, ``bytes_down``, and the ``accuracy`` of its classifier, None without an answer.
    """
    records = []
    for partition in sorted({*reports, *answers}):
        report, answer = reports.get(partition), answers.get(partition)
        manifests = [module.manifest for module in modules.get(partition, ())]
        record = {
            "partition": partition,
            "name": names[partition] if partition < len(names) else "",
            "labels": sorted(manifest.label for manifest in manifests),
            "images": report.num_examples if report else 0,
            "images_shown": sum(manifest.images_shown for manifest in manifests),
            "fit_seconds": round(report.work.ended - report.work.began, 2) if report else 0.0,
            "bytes_up": ledger.total("up", partition=partition),
            "bytes_down": ledger.total("down", partition=partition),
            "accuracy": answer.metrics["accuracy"] if answer else None,
        }
        records.append(record)
    return records


def log_contributions(records: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> None:
    """Log one line per node."""
    for one in records:
        called = f"node {one['partition']}" + (f" ({one['name']})" if one["name"] else "")
        labels = ", ".join(classes[label] for label in one["labels"]) or "none"
        score = "no classifier" if one["accuracy"] is None else f"classifier {100 * one['accuracy']:.2f} %"
        logger.info(
            "contributed: %s: %d modules (%s) of %d images, %.3f MB up, %.3f MB down, %s",
            called,
            len(one["labels"]),
            labels,
            one["images"],
            one["bytes_up"] / 1e6,
            one["bytes_down"] / 1e6,
            score,
        )
