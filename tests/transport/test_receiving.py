"""What the server makes of a reply by reference: names before files, sizes before bytes, and a store that it may not clean."""

import errno
import os
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, RecordDict
from local_grid import tiny

from ff_flower.errors import VerificationError
from ff_flower.messages import shared_store, told
from ff_flower.metrics import Ledger
from ff_flower.module_store import ModuleStore
from ff_flower.reports import FitReport, Interval
from ff_flower.run_directory import RunDirectory
from strategies.collection import Collection


@pytest.fixture
def collection(digits, tmp_path):
    """Return the server's collection of the smallest run by reference, whose modules have at most 1 MiB."""
    spec = tiny(tmp_path, transport="reference", trust__max_module_mb=1)
    return Collection(spec, digits.info, RunDirectory(tmp_path / "run"), Ledger())


def reply(modules, names):
    """Return node 2's reply that reports ``modules`` by label, of three images each, and names these files."""
    report = FitReport(2, dict.fromkeys(modules, 3), modules, (), Interval(0.0, 1.0))
    return RecordDict({"references": ConfigRecord({"modules": ",".join(names)}), **told(2, 3, report.to_json())})


def test_names_are_compared_before_a_file_is_read(collection, monkeypatch):
    """A reply that names files which its report does not is refused without reading any of them, however many they are."""
    read = []
    monkeypatch.setattr(ModuleStore, "get", lambda self, name, max_bytes: read.append(name) or b"")
    names = [f"{number:064x}" for number in range(200)]
    (failure,) = collection.receive(2, reply({"1": names[0]}, names))
    assert failure.partition == 2 and failure.reason.startswith("report: ") and read == []


def test_a_file_beyond_the_runs_limit_refuses_the_reply(collection):
    """A file of the store with more than ``trust.max-module-mb`` makes its node missing, for the rule size."""
    name, folder = "a" * 64, shared_store(collection.spec).folder
    folder.mkdir(parents=True)
    with (folder / f"{name}.safetensors").open("wb") as file:
        file.truncate(2**20 + 1)
    (failure,) = collection.receive(2, reply({"1": name}, [name]))
    assert failure.partition == 2 and failure.reason.startswith("size: ") and len(collection.registry) == 0


def test_a_file_that_cannot_leave_the_store_ends_no_run(collection, monkeypatch, caplog):
    """A refused module is quarantined though another user's file cannot be deleted; one line of the log says that it stays."""

    def forbidden(self, name):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    name = shared_store(collection.spec).put(b"refused")
    monkeypatch.setattr(ModuleStore, "remove", forbidden)
    assert collection.receive(2, reply({"1": name}, [name])) == []
    assert [(one["partition"], one["rule"]) for one in collection.refused] == [(2, "size")]
    told_of = [record.getMessage() for record in caplog.records if "shared store" in record.getMessage()]
    assert told_of == [f"fit: module {name[:12]} stays in the shared store (Operation not permitted)"]


def test_a_claim_of_any_length_is_told_in_a_line(collection):
    """Where a report names something else than the module that came, its words are quoted with their beginning alone."""
    module = SimpleNamespace(module_id="a" * 64, manifest=SimpleNamespace(label=1, num_examples=3))
    report = FitReport(2, {"1": 3}, {"1": "b" * 10**5}, (), Interval(0.0, 1.0))
    with pytest.raises(VerificationError) as refusal:
        collection._check_claims(module, report)
    assert refusal.value.rule == "report" and len(refusal.value.detail) < 300
