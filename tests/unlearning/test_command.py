"""``ff-flower forget`` as a person calls it."""

import json

import pytest
from federations import contents, copied, made, noting, on_nodes
from typer.testing import CliRunner

from ff_flower.registry import ModuleRegistry
from ff_flower.run_directory import RunDirectory
from ff_flower.unlearning import Tombstone, open_run
from sims.cli import app
from sims.run import FAILED, REFUSED
from strategies import forgetting


def call(*words):
    """Return the result of ``ff-flower forget`` with these words."""
    return CliRunner().invoke(app, ["forget", *map(str, words)])


def test_the_server_forgets_alone(uploaded):
    """Where the server alone synthesizes, the command needs no Flower, exits with 0, and names the certificate."""
    done = call(uploaded, "--owner", 3, "--reason", "asked by mail")
    assert done.exit_code == 0, done.output
    told = json.loads((uploaded / "certificates" / "forget-1.json").read_text())
    assert told["cost"]["rebuilt_by"] == "the server alone" and told["request"]["reason"] == "asked by mail"
    assert "certificates/forget-1.json" in done.output.replace("\n", "")
    assert {one.manifest.owner for one in ModuleRegistry(uploaded / "modules")} == {"0", "1", "2", "4"}


def test_a_refused_request_exits_with_2(uploaded):
    """A request that cannot be carried out exits with 2, in one sentence, and touches nothing."""
    before = contents(uploaded)
    done = call(uploaded, "--owner", 9)
    assert done.exit_code == REFUSED and "took no part" in done.output
    assert call(uploaded.parent).exit_code == REFUSED and contents(uploaded) == before


def test_a_request_that_stands_unfinished_exits_with_1(uploaded, monkeypatch):
    """Where a file cannot be removed, or the certificate not written, the request stands; repeated, it exits with 0."""

    def locked(*_):
        raise PermissionError(13, "Permission denied", "samples")

    with monkeypatch.context() as patched:
        patched.setattr("ff_flower.unlearning.purge.drop_copies", locked)
        done = call(uploaded, "--owner", 3)
        assert done.exit_code == FAILED and "cannot be removed" in done.output and "nothing was changed" not in done.output
        assert call(uploaded).exit_code == FAILED
        second = call(uploaded, "--owner", 4)
        assert second.exit_code == REFUSED and "an earlier request is not carried out yet" in second.output
        assert [entry.exclude for entry in Tombstone.read(uploaded).entries] == ["3"]
    obstacle = uploaded / "certificates"
    obstacle.touch()
    done = call(uploaded)
    assert done.exit_code == FAILED and "cannot be written" in done.output
    obstacle.unlink()
    assert call(uploaded).exit_code == 0 and (uploaded / "certificates" / "forget-1.json").is_file()


def test_twice_says_so(uploaded):
    """The second time the command says that the owner has no part any more, changes nothing, and exits with 0."""
    call(uploaded, "--owner", 3, "--no-rebuild")
    assert "made again yet" in call(uploaded, "--owner", 3, "--no-rebuild").output
    call(uploaded, "--owner", 3)
    done = call(uploaded, "--owner", 3)
    assert done.exit_code == 0 and "nothing was changed" in done.output


def test_nodes_of_a_deployment_are_asked_there(whole):
    """SuperNodes that were given partitions are left to their federation, and nobody confirms in their place."""
    done = call(whole, "--owner", 3)
    assert done.exit_code == 0 and "the nodes of this run are elsewhere" in done.output
    certificate = whole / "certificates" / "forget-1.json"
    told = json.loads(certificate.read_text())
    assert not told["rebuild"]["done"] and told["nodes"]["confirmed"] == {}
    assert call(whole, "--owner", 1, "--prove").exit_code == REFUSED
    on_nodes(open_run(whole)[0])
    assert call(whole).exit_code == 0
    told = json.loads(certificate.read_text())
    assert told["rebuild"]["done"] and sorted(told["nodes"]["confirmed"]) == ["0", "1", "2", "3", "4"]


def test_a_simulation_confirms_nothing_for_supernodes(whole, monkeypatch):
    """Where a simulation goes on with a run of SuperNodes it rebuilds, and the certificate names them as not having confirmed."""
    call(whole, "--owner", 3)
    monkeypatch.setattr(forgetting, "is_simulated", lambda grid: True)
    on_nodes(open_run(whole)[0], asked=(asked := []))
    assert asked and not [kind for kind, _ in asked if kind == "query.forget"]
    assert call(whole).exit_code == 0
    certificate = whole / "certificates" / "forget-1.json"
    nodes = json.loads(certificate.read_text())["nodes"]
    assert nodes["confirmed"] == {} and nodes["not_confirmed"] == ["0", "1", "2", "3", "4"]
    assert "those of the run are SuperNodes" in nodes["reasons"][0]
    assert "--database" in certificate.read_text()


def test_a_reason_of_any_bytes_is_certified(uploaded):
    """A reason in which a terminal wrote bytes that are no UTF-8 keeps the rest of its letters."""
    done = call(uploaded, "--owner", 3, "--no-rebuild", "--reason", "d\udce9part")
    assert done.exit_code == 0, done.output
    assert json.loads((uploaded / "certificates" / "forget-1.json").read_text())["request"]["reason"] == "d\ufffdpart"
    assert "d\ufffdpart" in (uploaded / "certificates" / "forget-1.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_nodes_forget_in_flower(tmp_path):
    """In real Flower the nodes of a simulation are told, rebuild, and confirm; the command exits with 0."""
    path = copied(made(tmp_path / "run", num_clients=2, partition__classes_per_node=5), tmp_path)
    noting(path, deployed=False)  # local nodes stand for a simulation's
    done = call(path, "--owner", 1)
    assert done.exit_code == 0, done.output
    assert not RunDirectory(path).deployed
    told = json.loads((path / "certificates" / "forget-1.json").read_text())
    assert told["rebuild"]["done"] and sorted(told["nodes"]["confirmed"]) == ["0", "1"]
    assert "nodes/0/logits.safetensors" in told["rebuild"]["files"]


def test_a_comparison_that_cannot_be_made_is_refused(uploaded):
    """``--prove`` without rebuilding has nothing to compare, and is refused before anything is touched."""
    before = contents(uploaded)
    done = call(uploaded, "--owner", 3, "--no-rebuild", "--prove")
    assert done.exit_code == REFUSED and "--prove" in done.output and contents(uploaded) == before
