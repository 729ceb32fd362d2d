"""Whole runs of sites that bring their own images: what is agreed, what is told, and what is never told."""

import json
import shutil

import numpy as np
import pytest
from local_grid import GrowingGrid, SilentGrid
from own_sites import CLASSES, deployed, make, own
from PIL import Image
from tampering import at, failing

from ff_flower.data import datasets
from ff_flower.errors import ConfigError, RunError
from ff_flower.registry import ModuleRegistry
from sims.digit_folders import NAMES, write_digit_folders
from sims.report import gaps
from strategies import introductions
from strategies.server_app import run

SECRETS = ("secret-place", "patient-")  # parts of the names of the sites' folders and of their files
STRANGER = {3: {"partition-id": 3, "num-partitions": 7}}  # node-config of a SuperNode that was started for another run


@pytest.fixture(scope="module")
def other_site(tmp_path_factory):
    """Return a function that makes a site's folder of one class, of images that are changed by ``change``."""

    def write(change):
        folder = tmp_path_factory.mktemp("secret-place")
        classes = write_digit_folders(folder, {"other": (5,)}, per_class=12)["other"]
        for path in classes.rglob("*.png"):
            change(Image.open(path).convert("L")).save(path)
        return classes

    return write


def refusals(caught):
    """Return what the error of a refused run says."""
    said = str(caught.value)
    assert not any(secret in said for secret in SECRETS)
    return said


def test_every_site_takes_part_under_its_name(consortium):
    """Labels are the classes' names, sorted; partitions are the sites' names, sorted; modules are owned by names."""
    names = sorted(NAMES[digit] for digits in CLASSES.values() for digit in digits)
    assert (consortium.metrics["sites"], consortium.metrics["classes"]) == (["north", "south", "west"], names)
    assert (consortium.metrics["missing"], consortium.metrics["quarantined"]) == ([], [])
    manifests = [module.manifest for module in ModuleRegistry(consortium.path / "modules")]
    owners = {NAMES[digit]: site for site, digits in CLASSES.items() for digit in digits}
    assert {manifest.label_name: manifest.owner for manifest in manifests} == owners
    assert all(names[manifest.label] == manifest.label_name for manifest in manifests)


def test_without_a_test_set_the_sites_score_on_what_they_hold_out(consortium):
    """Server, student and product of experts are scored by all sites together, without an AUROC, and the results say so."""
    for name in ("server", "student", "product_of_experts"):
        result = consortium.metrics["results"][name]
        assert (result["scored_on"], result["scored_by"]) == ("sites", ["north", "south", "west"])
        assert result["auroc"] is None and None not in result["per_class_recall"]
    assert consortium.metrics["results"]["client_mean"]["scored_on"] == "sites"


def test_a_deployment_equals_its_rehearsal_in_simulation(consortium, folders, tmp_path):
    """The same spec with ``data.sites`` gives every module file, answer and classifier byte for byte."""
    places = ",".join(f"{name}=folder:{folders[name]}" for name in ("west", "north", "south"))
    rehearsal = make(own(tmp_path, data__sites=places), {number: {} for number in range(3)}, shuffle=4)
    assert rehearsal.files() == consortium.files()
    scores = [{name: {**one, "bytes": 0} for name, one in run.metrics["results"].items()} for run in (consortium, rehearsal)]
    assert scores[0] == scores[1]


def test_no_path_and_no_file_name_leaves_a_site(consortium):
    """Nothing in the server's run directory names a site's folder or one of its files."""
    files = [path for path in consortium.path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path.name for path in files if any(secret.encode() in path.read_bytes() for secret in SECRETS)] == []


def test_a_test_set_at_the_server_scores_all_but_the_sites_own(folders, tmp_path):
    """With ``data.server-test`` the server scores its results there; classes that no site has are left out with a note."""
    held = write_digit_folders(tmp_path / "held", {"server": (0, 1, 3, 7, 9, 4)}, per_class=5)["server"]
    run = make(own(tmp_path / "out", data__server_test=f"folder:{held}"), deployed(folders))
    results = run.metrics["results"]
    assert {name: one["scored_on"] for name, one in results.items()} == {
        "server": "server-test", "student": "server-test", "product_of_experts": "server-test", "client_mean": "sites",
    }  # fmt: skip
    assert results["server"]["auroc"] is not None
    assert run.metrics["notes"] == ["data.server-test: images of class 'four' are left out, since no site has it"]
    assert not [asked for asked in run.grid.asked if asked[0] == "evaluate.score"]


def test_counts_are_told_as_multiples_only(folders, tmp_path):
    """With a granularity every number of images that leaves a site is a multiple of it; a site may ask for a coarser one."""
    coarse = {"north": {"manifest.count-granularity": 8}}
    run = make(own(tmp_path, manifest__count_granularity=4), deployed(folders, **coarse))
    told = {one["name"]: one["counts"].values() for one in json.loads((run.path / "sites.json").read_text())["introductions"]}
    assert all(count % (8 if name == "north" else 4) == 0 for name, counts in told.items() for count in counts)
    reports = [json.loads(path.read_text()) for path in run.path.glob("nodes/*/fit.json")]
    assert {count % 4 for report in reports for count in report["label_counts"].values()} == {0}
    manifests = [module.manifest for module in ModuleRegistry(run.path / "modules")]
    assert {number % 4 for manifest in manifests for number in (manifest.num_examples, manifest.images_shown)} == {0}
    assert {manifest.num_examples % 8 for manifest in manifests if manifest.owner == "north"} == {0}


def test_what_is_registered_is_not_fitted_again(folders, tmp_path):
    """A run that lost every answer goes on where it stopped: the same table, no fit, and the answers that were wanted."""
    lost = make(own(tmp_path), deployed(folders), tamper=lambda _, reply: None if "weights" in reply.content else reply)
    assert len(lost.metrics["missing"]) == 3
    again = make(own(tmp_path), deployed(folders), shuffle=7)
    assert (lost.grid.fitted, again.grid.fitted) == ([*range(3)], [])
    assert again.metrics["missing"] == []
    assert again.metrics["classes"] == lost.metrics["classes"]


def test_a_class_that_a_site_adds_before_a_run_goes_on_is_fitted(tmp_path):
    """A site that has images of another class when a partial run goes on sends a module of it, and nobody else fits again."""
    folders = write_digit_folders(tmp_path / "images", CLASSES, per_class=30)
    first = make(own(tmp_path / "out"), deployed(folders), tamper=at("evaluate", failing, 0))
    write_digit_folders(tmp_path / "images", {"south": (5,)}, per_class=30)
    datasets._read.cache_clear()  # every message to a SuperNode begins a process
    again = make(own(tmp_path / "out"), deployed(folders), shuffle=6)
    assert again.metrics["classes"] == [*first.metrics["classes"], "five"]
    owners = {module.manifest.label_name: module.manifest.owner for module in ModuleRegistry(again.path / "modules")}
    assert owners["five"] == owners["one"] == "south" and again.grid.fitted == [1]
    assert again.metrics["missing"] == []
    assert make(own(tmp_path / "out"), deployed(folders)).grid.fitted == []


def test_a_site_that_announces_a_class_and_fails_is_no_worse_than_before(tmp_path):
    """Its earlier modules stay, it is missing while it fails, and a session without it goes on with what it gave."""
    folders = write_digit_folders(tmp_path / "images", CLASSES, per_class=30)
    held = write_digit_folders(tmp_path / "held", {"server": (0, 1, 3, 7, 9)}, per_class=5)["server"]
    spec = own(tmp_path / "out", min_nodes=2, synthesis__site="server", data__server_test=f"folder:{held}")
    first = make(spec, deployed(folders), tamper=at("train", failing, 0))
    assert [one["partition"] for one in first.metrics["missing"]] == [0]
    write_digit_folders(tmp_path / "images", {"south": (5,)}, per_class=30)
    datasets._read.cache_clear()  # every message to a SuperNode begins a process
    second = make(spec, deployed(folders), tamper=at("train", failing, 1))
    assert [one["partition"] for one in second.metrics["missing"]] == [1]
    owners = {module.manifest.label_name: module.manifest.owner for module in ModuleRegistry(second.path / "modules")}
    assert owners["one"] == "south" and "five" not in owners
    third = make(spec, deployed({name: folder for name, folder in folders.items() if name != "south"}))
    assert third.metrics["missing"] == [] and third.files() == second.files()


def test_a_class_that_the_run_excludes_is_asked_for_no_more(folders, tmp_path):
    """A site that holds a class which takes no part is done once the others are there."""
    spec = own(tmp_path, exclude="north/0")
    first = make(spec, deployed(folders), tamper=at("evaluate", failing, 0))
    assert [one["partition"] for one in first.metrics["missing"]] == [0]
    assert make(spec, deployed(folders)).grid.fitted == []


def test_silent_nodes_are_told_in_the_log(folders, tmp_path, monkeypatch, caplog):
    """While a node does not introduce itself the log says for how many the others wait, and how long at most."""
    monkeypatch.setattr(introductions, "SILENT_SECONDS", 0.1)
    lost = at("query.introduce", lambda reply: None, 1)
    spec = own(tmp_path, timeout=1.0, connect_timeout=0.1, min_nodes=2)
    with caplog.at_level("WARNING", "flwr"):
        make(spec, deployed(folders), tamper=lost, kind=SilentGrid)
    assert "1 of 3 nodes have not answered; they are waited for until 1 s have passed" in caplog.text


def test_fewer_sites_than_expected_are_enough_where_the_run_says_so(folders, tmp_path):
    """Two of three sites fail a run, and with ``min-nodes = 2`` they make one that names the third place as missing."""
    two = {number: config for number, config in deployed(folders).items() if number < 2}
    with pytest.raises(
        RunError, match=r"2 of 3 sites take part, 3 must \(all; min-nodes allows fewer\): 2 SuperNodes are connected"
    ):
        make(own(tmp_path), two)
    run = make(own(tmp_path, min_nodes=2), two)
    assert (run.metrics["sites"], [gap["partition"] for gap in run.metrics["missing"]]) == (["north", "south"], [2])
    third = make(own(tmp_path, min_nodes=2), deployed(folders), shuffle=1)
    assert (third.metrics["sites"], third.metrics["missing"]) == (["north", "south", "west"], [])
    assert third.metrics["classes"][:3] == run.metrics["classes"]
    assert len(third.grid.fitted) == 1


def test_a_node_of_another_run_is_refused_and_takes_nobodys_place(consortium, folders, tmp_path):
    """With a fourth node, started for another run, the three sites make what they make alone, byte for byte; a note names it."""
    run = make(own(tmp_path), deployed(folders) | STRANGER, shuffle=2)
    assert run.files() == consortium.files()
    (note,) = run.metrics["notes"]
    assert note.startswith("a node is left out: a node cannot take part: this node has no images")
    assert {kind for kind, partition in run.grid.asked if partition == 3} == {"query.introduce"}


def test_a_site_that_comes_after_a_stranger_is_waited_for(folders, tmp_path):
    """A node that is no site does not end the wait for the sites, in whatever order they connect."""
    nodes = deployed(folders) | STRANGER
    for shuffle in range(4):
        run = make(own(tmp_path / str(shuffle), connect_timeout=60, synthesis__site="server"), nodes, shuffle, kind=GrowingGrid)
        assert run.metrics["sites"] == ["north", "south", "west"]


def test_a_site_that_is_mended_in_time_takes_part(folders, tmp_path, monkeypatch):
    """A site whose folder was not there at first is asked again while the server waits, and then nothing is noted."""
    monkeypatch.setattr(introductions, "AGAIN_SECONDS", 0.2)
    late = tmp_path / "secret-place"

    def tamper(partition, reply):
        if partition == 2 and reply.has_error():
            shutil.copytree(folders["west"], late)
        return reply

    nodes = deployed(folders, west={"data": f"folder:{late}"})
    run = make(own(tmp_path / "out", connect_timeout=60, synthesis__site="server"), nodes, tamper=tamper)
    assert run.grid.asked.count(("query.introduce", 2)) == 2
    assert (run.metrics["sites"], run.metrics["notes"]) == (["north", "south", "west"], [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda image: image.resize((10, 10)), "site 'west' is refused: its images measure 10 x 10 pixels"),
        (lambda image: image.convert("RGB"), "site 'west' is refused: its images have 3 channels"),
    ],
    ids=["size", "channels"],
)
def test_images_that_do_not_fit_are_refused_with_the_remedy(folders, other_site, tmp_path, change, said):
    """A site whose images differ in size or channels ends the run before a fit, and the error names site, rule and remedy."""
    node_config = deployed(folders, west={"data": f"folder:{other_site(change)}"})
    with pytest.raises(RunError) as caught:
        make(own(tmp_path), node_config)
    assert said in refusals(caught)


def test_images_of_another_size_are_resized_where_the_run_says_so(folders, other_site, tmp_path):
    """With ``data.size`` every site resizes, and one with larger images takes part."""
    node_config = deployed(folders, west={"data": f"folder:{other_site(lambda image: image.resize((10, 10)))}"})
    assert make(own(tmp_path, data__size=8, synthesis__site="server"), node_config).metrics["missing"] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "north"}, "2 nodes call themselves 'north'; give every SuperNode a name of its own"),
        ({"name": "../etc"}, "must be 1 to 64 of A-Z a-z 0-9"),
        ({"name": 5}, "name and data must both be given, in quotes"),
        ({"data": "/srv/secret-place"}, "must be folder: or npz: with an absolute path"),
        ({"data": "folder:/nowhere/secret-place"}, "a folder of class folders is read there; correct the path"),
        ({"manifest.count-granularity": 0}, "must be a whole number from 1"),
    ],
    ids=["name of another", "name", "number", "place", "absent", "granularity"],
)
def test_a_node_that_is_started_wrongly_is_named_with_the_remedy(folders, tmp_path, change, said):
    """A node-config that cannot be ends the run before a fit; the error says what to write and tells no path."""
    with pytest.raises(RunError) as caught:
        make(own(tmp_path), deployed(folders, west=change))
    assert said in refusals(caught)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "nine" / "patient-notes.png").write_text("none"), "class folders hold images only"),
        (lambda folder: (folder / "patient-list.csv").write_text("none"), "images stand in the folder of their class"),
        (lambda folder: [path.unlink() for path in (folder / "nine").iterdir()], "every class needs at least one image"),
        (lambda folder: [shutil.rmtree(path) for path in folder.iterdir()], "one folder per class is needed"),
    ],
    ids=["no image", "stray file", "empty class", "empty folder"],
)
def test_a_folder_that_is_no_image_set_is_refused_without_naming_a_file(folders, tmp_path, spoil, said):
    """Non-images, stray files and empty folders end the run before a fit; the rule and the remedy are told, no file's name."""
    spoilt = shutil.copytree(folders["west"], tmp_path / "secret-place")
    spoil(spoilt)
    with pytest.raises(RunError) as caught:
        make(own(tmp_path / "out"), deployed(folders, west={"data": f"folder:{spoilt}"}))
    assert said in refusals(caught)


def test_a_class_that_nobody_named_keeps_its_site_out(folders, tmp_path):
    """With ``data.classes`` the table is fixed, and a site with another class is refused by its name."""
    with pytest.raises(RunError, match=r"site 'west' is refused: its classes zero are not in data\.classes"):
        make(own(tmp_path, data__classes="one;three;seven;nine"), deployed(folders))


def test_arrays_are_images_as_well(folders, tmp_path):
    """A site may bring an npz file with the names of its classes; classes without an image are not told."""
    images = np.stack([np.asarray(Image.open(path)) for path in sorted((folders["west"] / "nine").iterdir())])
    nothing = {f"{split}_{what}": images[:0] if what == "images" else np.zeros(0, np.int64) for split in ("val", "test")
               for what in ("images", "labels")}  # fmt: skip
    names = np.array(["zero", "nine"])
    path = tmp_path / "site.npz"
    np.savez(path, train_images=images, train_labels=np.ones(len(images), np.int64), label_names=names, **nothing)
    run = make(own(tmp_path / "out", synthesis__site="server"), deployed(folders, west={"data": f"npz:{path}"}))
    assert run.metrics["classes"] == ["nine", "one", "seven", "three"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "fedavg"}, "method = 'fedavg': must be 'federated-factory'"),
        ({"data__sites": "north=folder:/a"}, "data.sites names 1 sites: must be num-clients = 3"),
        ({"data__sites": "north=folder:a,b=folder:/b,c=folder:/c"}, "with an absolute path"),
        ({"data__sites": "north=folder:/a,north=folder:/b,c=folder:/c"}, "north must stand there once only"),
        ({"data__sites": "north"}, "'north' must be name=folder:/path"),
        ({"data__classes": "one;two;one"}, "one must stand there once only"),
        ({"data__classes": "one;" + "t" * 129}, "ttt' must be at most 128 printable characters; rename the class"),
        ({"data__classes": "one;tw\u202eo"}, r"'tw\u202eo' must be at most 128 printable characters"),
        ({"min_nodes": 4}, "min-nodes = 4: must be at most num-clients = 3"),
        ({"data__name": "digits", "data__server_test": "folder:/t"}, "data.server-test: only where nodes bring their own"),
        ({"data__server_test": "/t"}, "data.server-test = '/t': must be folder: or npz: with an absolute path"),
        ({"data__server_test": "folder:t"}, "data.server-test = 'folder:t': must be folder: or npz: with an absolute path"),
        ({"data__server_test": "digits"}, "data.server-test = 'digits': must be folder: or npz: with an absolute path"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, changes, said):
    """What cannot be meant is refused before anything starts, with the remedy."""
    with pytest.raises(ConfigError) as caught:
        own(tmp_path, **changes)
    assert said in str(caught.value)


def test_nodes_of_a_deployment_are_told_no_folder_of_the_server(tmp_path):
    """The spec that nodes get names no place on the server's disk; a rehearsal on one machine shares its folders."""
    spec = own(tmp_path, data__server_test="folder:/test", data__root="/data")
    assert {str(value) for value in spec.for_nodes().flat().values()} & {str(tmp_path), "folder:/test", "/data"} == set()
    rehearsal = own(tmp_path, data__sites="a=folder:/a,b=folder:/b,c=folder:/c")
    assert rehearsal.for_nodes() == rehearsal


def test_an_excluded_site_takes_no_part(folders, tmp_path):
    """A run without a site is whole although its SuperNode is not there, and knows nothing of its classes."""
    others = {number: config for number, config in deployed(folders).items() if config["name"] != "west"}
    run = make(own(tmp_path, exclude="west"), others)
    assert run.metrics["missing"] == []
    assert run.metrics["classes"] == ["one", "seven", "three"]
    assert {module.manifest.owner for module in ModuleRegistry(run.path / "modules")} == {"north", "south"}


def test_a_hostile_introduction_ends_nothing_but_its_own_part(folders, tmp_path):
    """A node that answers with something else than an introduction is refused by its rule, and the run goes on."""

    def tamper(partition, reply):
        if partition == 0 and set(reply.content) == {"report"}:
            reply.content["report"]["json"] = '{"name": "north", "path": "/etc"}'
        return reply

    run = make(own(tmp_path, min_nodes=2, synthesis__site="server"), deployed(folders), tamper=tamper)
    assert run.metrics["sites"] == ["south", "west"]
    assert gaps(run.metrics) == ["node 2 is missing: " + run.metrics["missing"][0]["reason"]]
    assert "an introduction is refused: introduction: " in run.metrics["missing"][0]["reason"]


def test_a_site_cannot_answer_for_another(folders, tmp_path):
    """Modules that claim another site's partition are not taken from a node that introduced itself under its own name."""

    def tamper(partition, reply):
        if "modules" in reply.content and partition == 0:
            reply.content["metrics"]["partition-id"] = 1
        return reply

    run = make(own(tmp_path, synthesis__site="server"), deployed(folders), tamper=tamper)
    assert gaps(run.metrics) == ["site north is missing: partition-id 1: it is 0's node; it sends its own only"]
    assert {module.manifest.owner for module in ModuleRegistry(run.path / "modules")} == {"south", "west"}


def test_a_site_that_does_not_score_is_asked_again(folders, consortium, tmp_path):
    """Without a site's scores a run is not whole: the site is named, and the next session asks for scores alone."""
    one = make(own(tmp_path), deployed(folders), tamper=at("evaluate.score", failing, 1))
    ((partition, reason),) = [(gap["partition"], gap["reason"]) for gap in one.metrics["missing"]]
    assert partition == 1 and reason.startswith("it did not score the classifiers: MemoryError")
    assert one.metrics["results"]["server"]["scored_by"] == ["north", "west"]
    again = make(own(tmp_path), deployed(folders))
    assert {kind for kind, _ in again.grid.asked} == {"query.introduce", "evaluate.score"}
    assert again.metrics["missing"] == [] and again.metrics["results"] == consortium.metrics["results"]


def test_a_site_that_is_away_when_others_score_is_asked_again(folders, tmp_path):
    """While a site that contributed is not connected a run is not whole: its held-out images count when it is back."""
    spec = own(tmp_path, min_nodes=2)
    make(spec, deployed(folders), tamper=at("evaluate.score", failing, 1))
    two = {number: config for number, config in deployed(folders).items() if config["name"] != "south"}
    away = make(spec, dict(enumerate(two.values())))
    assert gaps(away.metrics) == ["site south is missing: it did not score the classifiers: it is not connected"]
    back = make(spec, deployed(folders))
    assert back.metrics["missing"] == [] and back.metrics["results"]["server"]["scored_by"] == ["north", "south", "west"]


def test_an_excluded_site_that_comes_later_changes_nothing(folders, tmp_path):
    """A site that a run excludes and began without gets no place and no classes when it connects after all."""
    spec = own(tmp_path, exclude="west")
    others = {number: config for number, config in deployed(folders).items() if config["name"] != "west"}
    first = make(spec, dict(enumerate(others.values())), tamper=at("evaluate", failing, 1))
    then = make(spec, deployed(folders))
    assert then.metrics["missing"] == [] and then.grid.fitted == []
    assert then.metrics["classes"] == first.metrics["classes"] == ["one", "seven", "three"]
    assert then.metrics["sites"] == ["north", "south"] and "zero" not in (then.path / "sites.json").read_text()


def test_scores_that_only_sites_can_give_are_waited_for(folders, tmp_path):
    """A server that makes its results without nodes leaves them without scores, says so, and does not call the run done."""
    spec = own(tmp_path, synthesis__site="server")
    whole = make(spec, deployed(folders))
    shutil.rmtree(whole.path / "classifiers")
    alone = run(None, spec)
    metrics = alone.read_json("metrics.json")
    assert metrics["results"]["server"]["accuracy"] is None and "wait for the sites" in metrics["notes"][-1]
    assert "run" not in alone.receipts()
    assert make(spec, deployed(folders)).metrics["results"] == whole.metrics["results"]
