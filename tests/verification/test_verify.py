"""Verifying a run: a whole one has no findings, and every damage is found under its rule."""

import json
import os
import shutil
import struct

import pytest
import torch
from damages import broken, edit_json, first
from local_grid import LocalGrid, tiny
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from clients.client_app import app
from ff_flower.errors import RunError
from ff_flower.registry import SignaturePolicy, decode_module, encode_module, module_id, read_private_key, sign_module
from ff_flower.unlearning import Entry, Tombstone
from ff_flower.verification import verify_run
from sims.cli import app as commands
from sims.run import resolve_spec
from strategies.server_app import run


def snapshot(path):
    """Return the bytes and times of all files."""
    return {one: (one.read_bytes(), one.stat().st_mtime_ns) for one in sorted(path.rglob("*")) if one.is_file()}


def test_a_whole_run_has_no_findings(signed_run, policy):
    """Nothing is found in a run that nobody touched, and nothing in it is changed by looking."""
    before = snapshot(signed_run)
    findings, contents = verify_run(signed_run, policy)
    assert findings == [] and len(contents.modules) == 10 and len(contents.reports) == 5
    assert snapshot(signed_run) == before


def test_other_methods_are_whole_too(tmp_path):
    """A run without modules is verified as far as it goes."""
    spec = tiny(tmp_path, method="fedavg", averaging__rounds=1)
    directory = run(LocalGrid(app, spec.num_clients), spec)
    assert verify_run(directory.path, SignaturePolicy())[0] == []


def test_rounded_counts_are_what_they_were_rounded_from(tmp_path):
    """Where nodes round their numbers of images, one of them more coarsely, these agree with the exact label distribution."""
    spec = tiny(tmp_path, manifest__count_granularity=4)
    own = {2: {"manifest.count-granularity": 50}, 3: {"manifest.count-granularity": 3}}
    directory = run(LocalGrid(app, spec.num_clients, node_config=own), spec)
    assert verify_run(directory.path, SignaturePolicy())[0] == []
    table = directory.path / "label_distribution.json"
    edit_json(table, lambda one: one["counts"].__setitem__(2, [4 * count for count in one["counts"][2]]))
    assert {("nodes/2/fit.json", "label-table"), (table.name, "receipt")} == broken(directory.path, SignaturePolicy())


def flip(path):
    """Flip the last bit of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def poison(path):
    """Put a NaN into a file of weights."""
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, path)


def retype(path, dtype):
    """Write a file's tensors in another dtype."""
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)


def instead(path, make):
    """Put something that is no file in a file's place."""
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)


def relabel(folder, **changes):
    """Put in a module's place one that says something else of itself, under its own right name."""
    path = first(folder, "modules/*.safetensors")
    manifest, state = decode_module(path.read_bytes())
    data = encode_module(state, manifest.model_copy(update=changes))
    path.unlink()
    path.with_name(f"{module_id(data)}.safetensors").write_bytes(data)


DAMAGES = {
    "a module bit": (lambda run: flip(first(run, "modules/*.safetensors")), "digest"),
    "a module renamed": (
        lambda run: first(run, "modules/*.safetensors").rename(run / "modules" / f"{'0' * 64}.safetensors"),
        "digest",
    ),
    "a module under no name": (
        lambda run: first(run, "modules/*.safetensors").rename(run / "modules/a.safetensors"),
        "unexpected",
    ),
    "a module removed": (lambda run: first(run, "modules/*.safetensors").unlink(), "module-missing"),
    "a module of another run": (lambda run: relabel(run, root_seed=9), "other-run"),
    "a module of nobody": (lambda run: relabel(run, note="late"), "module-unreported"),
    "a signature changed": (lambda run: flip(first(run, "modules/*.sig")), "signature"),
    "a signature removed": (lambda run: first(run, "modules/*.sig").unlink(), "signature-missing"),
    "a signature of no module": (lambda run: (run / "modules" / f"{'0' * 64}.sig").write_bytes(bytes(64)), "unexpected"),
    "a claim": (
        lambda run: edit_json(run / "nodes/2/fit.json", lambda one: one["label_counts"].update(dict.fromkeys(one["modules"], 1))),
        "claims",
    ),
    "a report": (lambda run: (run / "nodes/2/fit.json").write_text("[]"), "json"),
    "a report of no module id": (
        lambda run: edit_json(
            run / "nodes/2/fit.json", lambda one: one["modules"].update(dict.fromkeys(one["modules"], "x" * 300))
        ),
        "module-missing",
    ),
    "an answer": (lambda run: edit_json(run / "nodes/2/answer.json", lambda one: one.update(partition=3)), "answer"),
    "a result": (lambda run: edit_json(run / "metrics.json", lambda one: one.update(seed=3)), "receipt"),
    "a class": (lambda run: edit_json(run / "label_distribution.json", lambda one: one["classes"].reverse()), "label-table"),
    "a count": (lambda run: edit_json(run / "label_distribution.json", lambda one: one["counts"].reverse()), "label-table"),
    "the spec": (lambda run: edit_json(run / "spec.json", lambda one: one.update(seed=1)), "spec"),
    "the version": (lambda run: edit_json(run / "spec.json", lambda one: one.update(format_version=2)), "format-version"),
    "no spec": (lambda run: (run / "spec.json").unlink(), "spec"),
    "the receipts": (lambda run: (run / "receipts.json").unlink(), "receipt"),
    "a receipt's way out": (
        lambda run: edit_json(run / "receipts.json", lambda one: one["server"]["outputs"].update({"../../etc/passwd": "0"})),
        "receipt",
    ),
    "a receipt's inputs": (
        lambda run: edit_json(run / "receipts.json", lambda one: one["fit-0"].update(inputs="0")),
        "receipt-inputs",
    ),
    "receipts of another kind": (
        lambda run: (run / "receipts.json").write_text('{"fit-0": 3, "x": {"inputs": 1, "outputs": 2}}'),
        "receipt",
    ),
    "receipts of numbers": (
        lambda run: (run / "receipts.json").write_text('{"x": {"inputs": "", "outputs": [[1, "0"]]}}'),
        "receipt",
    ),
    "a receipt's endless name": (
        lambda run: edit_json(run / "receipts.json", lambda one: one["server"]["outputs"].update({"a" * 300: "0"})),
        "receipt",
    ),
    "a receipt of no node": (
        lambda run: edit_json(run / "receipts.json", lambda one: one.update({"answer-\ud800": one["answer-0"]})),
        "receipt-inputs",
    ),
    "results of another kind": (lambda run: (run / "metrics.json").write_text('{"classes": 3, "bytes": []}'), "label-table"),
    "counts of another kind": (
        lambda run: (run / "label_distribution.json").write_text('{"classes": {}, "counts": [3]}'),
        "label-table",
    ),
    "a count in words": (
        lambda run: edit_json(run / "label_distribution.json", lambda one: one["counts"][0].__setitem__(0, "three")),
        "json",
    ),
    "a count below zero": (
        lambda run: edit_json(run / "label_distribution.json", lambda one: one["counts"][0].__setitem__(0, -1)),
        "json",
    ),
    "a ledger of another kind": (lambda run: (run / "ledger.jsonl").write_text("[3]"), "json"),
    "sites of another kind": (lambda run: (run / "sites.json").write_text("[3]"), "spec"),
    "a tombstone of another kind": (lambda run: (run / "forgotten.json").write_text("[3]"), "spec"),
    "a tombstone of a number": (
        lambda run: (run / "forgotten.json").write_text('{"format_version": 1, "entries": [{"exclude": 3, "modules": {}}]}'),
        "spec",
    ),
    "a spec without an end": (lambda run: (run / "spec.json").write_text("[" * 100_000), "spec"),
    "sites without an end": (lambda run: (run / "sites.json").write_text("[" * 100_000), "spec"),
    "a tombstone without an end": (lambda run: (run / "forgotten.json").write_text("[" * 100_000), "spec"),
    "a ledger without an end": (lambda run: (run / "ledger.jsonl").write_text("[" * 100_000), "json"),
    "the ledger": (lambda run: (run / "ledger.jsonl").write_text(""), "ledger"),
    "a classifier's bit": (lambda run: flip(run / "classifiers/server.safetensors"), "receipt"),
    "a classifier's NaN": (lambda run: poison(run / "classifiers/server.safetensors"), "weights"),
    "a classifier at an eighth": (lambda run: retype(run / "classifiers/server.safetensors", torch.float8_e4m3fn), "weights"),
    "a classifier at double": (lambda run: retype(run / "classifiers/server.safetensors", torch.float64), "weights"),
    "logits at an eighth": (lambda run: retype(run / "nodes/1/logits.safetensors", torch.float8_e4m3fn), "weights"),
    "a node's classifier": (
        lambda run: shutil.copy(run / "nodes/0/logits.safetensors", run / "nodes/0/weights.safetensors"),
        "weights",
    ),
    "logits": (lambda run: save_file({"logits": torch.zeros(3, 10)}, run / "nodes/1/logits.safetensors"), "weights"),
    "a strange file": (lambda run: (run / "modules/notes.txt").write_text("hello"), "unexpected"),
    "a link": (lambda run: (run / "nodes/1/fit.json").with_name("link").symlink_to(run / "spec.json"), "unexpected"),
}


NO_FILES = (
    *("spec.json", "metrics.json", "label_distribution.json", "receipts.json", "forgotten.json", "sites.json", "ledger.jsonl"),
    *("nodes/1/fit.json", "nodes/1/answer.json", "nodes/1/logits.safetensors", "nodes/1/weights.safetensors"),
    *("classifiers/server.safetensors", "modules/*.safetensors", "modules/*.sig"),
    *(f"modules/quarantine/{'1' * 64}.{kind}" for kind in ("json", "refused")),
)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        *((name, os.mkfifo) for name in NO_FILES),
        *((name, make) for name in NO_FILES[-2:] for make in (os.mkdir, lambda path: path.symlink_to("/dev/zero"))),
    ],
)
def test_what_is_no_plain_file_is_named_and_never_opened(copied, policy, name, make):
    """A pipe, a folder or a link in the place of any file of a run is found, and nothing waits for its end."""
    path = first(copied, name) if "*" in name else copied / name
    instead(path, make)
    assert (path.relative_to(copied).as_posix(), "unexpected") in broken(copied, policy)


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_found(copied, policy, name):
    """What was damaged is found under the rule that it breaks."""
    damage, rule = DAMAGES[name]
    damage(copied)
    assert rule in {found for _, found in broken(copied, policy)}


def test_quarantine_is_rechecked(copied, policy):
    """Refused bytes hash to their name and have a report; a report says whose refusal it is."""
    folder = copied / "modules/quarantine"
    folder.mkdir()
    (folder / f"{'1' * 64}.refused").write_bytes(b"bad")
    (folder / f"{'2' * 64}.json").write_text("[]")
    places = {place for place, rule in broken(copied, policy) if rule == "quarantine"}
    assert places == {f"modules/quarantine/{'1' * 64}.refused", f"modules/quarantine/{'2' * 64}.json"}


def test_what_was_forgotten_must_be_gone(copied, policy):
    """A module that a tombstone names may not be there, nor may the folder of a forgotten owner."""
    module = first(copied, "modules/*.safetensors")
    manifest, _ = decode_module(module.read_bytes())
    forgotten = {module.stem: {"owner": manifest.owner, "label": manifest.label, "label_name": manifest.label_name}}
    entry = Entry(exclude=manifest.owner, modules=forgotten, purged=True)
    values = {"format_version": 1, "entries": [entry.__dict__]}
    (copied / "forgotten.json").write_text(json.dumps(values))
    assert Tombstone.read(copied).entries == (entry,)
    places = {place for place, rule in broken(copied, policy) if rule == "forgotten"}
    assert {f"modules/{module.name}", f"modules/{module.stem}.sig", f"nodes/{manifest.owner}"} <= places


def test_remarks_break_nothing(copied, policy):
    """A half-written file and a node with another synthetic set are worth a remark; signatures that cannot be checked too."""
    (copied / "modules/.x.part").write_bytes(b"")
    answer = copied / "nodes/0/answer.json"
    edit_json(answer, lambda one: one.update(synthetic_digest="f" * 64))
    edit_json(copied / "receipts.json", lambda one: (one.pop("answer-0"), one.pop("run")))
    findings, _ = verify_run(copied, SignaturePolicy())
    assert {finding.rule for finding in findings} == {"unfinished", "synthetic-digest", "signature"}
    assert not any(finding.broken for finding in findings)


def test_the_command(copied, keys, tmp_path):
    """The command prints a line per finding and a summary, and its exit code tells whole and broken runs apart."""
    whole = CliRunner().invoke(commands, ["verify", str(copied)])
    assert whole.exit_code == 0 and "whole, 0 remarks: " in whole.output and "10 modules (10 signed)" in whole.output
    flip(first(copied, "modules/*.sig"))
    spoiled = CliRunner().invoke(commands, ["verify", str(copied), "--public-keys", str(keys[1])])
    assert spoiled.exit_code == 1 and "BROKEN  modules/" in spoiled.output and "signature" in spoiled.output
    told = json.loads(CliRunner().invoke(commands, ["verify", str(copied), "--json"]).stdout)
    assert told["whole"] is False and {"place", "rule", "detail", "broken"} == set(told["findings"][0])
    assert CliRunner().invoke(commands, ["verify", str(tmp_path / "absent")]).exit_code == 2
    with pytest.raises(RunError, match="is no folder"):
        verify_run(tmp_path / "absent", SignaturePolicy())


def test_a_card_of_a_module(copied, keys, tmp_path):
    """The card says what the manifest says, whose signature was verified, and draws the samples."""
    module = first(copied, "modules/*.safetensors")
    grid = tmp_path / "grid.png"
    arguments = ["inspect", str(module), "--json", "--grid", str(grid), "--public-keys", str(keys[1])]
    card = json.loads(CliRunner().invoke(commands, arguments).stdout)
    manifest, state = decode_module(module.read_bytes())
    assert card["module_id"] == module.stem and card["bytes"] == module.stat().st_size
    assert (card["owner"], card["label"], card["kind"]) == (manifest.owner, manifest.label, "gaussian_mixture")
    assert card["parameters"] == sum(tensor.numel() for tensor in state.values())
    assert card["signature"] == f"verified: {manifest.owner!r} signed it"
    assert grid.read_bytes().startswith(b"\x89PNG")
    plain = CliRunner().invoke(commands, ["inspect", str(module), "--samples", "0"])
    assert plain.exit_code == 0 and "not checked: no public key" in plain.output


def constant(module):
    """Write a module whose samples are one grey image, under a right name."""
    manifest, state = decode_module(module.read_bytes())
    state = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    module.write_bytes(encode_module(state, manifest))
    return module.rename(module.with_name("grey.safetensors"))


def pipe(module):
    """Put a pipe in the module's place, which nobody ever writes to."""
    module.unlink()
    os.mkfifo(module)
    return module


def altered(change):
    """Return a damage that writes other bytes in the module's place."""

    def damage(module):
        module.write_bytes(change(module.read_bytes()))
        return module

    return damage


REFUSED = {
    "digest": altered(lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    "header-length": lambda module: altered(lambda data: struct.pack("<Q", 2**63) + data[8:])(
        module.rename(module.with_name("x"))
    ),
    "size": lambda module: altered(lambda data: data[:5])(module.rename(module.with_name("x"))),
    "constant": constant,
    "file": pipe,
}


@pytest.mark.parametrize("rule", REFUSED)
def test_a_bad_file_has_no_card(copied, rule):
    """A file that breaks a rule is refused by its name with exit code 1, in text and in JSON."""
    module = first(copied, "modules/*.safetensors")
    module.with_suffix(".sig").unlink()
    damaged = REFUSED[rule](module)
    told = CliRunner().invoke(commands, ["inspect", str(damaged)])
    assert told.exit_code == 1 and f"refused: {rule}: " in told.output
    as_json = CliRunner().invoke(commands, ["inspect", str(damaged), "--json"])
    assert as_json.exit_code == 1 and json.loads(as_json.stdout)["refused"] == rule


def test_a_foreign_signature_has_no_card(copied, keys):
    """A file signed by somebody else is refused where the keys are known."""
    module = first(copied, "modules/*.safetensors")
    owner = decode_module(module.read_bytes())[0].owner
    other = "1" if owner == "0" else "0"
    module.with_suffix(".sig").write_bytes(sign_module(read_private_key(keys[0] / f"{other}.key"), module.stem))
    told = CliRunner().invoke(commands, ["inspect", str(module), "--public-keys", str(keys[1])])
    assert told.exit_code == 1 and "refused: signature-owner" in told.output


def test_a_run_knows_its_keys_from_everywhere(monkeypatch, tmp_path):
    """A relative folder of public keys is that of the person who starts the run, wherever the run's processes start."""
    monkeypatch.chdir(tmp_path)
    assert resolve_spec(settings=["trust.public-keys=keys"]).trust.public_keys == str(tmp_path / "keys")
    assert resolve_spec().trust.public_keys == ""


def test_keys_from_the_command(tmp_path):
    """The command writes both files, names the node's setting, and never overwrites."""
    told = CliRunner().invoke(commands, ["keygen", "north", "--out", str(tmp_path)])
    assert told.exit_code == 0 and "signing-key=" in told.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["north.key", "north.pub"]
    assert CliRunner().invoke(commands, ["keygen", "north", "--out", str(tmp_path)]).exit_code == 2
