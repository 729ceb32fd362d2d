"""The theorem: forgetting leaves what a run from scratch makes in which the forgotten had never been, byte for byte."""

import json

import numpy as np
import pytest
from federations import (
    SEVERAL_CLASSES,
    SHARED_CLASSES,
    contents,
    copied,
    forget_owner,
    made,
    modules_of,
    scratch_without,
    three_classes,
    work,
)

from ff_flower.registry import ModuleRegistry
from ff_flower.run_directory import RunDirectory
from ff_flower.synthesis import SampleCache, allocate
from ff_flower.unlearning import Work, compare_runs, forget
from strategies.server_app import run


def assert_equal(path, scratch):
    """Compare a run that has forgotten with one from scratch, and see that nothing was left out of the comparison."""
    compared = compare_runs(RunDirectory(path), scratch)
    assert [one for one in compared if not one.equal] == []
    files = {name for name in contents(path) if name.endswith(".safetensors")}
    assert files == {one.name for one in compared if one.name.endswith(".safetensors")}
    names = {one.name for one in compared}
    assert {"classifiers/server.safetensors", "synthetic digest", "scores of server", "label_distribution.json"} <= names


@pytest.mark.parametrize(
    ("settings", "owners"),
    [(SHARED_CLASSES, ("1",)), (SEVERAL_CLASSES, ("0", "3"))],
    ids=["classes with several owners", "two owners of two classes"],
)
def test_forgetting_an_owner_is_never_having_met_it(settings, owners, tmp_path):
    """Registry, synthetic set, answers, server's classifier and student are those of a run from scratch without the owner."""
    path = made(tmp_path / "run", **settings)
    before = modules_of(path)
    assert forget_owner(path, *owners).error == ""
    assert_equal(path, scratch_without(path, tmp_path / "scratch", ",".join(owners)))
    assert modules_of(path) == {name: one for name, one in before.items() if one.owner not in owners}
    assert (path / "classifiers" / "student.safetensors").is_file()


def test_a_and_b_and_c_without_c_are_a_and_b(digits, tmp_path):
    """Of three owners of one class each, forgetting the third leaves what a run that excludes it makes."""
    images = three_classes(digits, tmp_path / "abc.npz")
    path = made(tmp_path / "run", num_clients=3, partition__classes_per_node=1, data__name=f"npz:{images}")
    forget_owner(path, "2")
    assert_equal(path, scratch_without(path, tmp_path / "scratch", "2"))
    assert len(modules_of(path)) == 2 and not (path / "nodes" / "2").exists()


def test_forgetting_one_module_keeps_the_rest_of_its_owner(whole, tmp_path):
    """Without one of its two modules an owner goes on with the other, as if it had never held images of the first one's class."""
    (name, manifest), kept = list(modules_of(whole, "2").items())
    forget(whole, (), (name[:10],), work())
    assert_equal(whole, scratch_without(whole, tmp_path / "scratch", f"2/{manifest.label}"))
    assert list(modules_of(whole, "2")) == [kept[0]]


def test_forgetting_every_module_of_an_owner_keeps_its_answer(whole, tmp_path):
    """An owner all of whose classes are forgotten one by one still learns from the others, as one without images does."""
    modules = modules_of(whole, "2")
    forget(whole, (), list(modules), work())
    assert_equal(whole, scratch_without(whole, tmp_path / "scratch", ",".join(f"2/{one.label}" for one in modules.values())))
    assert (whole / "nodes" / "2" / "answer.json").is_file()


def test_the_order_of_requests_does_not_matter(several_classes, tmp_path):
    """Forgetting 1 then 4 leaves what forgetting 4 and 1 at once does."""
    (tmp_path / "one").mkdir()
    first, second = copied(several_classes, tmp_path / "one"), copied(several_classes, tmp_path)
    forget_owner(first, "1")
    forget_owner(first, "4")
    forget_owner(second, "4", "1")
    assert [one for one in compare_runs(RunDirectory(first), RunDirectory(second)) if not one.equal] == []


def test_what_the_server_alone_makes_needs_no_node(uploaded, tmp_path):
    """Where the server alone synthesizes, forgetting asks no node, and gives the bytes of a run from scratch."""
    forget(uploaded, ("3",), (), Work(lambda spec: run(None, spec)))
    assert_equal(uploaded, scratch_without(uploaded, tmp_path / "scratch", "3"))


def test_a_remaining_owner_gives_a_longer_prefix_of_the_same_samples(tmp_path):
    """Where one of two owners of a class is forgotten the other's samples begin with those it gave before, and grow in number."""
    path = made(tmp_path / "run", synthesis__site="server", **SHARED_CLASSES)
    cache, before = SampleCache(path.parent / "cache" / "samples"), list(ModuleRegistry(path / "modules"))
    former = {share.module_id: cache.read(share, 0).numpy() for share in allocate(before, 10)}
    touched = {one.label for one in modules_of(path, "2").values()}
    forget_owner(path, "2")
    longer = 0
    for share in allocate(list(ModuleRegistry(path / "modules")), 10):
        samples, known = cache.read(share, 0).numpy(), former.get(share.module_id)
        if known is None:
            continue
        assert np.array_equal(samples[: len(known)], known)
        assert len(samples) == len(known) or (share.label in touched and len(samples) > len(known))
        longer += len(samples) > len(known)
    assert longer and len(touched) < 10


def test_a_class_without_an_owner_leaves_the_label_table(whole):
    """A class whose only owner is forgotten is in no label table any more, and a note says so."""
    table = json.loads((whole / "metrics.json").read_text())["label_table"]
    gone = {str(one.label): one.label_name for one in modules_of(whole, "3").values()}
    forget_owner(whole, "3")
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["excluded"] == ["3"]
    assert metrics["label_table"] == {label: name for label, name in table.items() if label not in gone}
    assert all(any(repr(name) in note for note in metrics["notes"]) for name in gone.values())


def test_the_theorem_on_medical_images(real_data, tmp_path):
    """On RetinaMNIST, resized, forgetting the only owner of a class equals never having met it."""
    retina = {"data__name": "retinamnist", "data__root": str(real_data), "data__size": 8, "num_clients": 5}
    path = made(tmp_path / "run", **retina, partition__classes_per_node=1)
    forget_owner(path, "4")
    assert_equal(path, scratch_without(path, tmp_path / "scratch", "4"))
