"""Verifying believes nothing that a run directory says, follows no link in it, and accuses nobody wrongly."""

import json
import os
import random

import pytest
from damages import broken, edit_json, first, put_link
from typer.testing import CliRunner

from ff_flower.classifiers import build_classifier, shapes_of
from ff_flower.config import ClassifierSpec
from ff_flower.errors import RunError, VerificationError
from ff_flower.metrics import rounded_count
from ff_flower.registry import ModuleRegistry, SignaturePolicy
from ff_flower.run_directory import RunDirectory
from ff_flower.unlearning import Tombstone, Work, forget
from ff_flower.verification import RunContents, verify_run
from ff_flower.verification.run import check_classifiers, counts_agree, network_shapes
from sims.cli import app as commands
from sims.verify import signature_policy


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("nodes/1/fit.json", "receipt"),
        ("nodes/1", "receipt"),
        ("classifiers/server.safetensors", "receipt"),
        ("modules/*.sig", "signature-missing"),
    ],
)
def test_nothing_is_read_through_a_link(copied, policy, tmp_path, name, rule):
    """A file or folder that was moved away and linked to is named, and counts as absent though all its bytes are right."""
    link = first(copied, name)
    put_link(link, tmp_path / "elsewhere")
    found = broken(copied, policy)
    assert (link.relative_to(copied).as_posix(), "unexpected") in found and rule in {rule for _, rule in found}


def test_a_link_says_nothing_of_keys(copied, keys, tmp_path):
    """A spec behind a link does not choose whose signatures are believed."""
    assert signature_policy(copied, "").required
    put_link(copied / "spec.json", tmp_path / "elsewhere")
    assert signature_policy(copied, "") == SignaturePolicy()
    assert set(signature_policy(copied, str(keys[1])).keys) == {"0", "1", "2", "3", "4"}


def test_a_runs_keys_may_lie_at_home(copied, keys, monkeypatch):
    """Keys that a run names from a home are found there; a home or folder that is not on this machine holds none."""
    monkeypatch.setenv("HOME", str(keys[1].parent))
    edit_json(copied / "spec.json", lambda one: one.update({"trust.public-keys": f"~/{keys[1].name}"}))
    policy = signature_policy(copied, "")
    assert policy.required and set(policy.keys) == {"0", "1", "2", "3", "4"}
    for absent in ("~nobody-of-this-machine/keys", "~/" + 300 * "k"):
        edit_json(copied / "spec.json", lambda one, absent=absent: one.update({"trust.public-keys": absent}))
        assert signature_policy(copied, "") == SignaturePolicy()


def test_a_files_name_cannot_speak_to_the_terminal(copied):
    """A name that is no UTF-8 is told with escapes, and control characters and line ends in it as spaces."""
    (copied / os.fsdecode(b"\xff\x1b[2J\nx")).touch()
    told = CliRunner().invoke(commands, ["verify", str(copied)])
    assert told.exit_code == 1 and "BROKEN  \\udcff [2J x: unexpected: " in told.output and "\x1b" not in told.output


def test_a_tombstone_of_another_kind_is_refused(tmp_path):
    """What a tombstone excludes is a text; with anything else it cannot be read, and nothing goes on."""
    (tmp_path / "forgotten.json").write_text('{"format_version": 1, "entries": [{"exclude": 3, "modules": {}}]}')
    with pytest.raises(RunError, match="cannot be read"):
        Tombstone.read(tmp_path)


def steal(run):
    """Leave what a run does in which node 3 sent a module of node 1 beside its own; return the module's label and id."""
    label, digest = next(iter(json.loads((run / "nodes/1/fit.json").read_text())["modules"].items()))
    edit_json(run / "nodes/3/fit.json", lambda one: one["modules"].update({label: digest}))
    edit_json(run / "receipts.json", lambda one: (one.pop("fit-3"), one.pop("run")))
    error = VerificationError("owner", "'1' in a module from '3'; a node sends its own only")
    ModuleRegistry(run / "modules").quarantine((run / f"modules/{digest}.safetensors").read_bytes(), error, source="node 3")
    return label, digest


def test_a_thief_does_not_accuse_the_owner(copied, policy):
    """A copy of another's module, refused when it was sent, breaks nothing; without its refusal the thief's report does."""
    _, digest = steal(copied)
    assert broken(copied, policy) == set()
    edit_json(copied / f"modules/quarantine/{digest}.json", lambda refusals: refusals[0].update(source="node 4"))
    assert broken(copied, policy) == {("nodes/3/fit.json", "claims")}


def test_a_thief_does_not_remember_the_forgotten(copied, signed_run, policy):
    """Where the owner is forgotten whose module somebody sent as his own, nothing of it is left, and the run is whole."""
    _, digest = steal(copied)
    copied = copied.rename(copied.with_name(signed_run.name))
    assert forget(copied, ["1"], [], Work()).error == ""
    assert broken(copied, policy) == set() and not list(copied.rglob(f"*{digest}*"))


def test_a_refused_copy_goes_with_the_forgotten(copied, signed_run, policy):
    """A module that was refused as a copy of a forgotten one is gone too, and its sender's report accuses nobody."""
    copied = copied.rename(copied.with_name(signed_run.name))
    original, copy = (next(iter(json.loads((copied / f"nodes/{one}/fit.json").read_text())["modules"].values())) for one in "13")
    registry, file = ModuleRegistry(copied / "modules"), copied / f"modules/{copy}.safetensors"
    error = VerificationError("duplicate", f"the weights are those of module {original[:12]} (owner '1', label '1'); a module is")
    registry.quarantine(file.read_bytes(), error, source="node 3")
    registry.remove(copy)
    RunDirectory(copied).withdraw(list(RunDirectory(copied).receipts()))
    assert forget(copied, ["1"], [], Work()).error == ""
    assert broken(copied, policy) == set() and not list(copied.rglob(f"*{copy}*"))


@pytest.mark.parametrize("labels", [0, 2])
def test_a_module_is_reported_once_by_its_owner(copied, policy, labels):
    """A thief's report does not stand for the owner's, who names the module for one class."""
    label, digest = steal(copied)
    named = dict.fromkeys([label, "9"][:labels], digest)
    edit_json(copied / "nodes/1/fit.json", lambda one: (one["modules"].pop(label), one["modules"].update(named)))
    assert (f"modules/{digest}.safetensors", "module-unreported") in broken(copied, policy)


def test_counts_agree_where_some_granularity_explains_them():
    """What a node told agrees with the exact counts just where one number, from the run's on, rounds all of them so."""
    chance, outcomes = random.Random(0), []
    for _ in range(2000):
        exact, least = [chance.randrange(30) for _ in range(3)], chance.randrange(1, 5)
        own = chance.randrange(1, 20)
        rounded = [rounded_count(count, own) for count in exact]
        told = {str(label): count + chance.choice([0, 0, 0, 0, 1, own]) for label, count in enumerate(rounded)}
        some = any(all(rounded_count(exact[int(k)], g) == count for k, count in told.items()) for g in range(least, 60))
        assert counts_agree(told, exact, least) == some
        outcomes.append(some)
    assert {True, False} == set(outcomes) and not counts_agree({"3": 1}, [1, 1, 1], 1)


@pytest.mark.parametrize("network", ["cnn", "resnet18"])
def test_shapes_are_those_of_the_network(network):
    """The shapes that a classifier must have are those of one that is built."""
    spec = ClassifierSpec(network=network, width=8)
    assert network_shapes(spec, 3, 7) == shapes_of(build_classifier(spec, 3, 7, seed=0).state_dict())


def test_a_table_of_classes_costs_no_memory(signed_run, policy, monkeypatch):
    """However many classes a run's files name, its classifiers are measured against them without a network of that size."""
    _, run = verify_run(signed_run, policy)
    monkeypatch.setattr(RunContents, "classes", lambda self: range(10**13))  # a thousand terabytes of weights
    found = {finding.place for finding in check_classifiers(run) if finding.rule == "weights"}
    assert "classifiers/server.safetensors" in found
