"""The certificate: what was forgotten, what was made again, the proof, the cost, and what is out of reach."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from ..config import Exclusion, RunSpec
from ..environment import source_digest
from ..errors import RunError
from ..machine import is_visible
from ..registry import ModuleRegistry
from ..run_directory import RunDirectory, answer_inputs, file_digest, modules_inputs, student_inputs
from .comparison import Compared
from .owners import participants
from .page import render_page
from .tombstone import Entry, Tombstone

FORMAT_VERSION = 1
CONFIRMATIONS = "certificates/confirmations.json"  # what the nodes answered, written by whoever asked them


@dataclass(frozen=True)
class Cost:
    """Seconds of purge and rebuild, and where the rebuilding was done; empty where nothing was rebuilt."""

    seconds: float
    place: str


@dataclass(frozen=True)
class Proof:
    """The comparison with a run from scratch, and the seconds that run took; nothing where none was made."""

    compared: tuple[Compared, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Certificate:
    """What is known when a request has been carried out.

    Attributes
    ----------
    directory : RunDirectory
        The run, after.
    spec : RunSpec
        As it was asked for.
    tombstone : Tombstone
        All requests; this one is number ``number``, counted from 1.
    cost, proof : Cost, Proof
        What it took, and the comparison with a run from scratch.
    rebuilt : bool
        Whether everything is made again.
    error : str
        Why not, where that was tried.
    """

    directory: RunDirectory
    spec: RunSpec
    tombstone: Tombstone
    number: int
    cost: Cost
    proof: Proof
    rebuilt: bool
    error: str

    @property
    def entry(self) -> Entry:
        """The request."""
        return self.tombstone.entries[self.number - 1]

    def as_dict(self) -> dict[str, Any]:
        """Return the certificate as plain values for JSON."""
        entry, before = self.entry, self.entry.before
        registry = list(ModuleRegistry.of_run(self.directory.path, self.spec))
        after = [module.module_id for module in registry]
        kept = {name: file_digest(self.directory.path / name) for name in before["stays"]}
        rebuilt = self._rebuilt(after)
        return {
            "format_version": FORMAT_VERSION,
            "number": self.number,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": {"folder": self.directory.path.name, "spec_digest": self.spec.digest(), "source_digest": source_digest()},
            "request": {"exclude": entry.exclude, "reason": entry.reason, "modules": entry.modules},
            "modules": {"before": before["order"], "after": after},
            "removed": entry.removed,
            "still_there": [name for name in entry.removed if name.startswith("modules/") and self._exists(name)],
            "untouched": {name: digest for name, digest in before["stays"].items() if kept[name] == digest},
            "amended": sorted({name for name, digest in before["stays"].items() if kept[name] != digest} - self._removed_later()),
            "rebuild": {"done": self.rebuilt, "error": self.error, "files": rebuilt},
            "proof": self._proof(after, rebuilt),
            "classes": (classes := _classes(entry, registry)),
            "scores": _compare_scores(before["scores"], self._scores_after(), classes),
            "cost": self._cost(),
            "nodes": self._nodes(),
            "out_of_reach": self._out_of_reach(),
        }

    def _exists(self, name: str) -> bool:
        return (self.directory.path / name).exists()

    def _rebuilt(self, after: list[str]) -> dict[str, dict[str, Any]]:
        """Return every artefact made from the modules that are left, with its hash and what its receipt says it was made from."""
        if not self.rebuilt:
            return {}
        effective = self.tombstone.effective(self.spec)
        inputs, answered = modules_inputs(effective, after), participants(self.directory.path, effective)
        expected = {f"answer-{one}": {answer_inputs(inputs, one)} for one in answered}
        expected["server"] = {inputs}
        nodes = [self.directory.path / "nodes" / one for one in answered if f"answer-{one}" in self.directory.receipts()]
        taught = ([node / f"{carried}.safetensors" for node in nodes] for carried in ("logits", "weights"))
        expected["student"] = {student_inputs(inputs, files) for files in taught}
        return {
            name: {"sha256": digest, "stage": stage, "from_retained_only": receipt["inputs"] in expected[stage]}
            for stage, receipt in self.directory.receipts().items()
            if stage in expected
            for name, digest in receipt["outputs"].items()
        }

    def _proof(self, after: list[str], rebuilt: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        gone, before = {name for entry in self._entries_since() for name in entry.modules}, self.entry.before["order"]
        compared = self.proof.compared
        scratch = {
            "equal": all(one.equal for one in compared),
            "artefacts": len(compared),
            "differing": [one.name for one in compared if not one.equal],
            "digests": {one.name: one.forgotten for one in compared},
            "seconds": round(self.proof.seconds, 1),
        }
        return {
            "modules_after_are_before_without_forgotten": after == [name for name in before if name not in gone],
            "every_rebuilt_file_from_retained_modules_only": all(one["from_retained_only"] for one in rebuilt.values()),
            "generative_modules_fitted": len(set(after) - set(before)),
            "from_scratch": scratch if compared else None,
        }

    def _entries_since(self) -> tuple[Entry, ...]:
        """Return this request and those that came before its certificate was written: the run is without all of them by now."""
        return self.tombstone.entries[self.number - 1 :]

    def _removed_later(self) -> set[str]:
        return {name for entry in self._entries_since()[1:] for name in entry.removed}

    def _scores_after(self) -> Mapping[str, Any]:
        results: Mapping[str, Any] = self.directory.metrics()["results"] if self.rebuilt else {}
        return results

    def _cost(self) -> dict[str, Any]:
        """Return seconds beside those of the whole run: its longest session, or what its stages took together."""
        whole = 0.0
        for entry in self.tombstone.entries[: self.number]:
            seconds = dict(entry.before["seconds"])
            whole = max(whole, seconds.pop("total", 0.0), sum(seconds.values()))
        share = round(self.cost.seconds / whole, 4) if whole else None
        return {
            "seconds": round(self.cost.seconds, 2),
            "rebuilt_by": self.cost.place,
            "full_run_seconds": round(whole, 2),
            "share": share,
        }

    def _nodes(self) -> dict[str, Any]:
        path = self.directory.path / CONFIRMATIONS
        found = self.directory.read_json(CONFIRMATIONS) if path.exists() else {}
        told = Exclusion.parse(found.get("excluded", ""))
        if not set(self.entry.modules) <= set(found.get("modules", [])) or told | self.entry.exclusion != told:
            found = {}
        confirmed = found.get("confirmed", {})
        silent = [str(one) for one in self.entry.before["sent_to"] if str(one) not in confirmed]
        return {"confirmed": confirmed, "not_confirmed": silent, "reasons": found.get("reasons", [])}

    def _out_of_reach(self) -> list[str]:
        run, sentences = self.directory.path, []
        if sent := [str(one) for one in self.entry.before["sent_to"]]:
            sentences.append(
                f"The ledger says that the module files were sent to the nodes {', '.join(sent)}. A node of this software keeps "
                "none of them, and deletes cached samples when it is told to; what else somebody there copied is out of reach."
            )
        else:
            sentences.append("The ledger says that the module files were sent to no node.")
        if scored := [str(one) for one in self.entry.before.get("classifiers_sent_to", [])]:
            sentences.append(
                f"The ledger says that classifiers fitted with them were sent to the nodes {', '.join(scored)}, which scored "
                "them. A node of this software keeps none; what else somebody there copied is out of reach."
            )
        if self.spec.data.elsewhere or self.directory.deployed:
            sentences.append(
                "A site keeps the files of its own fits in its cache until it is told that the server has them, or forgets them."
            )
            sentences.append(
                "A SuperLink that was started with --database may keep bytes of deleted messages in that file: stop it, remove "
                "the file, and register the sites' keys again."
            )
        sisters = [one.name for one in sorted(run.parent.iterdir()) if one != run and not one.is_symlink() and self._holds(one)]
        if sisters:
            sentences.append(
                f"These other run directories beside this one hold the same module files, and are not changed: "
                f"{', '.join(sisters)}. Forget there too."
            )
        sentences.append("Backups and copies of the run directory, and classifiers that were taken out of it, are not reached.")
        sentences.append(
            "The ledger of transfers stays, since it says who was sent what: it holds numbers of bytes, no content of the images."
        )
        return sentences

    def _holds(self, other: Path) -> bool:
        return any(is_visible(other / "modules" / f"{module_id}.safetensors") for module_id in self.entry.modules)


def certificate_name(number: int) -> str:
    """Return the name of a certificate in its run directory."""
    return f"certificates/forget-{number}.json"


def is_complete(run: Path, number: int) -> bool:
    """Tell whether a request has its certificate, and everything was made again when it was written."""
    path = run / certificate_name(number)
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["rebuild"]["done"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_certificate(certificate: Certificate) -> Path:
    """Write the certificate as JSON, and as a page for people beside it; return the former.

    Raises
    ------
    RunError
        When the run directory cannot be written.
    """
    name, values = certificate_name(certificate.number), certificate.as_dict()
    try:
        certificate.directory.write(name.replace(".json", ".html"), render_page(values).encode("utf-8", "replace"))
        return certificate.directory.write_json(name, values)
    except OSError as error:
        path = certificate.directory.path / name
        raise RunError(f"{path}: cannot be written ({error.strerror}); make it writable and forget again") from error


def _classes(entry: Entry, registry: Iterable[Any]) -> dict[str, list[int]]:
    """Return the labels that nobody holds any more, those that lost an owner, and the others."""
    names = {int(module["label"]): module["label_name"] for module in entry.modules.values()}
    touched, before = set(names), {int(module["label"]) for module in entry.before["modules"].values()}
    left = {module.manifest.label for module in registry}
    return {
        "forgotten": sorted(touched - left),
        "fewer_owners": sorted(touched & left),
        "retained": sorted((before - touched) & left),
        "names": [names[label] for label in sorted(touched - left)],
    }


def _compare_scores(before: Mapping[str, Any], after: Mapping[str, Any], classes: Mapping[str, list[int]]) -> dict[str, Any]:
    """Return accuracy and mean recall by group of classes, before and after, of every result; None where there is none."""
    return {
        name: {"before": _by_group(before.get(name), classes), "after": _by_group(after.get(name), classes)}
        for name in sorted({*before, *after})
    }


def _by_group(result: Mapping[str, Any] | None, classes: Mapping[str, list[int]]) -> dict[str, float | None]:
    recalls = (result or {}).get("per_class_recall") or []
    values: dict[str, float | None] = {"accuracy": (result or {}).get("accuracy")}
    for group in ("forgotten", "fewer_owners", "retained"):
        known = [recalls[label] for label in classes[group] if label < len(recalls) and recalls[label] is not None]
        values[group] = fmean(known) if known else None
    return values
