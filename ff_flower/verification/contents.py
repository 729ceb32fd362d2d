"""What a run directory holds, read without believing or changing it."""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..config import RunSpec, Scalar, from_run_config, spec_digest
from ..data import DATASETS
from ..errors import FederatedFactoryError
from ..federation import Federation
from ..machine import UNFINISHED
from ..registry import RegisteredModule, registry_order
from ..reports import FitReport
from ..run_directory import FORMAT_VERSION, answer_inputs, file_digest, modules_inputs
from ..unlearning import Tombstone

DIGEST = "[0-9a-f]{64}"
NOT_PLAIN = "a link, or no plain file; a run leaves plain files only"
EXPECTED = tuple(
    re.compile(pattern)
    for pattern in (
        r"(spec|environment|metrics|receipts|label_distribution|images|forgotten|progress|rounds|sites)\.json",
        r"ledger\.jsonl",
        r"label_distribution\.png",
        r"certificates/(confirmations\.json|forget-[0-9]+\.(json|html))",
        rf"modules/{DIGEST}\.(safetensors|png|sig)",
        rf"modules/quarantine/{DIGEST}\.(json|refused)",
        r"nodes/[0-9]+/((fit|answer)\.json|(logits|weights)\.safetensors)",
        r"classifiers/[a-z_]+\.safetensors",
    )
)


@dataclass(frozen=True)
class Finding:
    """Something in a run directory that is not as it should be.

    Attributes
    ----------
    place : str
        The file, as a path inside the run directory, or the stage.
    rule : str
        Short name of the rule.
    detail : str
        What was found, in one sentence.
    broken : bool
        Whether the run is not whole; False for a remark.
    """

    place: str
    rule: str
    detail: str
    broken: bool = True


@dataclass(frozen=True)
class RunContents:
    """A run directory whose spec could be read.

    Attributes
    ----------
    path : Path
        The directory.
    stored : mapping
        The flat spec as it stands there.
    spec : RunSpec
        The spec without what was forgotten.
    tombstone : Tombstone
        What was forgotten.
    federation : Federation or None
        Sites with images of their own, and their label table.
    modules : dict from str to RegisteredModule
        The modules that passed their own verification, filled in on the way.
    reports : dict from int to FitReport
        The owners' accounts by partition, filled in on the way.
    """

    path: Path
    stored: Mapping[str, Scalar]
    spec: RunSpec
    tombstone: Tombstone
    federation: Federation | None
    modules: dict[str, RegisteredModule] = field(default_factory=dict)
    reports: dict[int, FitReport] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "RunContents | Finding":
        """Read what everything else refers to; return why that is impossible where it is."""
        for name in ("spec.json", "forgotten.json", "sites.json"):
            if os.path.lexists(path / name) and not is_plain(path / name, path):
                return Finding(name, "unexpected", NOT_PLAIN)
        try:
            stored = json.loads((path / "spec.json").read_text(encoding="utf-8"))
            version, said = stored.pop("format_version", None), stored.pop("digest", None)
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            return Finding("spec.json", "spec", f"cannot be read ({error})")
        if version != FORMAT_VERSION:
            return Finding("spec.json", "format-version", f"{version!r}; this program reads {FORMAT_VERSION}")
        if said != spec_digest(stored):
            return Finding("spec.json", "spec", f"its digest is {spec_digest(stored)[:12]}..., it says {str(said)[:12]}...")
        try:
            tombstone = Tombstone.read(path)
            spec = tombstone.effective(from_run_config(stored))
            sites = path / "sites.json"
            told = json.loads(sites.read_text(encoding="utf-8")) if sites.exists() else None
            federation = None if told is None else Federation.from_json(json.dumps(told["federation"]))
        except (FederatedFactoryError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return Finding("spec.json", "spec", str(error))
        return cls(path, stored, spec, tombstone, federation)

    @property
    def current(self) -> bool:
        """Whether the spec has the keys of this version of the program, so that digests of stages can be made again."""
        return set(self.stored) == set(RunSpec().flat())

    @property
    def owners(self) -> list[str]:
        """Names of the owners by partition."""
        return list(self.federation.sites) if self.federation else [str(p) for p in range(self.spec.num_clients)]

    def classes(self) -> tuple[str, ...]:
        """Return the label table; nothing where a file of images has it, and no record of this run."""
        if self.federation:
            return self.federation.classes
        if self.spec.data.name in DATASETS:
            return DATASETS[self.spec.data.name].classes
        tables = (self.json(name) for name in ("metrics.json", "label_distribution.json"))
        found = (one["classes"] for one in tables if isinstance(one, dict) and isinstance(one.get("classes"), list))
        return tuple(str(name) for name in next(found, []))

    def in_order(self) -> list[RegisteredModule]:
        """Return the verified modules in the registry's order."""
        return sorted(self.modules.values(), key=registry_order)

    def json(self, name: str) -> Any:
        """Return what a JSON file holds; None where it is absent or broken, which `check_files` says."""
        if not is_plain(self.path / name, self.path):
            return None
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None

    def plain_files(self, pattern: str) -> list[Path]:
        """Return the plain files that match, sorted; nothing else is ever opened, and `check_files` names it."""
        return [path for path in sorted(self.path.glob(pattern)) if is_plain(path, self.path)]

    def digest(self, name: str) -> str | None:
        """Return the SHA-256 of a plain file; None where there is none that can be read."""
        with suppress(OSError):
            return file_digest(self.path / name) if is_plain(self.path / name, self.path) else None
        return None

    def signature(self, module: RegisteredModule) -> bytes | None:
        """Return the signature beside a module; None where no plain file is there."""
        return module.signature() if is_plain(module.signature_path, self.path) else None

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield every file and link, and every folder in a file's place, with its name inside the run directory."""
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path).as_posix()
            if path.is_symlink() or not path.is_dir() or any(pattern.fullmatch(name) for pattern in EXPECTED):
                yield name, path


def is_plain(path: Path, run: Path) -> bool:
    """Tell whether a file inside ``run`` can be opened without following a link on the way, and read to its end."""
    steps = [step for step in (path, *path.parents) if step != run and step.is_relative_to(run)]
    try:
        file, *folders = [step.lstat().st_mode for step in steps]
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(file) and all(stat.S_ISDIR(folder) for folder in folders)


def check_files(run: RunContents) -> Iterator[Finding]:
    """Find what does not belong there, pictures and signatures of no module, and broken JSON."""
    for name, path in run.files():
        if not is_plain(path, run.path):
            yield Finding(name, "unexpected", NOT_PLAIN)
        elif name.endswith(UNFINISHED):
            yield Finding(
                name, "unfinished", "a part of a file that was being written; remove it when no run is under way", False
            )
        elif not any(pattern.fullmatch(name) for pattern in EXPECTED):
            yield Finding(name, "unexpected", "no run leaves such a file behind")
        elif path.parent.name == "modules" and path.suffix != ".safetensors" and not path.with_suffix(".safetensors").exists():
            yield Finding(name, "unexpected", "it belongs to a module that is not there")
        elif path.suffix == ".json" and run.json(name) is None:
            yield Finding(name, "json", "it holds no JSON")


def check_receipts(run: RunContents) -> Iterator[Finding]:
    """Compare every output of a finished stage with its hash, and the stage's inputs with what is here."""
    receipts = run.json("receipts.json")
    if not isinstance(receipts, dict):
        yield Finding("receipts.json", "receipt", "it is missing or not a table: no hash can be rechecked")
        return
    if not run.current:
        yield Finding("receipts.json", "receipt-inputs", "another version of the program made this run: not rechecked", False)
    for stage, receipt in receipts.items():
        try:
            inputs, outputs = str(receipt["inputs"]), dict(receipt["outputs"])
            places = {name: PurePosixPath(name) for name in outputs}
        except (TypeError, KeyError, ValueError):
            yield Finding("receipts.json", "receipt", f"{stage!r} has no inputs and outputs")
            continue
        for name, place in places.items():
            if place.is_absolute() or ".." in place.parts or "\0" in name:
                yield Finding(name[:200], "receipt", f"an output of {stage!r} lies outside the run directory")
            elif (found := run.digest(name)) != outputs[name]:
                state = "missing, or no plain file that can be read," if found is None else "changed"
                yield Finding(name, "receipt", f"{state} since {stage!r} was finished")
        if run.current and inputs not in _inputs(run, stage):
            yield Finding("receipts.json", "receipt-inputs", f"{stage!r} was finished with another spec or other modules")


def _inputs(run: RunContents, stage: str) -> set[str]:
    """Return what a stage's inputs may be; the stage's own text where that cannot be told."""
    ids = [module.module_id for module in run.in_order()]
    kind, _, number = stage.partition("-")
    if kind == "fit":
        return {run.spec.fit_digest()}
    if kind == "answer":
        return {answer_inputs(modules_inputs(run.spec, ids), number)} if number.isdecimal() else set()
    if stage == "server":
        return {modules_inputs(run.spec, ids)}
    receipts = run.json("receipts.json")
    return {str(receipts[stage]["inputs"])}
