"""Requests that are odd, come twice, or are interrupted: a forgotten contribution is forgotten whole, or nothing is touched."""

import json
import os

import pytest
from federations import (
    AT_THE_SERVER,
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
from local_grid import LocalGrid, tiny

from clients.client_app import app
from ff_flower.errors import ConfigError, FederatedFactoryError, RunError, VerificationError
from ff_flower.registry import ModuleRegistry, module_id
from ff_flower.run_directory import RunDirectory, cache_root
from ff_flower.unlearning import Tombstone, Work, compare_runs, forget, open_run
from strategies import nodes
from strategies.server_app import run


def refusal(path, owners=(), modules=(), kind=FederatedFactoryError):
    """Return what a request is refused with, having seen that it touched nothing."""
    before = contents(path)
    with pytest.raises(kind) as caught:
        forget(path, owners, modules, work())
    assert contents(path) == before
    return str(caught.value)


def test_an_unknown_owner_is_refused_with_those_who_are_there(uploaded):
    """A name that took no part is refused by a sentence that lists who did."""
    assert "'12'" in (said := refusal(uploaded, ["12"])) and "0, 1, 2, 3, 4" in said


def test_an_unknown_module_is_refused_with_those_that_are_there(uploaded):
    """An id that is none, or too short to tell, is refused by a list of all modules with their owners."""
    assert all(name in refusal(uploaded, modules=["abc"]) for name in modules_of(uploaded))


def test_a_request_that_names_nobody_is_refused(uploaded):
    """Without an owner or module, and with nothing unfinished, there is nothing to do."""
    assert "--owner" in refusal(uploaded, kind=ConfigError)


def test_a_method_without_owners_is_not_touched(tmp_path):
    """A run of another method, in which nobody owns anything, is refused by its name, and touched in nothing."""
    path = made(tmp_path, method="local")
    assert "is of local, which knows no owners" in refusal(path, ["1"], kind=RunError)


def test_forgetting_twice_changes_nothing(uploaded):
    """A second request for the same owner says that it is forgotten, and leaves every byte as it was."""
    (certificate,) = forget_owner(uploaded, "3").certificates
    before = contents(uploaded)
    again = forget_owner(uploaded, "3")
    assert again.certificates == () and "owner 3" in again.notes[0]
    assert contents(uploaded) == before and certificate.is_file()


@pytest.mark.parametrize("damage", ["missing", "changed"])
@pytest.mark.parametrize("name", ["a module", "nodes/2/fit.json", "classifiers/server.safetensors", "metrics.json"])
def test_a_run_that_is_not_whole_is_not_touched(name, damage, uploaded):
    """With a missing or changed file the request is refused, names that file and ``ff-flower verify``, and touches nothing."""
    file = sorted((uploaded / "modules").glob("*.safetensors"))[0] if name == "a module" else uploaded / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b" ")
    assert file.name in (said := refusal(uploaded, ["1"])) and "ff-flower verify" in said


def test_a_run_of_another_format_version_is_not_touched(uploaded):
    """A run directory of another format version is refused, naming the version that is read here."""
    spec = json.loads((uploaded / "spec.json").read_text())
    (uploaded / "spec.json").write_text(json.dumps(spec | {"format_version": 2}))
    assert "format version 1" in refusal(uploaded, ["1"])


def test_a_renamed_run_is_not_touched(uploaded):
    """A run directory whose name is not that of its spec is refused by a sentence that gives the right name."""
    renamed = uploaded.rename(uploaded.with_name("renamed"))
    assert uploaded.name in refusal(renamed, ["1"])


@pytest.mark.parametrize("owners", [("3", "1"), ("3",)], ids=["noted", "before caches were noted"])
def test_a_moved_run_forgets_where_it_is(owners, uploaded, tmp_path):
    """A run directory that was moved is rebuilt in its new place; each request drops the samples of the old place too."""
    moved = tmp_path / "elsewhere" / uploaded.name
    if len(owners) == 1:
        noting(uploaded, caches=[])
        spec = json.loads((uploaded / "spec.json").read_text())
        (uploaded / "spec.json").write_text(json.dumps(spec | {"out": str(uploaded.parent)}))
    moved.parent.mkdir()
    uploaded.rename(moved)
    for owner in owners:
        gone = modules_of(moved, owner)
        assert all((uploaded.parent / "cache" / "samples" / name).is_dir() for name in gone)
        assert forget_owner(moved, owner).error == ""
        assert (moved / "classifiers" / "server.safetensors").is_file() and not uploaded.exists()
        assert not {path.name for path in (uploaded.parent / "cache" / "samples").iterdir()} & set(gone)


def test_a_refused_module_is_forgotten_in_every_cache(uploaded, tmp_path):
    """What vetting drew of a module that it refused goes from each of the caches with which a run was made."""
    spec, _ = open_run(uploaded)
    other = spec.model_copy(update={"out": str(tmp_path / "other")})
    RunDirectory(uploaded).describe(other)
    data = b"a module of which all samples are alike"
    ModuleRegistry(uploaded / "modules").quarantine(data, VerificationError("collapsed", "all are alike"), source="node 3")
    refused = module_id(data)
    drawn = [cache_root(one) / "samples" / refused / "0.npy" for one in (spec, other)]
    for path in drawn:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"samples")
    told = json.loads(forget(uploaded, ["3"], (), Work()).certificates[0].read_text())
    assert not any(path.exists() for path in drawn)
    assert {name for name in told["removed"] if refused in name and name.endswith(".npy")} == {
        f"cache/samples/{refused}/0.npy",
        drawn[1].as_posix(),
    }


def test_a_directory_that_cannot_be_written_is_not_touched(uploaded, monkeypatch, full_disk):
    """Where the tombstone cannot be brought to the disk, nothing is forgotten and the sentence says so."""
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(RunError, match=r"forgotten.json: cannot be written .*nothing was forgotten"):
        forget_owner(uploaded, "3")
    assert not (uploaded / "forgotten.json").exists()
    assert (uploaded / "metrics.json").is_file() and len(modules_of(uploaded)) == 10


def test_a_run_that_somebody_works_on_is_not_touched(uploaded):
    """While a server works on a run nothing of it is forgotten, and while something is forgotten no server starts on it."""
    spec, _ = open_run(uploaded)
    with RunDirectory(uploaded).alone():
        assert "another process is at work on this run" in refusal(uploaded, ["3"])
        with pytest.raises(RunError, match="another process is at work on this run"):
            run(None, spec)


def test_an_unreadable_tombstone_stops_everything(uploaded):
    """A tombstone that cannot be read is an error of every later run: going on would bring back what was forgotten."""
    forget_owner(uploaded, "3")
    (uploaded / "forgotten.json").write_text("{")
    for attempt in (lambda: forget_owner(uploaded, "1"), lambda: on_nodes(open_run(uploaded)[0])):
        with pytest.raises(RunError, match="forgotten"):
            attempt()


class Interrupted(BaseException):
    """A power cut."""


STEPS = {
    "purge": "ff_flower.unlearning.purge.drop_copies",
    "report": "ff_flower.unlearning.purge._amend",
    "receipts": "ff_flower.run_directory.RunDirectory.withdraw",
    "rebuild": "strategies.consensus.Consensus._fit_server",
    "certificate": "ff_flower.unlearning.forgetting.write_certificate",
}


@pytest.mark.parametrize(
    ("step", "then"), [*((step, "forget") for step in STEPS), ("report", "run"), ("rebuild", "run"), ("certificate", "run")]
)
def test_an_interrupted_request_goes_on_where_it_stopped(step, then, uploaded, tmp_path, monkeypatch):
    """After a cut in any step forgetting again finishes it, and so does running the spec again, which resurrects nothing."""

    def cut(*args, **kwargs):
        raise Interrupted

    (module, manifest), _ = modules_of(uploaded, "1").items()
    with monkeypatch.context() as patched:
        patched.setattr(STEPS[step], cut)
        with pytest.raises(Interrupted):
            forget(uploaded, ["3"], [module], work())
    assert not Tombstone.read(uploaded).purged or step in ("rebuild", "certificate")
    if then == "run":
        on_nodes(open_run(uploaded)[0])
    else:
        assert len(forget(uploaded, (), (), work()).certificates) == 1
    scratch = scratch_without(uploaded, tmp_path / "scratch", f"3,1/{manifest.label}")
    assert [one for one in compare_runs(RunDirectory(uploaded), scratch) if not one.equal] == []


def test_a_module_that_comes_back_is_withdrawn(uploaded):
    """A forgotten module that somebody copies back into the directory is no part of the next run."""
    name = next(iter(modules_of(uploaded, "3")))
    data = (uploaded / "modules" / f"{name}.safetensors").read_bytes()
    forget_owner(uploaded, "3")
    (uploaded / "modules" / f"{name}.safetensors").write_bytes(data)
    (uploaded / "metrics.json").unlink()
    on_nodes(open_run(uploaded)[0])
    assert name not in modules_of(uploaded)


def test_without_rebuilding_the_next_run_rebuilds(uploaded, tmp_path):
    """A request without rebuilding deletes all that depended on the owner, and the next run of the spec makes it again."""
    assert len(forget(uploaded, ["3"], (), Work()).certificates) == 1
    assert not (uploaded / "metrics.json").exists() and not list((uploaded / "classifiers").iterdir())
    on_nodes(open_run(uploaded)[0])
    scratch = scratch_without(uploaded, tmp_path / "scratch", "3")
    assert [one for one in compare_runs(RunDirectory(uploaded), scratch) if not one.equal] == []


def silent(partition, reply):
    """Lose every reply of node 2."""
    return None if partition == 2 else reply


def test_who_was_given_up_keeps_the_server_from_nothing(tmp_path):
    """Where the server alone synthesizes it forgets without a node that was missing before, and goes on naming it."""
    path = on_nodes(tiny(tmp_path, **AT_THE_SERVER), silent).path
    assert forget(path, ["3"], (), Work(lambda spec: run(None, spec))).error == ""
    assert [one["partition"] for one in json.loads((path / "metrics.json").read_text())["missing"]] == [2]


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "killed"])
def test_a_run_of_the_same_settings_has_rebuilt_already(ended, tmp_path):
    """What a later run made again is certified as it is, at that run's cost, though a node is missing that was missing before."""
    path = on_nodes(tiny(tmp_path, **SEVERAL_CLASSES), silent).path
    if not ended:
        (path / "metrics.json").unlink()
    forget(path, ["3"], (), Work())
    for _ in range(2):  # the second session makes nothing
        on_nodes(open_run(path)[0], silent)
    before = contents(path)
    told = json.loads(forget(path, (), (), work(asked=(asked := []))).certificates[0].read_text())
    assert told["rebuild"]["done"] and told["rebuild"]["files"] and asked == []
    assert told["cost"]["rebuilt_by"] == "a run of the same settings"
    seconds = json.loads((path / "metrics.json").read_text())["seconds"]
    assert told["cost"]["seconds"] >= sum(seconds[stage] for stage in seconds if stage not in ("fit", "total"))
    after = contents(path)
    assert all(name.startswith("certificates/") for name in before if before[name] != after[name])


def test_too_few_classes_are_forgotten_all_the_same(tmp_path):
    """Where too little is left to go on, everything is deleted, nothing is made again, and the certificate says why."""
    path = made(tmp_path, num_clients=2, partition__classes_per_node=5, synthesis__site="server", min_classes=6)
    done = forget_owner(path, "1")
    assert "min-classes" in done.error and len(modules_of(path)) == 5
    assert json.loads(done.certificates[0].read_text())["rebuild"] == {"done": False, "error": done.error, "files": {}}


def test_a_node_that_is_excluded_need_not_be_there(tmp_path):
    """A run goes on without the SuperNode of an owner who is excluded."""
    spec = tiny(tmp_path, exclude="4", synthesis__site="server")
    grid = LocalGrid(app, 5)
    del grid.contexts[next(node for node, one in grid.contexts.items() if one.node_config["partition-id"] == 4)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nodes.wait_for_nodes, "__defaults__", (1.0, 0.2, 0))
        assert run(grid, spec).read_json("metrics.json")["missing"] == []


@pytest.mark.parametrize(("exclude", "said"), [("7", "must be owners"), ("1/12", "must be labels")])
def test_excluding_who_is_not_there_is_refused(exclude, said, tmp_path):
    """A run that excludes an owner or a label that there is not is refused."""
    with pytest.raises(ConfigError, match=said):
        made(tmp_path, exclude=exclude)


def test_only_owners_of_modules_can_be_excluded(tmp_path):
    """A method without modules refuses to exclude anybody."""
    with pytest.raises(ConfigError, match="federated-factory"):
        made(tmp_path, exclude="1", method="local")
