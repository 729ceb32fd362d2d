"""From what a person asks to forget to an entry of the tombstone; nothing is changed here."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import Exclusion, RunSpec, from_run_config
from ..errors import ConfigError, RunError
from ..machine import path_of
from ..metrics import Ledger
from ..registry import ModuleRegistry, RegisteredModule
from ..run_directory import RunDirectory, file_digest, read_spec, run_path
from .owners import owner_names, participants
from .purge import caches_of, traces
from .tombstone import Entry, Tombstone

SHORTEST_ID = 8


def open_run(run: Path) -> tuple[RunSpec, Path]:
    """Return the spec of a run directory, which may have been moved, and the folder itself.

    Parameters
    ----------
    run : Path
        A run directory or a link to one; its parent becomes the spec's ``out``.

    Raises
    ------
    RunError
        Where it is no run directory, of another format version, or its name is not that of its spec.
    ConfigError
        Where its spec has keys or values that this version does not know.
    """
    path = path_of(run).resolve()
    spec = from_run_config({**read_spec(path), "out": str(path.parent)})
    if run_path(spec).name != path.name:
        raise RunError(
            f"{path}: its spec belongs to a folder called {run_path(spec).name}; give it back that name, or, where another "
            "version made the run, use that version"
        )
    return spec, path


def check_whole(directory: RunDirectory) -> None:
    """See that every finished stage still has its outputs, byte for byte.

    Raises
    ------
    RunError
        Naming the first file that is missing or has changed; nothing was touched.
    """
    for receipt in directory.receipts().values():
        for name, digest in receipt["outputs"].items():
            if (found := file_digest(directory.path / name)) != digest:
                what = "is missing" if found is None else "has changed since the run wrote it"
                raise RunError(
                    f"{directory.path / name}: {what}; nothing was touched. `ff-flower verify {directory.path}` lists all such "
                    "files, and running the spec again restores them; forget then"
                )


def resolve(
    directory: RunDirectory, spec: RunSpec, tombstone: Tombstone, owners: Collection[str], modules: Collection[str]
) -> tuple[Exclusion, list[str]]:
    """Return what is to be forgotten beyond what already is, and a sentence for each part that already is.

    Raises
    ------
    RunError
        For an owner or a module that is not there, listing those who are.
    """
    there = list(ModuleRegistry.of_run(directory.path, spec))
    names = owner_names(directory.path)
    nodes = {path.name for path in (directory.path / "nodes").iterdir()} | {*participants(directory.path, spec)}
    present = {module.manifest.owner for module in there} | {names.get(node, node) for node in nodes}
    gone = tombstone.effective(spec).exclusion
    wanted, notes = Exclusion(), []
    for owner in owners:
        if owner in gone.owners:
            notes.append(f"owner {owner} has no part in this run any more, or never had")
        elif owner in present:
            wanted |= Exclusion(frozenset({owner}))
        else:
            raise RunError(f"owner {owner!r}: took no part in this run; there are: {_listed(present)}")
    for text in modules:
        if former := [name for name in tombstone.module_ids if len(text) >= SHORTEST_ID and name.startswith(text)]:
            notes.append(f"module {former[0]} is forgotten already")
            continue
        module = _find(there, text)
        wanted |= Exclusion(classes=frozenset({(module.manifest.owner, module.manifest.label)}))
    return wanted, notes


def plan(directory: RunDirectory, spec: RunSpec, exclusion: Exclusion, reason: str) -> Entry:
    """Return the entry of the tombstone for ``exclusion``, with the account of the run as it is before."""
    registry = list(ModuleRegistry.of_run(directory.path, spec))
    modules = {one.module_id: _told(one) for one in registry if exclusion.covers(one.manifest.owner, one.manifest.label)}
    doomed = traces(directory.path, caches_of(directory, spec), exclusion, set(modules))
    removed = {name: digest for name, path in doomed.items() if (digest := file_digest(path))}
    return Entry(str(exclusion), modules, reason, account(directory, spec, registry, set(removed)), removed)


def account(
    directory: RunDirectory, spec: RunSpec, registry: Sequence[RegisteredModule], removed: Collection[str]
) -> dict[str, Any]:
    """Return what a certificate compares: modules, files that stay, scores, seconds, who was sent what, and who was missing."""
    metrics = directory.metrics()
    unfitted = [one for one in participants(directory.path, spec) if f"fit-{one}" not in directory.receipts()]
    stays = {
        name: digest
        for receipt in directory.receipts().values()
        for name, digest in receipt["outputs"].items()
        if name.startswith(("modules/", "nodes/")) and name not in removed
    }
    ledger = Ledger.read(directory.path / "ledger.jsonl")
    sent = {(one.what, one.partition) for one in ledger.transfers if one.direction == "down"}
    return {
        "order": [one.module_id for one in registry],
        "modules": {one.module_id: _told(one) for one in registry},
        "stays": stays,
        "scores": {name: _scores(result) for name, result in metrics.get("results", {}).items()},
        "seconds": metrics.get("seconds", {}),
        "classes": metrics.get("classes", []),
        "sent_to": sorted(partition for what, partition in sent if what == "modules"),
        "classifiers_sent_to": sorted(partition for what, partition in sent if what == "classifiers"),
        "missing": [str(one["partition"]) for one in metrics["missing"]] if metrics else unfitted,
        "spec_digest": spec.digest(),
    }


def _scores(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: result.get(key) for key in ("accuracy", "auroc", "macro_f1", "per_class_recall")}


def _told(module: RegisteredModule) -> dict[str, Any]:
    manifest = module.manifest
    return {
        "owner": manifest.owner,
        "label": manifest.label,
        "label_name": manifest.label_name,
        "examples": manifest.num_examples,
    }


def _find(there: Sequence[RegisteredModule], text: str) -> RegisteredModule:
    found = [one for one in there if len(text) >= SHORTEST_ID and one.module_id.startswith(text)]
    if len(found) != 1:
        listed = "".join(f"\n  {one.module_id} owner {one.manifest.owner}, class {one.manifest.label_name!r}" for one in there)
        raise RunError(f"module {text!r}: must be an id, or its first {SHORTEST_ID} characters or more; there are:{listed}")
    return found[0]


def _listed(owners: Collection[str]) -> str:
    return str(Exclusion(frozenset(owners))).replace(",", ", ") or "none"


def need_something(spec: RunSpec, present: Collection[str]) -> ConfigError:
    """Return the error of a request that names nobody."""
    return ConfigError(f"nobody is named: give --owner or --module; the owners of {spec.data.name} are: {_listed(present)}")
