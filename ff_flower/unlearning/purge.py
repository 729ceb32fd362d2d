"""Removing what is forgotten, and everything that was made from it; doing it twice is doing it once."""

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from ..config import Exclusion, RunSpec, from_run_config
from ..errors import RunError, VerificationError
from ..machine import is_visible
from ..module_store import ModuleStore
from ..registry import ModuleLimits, Refusal, decode_module, read_refusals
from ..reports import FitReport
from ..run_directory import RECEIVED, RunDirectory, cache_root, read_spec
from ..synthesis import SampleCache
from .owners import drop_introductions, owner_names, participants
from .tombstone import Tombstone

_RECORDS = ("metrics.json", "label_distribution.json", "label_distribution.png")


def honour(directory: RunDirectory, spec: RunSpec) -> RunSpec:
    """Complete a purge that was interrupted, and return the spec without what the run has forgotten.

    Parameters
    ----------
    directory : RunDirectory
        The run directory of ``spec``.
    spec : RunSpec
        As it was asked for.

    Raises
    ------
    RunError
        Where the tombstone or the record of the run's caches cannot be read, or a file cannot be removed.
    """
    tombstone = Tombstone.read(directory.path)
    if not tombstone.purged:
        _purge(directory, spec, tombstone, caches_of(directory, spec))
        tombstone.as_purged().write(directory)
    return tombstone.effective(spec)


def caches_of(directory: RunDirectory, spec: RunSpec) -> list[Path]:
    """Return the folders of shared samples and fits: beside the run, and where else it was worked on, if that is still there."""
    earlier = directory.caches
    if not earlier:  # by a version that noted none: its spec alone says where it was made
        made = from_run_config(read_spec(directory.path))
        earlier = [cache_root(made)] if made.out else []
    return list(dict.fromkeys([cache_root(spec), *filter(is_visible, earlier)]))


def traces(run: Path, caches: Iterable[Path], exclusion: Exclusion, module_ids: Collection[str]) -> dict[str, Path]:
    """Return every file of a run and its caches that holds something of what is excluded, or was made from it.

    Parameters
    ----------
    run : Path
        The run directory.
    caches : iterable of Path
        Folders of shared samples and fits.
    exclusion : Exclusion
        Who is forgotten.
    module_ids : collection of str
        Ids of their modules.

    Returns
    -------
    dict from str to Path
        By the file's name in the run directory, or ``cache/...``; of further caches by its path.
    """
    refused = _quarantined(run, exclusion, module_ids)
    # Vetting draws samples of what it then refuses. A copy of somebody else's module leaves that one's samples alone.
    drawn = {*module_ids} | {_digest(path) for path in refused if not (run / "modules" / f"{_digest(path)}.safetensors").exists()}
    files = [*refused, *(path for path in _files(run / "modules") if _digest(path) in drawn and path not in refused)]
    names = owner_names(run)
    for node in sorted((run / "nodes").glob("*")):
        gone = names.get(node.name, node.name) in exclusion.owners
        files += [path for path in _files(node) if path.name != "fit.json" or gone]
    files += _files(run / "classifiers")
    files += [run / name for name in _RECORDS if (run / name).exists()]
    found: dict[str, Path] = {}
    for number, cache in enumerate(caches):  # first, since quarantine tells what of them is to go
        copies = [*_fits(cache, exclusion), *_received(cache, drawn)]
        copies += [path for module_id in sorted(drawn) for path in _files(cache / "samples" / module_id)]
        copies += [path for path in _files(cache / "modules") if _digest(path) in drawn]
        place = cache.as_posix() if number else "cache"
        found |= {f"{place}/{path.relative_to(cache).as_posix()}": path for path in copies}
    return found | {path.relative_to(run).as_posix(): path for path in files}


def drop_copies(cache: Path, exclusion: Exclusion, module_ids: Collection[str]) -> tuple[dict[str, int], int]:
    """Delete samples and shared files of forgotten modules, and fits of forgotten owners; a node does it when told.

    Returns
    -------
    tuple of dict and int
        Files of samples deleted by module id, and files of fits deleted: unfinished ones, and what the server lacks.
    """
    samples = {module_id: len(_files(cache / "samples" / module_id)) for module_id in sorted(module_ids)}
    for module_id in samples:
        SampleCache(cache / "samples").remove(module_id)
        ModuleStore(cache / "modules").remove(module_id)
    fits = _fits(cache, exclusion)
    for path in (*fits, *_received(cache, module_ids)):
        path.unlink(missing_ok=True)
    return samples, len(fits)


def _purge(directory: RunDirectory, spec: RunSpec, tombstone: Tombstone, caches: Collection[Path]) -> None:
    exclusion, module_ids = tombstone.exclusion, tombstone.module_ids
    try:
        for path in traces(directory.path, caches, exclusion, module_ids).values():
            path.unlink(missing_ok=True)
        names = owner_names(directory.path)
        for node in sorted((directory.path / "nodes").glob("*")):
            owner = names.get(node.name, node.name)
            if owner in exclusion.owners:
                shutil.rmtree(node)
            elif labels := exclusion.labels(owner):
                _amend(directory, node.name, labels)
        for cache in caches:
            drop_copies(cache, exclusion, module_ids)
        effective = tombstone.effective(spec)
        drop_introductions(directory, effective)
        kept = {f"fit-{partition}" for partition in participants(directory.path, effective)}
        directory.withdraw(set(directory.receipts()) - kept)
    except OSError as error:
        raise RunError(
            f"{error.filename}: cannot be removed ({error.strerror}); the request stands in forgotten.json, so make the run "
            "directory writable and forget again: it goes on where it stopped"
        ) from error


def _amend(directory: RunDirectory, partition: str, labels: Collection[int]) -> None:
    """Let the report of an owner who stays say nothing of the classes that it keeps out from now on."""
    path, stage = directory.path / "nodes" / partition / "fit.json", f"fit-{partition}"
    if not path.exists():
        return
    report = FitReport.from_json(path.read_text(encoding="utf-8")).without(labels)
    directory.write(f"nodes/{partition}/fit.json", report.to_json().encode())
    if (receipt := directory.receipts().get(stage)) is not None:
        modules = [name for name in receipt["outputs"] if name.startswith("modules/") and (directory.path / name).exists()]
        outputs = [path, *(directory.path / name for name in modules)]
        directory.finish(stage, receipt["inputs"], outputs, receipt["seconds"])


def _quarantined(run: Path, exclusion: Exclusion, module_ids: Collection[str]) -> list[Path]:
    """Return the refused files that came from those who are forgotten, or are copies of their modules, with the reports."""
    folder = run / "modules" / "quarantine"
    if not folder.exists():
        return []
    names, refusals = owner_names(run), read_refusals(run / "modules")
    sources = {refusal: refusal.source.removeprefix("node ") for refusal in refusals}
    stems = {one.sha256 for one, sender in sources.items() if _concerns(one, names.get(sender, sender), folder, exclusion)}
    # Others' copies go, also of what was refused itself, but for a module that stays where somebody else's copy was refused.
    originals = {*module_ids, *(stem for stem in stems if not (run / "modules" / f"{stem}.safetensors").exists())}
    for refusal, sender in sources.items():
        copied = refusal.sha256 in originals or sender.partition(".")[0] in originals
        if copied or any(f"module {original[:12]} " in refusal.detail for original in originals):  # so vetting names it
            stems.add(refusal.sha256)
    return [path for path in _files(folder) if _digest(path) in stems]


def _concerns(refusal: Refusal, owner: str, folder: Path, exclusion: Exclusion) -> bool:
    """Tell whether refused bytes are of a forgotten contribution; of an owner's unreadable bytes nobody can say they are not.

    ``owner`` is the sender; of a file that was set aside later it is the file's name, and its manifest says whose it is.
    """
    if owner in exclusion.owners:
        return True
    try:
        data = (folder / f"{refusal.sha256}.refused").read_bytes()
        manifest, _ = decode_module(data, ModuleLimits.of_bytes(len(data)))
    except (OSError, VerificationError):
        return bool(exclusion.labels(owner))
    return manifest.label in exclusion.labels(owner) or exclusion.covers(manifest.owner, manifest.label)


def _fits(cache: Path, exclusion: Exclusion) -> list[Path]:
    """Return the fits of who is excluded, unfinished ones and those the server lacks, named ``<owner>+<label>+<key>``."""
    found = []
    for path in _files(cache / "fits"):
        owner, _, rest = path.name.partition("+")
        label = rest.partition("+")[0]
        if label.isdigit() and exclusion.covers(owner, int(label)):
            found.append(path)
    return found


def _received(cache: Path, module_ids: Collection[str]) -> list[Path]:
    """Return module files of a broadcast that a node was about to use when it was killed; else they go with their folder."""
    return [path for path in _files(cache / RECEIVED) if _digest(path) in module_ids]


def _digest(path: Path) -> str:
    """Return the digest by which a file is named, also where it was not written to its end."""
    return path.name.removeprefix(".").partition(".")[0]


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder, quarantine's apart from those of the modules."""
    return [path for path in sorted(folder.glob("*" if folder.name == "modules" else "**/*")) if path.is_file()]
