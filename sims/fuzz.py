"""Mutated module files, ``python -m sims.fuzz``: each is refused by a named rule, or loads to exactly what it says.

Real modules of every kind are fitted, damaged, and given to the reader that servers and nodes use. A violation is: another error
than a refusal; a file that loads to something which does not encode to the same bytes; more than a second; more memory than
twice the size limit beside the file itself; a file opened, a process started, a module imported or code compiled on the way.
"""

import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ff_flower.config import DataSpec, Scalar, from_run_config
from ff_flower.data import load_splits
from ff_flower.errors import ConfigError, FederatedFactoryError, ModuleError, VerificationError
from ff_flower.generative import KINDS, GenerativeModule, build_module, restore_module
from ff_flower.registry import ModuleLimits, ModuleManifest, decode_module, encode_module, module_id
from ff_flower.registry.manifest import Setting
from ff_flower.seeding import derive_seed, generator
from ff_flower.vetting import check_batch, check_cost

from .mutation import mutate
from .report import TextTable, show

SECONDS = 1.0  # of processor time, in which a file must be refused or restored
SAMPLE_SECONDS = 20.0  # the same, for one sample of settings that are allowed; vetting bounds their cost, not this
INTERPRETER_BYTES = 8 * 2**20  # beside the tensors: the header's JSON, pieces, the allocator's slack
WARM_UP = 3000
STATUS = Path("/proc/self/status")
FAILURES = (
    FederatedFactoryError,
    *(ArithmeticError, AssertionError, AttributeError, BufferError, LookupError, MemoryError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
UNCHANGED, LOADED = "(not changed by its mutations)", "(loads, as another module with another id)"
EVENTS = ("exec", "compile", "import", "open", "os.", "shutil.", "subprocess.", "socket.", "ctypes.", "pickle.", "marshal.")
SMALL: Mapping[str, Mapping[str, Scalar]] = {
    "edm": {"channels": 8, "levels": 1, "steps": 4, "batch-size": 8, "rank": 4, "evaluations": 2},
    "flow": {"channels": 8, "levels": 1, "steps": 4, "batch-size": 8, "rank": 4, "evaluations": 2},
    "vae": {"channels": 8, "steps": 4, "batch-size": 8, "rank": 4, "latent": 4, "mixtures": 1, "texture": 0.5},
    "gaussian_mixture": {"components": 4, "mixtures": 2},
}
WIRE_DTYPES = {"edm": "float16", "flow": "bfloat16", "vae": "float32", "gaussian_mixture": "float16"}


def real_files() -> list[bytes]:
    """Return one real module file per kind, fitted to a few digits, the smallest that the settings allow."""
    splits = load_splits(DataSpec(), seed=0)
    images = splits.train.of_label(3).images[:40]
    files = []
    for kind in sorted(KINDS):
        table = f"module.{kind.replace('_', '-')}"
        spec = from_run_config({f"{table}.{key}": value for key, value in SMALL[kind].items()}).module
        module = build_module(spec, splits.info.shape, kind=kind).fit(images, derive_seed(0, "fuzz", kind))
        manifest = ModuleManifest.model_validate(
            {
                "kind": kind,
                "spec": dict[str, Setting](module.spec.flat()),
                "label": 3,
                "label_name": splits.info.classes[3],
                "image_shape": splits.info.shape,
                "num_examples": len(images),
                "owner": "3",
                "dataset": splits.info.name,
                "images_shown": module.images_shown,
                "root_seed": 0,
                "wire_dtype": WIRE_DTYPES[kind],
                "libraries": {"torch": "2"},
                "licence": splits.info.licence,
            }
        )
        files.append(encode_module(module.state(), manifest))
    return files


class Watch:
    """Notes what the interpreter does while it is armed: files, processes, sockets, imports, compiled code.

    Python's audit hooks cannot be taken away again, so one watch serves a process for its whole life.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._armed = False
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._armed and event.startswith(EVENTS):
            self.seen.append(f"{event} {str(arguments)[:120]}")

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Note what happens inside."""
        self._armed = True
        try:
            yield
        finally:
            self._armed = False


@dataclass
class Findings:
    """What became of the files.

    Attributes
    ----------
    counts : Counter
        Files per rule.
    slowest : dict
        Most seconds per rule, of processor time.
    peak : int
        Most bytes that reading one file took.
    violations : list of str
        What may not be, one sentence each.
    """

    counts: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)
    peak: int = 0
    violations: list[str] = field(default_factory=list)

    def note(self, what: str, seconds: float, grown: int) -> None:
        """Count one file, with the processor time and the memory that reading it took."""
        self.counts[what] += 1
        self.peak = max(grown, self.peak)
        self.slowest[what] = max(seconds, self.slowest.get(what, 0.0))

    def table(self) -> TextTable:
        """Return files and slowest file per rule, the most frequent first."""
        total = sum(self.counts.values())
        rows = [
            (rule, f"{count:,}", f"{100 * count / total:.2f}", f"{1000 * self.slowest[rule]:.1f}")
            for rule, count in self.counts.most_common()
        ]
        title = f"{total:,} mutated module files"
        return TextTable(title, ("refused by", "files", "%", "slowest, ms"), tuple(rows))


def examine(data: bytes, original: bytes, limits: ModuleLimits) -> tuple[str, GenerativeModule[Any] | None]:
    """Read one file as a server does, as far as a fitted module; return what became of it, and the module where it loads.

    Raises
    ------
    AssertionError
        When it loads to something else than it says, or to what no file may hold.
    """
    try:
        manifest, state = decode_module(data, limits)
    except VerificationError as error:
        return error.rule, None
    try:
        written = encode_module(state, manifest, limits)
    except ModuleError as error:
        raise AssertionError(f"it loads, but to something that is never written: {error}") from error
    if written != data:
        raise AssertionError("it loads, but to something that is written in other bytes")
    try:
        check_cost(manifest)
        module = restore_module(manifest.kind, manifest.spec, manifest.image_shape, state)
    except VerificationError as error:
        return error.rule, None
    except (ModuleError, ConfigError):
        return "architecture", None
    if (module_id(data) == module_id(original)) != (data == original):
        raise AssertionError("two files have one id")
    return UNCHANGED if data == original else LOADED, module


def sample_once(module: GenerativeModule[Any]) -> str:
    """Draw one sample of a module that was loaded; return the rule by which the probe refuses it, or nothing."""
    try:
        sample = module.sample(1, generator(0, "fuzz", "sample"), check=check_batch)
    except VerificationError as error:
        return error.rule
    if sample.dtype != torch.uint8 or tuple(sample.shape) != (1, *module.image_shape):
        raise AssertionError(f"a sample is {sample.dtype} of shape {tuple(sample.shape)}")
    return ""


def fuzz(count: int, seed: int, files: list[bytes], watch: Watch, findings: Findings, first: int = 0) -> None:
    """Examine ``count`` mutated files; file k depends on ``seed`` and k alone."""
    limits = ModuleLimits()
    for number in range(first, first + count):
        chosen, data = mutate(files, random.Random(derive_seed(seed, "fuzz", number)))
        before, began = _reset_peak(), time.process_time()
        try:
            with watch.armed():
                what, module = examine(data, files[chosen], limits)
            spent, grown = time.process_time() - began, _peak() - before
            if module is not None:
                with watch.armed():
                    what = sample_once(module) or what
        except FAILURES as error:
            findings.violations.append(f"file {number}: {type(error).__name__}: {str(error)[:200]}")
            watch.seen.clear()
            continue
        findings.note(what, spent, grown)
        sampling = time.process_time() - began - spent
        if spent > SECONDS or sampling > SAMPLE_SECONDS or grown > 2 * limits.max_bytes + INTERPRETER_BYTES:
            cost = f"{spent:.2f} s and {grown / 2**20:.0f} MB to read, {sampling:.2f} s to sample"
            findings.violations.append(f"file {number}: {what}: {cost}")
        if watch.seen:
            findings.violations.append(f"file {number}: {what}: {watch.seen[0]}")
            watch.seen.clear()


def largest_files(limits: ModuleLimits, original: bytes, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files that cost most: at the size limit, and with the largest and strangest headers."""
    manifest, _ = decode_module(original)
    for wire_dtype, code, width in (("float16", "F16", 2), ("float32", "F32", 4)):
        text = manifest.model_copy(update={"wire_dtype": wire_dtype}).canonical_json().replace('"', '\\"')
        for tensors in (1, 1000):
            each = (limits.max_bytes - 2**18) // tensors // width
            size = each * width
            entries = "".join(
                f',"t{number:04d}":{{"dtype":"{code}","shape":[{each}],"data_offsets":[{number * size},{(number + 1) * size}]}}'
                for number in range(tensors)
            )
            header = f'{{"__metadata__":{{"manifest":"{text}"}}{entries}}}'.encode()
            name = f"{tensors} tensor{'s' * (tensors > 1)} of {wire_dtype}"
            yield name, _sparse(folder, header + b" " * (-len(header) % 8), tensors * size)
    for name, part in (
        ("objects", b'{"":{}},'),
        ("lists", b"[0],"),
        ("brackets", b"["),
        ("digits", b"9"),
        ("text", b'"\\u00e9",'),
    ):
        header = b'{"a":[' + part * ((limits.max_header_bytes - 16) // len(part))
        yield f"a header of {name}", _sparse(folder, header + b" " * (-len(header) % 8), 8)


def measure_largest(files: list[bytes], findings: Findings) -> list[tuple[str, str, str, str]]:
    """Read the most costly files; return for each its name, what became of it, seconds, and MB beside its own bytes."""
    limits, rows = ModuleLimits(), []
    with tempfile.TemporaryDirectory(prefix="ff-fuzz-") as folder:
        for name, data in largest_files(limits, files[0], Path(folder)):
            before, began = _reset_peak(), time.process_time()
            try:
                decode_module(data, limits)
                what = "loads"
            except VerificationError as error:
                what = error.rule
            seconds, grown = time.process_time() - began, _peak() - before
            rows.append((name, what, f"{1000 * seconds:.0f}", f"{grown / 2**20:.1f}"))
            if seconds > SECONDS or grown > 2 * limits.max_bytes + INTERPRETER_BYTES:
                findings.violations.append(f"{name}: {what}: {seconds:.2f} s, {grown / 2**20:.0f} MB")
    return rows


def main(
    count: Annotated[int, typer.Option(min=1, help="Mutated files.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Root of all mutations; file k is the same in every run.")] = 0,
    first: Annotated[int, typer.Option(min=0, help="Number of the first file, to look at one again.")] = 0,
) -> None:
    """Damage real module files, read them, and print what became of them; exit code 1 on any violation."""
    torch.set_num_threads(1)
    began, files, watch, findings = time.monotonic(), real_files(), Watch(), Findings()
    largest = measure_largest(files, findings)
    fuzz(WARM_UP, seed + 1, files, watch, Findings())  # what is imported once at first use is not of a file's making
    watch.seen.clear()
    fuzz(count, seed, files, watch, findings, first)
    show([findings.table(), TextTable("The largest files", ("file", "result", "ms", "MB beside the file"), tuple(largest))])
    print(f"{time.monotonic() - began:.0f} s; a mutated file took up to {findings.peak / 2**20:.1f} MB to read")
    print(*findings.violations[:20], f"{len(findings.violations)} violations", sep="\n")
    raise typer.Exit(1 if findings.violations else 0)


def _sparse(folder: Path, header: bytes, num_bytes: int) -> bytes:
    """Return a file of this header and zeros, made without holding it twice."""
    path = folder / "large"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + num_bytes)
    return path.read_bytes()


def _peak() -> int:
    """Return the most bytes that this process has held, on Linux since the last `_reset_peak`."""
    if STATUS.exists():
        return 1024 * int(next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _reset_peak() -> int:
    """Let the peak begin anew from what is held now, where the system can do that; return the peak."""
    if STATUS.exists():
        STATUS.with_name("clear_refs").write_text("5")
    return _peak()


if __name__ == "__main__":
    typer.run(main)
