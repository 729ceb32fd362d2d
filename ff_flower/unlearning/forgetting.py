"""The four steps of forgetting: tombstone, purge, rebuild, certificate. Each is done once, whatever interrupts."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from ..config import RunSpec
from ..errors import FederatedFactoryError
from ..registry import ModuleRegistry
from ..run_directory import RunDirectory
from .certificate import Certificate, Cost, Proof, is_complete, write_certificate
from .comparison import Compared, compare_runs
from .purge import honour
from .request import caches_of, check_whole, need_something, open_run, plan, resolve
from .tombstone import Tombstone

Rebuild = Callable[[RunSpec], object]
FromScratch = Callable[[RunSpec], RunDirectory]


@dataclass(frozen=True)
class Forgetting:
    """What came of a request.

    Attributes
    ----------
    certificates : tuple of Path
        The certificates that were written, as JSON; a page for people lies beside each. None where there was nothing to do.
    notes : tuple of str
        What had been forgotten before.
    error : str
        Why nothing could be rebuilt; empty where it could, or was not asked for.
    differing : tuple of Compared
        Where a run from scratch differs; empty where it does not, or none was made.
    unproven : str
        Why the run from scratch that was asked for could not be made; empty otherwise.
    """

    certificates: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    error: str = ""
    differing: tuple[Compared, ...] = ()
    unproven: str = ""


@dataclass(frozen=True)
class Work:
    """How a run is made: what depends on nodes and processes, which this station does not know.

    Attributes
    ----------
    rebuild : callable from RunSpec, optional
        Runs the spec, as it was asked for, on its run directory; None leaves that to the next run of the spec.
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
        Why, for the certificate.

    Raises
    ------
    ConfigError
        When nobody is named and nothing is unfinished.
    RunError
        When the run directory is not whole, cannot be written, does not have who is named, or somebody is at work on it; it is
        as it was then.
    """
    began = time.time()
    spec, path = open_run(run)
    directory = RunDirectory(path)
    with directory.alone():
        effective, pending, notes = _take_out(directory, spec, owners, modules, reason)
    return _conclude(directory, spec, effective, pending, work, began, notes) if pending else Forgetting((), notes)


def _take_out(
    directory: RunDirectory, spec: RunSpec, owners: Collection[str], modules: Collection[str], reason: str
) -> tuple[RunSpec, list[int], tuple[str, ...]]:
    """Write the tombstone, and purge what it names.

    Returns
    -------
    tuple of RunSpec, list of int and tuple of str
        The spec without the forgotten; the requests that have no certificate yet; what had been forgotten before.
    """
    path = directory.path
    tombstone = Tombstone.read(path)
    if tombstone.purged:
        check_whole(directory)
    wanted, notes = resolve(directory, spec, tombstone, owners, modules)
    caches = caches_of(spec, path)
    if wanted:
        honour(directory, spec, caches)
        tombstone = Tombstone.read(path)
        tombstone = tombstone.with_entry(plan(directory, spec, wanted, reason, caches))
        tombstone.write(directory)
    pending = [number for number in range(1, len(tombstone.entries) + 1) if not is_complete(path, number)]
    if not (pending or owners or modules):
        raise need_something(spec, {one.manifest.owner for one in ModuleRegistry.of_run(path, spec)})
    return honour(directory, spec, caches), pending, tuple(notes)


def _conclude(
    directory: RunDirectory,
    spec: RunSpec,
    effective: RunSpec,
    pending: Collection[int],
    work: Work,
    began: float,
    notes: tuple[str, ...],
) -> Forgetting:
    """Rebuild, prove, and write a certificate for every entry that has none yet."""
    error = unproven = ""
    if work.rebuild is not None:
        try:
            work.rebuild(spec)
        except FederatedFactoryError as caught:
            error = str(caught)
    rebuilt = work.rebuild is not None and not error
    directory = RunDirectory(directory.path)  # the receipts are another process's by now
    cost = Cost(time.time() - began, work.place if rebuilt else "")
    proof, compared = Proof(), []
    if rebuilt and work.from_scratch is not None:
        since = time.time()
        try:
            compared = compare_runs(directory, work.from_scratch(effective))
            proof = Proof(tuple(compared), time.time() - since)
        except FederatedFactoryError as caught:
            unproven = str(caught)
    written = []
    tombstone = Tombstone.read(directory.path)
    for number in pending:
        certificate = Certificate(directory, spec, tombstone, number, cost, proof, rebuilt, error)
        written.append(write_certificate(certificate))
    return Forgetting(tuple(written), notes, error, tuple(one for one in compared if not one.equal), unproven)
