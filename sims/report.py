"""Tables of ``metrics.json``: one run in detail, and many runs as means over seeds."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ff_flower.errors import DataError

Metrics = Mapping[str, Any]
ABSENT = "-"
_WIDE = 200  # characters
_KEYS = ("method", "dataset", "partition", "seed", "results", "seconds", "bytes")
_ORDER = ("server", "client_mean", "product_of_experts", "student", "local", "last_round", "best_round", "centralized")
_SUMMARY = ("accuracy %", "AUROC %", "macro F1 %", "rounds", "MB up", "MB down", "seconds")


@dataclass(frozen=True)
class TextTable:
    """A table of finished cells: numbers are already text.

    Attributes
    ----------
    title : str
        What stands above it.
    header : tuple of str
        Names of the columns; the first holds names, the others are aligned right unless ``prose``.
    rows : tuple of tuple of str
        As wide as the header.
    prose : bool
        Whether the cells are sentences.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    prose: bool = False

    def markdown(self) -> str:
        """Return the table in Markdown, its title in bold above it."""
        rule = tuple("---" if self.prose or not column else "---:" for column in range(len(self.header)))
        escaped = [tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in (self.header, *self.rows)]
        lines = [f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:])]
        return "\n".join([f"**{self.title}**", "", *lines, ""])

    def rich(self) -> Table:
        """Return the table for a terminal."""
        table = Table(title=Text(self.title), title_justify="left")
        for column, name in enumerate(self.header):
            table.add_column(name, justify="left" if self.prose or not column else "right")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))  # some cells are texts of others: they are no markup
        return table


def load_metrics(run: Path) -> Metrics:
    """Read ``metrics.json`` of a run directory, or the file itself.

    Raises
    ------
    DataError
        Where there is none, it is not JSON, or it lacks what every run writes.
    """
    path = _metrics_file(run)
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a run directory or its metrics.json") from error
    except ValueError as error:
        raise DataError(f"{path}: must be JSON ({error}); run the spec again") from error
    missing = [key for key in _KEYS if not isinstance(metrics, dict) or key not in metrics]
    if missing:
        raise DataError(f"{path}: must have the keys {', '.join(missing)}; name the metrics.json of a finished run")
    found: Metrics = metrics
    return found


def distinct(runs: Iterable[Path]) -> list[Path]:
    """Return each run once: a link such as ``runs/latest``, the directory behind it and its metrics.json are one."""
    found: dict[Path, Path] = {}
    for run in runs:
        found.setdefault(_metrics_file(run).resolve(), run)
    return list(found.values())


def run_tables(metrics: Metrics) -> list[TextTable]:
    """Return the tables of one run: results, recall per class, nodes, seconds, bytes, and what is missing where anything is."""
    tables = [_results(metrics), _recall(metrics), _nodes(metrics), _seconds(metrics), _bytes(metrics), _gaps(metrics)]
    return [table for table in tables if table.rows]


def gaps(metrics: Metrics) -> list[str]:
    """Return one sentence for each missing node, each quarantined module and scores to come; empty when the run is whole."""
    missing = [f"{_called(metrics, gap)} is missing: {gap['reason']}" for gap in metrics.get("missing", [])]
    refused = [
        f"a module of {_called(metrics, gap)} is quarantined: {gap['rule']}: {gap['detail']}"
        for gap in metrics.get("quarantined", [])
    ]
    waiting = ["classifiers wait for sites that score them; run the same settings again"] if metrics.get("unscored") else []
    return missing + refused + waiting


def _called(metrics: Metrics, gap: Mapping[str, Any]) -> str:
    """Return what the node of a gap is called: by its site's name where it has one."""
    sites, partition = metrics.get("sites", []), gap["partition"]
    return f"site {sites[partition]}" if 0 <= partition < len(sites) else f"node {partition}"


def summarize(runs: Sequence[Metrics], title: str = "Mean ± standard deviation over runs") -> TextTable:
    """Return means over seeds, grouped by data set, partition, method and result, and by settings where these differ.

    Parameters
    ----------
    runs : sequence of mapping
        Contents of ``metrics.json``; with several runs of a group the standard deviation (of the sample) is given too. Seconds
        are those of runs that were made in one session.
    title : str
        What stands above the table.
    """
    groups: dict[tuple[str, ...], list[tuple[Metrics, Metrics]]] = {}
    for run in runs:
        for name, result in _in_order(run["results"]):
            key: tuple[str, ...] = (str(run["dataset"]), str(run["partition"]), str(run["method"]), str(name), _settings(run))
            groups.setdefault(key, []).append((run, result))
    differ = len({key[:-1] for key in groups}) < len(groups)
    rows = []
    for key, members in groups.items():
        columns = zip(*(_measures(run, result) for run, result in members), strict=True)
        named = key if differ else key[:-1]
        rows.append((*named, str(len(members)), *(_mean_sd(column) for column in columns)))
    header = ("data set", "partition", "method", "result", *(("settings",) if differ else ()), "runs", *_SUMMARY)
    return TextTable(title, header, tuple(rows))


def show(tables: Iterable[TextTable], *, markdown: bool = False) -> None:
    """Print ``tables``, in Markdown or drawn for the terminal; into a file or a pipe as wide as they are."""
    console = Console() if sys.stdout.isatty() else Console(width=_WIDE)
    for table in tables:
        if markdown:
            print(table.markdown())
        else:
            console.print(table.rich(), highlight=False)


def _settings(run: Metrics) -> str:
    """Return the beginning of the digest of a run's settings but its seed; what it has forgotten is one of them."""
    return str(run.get("settings_digest", ""))[:8]


def _results(metrics: Metrics) -> TextTable:
    title = f"{metrics['method']} on {metrics['dataset']}, {metrics['partition']}, seed {metrics['seed']}"
    rows = []
    for name, result in _in_order(metrics["results"]):
        accuracy = _percent(result.get("accuracy"))
        if "accuracy_std" in result:
            accuracy += f" ± {_percent(result['accuracy_std'])}"
        named = f"{name} (round {result['round']})" if "round" in result else name
        sent = result.get("bytes", {})
        scores = (accuracy, _percent(result.get("auroc")), _percent(result.get("macro_f1")))
        rows.append((named, *scores, _megabytes(sent.get("up")), _megabytes(sent.get("down"))))
    return TextTable(title, ("result", *_SUMMARY[:3], *_SUMMARY[4:6]), tuple(rows))


def _recall(metrics: Metrics) -> TextTable:
    named = {name: result["per_class_recall"] for name, result in _in_order(metrics["results"]) if "per_class_recall" in result}
    classes = metrics.get("classes", [])
    rows = tuple((str(label), *(_percent(recalls[k]) for recalls in named.values())) for k, label in enumerate(classes) if named)
    return TextTable("Recall per class, %", ("class", *named), rows)


def _nodes(metrics: Metrics) -> TextTable:
    classes, rows = metrics.get("classes", []), []
    for one in metrics.get("nodes", []):
        labels = ", ".join(str(classes[label]) for label in one["labels"]) or ABSENT
        counts = (str(len(one["labels"])), labels, f"{one['images']:,}", f"{one['images_shown']:,}", f"{one['fit_seconds']:.1f}")
        moved = (_megabytes(one["bytes_up"]), _megabytes(one["bytes_down"]))
        rows.append((f"{one['partition']} {one['name']}".strip(), *counts, *moved, _percent(one["accuracy"])))
    header = ("node", "modules", "classes", "images", "shown in fits", "fit s", "MB up", "MB down", "accuracy %")
    return TextTable("What each node contributed", header, tuple(rows))


def _seconds(metrics: Metrics) -> TextTable:
    rows = tuple((name, f"{value:.1f}") for name, value in _total_last(metrics["seconds"]))
    return TextTable("Time", ("stage", "seconds"), rows)


def _bytes(metrics: Metrics) -> TextTable:
    rows = tuple((name, _megabytes(value)) for name, value in _total_last(metrics["bytes"]))
    return TextTable("Traffic of all nodes", ("payload", "MB"), rows)


def _gaps(metrics: Metrics) -> TextTable:
    declined = [
        f"{_called(metrics, gap)} has no module for label {gap['label']}: {gap['reason']}" for gap in metrics.get("declined", [])
    ]
    simpler = [f"{_called(metrics, gap)}, label {gap['label']}: {gap['reason']}" for gap in metrics.get("fallbacks", [])]
    excluded = [f"{_part(one)} is excluded: what came from there takes no part" for one in metrics.get("excluded", [])]
    sentences = [*gaps(metrics), *excluded, *declined, *simpler, *metrics.get("notes", [])]
    return TextTable("What is missing", ("what and why",), tuple((sentence,) for sentence in sentences), prose=True)


def _metrics_file(run: Path) -> Path:
    return run / "metrics.json" if run.is_dir() else run


def _part(excluded: str) -> str:
    owner, _, label = excluded.partition("/")
    return f"label {label} of owner {owner}" if label else f"owner {owner}"


def _in_order(results: Mapping[str, Metrics]) -> list[tuple[str, Metrics]]:
    """Return the results in the order of the protocol's steps, unknown ones last."""
    return sorted(results.items(), key=lambda item: _ORDER.index(item[0]) if item[0] in _ORDER else len(_ORDER))


def _total_last(values: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(values.items(), key=lambda item: item[0] in ("total", "up", "down"))


def _measures(run: Metrics, result: Metrics) -> tuple[str | float | None, ...]:
    """Return the numbers of one result in the order of the summary's columns, in percent, megabytes and seconds."""
    scores = (_scaled(result.get(name), 100) for name in ("accuracy", "auroc", "macro_f1"))
    sent = result.get("bytes", run["bytes"])
    resumed = run.get("resumed")  # the last session's seconds and all sessions' bytes: neither is what such a run takes
    moved = (None if resumed else _scaled(sent.get(direction), 1e-6) for direction in ("up", "down"))
    seconds = None if resumed else run["seconds"].get("total")
    return (*scores, result.get("round", run.get("rounds")), *moved, seconds)


def _mean_sd(values: Sequence[Any]) -> str:
    known = [float(value) for value in values if value is not None and isfinite(value)]
    if not known:
        return ABSENT
    digits = 0 if all(value == int(value) for value in known) and len(set(known)) == 1 else 2
    mean = f"{fmean(known):.{digits}f}"
    return mean if len(known) == 1 or not digits else f"{mean} ± {stdev(known):.2f}"


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.2f}"


def _megabytes(value: float | None) -> str:
    return ABSENT if value is None else f"{value / 1e6:.3f}"
