"""The certificate, and what reaches the nodes and the disk."""

import errno
import json
import os
from dataclasses import replace

import pytest
from federations import (
    SEVERAL_CLASSES,
    contents,
    forget_owner,
    made,
    modules_of,
    noting,
    on_nodes,
    scratch_without,
    work,
)
from local_grid import error_reply, tiny
from tampering import at, failing, sold_twice, with_files

from ff_flower.config import Exclusion
from ff_flower.errors import ConfigError, RunError, VerificationError
from ff_flower.registry import ModuleRegistry, SignaturePolicy
from ff_flower.run_directory import RunDirectory, file_digest
from ff_flower.unlearning import Tombstone, Work, compare_runs, drop_copies, forget, open_run, waits_for_nodes
from sims.forget import plan_work


def certificate(done):
    """Return the only certificate of a request."""
    (path,) = done.certificates
    return json.loads(path.read_text())


def test_a_certificate_tells_what_was_and_what_is(whole, tmp_path):
    """It lists modules before and after, hashes of what was removed, made again and left alone, the proof, scores and cost."""
    before, gone = contents(whole), modules_of(whole, "3")
    hashes = {name: file_digest(whole / name) for name in before}
    done = forget(whole, ["3"], (), work(scratch=tmp_path / "scratch"), "Article 17")
    told = certificate(done)
    assert (told["request"]["exclude"], told["request"]["reason"]) == ("3", "Article 17")
    assert set(told["modules"]["before"]) - set(told["modules"]["after"]) == set(gone) == set(told["request"]["modules"])
    in_run = {name: digest for name, digest in told["removed"].items() if not name.startswith("cache/")}
    assert in_run == {name: hashes[name] for name in in_run}
    after = contents(whole)
    left = {name for name in after if after[name] == before.get(name) and name.startswith(("modules/", "nodes/"))}
    assert told["untouched"] == {name: hashes[name] for name in left}
    made_again = {name for name in after if name.startswith(("nodes/", "classifiers/")) and not name.endswith("fit.json")}
    assert set(told["rebuild"]["files"]) == made_again
    assert all(file_digest(whole / name) == one["sha256"] for name, one in told["rebuild"]["files"].items())
    proof = told["proof"]
    assert proof["modules_after_are_before_without_forgotten"] and proof["every_rebuilt_file_from_retained_modules_only"]
    assert proof["generative_modules_fitted"] == 0 and proof["from_scratch"]["equal"] and done.differing == ()
    assert told["cost"]["full_run_seconds"] > 0 and told["still_there"] == [] and told["amended"] == []


def test_forgotten_classes_are_not_recognized_any_more(whole):
    """Recall of the classes that are gone is 0 in every result after, and the groups of classes part all that had modules."""
    told = certificate(forget_owner(whole, "3"))
    assert len(told["classes"]["forgotten"]) == 2
    groups = [*told["classes"]["forgotten"], *told["classes"]["fewer_owners"], *told["classes"]["retained"]]
    assert sorted(groups) == list(range(10))
    assert {scores["after"]["forgotten"] for name, scores in told["scores"].items() if name == "server"} <= {0.0}


def test_the_page_says_it_in_words_and_loads_nothing(whole):
    """Beside the JSON lies a page that escapes what people wrote, names the modules and refers to no other place."""
    done = forget(whole, ["3"], (), work(), "<script>because</script>")
    page = done.certificates[0].with_suffix(".html").read_text()
    assert "<script" not in page and "&lt;script&gt;because" in page
    assert all(name in page for name in modules_of(whole, "3"))
    assert "http" not in page and "src=" not in page and "To forget owner 3" in page


def test_every_node_is_told_and_confirms(whole):
    """All nodes, the forgotten one too, are sent ``query.forget``; nobody fits, and the forgotten owner answers nothing else."""
    asked = []
    told = certificate(forget_owner(whole, "3", asked=asked))
    assert sorted(partition for kind, partition in asked if kind == "query.forget") == [0, 1, 2, 3, 4]
    assert sorted(partition for kind, partition in asked if kind == "evaluate") == [0, 1, 2, 4]
    assert sorted(told["nodes"]["confirmed"]) == ["0", "1", "2", "3", "4"] and told["nodes"]["not_confirmed"] == []


def test_a_node_that_does_not_confirm_is_named(whole):
    """A node that fails when it is told is named in certificate and page, and the rest goes on."""

    def fail(partition, reply):
        forgetting = reply.metadata.message_type == "query.forget" and partition == 2
        return error_reply(reply, "OSError: read-only file system") if forgetting else reply

    done = forget_owner(whole, "3", tamper=fail)
    told = certificate(done)
    assert told["nodes"]["not_confirmed"] == ["2"] and told["nodes"]["reasons"] == ["OSError: read-only file system"]
    assert told["rebuild"]["done"] and "not confirmed: 2" in done.certificates[0].with_suffix(".html").read_text()


def test_a_confirmation_stands_in_later_sessions(whole):
    """What a node confirmed in one session counts though it fails when it is told again in the next."""

    def failing_in(*messages):
        return lambda partition, reply: failing(reply) if (partition, reply.metadata.message_type) in messages else reply

    forget(whole, ["3"], (), Work())
    spec, _ = open_run(whole)
    on_nodes(spec, failing_in((2, "query.forget"), (2, "evaluate")))
    on_nodes(spec, failing_in((1, "query.forget")))
    told = certificate(forget(whole, (), (), work()))
    assert sorted(told["nodes"]["confirmed"]) == ["0", "1", "2", "3", "4"] and told["nodes"]["not_confirmed"] == []


def test_who_is_lost_while_rebuilding_keeps_the_certificate_open(whole):
    """A node that was there before and does not rebuild is named as an error; asked once more, it completes the certificate."""
    done = forget_owner(whole, "3", tamper=at("evaluate", failing, partition=2))
    assert "node 2: MemoryError" in done.error and certificate(done)["rebuild"] == {
        "done": False,
        "error": done.error,
        "files": {},
    }
    spec, _ = open_run(whole)
    plan = plan_work(spec, noting(whole, deployed=False), requested=False, rebuild=True, proof=None, tell=print)
    assert "nodes of a simulation" in plan.place
    waiting = forget(whole, (), (), Work())  # as where the nodes are elsewhere
    assert waiting.error == done.error and not certificate(waiting)["rebuild"]["done"]
    asked = []
    done = forget(whole, (), (), work(asked=asked))
    assert done.error == "" and "nodes/2/logits.safetensors" in certificate(done)["rebuild"]["files"]
    assert [partition for kind, partition in asked if kind == "evaluate"] == [2]


def test_who_was_missing_before_keeps_no_certificate_open(tmp_path):
    """A node whose answer the run lacked before the request may be missing after it too."""
    absent = at("evaluate", failing, partition=2)
    path = on_nodes(tiny(tmp_path, **SEVERAL_CLASSES), absent).path
    done = forget_owner(path, "3", tamper=absent)
    assert done.error == "" and certificate(done)["rebuild"]["done"]


def test_nothing_of_a_forgotten_module_is_left_on_the_disk(whole):
    """No file of the run or the shared cache is a forgotten module or names one, but for certificates and tombstone."""
    gone = {name: (whole / "modules" / f"{name}.safetensors").read_bytes() for name in modules_of(whole, "3")}
    quarantined = whole / "modules" / "quarantine"
    registry = ModuleRegistry(whole / "modules")
    registry.quarantine(b"not a module", VerificationError("header", "none"), source="node 3")
    registry.quarantine(b"another", VerificationError("header", "none"), source="node 2")
    forget_owner(whole, "3")
    for name, data in contents(whole.parent).items():
        assert data not in gone.values()
        if not {"certificates", "forgotten.json"} & set(name.split("/")):
            assert not any(one in name or one.encode() in data for one in gone), name
    assert sorted(path.read_bytes() for path in quarantined.glob("*.refused")) == [b"another"]
    assert not (whole / "nodes" / "3").exists()


def test_unfinished_fits_of_the_forgotten_are_dropped(tmp_path):
    """Of unfinished fits exactly those of excluded owners and classes are deleted, whatever dots and digits the names hold."""
    (tmp_path / "fits").mkdir()
    gone = ["3+1+ab.safetensors", "3+11+ab.safetensors", "33+1+ab.safetensors", "3+1+ab.safetensors.0a1b2c3d.part"]
    names = [*gone, "a.3+1+ab.safetensors", "5+1+ab.safetensors"]
    for name in names:
        (tmp_path / "fits" / name).write_bytes(b"")
    _, dropped = drop_copies(tmp_path, Exclusion.parse("3,5/2,33/1"), ["0" * 64])
    assert dropped == 4 and sorted(path.name for path in (tmp_path / "fits").iterdir()) == sorted(names[4:])


def test_a_difference_is_found(uploaded, tmp_path):
    """A changed byte of a classifier is a difference that the comparison with a run from scratch names."""
    forget_owner(uploaded, "3")
    scratch = scratch_without(uploaded, tmp_path / "scratch", "3")
    file = scratch.path / "classifiers" / "server.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    differing = [one.name for one in compare_runs(RunDirectory(uploaded), scratch) if not one.equal]
    assert differing == ["classifiers/server.safetensors"]


def test_other_runs_that_hold_the_same_module_are_named(uploaded):
    """A run of other settings beside this one has the same module files; the certificate names it, and it is not touched."""
    other = made(uploaded.parent, synthesis__site="server", classifier__steps=3)
    assert set(modules_of(other)) == set(modules_of(uploaded))
    before = contents(other)
    told = certificate(forget_owner(uploaded, "3"))
    assert any(other.name in sentence for sentence in told["out_of_reach"]) and contents(other) == before


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("", ""), ("10, 2,2", "2,10"), ("3/7,3", "3"), ("b/1,a/10,a/2", "a/2,a/10,b/1"), ("site-a,3", "3,site-a")],
)
def test_an_exclusion_has_one_text(text, canonical):
    """Order, spaces and what is said twice do not matter: an exclusion has one text, which reads back as itself."""
    assert str(Exclusion.parse(text)) == canonical and Exclusion.parse(canonical) == Exclusion.parse(text)


@pytest.mark.parametrize("text", ["3/", "/3", "3,,4", "a b", "3/x", ".hidden", "3/1/2"])
def test_what_is_no_exclusion_is_refused(text):
    """A part that is neither an owner nor an owner and a label is refused."""
    with pytest.raises(ConfigError, match="3/7"):
        Exclusion.parse(text)


def test_what_was_refused_or_cut_off_goes_too(whole):
    """A file that was not written to its end, one that a killed node left, samples of a refused module, and refused copies go."""
    name, cache = next(iter(modules_of(whole, "3"))), whole.parent / "cache"
    registry = ModuleRegistry(whole / "modules")
    near = VerificationError("near-duplicate", "samples are those of another")
    copy = VerificationError("duplicate", f"the weights are those of module {name[:12]} (owner '3', label '1'); a module is")
    refused = registry.quarantine(b"refused", near, source="node 3").stem
    again = VerificationError("duplicate", f"the weights are those of module {refused[:12]} (owner '3', label '1'); a module is")
    left = [
        whole / "modules" / f"{name}.safetensors.0a1b2c3d.part",
        cache / "received" / "tmp1" / f"{name}.safetensors",
        cache / "modules" / f"{name}.safetensors.4e5f6a7b.part",
        cache / "modules" / f".{name}.0a1b.part",
        cache / "samples" / refused / "0-64.npy",
        registry.quarantine(b"a copy", copy, source="node 2"),
        registry.quarantine(b"a copy of what was refused", again, source="node 1"),
    ]
    for path in left[:-2]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    others = cache / "received" / "tmp1" / f"{next(iter(modules_of(whole, '2')))}.safetensors"
    others.write_bytes(b"x")
    forget_owner(whole, "3")
    assert [path for path in left if path.exists()] == [] and others.exists()


def test_modules_that_were_set_aside_before_go_too(whole):
    """A module that left the registry earlier, as when its owner's key was withdrawn, is forgotten with its owner."""
    spec, cache = open_run(whole)[0], whole.parent / "cache"
    registry = ModuleRegistry.of_run(whole, spec)
    stranger = next(one for one in registry if one.manifest.owner == "1")
    names = list(modules_of(whole, "3"))
    registry.check_signatures(SignaturePolicy(required=True))
    assert list(registry) == [] and (whole / "modules" / "quarantine" / f"{names[0]}.refused").exists()
    for path in (cache / "samples" / names[0] / "0" / "0.npy", cache / "modules" / f"{names[0]}.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    RunDirectory(whole).withdraw(list(RunDirectory(whole).receipts()))  # the files are gone from their places
    forget(whole, ["3"], (), Work())
    assert [path for path in whole.parent.rglob("*") for name in names if path.is_file() and name in str(path)] == []
    assert (whole / "modules" / "quarantine" / f"{stranger.module_id}.refused").exists()


def test_a_proof_that_fails_is_told_and_the_rest_is_certified(whole):
    """Where the run from scratch cannot be made, the certificate is written without it, and the request says why."""

    def broken(spec):
        raise RunError("no room for another run")

    done = forget(whole, ["3"], (), replace(work(), from_scratch=broken))
    assert done.unproven == "no room for another run" and done.error == "" and done.differing == ()
    told = certificate(done)
    assert told["rebuild"]["done"] and told["proof"]["from_scratch"] is None


def test_a_run_with_refused_modules_forgets(tmp_path):
    """Refused modules keep nobody from forgetting; nodes are told of an owner of whom nothing was accepted too."""

    def lie(partition, reply):
        return with_files(sold_twice)(reply) if partition == 3 and reply.metadata.message_type == "train" else reply

    path, asked = on_nodes(tiny(tmp_path, **SEVERAL_CLASSES), lie).path, []
    assert {refusal.rule for refusal in ModuleRegistry(path / "modules").quarantined()} == {"duplicate"}
    assert forget_owner(path, "1", tamper=lie).error == ""
    # What nodes confirmed of owner 1 says nothing of owner 3.
    assert certificate(forget(path, ["3"], (), Work()))["nodes"]["confirmed"] == {}
    told = certificate(forget(path, (), (), work(asked=asked)))
    assert told["request"]["modules"] == {} and sorted(told["nodes"]["confirmed"]) == ["0", "1", "2", "3", "4"]
    assert sorted(partition for kind, partition in asked if kind == "query.forget") == [0, 1, 2, 3, 4]
    assert ModuleRegistry(path / "modules").quarantined() == []


def test_what_nobody_may_look_into_keeps_nobody_from_forgetting(uploaded, monkeypatch):
    """A private folder beside the run, and one where the run was made, are passed over, and the certificate is written."""
    (uploaded.parent / "lost+found").mkdir()
    values = json.loads((uploaded / "spec.json").read_text())
    (uploaded / "spec.json").write_text(json.dumps(values | {"out": "/lost+found/runs"}))
    stat = os.stat

    def refusing(path, *arguments, **options):
        if not isinstance(path, int) and "lost+found/" in os.fspath(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refusing)
    assert certificate(forget_owner(uploaded, "3"))["rebuild"]["done"]


def test_a_lost_score_waits_for_the_nodes(uploaded):
    """Where a node was lost after the purge, though all it gave is there, the nodes are asked again."""
    forget(uploaded, ["3"], (), Work())
    directory, spec = RunDirectory(uploaded), Tombstone.read(uploaded).effective(open_run(uploaded)[0])
    assert not waits_for_nodes(directory, spec)
    directory.write_json("metrics.json", {"missing": [{"partition": 1, "reason": "silent"}]})
    assert waits_for_nodes(directory, spec)


def test_requests_that_wait_for_one_rebuilding_are_all_proved(whole):
    """Certificates written together prove the run without all of their requests; none counts another's files as changed."""
    for owner in ("3", "1"):
        forget(whole, [owner], (), Work())
    done = forget(whole, (), (), work())
    assert len(done.certificates) == 2
    for path in done.certificates:
        told = json.loads(path.read_text())
        assert told["proof"]["modules_after_are_before_without_forgotten"] and told["amended"] == []
        names = {label: str(label) for label in told["classes"]["forgotten"]}  # of digits
        assert len(names) == 2 and told["classes"]["names"] == [*names.values()] and len(told["classes"]["retained"]) == 6
