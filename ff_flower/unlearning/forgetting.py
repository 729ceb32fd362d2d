"""The four steps of forgetting: tombstone, purge, rebuild, certificate. Each is done once, whatever interrupts."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from ..config import Exclusion, RunSpec
from ..errors import FederatedFactoryError, RunError
from ..registry import ModuleRegistry
from ..run_directory import RunDirectory
from .certificate import Certificate, Cost, Proof, is_complete, write_certificate
from .comparison import Compared, compare_runs
from .owners import participants
from .purge import honour
from .request import check_whole, need_something, open_run, plan, resolve
from .tombstone import Tombstone

Rebuild = Callable[[RunSpec], object]
FromScratch = Callable[[RunSpec], RunDirectory]


@dataclass(frozen=True)
class Forgetting:
    """What came of a request.

    Attributes
    ----------
    certificates : tuple of Path
        The certificates that were written, as JSON; a page for people lies beside each. None where there was nothing to do, or
        the purge could not be completed.
    notes : tuple of str
        What had been forgotten before.
    error : str
        Why the request stands, but is not carried out to its end: purged, rebuilt as far as that was asked for, and certified.
    differing : tuple of Compared
        Where a run from scratch differs; empty where it does not, or none was made.
    unproven : str
        Why the run from scratch that was asked for could not be made; empty otherwise.
    rebuilt : bool
        Whether everything is made again.
    """

    certificates: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    error: str = ""
    differing: tuple[Compared, ...] = ()
    unproven: str = ""
    rebuilt: bool = False


@dataclass(frozen=True)
class Work:
    """How a run is made: what depends on nodes and processes, which this station does not know.

    Attributes
    ----------
    rebuild : callable from RunSpec, optional
        Runs the spec, as it was asked for, on its run directory; None leaves that to the next run of the spec. It is not called
        where such a run has made everything again already.
    from_scratch : callable from RunSpec to RunDirectory, optional
        Makes a whole run of a spec elsewhere, fits included, to compare with; None makes no such proof.
    place : str
        Where the rebuilding is done, for the certificate.
    """

    rebuild: Rebuild | None = None
    from_scratch: FromScratch | None = None
    place: str = "this process"


def forget(run: Path, owners: Collection[str], modules: Collection[str], work: Work, reason: str = "") -> Forgetting:
    """Forget owners and modules of a run, and finish what an interrupted request left.

    Parameters
    ----------
    run : Path
        The run directory.
    owners : collection of str
        Whole owners.
    modules : collection of str
        Ids of single modules, or their beginnings.
    work : Work
        How to rebuild.
    reason : str
        Why, for the certificate; what a terminal gave that is no UTF-8 is replaced.

    Raises
    ------
    ConfigError
        When nobody is named and nothing is unfinished.
    RunError
        When the run directory is of another method, not whole, cannot be written, does not have who is named, or somebody is at
        work on it; it is as it was then.
    """
    began = time.time()
    spec, path = open_run(run)
    if spec.method != "federated-factory":
        raise RunError(f"{path}: is of {spec.method}, which knows no owners: only runs of federated-factory can forget; name one")
    directory = RunDirectory(path)
    with directory.alone():
        tombstone = Tombstone.read(path)
        if tombstone.purged:
            check_whole(directory)
        wanted, notes = resolve(directory, spec, tombstone, owners, modules)
        if error := _take_out(directory, spec, wanted, reason.encode("utf-8", "surrogateescape").decode("utf-8", "replace")):
            return Forgetting((), tuple(notes), error)
        pending = _pending(path)
        if not (pending or owners or modules):
            raise need_something(spec, {one.manifest.owner for one in ModuleRegistry.of_run(path, spec)})
    return _conclude(directory, spec, pending, work, began, tuple(notes)) if pending else Forgetting((), tuple(notes))


def waits_for_nodes(directory: RunDirectory, spec: RunSpec) -> bool:
    """Tell whether a run lacks what only nodes can give: a fit or an answer of one that it did not give up, or a lost score."""
    stages = ["fit", "answer"] if spec.synthesis.site == "client" else ["fit"]
    there, without = directory.receipts(), given_up(directory)
    awaited = [one for one in participants(directory.path, spec) if one not in without]
    return bool(_lost(directory)) or any(f"{stage}-{one}" not in there for stage in stages for one in awaited)


def given_up(directory: RunDirectory) -> dict[str, str]:
    """Return why results do without nodes for which nobody waits any more, by partition.

    These are who was missing when the run's last session ended, apart from those who were there before something was forgotten.
    Until a session has ended since the purge, they are who was missing before it.
    """
    if not directory.metrics():
        return dict.fromkeys(_missing_before(directory), "it was missing before the run forgot somebody")
    lost = _lost(directory)
    return {partition: reason for partition, reason in _missing(directory).items() if partition not in lost}


def _take_out(directory: RunDirectory, spec: RunSpec, wanted: Exclusion, reason: str) -> str:
    """Purge what the tombstone names, and write there and purge what is ``wanted``; return why a purge is not complete.

    Raises
    ------
    RunError
        Where an earlier request cannot be carried out, so that this one is not taken.
    """
    if error := _purge(directory, spec):
        if wanted:
            raise RunError(f"{wanted} is not forgotten, since an earlier request is not carried out yet: {error}")
        return error
    if not wanted:
        return ""
    tombstone = Tombstone.read(directory.path)
    tombstone.with_entry(plan(directory, spec, wanted, reason)).write(directory)
    return _purge(directory, spec)


def _purge(directory: RunDirectory, spec: RunSpec) -> str:
    try:
        honour(directory, spec)
    except RunError as error:
        return str(error)
    return ""


def _pending(run: Path) -> list[int]:
    """Return the numbers of the requests that have no complete certificate yet."""
    return [number for number in range(1, len(Tombstone.read(run).entries) + 1) if not is_complete(run, number)]


def _made_again(directory: RunDirectory, spec: RunSpec) -> float | None:
    """Return the seconds of making everything again since the purge, which removes metrics; None where no session has."""
    if not (metrics := directory.metrics()):
        return None
    whole = metrics["spec_digest"] == Tombstone.read(directory.path).effective(spec).digest() and not _lost(directory)
    seconds = dict(metrics["seconds"])
    last = float(seconds.pop("total"))
    return max(last, sum(seconds[stage] for stage in seconds if stage != "fit")) if whole else None  # earlier ones made stages


def _missing(directory: RunDirectory) -> dict[str, str]:
    """Return why nodes are missing from the results, by partition."""
    return {str(one["partition"]): str(one["reason"]) for one in directory.metrics().get("missing", [])}


def _missing_before(directory: RunDirectory) -> list[str]:
    """Return who was missing before the first request that has no complete certificate yet; nobody where all have one."""
    pending = _pending(directory.path)
    return list(Tombstone.read(directory.path).entries[pending[0] - 1].before.get("missing", [])) if pending else []


def _lost(directory: RunDirectory) -> dict[str, str]:
    """Return those of `_missing` who were not missing before the first request that has no complete certificate yet."""
    if not _pending(directory.path):
        return {}
    before = _missing_before(directory)
    return {partition: reason for partition, reason in _missing(directory).items() if partition not in before}


def _conclude(
    directory: RunDirectory,
    spec: RunSpec,
    pending: Collection[int],
    work: Work,
    began: float,
    notes: tuple[str, ...],
) -> Forgetting:
    """Rebuild, prove, and write a certificate for every entry that has none yet."""
    error = unproven = ""
    seconds, place = _made_again(directory, spec), "a run of the same settings"
    if seconds is None and work.rebuild is not None:
        seconds, place = 0.0, work.place
        try:
            work.rebuild(spec)
        except FederatedFactoryError as caught:
            error = str(caught)
    directory = RunDirectory(directory.path)  # the receipts are another process's by now
    if not error and (lost := _lost(directory)):
        reasons = "; ".join(f"node {partition}: {reason}" for partition, reason in lost.items())
        error = f"nodes are missing that were there before ({reasons}); forget again without naming anybody, and they are asked"
    rebuilt = seconds is not None and not error
    cost = Cost(time.time() - began + (seconds or 0.0), place if rebuilt else "")
    tombstone, proof, compared = Tombstone.read(directory.path), Proof(), []
    if rebuilt and work.from_scratch is not None:
        since = time.time()
        try:
            compared = compare_runs(directory, work.from_scratch(tombstone.effective(spec)))
            proof = Proof(tuple(compared), time.time() - since)
        except FederatedFactoryError as caught:
            unproven = str(caught)
    written = []
    try:
        for number in pending:
            certificate = Certificate(directory, spec, tombstone, number, cost, proof, rebuilt, error)
            written.append(write_certificate(certificate))
    except RunError as caught:
        error = f"{error}; {caught}" if error else str(caught)
    return Forgetting(tuple(written), notes, error, tuple(one for one in compared if not one.equal), unproven, rebuilt)
