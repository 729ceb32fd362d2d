"""The modules of a run directory against their names, their owners' reports, and what the run expects."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import MAX_MODULE_MB, OWN
from ..data import DATASETS, DatasetInfo
from ..errors import ConfigError, ModuleError, VerificationError
from ..generative import GenerativeModule, restore_module
from ..module_store import is_module_id
from ..registry import Expectation, ModuleLimits, ModuleManifest, RegisteredModule, SignaturePolicy, decode_module, module_id
from ..reports import FitReport
from ..vetting import check_cost
from .contents import DIGEST, Finding, RunContents

WIDEST = ModuleLimits.of_bytes(MAX_MODULE_MB * 2**20)


@dataclass(frozen=True)
class OpenedModule:
    """A module file that passed every check that can be made of it alone: its identity and size, its manifest, and the module."""

    module_id: str
    num_bytes: int
    manifest: ModuleManifest
    module: GenerativeModule[Any]


def open_file(path: Path, limits: ModuleLimits = WIDEST) -> OpenedModule:
    """Verify a module file by itself, its name included where that is a digest, and restore its module.

    Without a run, whose ``trust.max-module-mb`` gives ``limits``, a file may be as large as any run can allow.

    Raises
    ------
    VerificationError
        Naming the broken rule: ``file`` or ``size`` before it is read, ``digest``, one of `decode_module`, or ``architecture``.
    """
    if not path.is_file():
        raise VerificationError("file", f"{path} is no plain file; name a module file")
    if (size := path.stat().st_size) > limits.max_bytes:
        raise VerificationError("size", f"{size} bytes; a module file has at most {limits.max_bytes}")
    data = path.read_bytes()
    digest = module_id(data)
    if re.fullmatch(DIGEST, path.stem) and digest != path.stem:
        raise VerificationError("digest", f"the file hashes to {digest[:12]}..., its name says {path.stem[:12]}...")
    manifest, state = decode_module(data, limits)
    check_cost(manifest)
    try:
        module = restore_module(manifest.kind, manifest.spec, manifest.image_shape, state)
    except (ModuleError, ConfigError) as error:
        raise VerificationError("architecture", str(error)) from error
    return OpenedModule(digest, len(data), manifest, module)


def check_modules(run: RunContents, policy: SignaturePolicy) -> Iterator[Finding]:
    """Verify every module file, its place in this run, and its signature; keep those that are whole in ``run.modules``."""
    limits = ModuleLimits.of_bytes(run.spec.trust.max_module_bytes)
    for path in run.plain_files("modules/*.safetensors"):
        name = f"modules/{path.name}"
        try:
            opened = open_file(path, limits)
        except VerificationError as error:
            yield Finding(name, error.rule, error.detail)
            continue
        if opened.module_id != path.stem:
            yield Finding(name, "digest", f"its name is not its module id, {opened.module_id[:12]}...")
            continue
        run.modules[path.stem] = RegisteredModule(path.stem, opened.manifest, path, opened.num_bytes)
    expectation = _expectation(run)
    for module in run.in_order():
        name = f"modules/{module.path.name}"
        try:
            if expectation is not None:
                expectation.check(module.manifest)
            policy.check(module.manifest.owner, module.module_id, run.signature(module))
        except VerificationError as error:
            yield Finding(name, error.rule, error.detail)
    if run.spec.trust.require_signature and not policy.required:
        yield Finding("modules", "signature", "the run required signatures; name the public keys to recheck them", False)


def check_reports(run: RunContents) -> Iterator[Finding]:
    """Compare the owners' reports with the modules that are there."""
    senders, owners = _senders(run), dict(enumerate(run.owners))
    reported: Counter[tuple[str, str]] = Counter()
    for path in run.plain_files("nodes/*/fit.json"):
        name = path.relative_to(run.path).as_posix()
        try:
            report = FitReport.from_json(path.read_text(encoding="utf-8"))
            if str(report.partition) != path.parent.name:
                raise VerificationError("report", f"it is of partition {report.partition}")
        except (VerificationError, OSError, UnicodeDecodeError) as error:
            yield Finding(name, "json", str(error))
            continue
        run.reports[report.partition] = report
        owner = owners.get(report.partition, "")
        reported.update((owner, digest) for digest in report.modules.values())
        yield from _check_report(run, name, report, owner, senders)
    for one in run.in_order() if run.spec.method == "federated-factory" else ():
        if (times := reported[one.manifest.owner, one.module_id]) != 1:
            yield Finding(f"modules/{one.path.name}", "module-unreported", f"its owner reported it {times} times; once is right")


def _check_report(
    run: RunContents, name: str, report: FitReport, owner: str, senders: Mapping[str, set[str]]
) -> Iterator[Finding]:
    for label, digest in report.modules.items():
        module = run.modules.get(digest)
        if module is None:
            present = is_module_id(digest) and (run.path / "modules" / f"{digest}.safetensors").exists()
            if not (digest in senders or present or _is_forgotten(run, digest)):
                yield Finding(name, "module-missing", f"its module {digest[:12]}... for label {label} is not there")
            continue
        manifest = module.manifest
        if manifest.owner != owner and f"node {report.partition}" in senders.get(digest, ()):
            continue  # a copy of another's module, which was refused
        found = (str(manifest.label), manifest.num_examples, manifest.owner)
        said = (label, report.label_counts.get(label), owner)
        if found != said:
            yield Finding(name, "claims", f"label, images and owner are {said} here, {found} in module {digest[:12]}...")


def _is_forgotten(run: RunContents, digest: str) -> bool:
    """Tell whether a module that a node sent went with another owner: it was that one's, or a refused copy of it."""
    refused = f"modules/quarantine/{digest}.json"
    return digest in run.tombstone.module_ids or any(refused in entry.removed for entry in run.tombstone.entries)


def _senders(run: RunContents) -> dict[str, set[str]]:
    """Return who sent what was refused, by the digest of the bytes, as far as the reports of the refusals say."""
    found: dict[str, set[str]] = {}
    for path in run.plain_files("modules/quarantine/*.json"):
        refusals = run.json(path.relative_to(run.path).as_posix())
        whole = refusals if isinstance(refusals, list) else []
        found[path.stem] = {str(one.get("source")) for one in whole if isinstance(one, dict)}
    return found


def check_quarantine(run: RunContents) -> Iterator[Finding]:
    """Compare what was refused with the reports of the refusals."""
    for path in run.plain_files("modules/quarantine/*.json"):
        name, keys = path.relative_to(run.path).as_posix(), {"sha256", "rule", "detail", "source", "num_bytes"}
        try:
            refusals = json.loads(path.read_text(encoding="utf-8"))
            whole = all(set(one) == keys and one["sha256"] == path.stem for one in refusals) and bool(refusals)
        except (OSError, ValueError, TypeError, RecursionError):
            whole = False
        if not whole:
            yield Finding(name, "quarantine", "it is no list of refusals of the bytes that it is named after")
        if path.stem in run.modules:
            detail = "these bytes were refused once, and registered when they came rightly"
            yield Finding(name, "quarantine", detail, broken=False)
    for path in run.plain_files("modules/quarantine/*.refused"):
        name = path.relative_to(run.path).as_posix()
        if not path.with_suffix(".json").exists():
            yield Finding(name, "quarantine", "no report says why these bytes were refused")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != path.stem:
                yield Finding(name, "quarantine", "the bytes do not hash to their name")


def check_forgotten(run: RunContents) -> Iterator[Finding]:
    """Look for anything that is left of forgotten modules and owners."""
    for digest in run.tombstone.module_ids:
        for path in sorted((run.path / "modules").rglob(f"*{digest}.*")):
            yield Finding(path.relative_to(run.path).as_posix(), "forgotten", "it is of a forgotten module; forget it again")
    for partition, owner in enumerate(run.owners):
        if run.tombstone.entries and owner in run.tombstone.exclusion.owners and (run.path / "nodes" / str(partition)).exists():
            yield Finding(f"nodes/{partition}", "forgotten", f"it is of the forgotten owner {owner!r}; forget it again")
    if not run.tombstone.purged:
        yield Finding("forgotten.json", "forgotten", "a request was not carried out to the end; run ff-flower forget again")


def _expectation(run: RunContents) -> Expectation | None:
    """Return what the run expects of its modules, as far as it can be told without its images; None without modules."""
    if not run.modules:
        return None
    shapes = Counter(module.manifest.image_shape for module in run.in_order())
    shape = run.federation.image_shape if run.federation else shapes.most_common(1)[0][0]
    name = run.spec.data.name
    kind, _, location = name.partition(":")
    dataset = name if name in DATASETS or name == OWN else f"{kind}:{Path(location).name}"
    info = DatasetInfo(dataset, "", run.classes(), shape, "multi-class", "", "none", "npz", "")
    try:
        expectation = Expectation.of_run(run.spec, info)
    except ConfigError:
        expectation = Expectation(dataset, run.spec.seed, shape, info.classes, specs={})  # no kind can take these images
    return expectation if info.classes else replace(expectation, label_names=None)
