"""The run directory: everything a run leaves behind, and what of it is already done.

::

    <out>/cache/                      partitions, samples, fits the server lacks, received modules and locks, of all runs
    <out>/latest                      link to the newest run
    <out>/<data>-<method>-<partition>-seed<seed>-<digest>/
        spec.json  environment.json   what was asked, and where it was made
        metrics.json  ledger.jsonl    results, and every transfer
        images.json                   hash of the images, in simulation
        label_distribution.json/.png  images per node and class
        modules/                      verified module files, their sample grids, and quarantine/
        nodes/<partition>/            each node's report, answer, logits and classifier
        classifiers/                  server.safetensors, student.safetensors ...
        receipts.json                 stages that are done, with the hashes of their outputs
        progress.json                 what the server was last at, see ``ff-flower status``
        forgotten.json  certificates/ what was forgotten, and the proofs; see ``ff_flower.unlearning``

A stage is done when its receipt names the same inputs and every output still has the hash it had.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from .config import RunSpec, Scalar
from .environment import describe_environment
from .errors import RunError
from .machine import NO_LOCKS, UNFINISHED, path_of, whole_file

FORMAT_VERSION = 1
_RECEIPT: Mapping[str, type | tuple[type, ...]] = {"inputs": str, "outputs": dict, "seconds": (int, float)}
RECEIVED = "received"  # folder of the cache: module files of a broadcast, while a node uses them


def output_root(spec: RunSpec) -> Path:
    """Return the folder of run directories: ``out``, else ``FF_RUNS``, else ``runs`` in the working directory."""
    return path_of(spec.out or os.environ.get("FF_RUNS") or "runs").resolve()


def cache_root(spec: RunSpec) -> Path:
    """Return the folder of what all runs of a machine share."""
    return output_root(spec) / "cache"


def run_path(spec: RunSpec) -> Path:
    """Return the run directory that belongs to ``spec``, whether or not it exists."""
    data = re.sub(r"[^A-Za-z0-9]+", "-", Path(spec.data.name.partition(":")[2] or spec.data.name).stem)
    return output_root(spec) / f"{data}-{spec.method}-{spec.partition_name}-seed{spec.seed}-{spec.digest()[:10]}"


def finished_fit(spec: RunSpec, owner: str, label: int | str, key: str) -> Path:
    """Return how the path begins at which a node keeps the module file of a finished fit until the server has it.

    Like an unfinished fit's its name says whose it is, by which it can be forgotten; then the run, then what else it depends on.
    """
    return cache_root(spec) / "fits" / f"{owner}+{label}+{spec.fit_digest()[:16]}-{key}"


def finished_fits(spec: RunSpec, owner: str = "*") -> list[Path]:
    """Return the files that are kept of finished fits of this run, of an owner or of all owners."""
    every = finished_fit(spec, owner, "*", "*")
    return sorted(every.parent.glob(every.name))


def drop_finished_fits(spec: RunSpec, owner: str = "*") -> None:
    """Delete what is kept of an owner's finished fits of this run, or of all owners': the server needs nothing more of them."""
    for path in finished_fits(spec, owner):
        path.unlink(missing_ok=True)


def read_spec(run: Path) -> dict[str, Scalar]:
    """Return the flat spec of a run directory, see ``config.from_run_config``.

    Raises
    ------
    RunError
        Where there is none, or it is of another format version.
    """
    path = run / "spec.json"
    try:
        values: dict[str, Scalar] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); name a run directory") from error
    if values.pop("format_version", None) != FORMAT_VERSION:
        raise RunError(f"{path}: is not of format version {FORMAT_VERSION}; run the spec again")
    values.pop("digest", None)
    return values


def made_of(run: Path, images: str) -> bool:
    """Tell whether a run was made of the images whose digest is ``images``, see `Splits.digest`; True where it does not say."""
    held = run / "images.json"
    return not held.exists() or images in held.read_text(errors="replace")


class RunDirectory:
    """The folder of one spec's results; opening it again finds what is done.

    Parameters
    ----------
    path : Path
        The folder; made when it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("modules", "nodes", "classifiers"):
            (path / name).mkdir(parents=True, exist_ok=True)
        self._receipts: dict[str, Any] = self._read_receipts()

    @classmethod
    def open(cls, spec: RunSpec) -> "RunDirectory":
        """Open the folder that belongs to ``spec``, and point ``latest`` to it."""
        path, root = run_path(spec), output_root(spec)
        with _writing(root):
            directory = cls(path)
            _point(root / "latest", path.name)
        if not (path / "spec.json").exists():
            directory.describe(spec)
        return directory

    def describe(self, spec: RunSpec, *, deployed: bool = False) -> None:
        """Write what was asked for and where it is made, before anything is made; a whole run keeps what was written for it.

        ``deployed`` tells that the nodes are SuperNodes and no simulation's. That stays noted, and so do the caches of earlier
        sessions.
        """
        with _writing(self.path.parent):
            caches = list(dict.fromkeys([*map(str, self.caches), str(cache_root(spec))]))
            history = {"deployed": deployed or self.deployed, "caches": caches}
            self.write_json("spec.json", {"format_version": FORMAT_VERSION, "digest": spec.digest(), **spec.flat()})
            self.write_json("environment.json", describe_environment() | history)

    @property
    def deployed(self) -> bool:
        """Whether a session of the run had nodes outside a simulation, which hold what they were sent; RunError if unreadable."""
        return self._environment().get("deployed") is True

    @property
    def caches(self) -> list[Path]:
        """The caches with which the run was made, one of each place that it was moved to; RunError if unreadable."""
        return [Path(name) for name in self._environment().get("caches", [])]

    def _environment(self) -> dict[str, Any]:
        path = self.path / "environment.json"
        try:
            found = self.read_json(path.name) if path.exists() else {}
            if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.get("caches", [])):
                raise TypeError("it is no object with the names of caches")
        except (ValueError, TypeError) as error:
            remedy = "restore it from a copy, or, where all nodes were a simulation's, remove it"
            raise RunError(f"{path}: not as it was written ({error}); {remedy}") from error
        return found

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process of this machine work on the run meanwhile; the lock goes with its process.

        On a file system without locks nobody is kept out.

        Raises
        ------
        RunError
            Where one does, or the cache beside the run, which holds the lock, cannot be written.
        """
        from filelock import FileLock, Timeout

        path = self.path.parent / "cache" / "locks" / f"{self.path.name}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock: AbstractContextManager[Any] = FileLock(path).acquire(blocking=False)
        except NotImplementedError:
            lock = nullcontext()
        except Timeout:
            raise RunError(f"{self.path}: another process is at work on this run; wait for its end, or stop it") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                remedy = "free some space" if error.errno == errno.ENOSPC else "give the run's parent folder back its rights"
                raise RunError(f"{path}: cannot be written ({error.strerror}); {remedy}") from error
            lock = nullcontext()
        with lock:
            self._receipts = self._read_receipts()  # another process may have been at work since this folder was opened
            yield

    def write(self, name: str, data: bytes, *, durable: bool = False) -> Path:
        """Write ``data`` to ``name``, whole or not at all; ``durable`` waits until a loss of power cannot undo it."""
        path = self.path / name
        with whole_file(path, durable=durable) as unfinished:
            unfinished.write_bytes(data)
        return path

    def write_json(self, name: str, value: Any, *, durable: bool = False) -> Path:
        """Write ``value`` as indented JSON with sorted keys."""
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
        return self.write(name, text.encode(), durable=durable)

    def read_json(self, name: str) -> Any:
        """Read what `write_json` wrote."""
        return json.loads((self.path / name).read_text())

    def metrics(self) -> dict[str, Any]:
        """Return what the last session wrote when it ended; nothing where none has, or it was removed since."""
        found: dict[str, Any] = self.read_json("metrics.json") if (self.path / "metrics.json").exists() else {}
        return found

    def is_done(self, stage: str, inputs: str) -> bool:
        """Tell whether ``stage`` was finished with these ``inputs`` and its outputs are unchanged."""
        receipt = self._receipts.get(stage)
        if receipt is None or receipt["inputs"] != inputs:
            return False
        return all(digest and file_digest(self.path / name) == digest for name, digest in receipt["outputs"].items())

    def finish(self, stage: str, inputs: str, outputs: Sequence[Path], seconds: float = 0.0) -> None:
        """Write the receipt of a finished stage.

        Parameters
        ----------
        stage : str
            Name of the stage.
        inputs : str
            Digest of what the outputs depend on.
        outputs : sequence of Path
            Files inside the run directory.
        seconds : float
            What the stage cost.
        """
        digests = {path.relative_to(self.path).as_posix(): file_digest(path) for path in outputs}
        self._receipts[stage] = {"inputs": inputs, "outputs": digests, "seconds": round(seconds, 3)}
        self.write_json("receipts.json", self._receipts)

    def outputs(self) -> list[Path]:
        """Return every whole file of the run but those that are rewritten when it is opened, and what was refused."""
        aside = {"spec.json", "environment.json", "receipts.json", "forgotten.json", "progress.json"}
        files = [path for path in sorted(self.path.rglob("*")) if path.is_file() and path.name not in aside]
        whole = [path for path in files if path.suffix != UNFINISHED]
        return [path for path in whole if not {"quarantine", "certificates"} & set(path.relative_to(self.path).parts)]

    def receipts(self) -> Mapping[str, Mapping[str, Any]]:
        """Return ``inputs``, ``outputs`` (hash by file name) and ``seconds`` of every stage that was finished."""
        return self._receipts

    def withdraw(self, stages: Iterable[str]) -> None:
        """Remove the receipts of ``stages``, which then count as not done."""
        gone = set(stages) & set(self._receipts)
        if gone:
            self._receipts = {stage: receipt for stage, receipt in self._receipts.items() if stage not in gone}
            self.write_json("receipts.json", self._receipts)

    def withdraw_makers(self, outputs: Iterable[str]) -> None:
        """Remove the receipts of the stages that made any of ``outputs``, named as in the receipts."""
        names = set(outputs)
        self.withdraw([stage for stage, receipt in self._receipts.items() if names & set(receipt["outputs"])])

    def seconds(self, stage: str) -> float:
        """Return what a finished stage cost."""
        return float(self._receipts[stage]["seconds"])

    def _read_receipts(self) -> dict[str, Any]:
        path = self.path / "receipts.json"
        if not path.exists():
            return {}
        remedy = "remove the file and everything is verified or made again"
        try:
            receipts: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise RunError(f"{path}: not JSON ({error}); {remedy}") from error
        if not isinstance(receipts, dict) or not all(map(_is_receipt, receipts.values())):
            raise RunError(f"{path}: a receipt has {', '.join(_RECEIPT)}; {remedy}")
        return receipts


def _is_receipt(one: Any) -> bool:
    """Tell whether a value has the keys of a receipt, each of its type."""
    whole = isinstance(one, dict) and one.keys() == _RECEIPT.keys()
    return whole and all(isinstance(one[key], kind) for key, kind in _RECEIPT.items())


def combined_digest(*parts: str) -> str:
    """Return one SHA-256 of several texts, for a stage's inputs."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def modules_inputs(spec: RunSpec, module_ids: Iterable[str]) -> str:
    """Return the digest of what every stage after the fits depends on: the spec, and its modules in the registry's order."""
    return combined_digest(spec.digest(), *module_ids)


def answer_inputs(modules: str, partition: int | str) -> str:
    """Return the digest of what one node's answer depends on; ``modules`` is that of `modules_inputs`."""
    return combined_digest(modules, str(partition))


def student_inputs(modules: str, answers: Iterable[Path]) -> str:
    """Return the digest of what the student depends on: the modules, and the files of the answers that teach it."""
    return combined_digest(modules, *(f"{path.parent.name}/{path.name}={file_digest(path)}" for path in answers))


def file_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{root}: cannot be written ({error}); set out or FF_RUNS to a folder that can") from error


def _point(link: Path, target: str) -> None:
    unfinished = link.with_name(f".latest-{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target)
    unfinished.replace(link)
