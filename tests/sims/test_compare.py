"""What a comparison runs, what it leaves out, and the picture of a run's samples."""

import json
import shutil
from functools import cache

import pytest
from local_grid import LocalGrid, tiny
from PIL import Image
from tampering import at, lost
from typer.testing import CliRunner

from clients.client_app import app as client_app
from ff_flower import data
from ff_flower.config import Method, RunSpec
from ff_flower.errors import ConfigError, RunError
from ff_flower.run_directory import RunDirectory, read_spec
from ff_flower.unlearning import Work, forget
from sims import compare
from sims.cli import app
from sims.compare import METHODS, finished, plan
from sims.processes.superlink import RunOutcome
from sims.run import REFUSED, start_afresh
from strategies.server_app import run


def test_every_method_meets_every_seed_on_the_same_settings():
    """The plan is the product of methods and seeds, each once, and its runs differ in nothing else."""
    specs = plan(RunSpec(), f"{METHODS},fedavg", "0,7,0")
    assert len(specs) == 10 and {(spec.method, spec.seed) for spec in specs} == {
        (method, seed) for method in Method.__args__ for seed in (0, 7)
    }
    assert {spec.model_copy(update={"method": "local", "seed": 0}).digest() for spec in specs} == {
        RunSpec(method="local").digest()
    }


@pytest.mark.parametrize(("methods", "seeds", "named"), [("fedsgd", "0", "fedprox"), ("fedavg", "0,one", "0,1,2")])
def test_a_wrong_plan_is_refused_with_what_exists(methods, seeds, named):
    """An unknown method is answered by the list of methods, a seed that is no number by an example."""
    with pytest.raises(ConfigError, match=named):
        plan(RunSpec(), methods, seeds)


def test_a_finished_run_is_not_made_again(tmp_path):
    """A run counts as finished exactly while its directory is whole."""
    spec = tiny(tmp_path, method="centralized")
    assert finished(spec) is None
    directory = run(LocalGrid(client_app, spec.num_clients), spec)
    assert finished(spec) == json.loads((directory.path / "metrics.json").read_text())
    (directory.path / "classifiers" / "centralized.safetensors").write_bytes(b"changed")
    assert finished(spec) is None


def test_a_run_of_other_images_is_not_shown(tmp_path, monkeypatch):
    """A whole run is finished for the images that it was made of alone; a seed's methods read theirs once."""
    monkeypatch.setattr(compare, "_images", cache(compare._images.__wrapped__))
    specs = [tiny(tmp_path, method=method, averaging__rounds=1) for method in ("centralized", "fedavg")]
    for spec in specs:
        run(LocalGrid(client_app, spec.num_clients), spec)
    load, loaded = data.load_splits, []
    monkeypatch.setattr(data, "load_splits", lambda images, seed: loaded.append(seed) or load(images, seed))
    assert None not in [finished(spec) for spec in specs] and loaded == [0]
    compare._images.cache_clear()
    monkeypatch.setattr(data, "load_splits", lambda images, seed: load(images.model_copy(update={"size": 16}), seed))
    assert [finished(spec) for spec in specs] == [None, None]


def test_a_comparison_keeps_the_log_of_a_run_that_failed(tmp_path, monkeypatch):
    """Of the runs of a comparison the last that failed has its log in ``failed.log``, and the next run is made all the same."""

    class Failing:
        def __enter__(self):
            return self

        def __exit__(self, *raised):
            pass

        def run(self, app, flat, *, stream, **resources):
            stream(f"DEBUG :     {flat['method']}")
            return RunOutcome("1", "finished:failed", "why", 0.0)

    monkeypatch.setattr(compare, "FlowerSession", Failing)
    settings = ["--methods", "fedavg,local", "--seeds", "0", "--set", f"out={tmp_path}"]
    ended = CliRunner().invoke(app, ["compare", *settings])
    assert ended.exit_code == 1 and ended.output.count(f"    Flower's whole log: {tmp_path / 'failed.log'}") == 2
    assert (tmp_path / "failed.log").read_text() == "DEBUG :     local\n"


def test_the_gallery_has_two_rows_per_module(tmp_path):
    """Sixteen real images stand over sixteen samples of each module, if they are those it was fitted to.

    Digits of 8x8 pixels are drawn at 32, with a border of one.
    """
    spec = tiny(tmp_path / "runs", num_clients=2, partition__classes_per_node=5)
    directory = run(LocalGrid(client_app, 2), spec)
    assert read_spec(directory.path) == spec.flat()
    picture = tmp_path / "gallery.png"
    assert CliRunner().invoke(app, ["gallery", str(directory.path), str(picture)]).exit_code == 0
    assert Image.open(picture).size == (16 * 34, 20 * 34)
    directory.write_json("images.json", {"sha256": "0" * 64})
    refused = CliRunner().invoke(app, ["gallery", str(directory.path), str(picture)])
    assert refused.exit_code == REFUSED and "other images than digits has here" in refused.output


def test_a_gallery_of_nothing_is_refused(tmp_path):
    """A folder that is no run directory is answered by its name."""
    refused = CliRunner().invoke(app, ["gallery", str(tmp_path), str(tmp_path / "picture.png")])
    assert refused.exit_code == 2 and "spec.json" in refused.output


def test_a_gallery_of_sites_images_is_refused(tmp_path):
    """Of a deployment's run, whose images are elsewhere, there is no gallery, and the answer names the samples that there are."""
    path = RunDirectory.open(RunSpec(out=str(tmp_path), data={"name": "sites"})).path
    refused = CliRunner().invoke(app, ["gallery", str(path), str(tmp_path / "picture.png")])
    assert refused.exit_code == 2 and "its images are at the sites" in refused.output
    assert str(path / "modules") in refused.output


def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path):
    """A folder that is not there is answered by the picture's path with exit code 2, and what was not in question is printed."""
    path = run(LocalGrid(client_app, 2), tiny(tmp_path / "runs", num_clients=2, partition__classes_per_node=5)).path
    module, picture = min((path / "modules").glob("*.safetensors")), tmp_path / "nofolder" / "s.png"
    drawn = CliRunner().invoke(app, ["gallery", str(path), str(picture)])
    card = CliRunner().invoke(app, ["inspect", str(module), "--json", "--grid", str(picture)])
    for told in (drawn, card):
        assert told.exit_code == 2 and told.stderr.startswith(f"{picture}: cannot be written (No such file or directory); name")
    assert json.loads(card.stdout)["module_id"] == module.stem and "grid" not in json.loads(card.stdout)
    refused = CliRunner().invoke(app, ["inspect", str(module), "--samples", "0", "--grid", str(tmp_path / "s.png")])
    assert refused.exit_code == 2 and "--samples 0: must be at least 1" in refused.output and refused.stdout == ""


def test_a_fresh_start_uses_nothing_of_an_earlier_run(tmp_path):
    """Starting afresh removes the run directory and its modules' samples, and leaves other runs and their samples alone."""
    spec, other = tiny(tmp_path), tiny(tmp_path, seed=1)
    path, beside = (run(LocalGrid(client_app, 5), one).path for one in (spec, other))
    samples = tmp_path / "cache" / "samples"
    drawn = {run_of: {file.stem for file in (run_of / "modules").glob("*.safetensors")} for run_of in (path, beside)}
    assert {folder.name for folder in samples.iterdir()} == drawn[path] | drawn[beside]
    before = (path / "classifiers/server.safetensors").read_bytes()
    assert list((tmp_path / "cache" / "fits").glob("*")) == []
    start_afresh(spec)
    assert not path.exists() and {folder.name for folder in samples.iterdir()} == drawn[beside]
    start_afresh(spec)
    assert (run(LocalGrid(client_app, 5), spec).path / "classifiers/server.safetensors").read_bytes() == before


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_fresh_start_fits_again(by_hand, tmp_path):
    """What nodes keep of fits that the server lacks goes with the run, even where its directory is gone; other runs' stays."""
    spec, other = (tiny(tmp_path, seed=seed) for seed in (0, 1))
    paths = [run(LocalGrid(client_app, 5, tamper=at("train", lost)), one).path for one in (spec, other)]
    assert len(list((tmp_path / "cache" / "fits").iterdir())) == 4
    if by_hand:
        shutil.rmtree(paths[0])
    start_afresh(spec)
    assert len(list((tmp_path / "cache" / "fits").iterdir())) == 2
    start_afresh(other)
    assert list((tmp_path / "cache" / "fits").iterdir()) == []


def test_a_fresh_start_brings_nobody_back(tmp_path):
    """A run that has forgotten somebody is not started afresh, and neither is one on which another process works."""
    spec = tiny(tmp_path, synthesis__site="server")
    path = run(LocalGrid(client_app, 5), spec).path
    with RunDirectory(path).alone(), pytest.raises(RunError, match="another process is at work"):
        start_afresh(spec)
    forget(path, ["3"], (), Work())
    with pytest.raises(RunError, match="3 was forgotten here"):
        start_afresh(spec)
    assert (path / "forgotten.json").exists()
