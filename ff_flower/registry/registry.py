"""A folder of verified module files, each named by the SHA-256 of its bytes.

::

    FOLDER/<module_id>.safetensors      verified when it was added
    FOLDER/<module_id>.sig              its owner's signature, where it came with one
    FOLDER/<module_id>.png              a picture of its samples, where somebody drew one
    FOLDER/quarantine/<sha256>.json     why bytes were refused, and who sent them
    FOLDER/quarantine/<sha256>.refused  the bytes themselves
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from ..config import RunSpec
from ..errors import RunError, VerificationError
from ..machine import whole_file
from .expectation import Expectation
from .manifest import ModuleManifest
from .serialization import DEFAULT_LIMITS, ModuleLimits, decode_module, module_id
from .signatures import SIGNATURE_BYTES, SignaturePolicy

SUFFIX = ".safetensors"
SIGNATURE_SUFFIX = ".sig"
PICTURE_SUFFIX = ".png"
QUARANTINE = "quarantine"


@dataclass(frozen=True)
class RegisteredModule:
    """A verified module file: its identity, what it says of itself, its place and its size in bytes."""

    module_id: str
    manifest: ModuleManifest
    path: Path
    num_bytes: int

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises
        ------
        VerificationError
            Rule ``digest``: the file is no longer what was verified.
        """
        data = self.path.read_bytes()
        _check_digest(data, self.module_id)
        return data

    @property
    def signature_path(self) -> Path:
        """Where its owner's signature lies, where it came with one."""
        return self.path.with_suffix(SIGNATURE_SUFFIX)

    def signature(self) -> bytes | None:
        """Return the signature that came with the file, not checked again; None where none did, or no plain file is there."""
        if not self.signature_path.is_file():
            return None
        with self.signature_path.open("rb") as file:
            return file.read(SIGNATURE_BYTES + 1)

    def files(self) -> list[Path]:
        """Return the module file, and its signature where it has one."""
        return [path for path in (self.path, self.signature_path) if path.exists()]


@dataclass(frozen=True)
class Refusal:
    """Why bytes were refused: their SHA-256, the broken rule, what was found, who sent them, and how many they were."""

    sha256: str
    rule: str
    detail: str
    source: str
    num_bytes: int


class ModuleRegistry:
    """The verified modules of one folder, in an order that does not show when they arrived.

    Iteration is sorted by label, then by owner ("2" before "10"), then by module id.

    Parameters
    ----------
    folder : Path
        Made if it does not exist. Every file found in it must hash to its name, else it goes to quarantine (rule ``digest``);
        what the files hold is verified at first use, and goes to quarantine likewise. Files that another process adds later are
        seen when the folder is opened again.
    limits : ModuleLimits
        Sizes beyond which a file is refused.
    """

    def __init__(self, folder: Path, limits: ModuleLimits = DEFAULT_LIMITS) -> None:
        self.folder = Path(folder)
        self.limits = limits
        self._verified: dict[str, RegisteredModule] = {}
        self._unread: set[str] = set()
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.glob("*" + SUFFIX)):
            self._adopt(path)

    @classmethod
    def of_run(cls, run: Path, spec: RunSpec) -> Self:
        """Open the registry of a run directory, with the limits of its spec."""
        return cls(run / "modules", ModuleLimits.of_bytes(spec.trust.max_module_bytes))

    def add(self, data: bytes, expectation: Expectation, signature: bytes | None = None) -> RegisteredModule:
        """Verify a received file and keep it; adding the same bytes again changes nothing.

        Parameters
        ----------
        data : bytes
            The file as it was received.
        expectation : Expectation
            What it must say of itself, and whose signatures are believed.
        signature : bytes, optional
            The owner's signature, as it was received; kept beside the file.

        Raises
        ------
        VerificationError
            Naming the broken rule: one of `decode_module`, of `Expectation.check` or of `SignaturePolicy.check`; the same one
            whatever was added before. Nothing is kept then; see `quarantine`.
        RunError
            If the file cannot be written, for example to a full disk. No part of it stays.
        """
        manifest, _ = decode_module(data, self.limits)
        digest = module_id(data)
        expectation.check(manifest)
        expectation.signatures.check(manifest.owner, digest, signature)
        if digest not in self._verified and digest not in self._unread:
            _write_whole(self._path(digest), data)
        module = self._remember(digest, manifest, len(data))
        if signature is not None and signature != module.signature():
            _write_whole(module.signature_path, signature)
        return module

    def check_signatures(self, policy: SignaturePolicy) -> list[str]:
        """Set aside every module whose kept signature breaks ``policy``, as when a key was withdrawn since it was added.

        Returns
        -------
        list of str
            The file names of these modules.
        """
        refused = []
        for module in list(self):
            try:
                policy.check(module.manifest.owner, module.module_id, module.signature())
            except VerificationError as error:
                self._set_aside(module.path, module.read(), error)
                del self._verified[module.module_id]
                refused.append(module.path.name)
        return refused

    def files(self) -> Mapping[str, bytes]:
        """Return the module files by module_id, in the modules' order, each read when it is asked for."""
        return _Files(self)

    def num_bytes(self) -> int:
        """Return the size of all module files together."""
        return sum(module.num_bytes for module in self)

    def signatures(self) -> dict[str, bytes]:
        """Return the kept signatures by module_id, in the modules' order."""
        kept = ((module.module_id, module.signature()) for module in self)
        return {module_id: signature for module_id, signature in kept if signature is not None}

    def get(self, module_id: str) -> RegisteredModule:
        """Return the module with this id.

        Raises
        ------
        RunError
            If no such module is registered.
        """
        self._read_all()
        if module_id not in self._verified:
            raise RunError(f"module {module_id!r}: not among the {len(self._verified)} in {self.folder}; add it first")
        return self._verified[module_id]

    def load(self, module_id: str) -> tuple[ModuleManifest, dict[str, Tensor]]:
        """Return the manifest and the tensors of the module with this id, verified again (see `decode_module`)."""
        return decode_module(self.get(module_id).read(), self.limits)

    def remove(self, module_id: str) -> None:
        """Withdraw the module with this id and delete its file, signature and picture; the other modules stay as they are.

        Raises
        ------
        RunError
            If no such module is registered.
        """
        module = self.get(module_id)
        module.path.unlink(missing_ok=True)
        _unlink_companions(module.path)
        del self._verified[module_id]

    def labels(self) -> tuple[int, ...]:
        """Return the labels that have at least one module, ascending."""
        return tuple(sorted({module.manifest.label for module in self}))

    def __iter__(self) -> Iterator[RegisteredModule]:
        """Iterate in sorted order: label, owner, module id."""
        self._read_all()
        return iter(sorted(self._verified.values(), key=registry_order))

    def __len__(self) -> int:
        """Return the number of verified modules."""
        self._read_all()
        return len(self._verified)

    def quarantine(self, data: bytes, error: VerificationError, source: str) -> Path:
        """Record that ``data`` was refused; the bytes themselves are kept up to ``limits.max_bytes``.

        Parameters
        ----------
        data : bytes
            The refused bytes.
        error : VerificationError
            The rule that they break.
        source : str
            Who sent them.

        Returns
        -------
        Path
            The report: a JSON list with one object per distinct refusal of these bytes.
        """
        refusal = Refusal(module_id(data), error.rule, error.detail, source, len(data))
        report = self._quarantine_folder / f"{refusal.sha256}.json"
        refusals = _read_report(report) if report.exists() else []
        if refusal not in refusals:
            refusals.append(refusal)
        self._quarantine_folder.mkdir(exist_ok=True)
        if len(data) <= self.limits.max_bytes:
            _write_whole(report.with_suffix(".refused"), data)
        _write_whole(report, json.dumps([asdict(one) for one in refusals], indent=1).encode())
        return report

    def quarantined(self) -> list[Refusal]:
        """Return every refusal on record, see `read_refusals`."""
        return read_refusals(self.folder)

    @property
    def _quarantine_folder(self) -> Path:
        return self.folder / QUARANTINE

    def _path(self, digest: str) -> Path:
        return self.folder / (digest + SUFFIX)

    def _remember(self, digest: str, manifest: ModuleManifest, num_bytes: int) -> RegisteredModule:
        self._unread.discard(digest)
        return self._verified.setdefault(digest, RegisteredModule(digest, manifest, self._path(digest), num_bytes))

    def _adopt(self, path: Path) -> None:
        """Take over a file of an earlier session if it hashes to its name."""
        data = path.read_bytes()
        try:
            _check_digest(data, path.stem)
        except VerificationError as error:
            self._set_aside(path, data, error)
        else:
            self._unread.add(path.stem)

    def _read_all(self) -> None:
        """Verify what the adopted files hold; whatever breaks a rule leaves the registry."""
        for digest in sorted(self._unread):
            data = self._path(digest).read_bytes()
            try:
                _check_digest(data, digest)
                self._remember(digest, decode_module(data, self.limits)[0], len(data))
            except VerificationError as error:
                self._unread.discard(digest)
                self._set_aside(self._path(digest), data, error)

    def _set_aside(self, path: Path, data: bytes, error: VerificationError) -> None:
        """Move a kept file to quarantine, whatever its size."""
        report = self.quarantine(data, error, source=path.name)
        path.replace(report.with_suffix(".refused"))
        _unlink_companions(path)


def read_refusals(folder: Path) -> list[Refusal]:
    """Return every refusal on record in a registry's folder, sorted by digest of the bytes, then by source and rule."""
    refusals = [refusal for report in (folder / QUARANTINE).glob("*.json") for refusal in _read_report(report)]
    return sorted(refusals, key=lambda refusal: (refusal.sha256, refusal.source, refusal.rule, refusal.detail))


class _Files(Mapping[str, bytes]):
    def __init__(self, registry: ModuleRegistry) -> None:
        self._modules = {module.module_id: module for module in registry}

    def __getitem__(self, module_id: str) -> bytes:
        return self._modules[module_id].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def _check_digest(data: bytes, expected: str) -> None:
    found = module_id(data)
    if found != expected:
        raise VerificationError("digest", f"the file hashes to {found[:12]}..., its name says {expected[:12]}...; fetch it again")


def registry_order(module: RegisteredModule) -> tuple[int, list[tuple[int, int, str]], str]:
    """Return the key by which modules are sorted: label, owner ("2" before "10"), module id."""
    runs = re.findall(r"[0-9]+|[^0-9]+", module.manifest.owner)
    natural = [(0, int(run), run) if run[0].isdigit() else (1, 0, run) for run in runs]
    return module.manifest.label, natural, module.module_id


def _unlink_companions(path: Path) -> None:
    """Delete what stands beside a module file: its signature and the picture of its samples."""
    for suffix in (SIGNATURE_SUFFIX, PICTURE_SUFFIX):
        path.with_suffix(suffix).unlink(missing_ok=True)


def _read_report(path: Path) -> list[Refusal]:
    return [Refusal(**refusal) for refusal in json.loads(path.read_text())]


def _write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` whole or not at all."""
    try:
        with whole_file(path, durable=True) as unfinished:
            unfinished.write_bytes(data)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}); free some space or choose another folder") from error
