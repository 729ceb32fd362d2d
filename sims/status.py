"""What a run directory holds now, also while the run is under way."""

import json
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ff_flower.errors import DataError, FederatedFactoryError, VerificationError
from ff_flower.metrics import Ledger
from ff_flower.registry import ModuleLimits, ModuleManifest, decode_module
from ff_flower.reports import Answer, FitReport
from ff_flower.verification import Finding, RunContents

from .report import TextTable, show
from .run import FAILED, PARTIAL, refusing

_SILENT = {"federated-factory": "waited for", "centralized": "not asked"}  # other baselines keep nothing of single nodes


@dataclass(frozen=True)
class NodeState:
    """What is here of one node.

    Attributes
    ----------
    partition, name : int, str
        Its partition, and its site's name where it has one.
    state : str
        ``answered``, ``modules are here``, ``missing``, ``excluded`` or ``waited for``; of a baseline that has ended also
        ``took part``, or where its server alone works ``not asked``.
    classes, kinds : tuple of str
        Of its modules that are here: their classes, and the different kinds.
    module_bytes : int
        Their size.
    seconds : float
        What its fits took.
    answered : bool
        Whether its answer is here.
    accuracy : float or None
        Of its classifier, from 0 to 1, where it answered.
    bytes_up, bytes_down : int
        What it sent and was sent, without Flower's framing.
    reasons : tuple of str
        Why it is missing, which modules were quarantined, and which classes it declined.
    """

    partition: int
    name: str
    state: str
    classes: tuple[str, ...]
    kinds: tuple[str, ...]
    module_bytes: int
    seconds: float
    answered: bool
    accuracy: float | None
    bytes_up: int
    bytes_down: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RunState:
    """What a run directory holds.

    Attributes
    ----------
    method : str
        The run's method.
    stage : str
        ``start``, ``introductions``, ``fit``, ``vetting``, ``answers``, ``results``, ``rounds``, ``done`` or ``failed``.
    since : float
        When it began, in seconds since the epoch; 0 where that is not known.
    at_work : bool or None
        Whether the server's process lives; None where that cannot be told from this machine, or the run has ended.
    error : str
        Why the run failed; empty otherwise.
    whole : bool
        Whether it ended with nothing missing.
    nodes : tuple of NodeState
        All nodes that the run has, by partition.
    reasons : tuple of str
        Failures of nodes that the server could not name.
    """

    method: str
    stage: str
    since: float
    at_work: bool | None
    error: str
    whole: bool
    nodes: tuple[NodeState, ...]
    reasons: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 for a whole run, 3 for one that ended without some nodes or modules, 1 for one that failed or has not ended."""
        if self.stage != "done":
            return FAILED
        return 0 if self.whole else PARTIAL

    def headline(self, now: float) -> str:
        """Return one sentence about the run at the time ``now``, in seconds since the epoch."""
        if self.stage == "failed":
            return f"failed: {self.error}"
        if self.stage == "done" and not self.whole:
            anew = "; run the spec again, and only what is missing is asked for" if self.method == "federated-factory" else ""
            return f"done: partial{anew}"
        if self.stage == "done":
            return "done: whole"
        known = {True: "the server is at work", False: "the server is gone; start the run again, and it goes on from here"}
        server = known[self.at_work] if self.at_work is not None else "whether the server is at work cannot be seen from here"
        return f"stage {self.stage}" + (f" for {now - self.since:.0f} s" if self.since else "") + f"; {server}"

    def table(self) -> TextTable:
        """Return one row per node."""
        rows = []
        for one in self.nodes:
            score = "-" if one.accuracy is None else f"{100 * one.accuracy:.2f}"
            sizes = (f"{number / 1e6:.3f}" for number in (one.module_bytes, one.bytes_up, one.bytes_down))
            called = f"{one.partition} {one.name}".strip()
            rows.append((called, one.state, ", ".join(one.classes), ", ".join(one.kinds), *sizes, f"{one.seconds:.1f}", score))
        header = ("node", "state", "classes", "kinds", "modules MB", "up MB", "down MB", "fit s", "accuracy %")
        return TextTable("Nodes", header, tuple(rows))


@dataclass(frozen=True)
class _Records:
    """What stands beside the nodes' own files."""

    contents: RunContents
    ledger: Ledger
    manifests: Mapping[str, tuple[ModuleManifest, int]]
    missing: Mapping[int, str]
    quarantined: Mapping[int, tuple[str, ...]]
    silent: str  # what a node is of which nothing is here


def read_state(run: Path) -> RunState:
    """Read a run directory, without changing anything.

    Raises
    ------
    DataError
        Where there is none, or its spec cannot be read.
    """
    contents = RunContents.read(run)
    if isinstance(contents, Finding):
        raise DataError(f"{run / contents.place}: {contents.detail}; name a run directory")
    progress, metrics = (_object(contents.json(name)) for name in ("progress.json", "metrics.json"))
    stage, method = str(progress.get("stage", "done" if metrics else "start")), contents.spec.method
    if stage == "done" and not metrics:  # something was forgotten since, and nothing is made again yet
        progress, stage = progress | {"since": 0.0}, "start"
    failures = _gaps(metrics if stage == "done" else progress, "missing" if stage == "done" else "failures")
    missing = {partition: reason for partition, reason in failures if partition >= 0}
    silent = _SILENT.get(method, "took part") if stage == "done" else "waited for"
    records = _Records(contents, _ledger(run), _manifests(contents), missing, _quarantined(contents, metrics, stage), silent)
    places = range(max(contents.spec.num_clients, len(contents.owners)))
    whole = stage == "done" and not (missing or metrics.get("quarantined") or metrics.get("unscored"))
    return RunState(
        method=method,
        stage=stage,
        since=float(progress.get("since", 0.0)),
        at_work=_at_work(progress) if stage not in ("done", "failed") else None,
        error=str(progress.get("error", "")),
        whole=whole,
        nodes=tuple(_node(records, partition) for partition in places),
        reasons=tuple(reason for partition, reason in failures if partition < 0),
    )


def main(
    run: Annotated[Path, typer.Argument(help="A run directory, also of a run under way.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what a run directory holds now.

    Exit code: 0 the run is whole; 1 it failed or has not ended; 2 there is no run; 3 nodes are missing or modules quarantined.
    """
    with refusing():
        state = read_state(run)
    if as_json:
        print(json.dumps({**asdict(state), "exit_code": state.exit_code}, indent=1))
    else:
        print(state.headline(time.time()))
        show([state.table()])
        for one in state.nodes:
            for reason in one.reasons:
                print(f"node {one.partition}{f' ({one.name})' if one.name else ''}: {reason}")
        for reason in state.reasons:
            print(f"a node: {reason}")
    raise typer.Exit(state.exit_code)


def _node(records: _Records, partition: int) -> NodeState:
    contents, folder = records.contents, records.contents.path / "nodes" / str(partition)
    owners = contents.owners
    owner = owners[partition] if partition < len(owners) else ""
    report, answer = _report(folder / "fit.json"), _answer(folder / "answer.json")
    used = [records.manifests[name] for name in (report.modules.values() if report else ()) if name in records.manifests]
    names = dict(enumerate(contents.classes()))
    declined = [f"no module of {names.get(one.label, 'any class')}: {one.reason}" for one in (report.declined if report else ())]
    excluded = owner in contents.spec.exclusion.owners
    missing = [f"missing: {records.missing[partition]}"] if partition in records.missing and not excluded else []
    return NodeState(
        partition=partition,
        name=owner if contents.federation else "",
        state=_state(excluded, bool(missing), report is not None, answer is not None, records.silent),
        classes=tuple(manifest.label_name for manifest, _ in sorted(used, key=lambda one: one[0].label)),
        kinds=tuple(sorted({manifest.kind for manifest, _ in used})),
        module_bytes=sum(size for _, size in used),
        seconds=round(report.work.ended - report.work.began, 2) if report else 0.0,
        answered=answer is not None,
        accuracy=answer.metrics["accuracy"] if answer else None,
        bytes_up=records.ledger.total("up", partition=partition),
        bytes_down=records.ledger.total("down", partition=partition),
        reasons=(*missing, *records.quarantined.get(partition, ()), *declined),
    )


def _state(excluded: bool, missing: bool, reported: bool, answered: bool, silent: str) -> str:
    if excluded:
        return "excluded"
    if missing:
        return "missing, modules are here" if reported else "missing"
    if answered:
        return "answered"
    return "modules are here" if reported else silent


def _at_work(progress: Mapping[str, Any]) -> bool | None:
    """Tell whether the server's process lives; None on another machine, or where no process is named."""
    process = progress.get("process")
    if not isinstance(process, int) or process <= 0 or progress.get("host") != platform.node():
        return None
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _manifests(contents: RunContents) -> dict[str, tuple[ModuleManifest, int]]:
    """Return manifest and size of every module file that can be read."""
    limits, found = ModuleLimits.of_bytes(contents.spec.trust.max_module_bytes), {}
    for path in sorted((contents.path / "modules").glob("*.safetensors")):
        with suppress(OSError, VerificationError):
            if path.is_file() and path.stat().st_size <= limits.max_bytes:
                data = path.read_bytes()
                found[path.stem] = (decode_module(data, limits)[0], len(data))
    return found


def _quarantined(contents: RunContents, metrics: Mapping[str, Any], stage: str) -> dict[int, tuple[str, ...]]:
    """Return the refusals by partition: those of the run's end, or while it runs those of nodes that lack a module still."""
    found: dict[int, tuple[str, ...]] = {}
    if stage == "done":
        refusals = [one for one in metrics.get("quarantined", []) if isinstance(one, dict)]
    else:
        receipts, refusals = _object(contents.json("receipts.json")), []
        for path in sorted((contents.path / "modules" / "quarantine").glob("*.json")):
            for one in contents.json(f"modules/quarantine/{path.name}") or []:
                number = str(one.get("source", "")).removeprefix("node ") if isinstance(one, dict) else ""
                if number.isdigit() and f"fit-{number}" not in receipts:
                    refusals.append({**one, "partition": int(number)})
    for one in refusals:
        text = f"a module is quarantined: {one.get('rule')}: {one.get('detail')}"
        found[int(one["partition"])] = (*found.get(int(one["partition"]), ()), text)
    return found


def _gaps(values: Mapping[str, Any], key: str) -> list[tuple[int, str]]:
    listed = [one for one in values.get(key, []) if isinstance(one, dict) and isinstance(one.get("partition"), int)]
    return [(one["partition"], str(one.get("reason", ""))) for one in listed]


def _ledger(run: Path) -> Ledger:
    try:
        return Ledger.read(run / "ledger.jsonl")
    except OSError as error:
        raise DataError(f"{run / 'ledger.jsonl'}: cannot be read ({error}); ask `ff-flower verify`") from error


def _report(path: Path) -> FitReport | None:
    with suppress(OSError, UnicodeDecodeError, FederatedFactoryError):
        return FitReport.from_json(path.read_text(encoding="utf-8"))
    return None


def _answer(path: Path) -> Answer | None:
    with suppress(OSError, UnicodeDecodeError, FederatedFactoryError):
        return Answer.from_json(path.read_text(encoding="utf-8"))
    return None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
