"""Forgetting a site that brings its own images under a name."""

import json
import shutil

import pytest
from federations import contents, modules_of
from local_grid import LocalGrid, tiny

from clients.client_app import app
from ff_flower.data import datasets
from ff_flower.errors import ConfigError
from ff_flower.run_directory import RunDirectory
from ff_flower.unlearning import Work, compare_runs, forget, open_run, waits_for_nodes
from sims.digit_folders import write_digit_folders
from sims.forget import plan_work
from strategies.server_app import run

CLASSES = {"north": (3, 7), "south": (1,), "west": (9, 0)}


@pytest.fixture
def sites(tmp_path):
    """Return a function that runs a spec on three SuperNodes, each with a name and a folder of its own."""
    folders = write_digit_folders(tmp_path / "images", CLASSES, per_class=30)
    configs = {place: {"name": name, "data": f"folder:{folder}"} for place, (name, folder) in enumerate(folders.items())}

    def make(spec):
        return run(LocalGrid(app, 3, shuffle=4, node_config=configs), spec)

    return make


def test_a_named_site_is_forgotten(sites, tmp_path):
    """Forgetting a site by its name leaves what a run makes that excludes it, and no more than its place in the list of sites.

    Its certificate names what deployments keep elsewhere: classifiers that sites scored, and Flower's database.
    """
    spec = tiny(tmp_path / "run", data__name="sites", num_clients=3, connect_timeout=0.3)
    path = sites(spec).path
    done = forget(path, ["south"], (), Work(sites))
    assert done.error == "" and {one.owner for one in modules_of(path).values()} == {"north", "west"}
    told = json.loads(done.certificates[0].read_text())
    assert told["proof"]["generative_modules_fitted"] == 0 and told["classes"]["names"] == ["one"]
    reached = " ".join(told["out_of_reach"])
    assert "classifiers fitted with them were sent to the nodes 0, 1, 2" in reached and "--database" in reached
    introduced = json.loads((path / "sites.json").read_text())["introductions"]
    assert [one["name"] for one in introduced] == ["north", "west"]
    scratch = sites(spec.model_copy(update={"out": str(tmp_path / "scratch"), "exclude": "south"}))
    assert [one for one in compare_runs(RunDirectory(path), scratch) if not one.equal] == []


def test_no_module_is_fitted_for_forgetting(sites, tmp_path):
    """A class that a site has added since is left out where a run has forgotten somebody, and a note says so."""
    path = sites(tiny(tmp_path / "run", data__name="sites", num_clients=3, connect_timeout=0.3)).path
    write_digit_folders(tmp_path / "images", {"west": (5,)}, per_class=30)
    datasets._read.cache_clear()  # every message to a SuperNode begins a process
    done = forget(path, ["south"], (), Work(sites))
    told = json.loads(done.certificates[0].read_text())
    assert done.error == "" and told["amended"] == [] and told["proof"]["generative_modules_fitted"] == 0
    assert told["proof"]["modules_after_are_before_without_forgotten"]
    notes = json.loads((path / "metrics.json").read_text())["notes"]
    assert [note for note in notes if note.startswith("site west has added images of five, which are left out")]


def test_sites_elsewhere_are_left_to_their_federation(sites, tmp_path):
    """The command forgets at the server and says how the federation rebuilds; called after that, it certifies without a node."""
    path = sites(tiny(tmp_path / "run", data__name="sites", num_clients=3, connect_timeout=0.3)).path
    spec, said = open_run(path)[0], []
    first = plan_work(spec, path, requested=True, rebuild=True, proof=None, tell=said.append)
    assert first.rebuild is None and "same settings" in said[0]
    forget(path, ["south"], (), first)
    assert not any(name.startswith("classifiers/") for name in contents(path))
    sites(spec)
    second = plan_work(spec, path, requested=False, rebuild=True, proof=None, tell=said.append)
    assert json.loads(forget(path, (), (), second).certificates[0].read_text())["rebuild"]["done"]


def test_a_site_that_left_is_forgotten_and_waited_for_no_longer(sites, tmp_path):
    """Who introduced itself and then gave nothing can be forgotten; and who never came back keeps no certificate waiting."""
    spec = tiny(tmp_path / "run", data__name="sites", num_clients=3, min_nodes=2, connect_timeout=0.3)
    path = sites(spec).path
    directory = RunDirectory(path)
    shutil.rmtree(path / "nodes" / "1")
    for module in modules_of(path, "south"):
        (path / "modules" / f"{module}.safetensors").unlink()
    directory.withdraw([stage for stage in directory.receipts() if stage not in ("fit-0", "fit-2")])
    directory.write_json("metrics.json", directory.read_json("metrics.json") | {"missing": [{"partition": 1, "reason": "gone"}]})
    assert waits_for_nodes(directory, spec)
    server = spec.model_copy(update={"synthesis": spec.synthesis.model_copy(update={"site": "server"})})
    assert not waits_for_nodes(directory, server)
    told = json.loads(forget(path, ["south"], (), Work()).certificates[0].read_text())
    assert told["request"]["exclude"] == "south"
    with pytest.raises(ConfigError, match="elsewhere"):
        plan_work(open_run(path)[0], path, requested=True, rebuild=True, proof=tmp_path, tell=print)
