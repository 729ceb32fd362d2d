"""Mutated module files, a few of the many that ``python -m sims.fuzz`` reads, and the watch that would see one do something."""

import math
import random
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from ff_flower.registry import ModuleLimits, decode_module, module_id
from sims import fuzz
from sims.mutation import MUTATIONS, mutate


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """Give a busy machine sixty times the seconds that the command allows; what a file costs on an idle one is measured there."""
    monkeypatch.setattr(fuzz, "SECONDS", 60 * fuzz.SECONDS)
    monkeypatch.setattr(fuzz, "SAMPLE_SECONDS", 60 * fuzz.SAMPLE_SECONDS)


@pytest.fixture(scope="module")
def files():
    """Return one real module file per kind."""
    return fuzz.real_files()


@pytest.fixture(scope="module")
def watch():
    """Return the process's watch."""
    return fuzz.Watch()


def test_real_files_load_and_sample(files):
    """Each of the files that are damaged is whole itself, and makes samples."""
    for data in files:
        what, module = fuzz.examine(data, data, ModuleLimits())
        assert what == fuzz.UNCHANGED and fuzz.sample_once(module) in ("", "sample-range")
    assert sorted(decode_module(data)[0].kind for data in files) == ["edm", "flow", "gaussian_mixture", "vae"]


def test_mutated_files_are_refused_or_what_they_say(files, watch):
    """Of some hundred files none raises anything but a refusal, loads to something else, takes a minute, or does anything."""
    fuzz.fuzz(200, 1, files, watch, fuzz.Findings())
    watch.seen.clear()
    findings = fuzz.Findings()
    fuzz.fuzz(500, 0, files, watch, findings)
    assert findings.violations == [] and sum(findings.counts.values()) == 500
    assert len(findings.counts) >= 12


def test_mutations_repeat(files):
    """File k is a function of the seed and k, and every mutation takes any bytes, an empty file too."""
    pairs = [mutate(files, random.Random(7)) for _ in range(2)]
    assert pairs[0] == pairs[1]
    for mutation in MUTATIONS:
        for data in (b"", b"\0" * 5, b"\x02" + b"\0" * 7 + b"{}", files[0]):
            assert isinstance(mutation(data, random.Random(3)), bytes)


def test_the_watch_sees_what_a_file_may_not_do(watch, tmp_path):
    """Opening a file, compiling code, importing a module and starting a process are seen while the watch is armed, else not."""
    (tmp_path / "f").write_text("")
    deeds = [
        lambda: (tmp_path / "f").read_text(),
        lambda: eval("1 + 1"),
        lambda: __import__("this_module_is_not_there"),
        lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    ]
    for deed in deeds:
        watch.seen.clear()
        with watch.armed(), suppress(ImportError):
            deed()
        assert watch.seen
        watch.seen.clear()
        assert not watch.seen and not watch._armed


def test_what_may_not_be_is_told(files, watch, monkeypatch):
    """An error that is no refusal, and a file that loads to other content, are violations with the file's number."""
    monkeypatch.setattr(fuzz, "decode_module", lambda data, limits: 1 / 0)
    findings = fuzz.Findings()
    fuzz.fuzz(1, 0, files, watch, findings, first=41)
    assert findings.violations == ["file 41: ZeroDivisionError: division by zero"]
    manifest, state = decode_module(files[0])
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    monkeypatch.setattr(fuzz, "decode_module", lambda data, limits: (manifest, other))
    with pytest.raises(AssertionError, match="other bytes"):
        fuzz.examine(files[0], files[0], ModuleLimits())
    assert module_id(files[0]) != module_id(files[1])


def test_a_reader_that_lets_nan_pass_is_told(files, watch, monkeypatch):
    """A file that loads to what no file may hold is a violation, not a refusal."""
    manifest, state = decode_module(files[0])
    poisoned = {name: tensor * math.nan if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    monkeypatch.setattr(fuzz, "decode_module", lambda data, limits: (manifest, poisoned))
    findings = fuzz.Findings()
    fuzz.fuzz(1, 0, files, watch, findings, first=41)
    (violation,) = findings.violations
    assert violation.startswith("file 41: AssertionError: it loads, but to something that is never written: ")


def test_one_file_pays_for_what_it_does_alone(files, watch, monkeypatch, tmp_path):
    """What a file does before an error that is a violation itself is not charged to the next file."""
    whole = fuzz.decode_module

    def decode(data, limits):
        (tmp_path / "f").touch()
        raise ZeroDivisionError

    findings = fuzz.Findings()
    fuzz.fuzz(50, 0, files, watch, fuzz.Findings())
    watch.seen.clear()
    monkeypatch.setattr(fuzz, "decode_module", decode)
    fuzz.fuzz(1, 0, files, watch, findings, first=41)
    monkeypatch.setattr(fuzz, "decode_module", whole)
    fuzz.fuzz(1, 0, files, watch, findings, first=42)
    assert findings.violations == ["file 41: ZeroDivisionError: "]


def test_a_single_file_is_judged_as_one_of_many(monkeypatch):
    """However few files are asked for, as many are read before them: what is imported at first use is charged to none."""
    read = []
    monkeypatch.setattr(fuzz, "real_files", lambda: [b""])
    monkeypatch.setattr(fuzz, "measure_largest", lambda files, findings: [])
    monkeypatch.setattr(fuzz, "fuzz", lambda count, seed, files, watch, findings, first=0: read.append((count, seed, first)))
    command = Typer()
    command.command()(fuzz.main)
    for count in (1, 5):
        assert CliRunner().invoke(command, ["--first", "50007", "--count", str(count)]).exit_code == 0
    assert read == [(fuzz.WARM_UP, 1, 0), (1, 0, 50007), (fuzz.WARM_UP, 1, 0), (5, 0, 50007)]


def test_memory_of_the_largest_files(files):
    """The largest and the strangest files are read in no more than twice the size limit beside their own bytes, each as said."""
    findings = fuzz.Findings()
    rows = fuzz.measure_largest(files, findings)
    assert findings.violations == [] and [row[1] for row in rows] == ["loads"] * 4 + ["header-json"] * 5
