"""Fits on a node: what kind a class gets, and that an interrupted fit ends like an unbroken one."""

import logging
from dataclasses import replace

import pytest
import torch
from local_grid import tiny

from clients.finished_fits import drop_received
from clients.module_factory import choose_kind, fit_module, fit_modules
from clients.site import kind_of, open_site
from ff_flower.config import ModuleSpec, RunSpec
from ff_flower.errors import ConfigError
from ff_flower.generative import KINDS
from ff_flower.generative.base import ONE_IMAGE
from ff_flower.registry import decode_module, module_id
from ff_flower.run_directory import cache_root, drop_finished_fits

CPU = torch.device("cpu")
NETWORK = {"module__kind": "edm", "module__edm__channels": 8, "module__edm__steps": 12, "module__edm__batch_size": 16}
NODE = {"partition-id": 1, "num-partitions": 5}


class Power(Exception):
    """The node loses power."""


class Plug(logging.Handler):
    """Cuts the power at a fit's n-th report of progress."""

    def __init__(self, reports):
        super().__init__()
        self.left = reports

    def emit(self, record):
        """Count the reports."""
        self.left -= "of its fit" in record.getMessage()
        if self.left <= 0:
            raise Power


def interrupted(spec, site, label, reports=2):
    """Fit a module, or those of all classes where ``label`` is None, until the n-th report of progress."""
    plug, logger = Plug(reports), logging.getLogger("flwr")
    logger.addHandler(plug)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(Power):
            fit_modules(spec, site, CPU) if label is None else fit_module(spec, site, label, CPU)
    finally:
        logger.removeHandler(plug)
        logger.setLevel(level)


def unfinished(spec):
    """Return the checkpoints that lie in a run's cache."""
    return sorted(set((cache_root(spec) / "fits").glob("*")) - set(finished(spec)))


def finished(spec):
    """Return the files of finished fits that lie in a run's cache."""
    return sorted((cache_root(spec) / "fits").glob("*.module"))


def of_one_class(site, label, count):
    """Return the site with the first ``count`` images of one class alone."""
    rows = (site.own.labels == label).nonzero()[:, 0]
    return replace(site, own=site.own.subset(rows[:count]))


def sentences(spec, site):
    """Return what a node says in words of its classes, in its report and in its modules' manifests."""
    report, files = fit_modules(spec, site, CPU)
    told = {one.reason for one in (*report.declined, *report.fallbacks)}
    return told | {decode_module(data)[0].note for data in files.values()}


def test_an_interrupted_fit_continues_to_the_same_bytes(tmp_path, caplog):
    """A fit that was cut off twice goes on at its last checkpoint, sends the unbroken fit's bytes, and leaves nothing behind."""
    spec = tiny(tmp_path / "broken", **NETWORK, module__checkpoint_seconds=1e-9)
    site = open_site(spec, NODE)
    label = int(site.own.labels[0])
    for reports in (2, 1):
        interrupted(spec, site, label, reports)
    (checkpoint,) = unfinished(spec)
    assert checkpoint.suffix == ".safetensors"
    unbroken = fit_module(tiny(tmp_path / "whole", **NETWORK, module__checkpoint_seconds=0.0), site, label, CPU).data
    with caplog.at_level(logging.INFO, "flwr"):
        assert fit_module(spec, site, label, CPU).data == unbroken
    assert "a fit continues at step 5 of 12" in caplog.text
    assert unfinished(spec) == [] and not (tmp_path / "whole" / "cache" / "fits").exists()
    assert decode_module(unbroken)[0].images_shown == 12 * 16


def test_a_node_that_is_interrupted_keeps_its_finished_classes(tmp_path, caplog):
    """A node cut off in its second class fits the first one no second time, and sends an unbroken node's bytes."""
    spec = tiny(tmp_path / "broken", **NETWORK, module__checkpoint_seconds=60.0)
    site = open_site(spec, NODE)
    interrupted(spec, site, None, reports=6)
    assert len(finished(spec)) == 1
    unbroken = fit_modules(tiny(tmp_path / "whole", **NETWORK, module__checkpoint_seconds=0.0), site, CPU)[1]
    with caplog.at_level(logging.INFO, "flwr"):
        assert fit_modules(spec, site, CPU)[1] == unbroken and len(unbroken) == 2
    assert caplog.text.count("is fitted already") == 1
    assert unfinished(spec) == [] and len(finished(spec)) == 2


@pytest.mark.parametrize("kind", ["edm", "gaussian_mixture"])
def test_finished_fits_stay_until_the_server_has_them(kind, tmp_path, caplog):
    """A node asked again sends the same bytes without a fit, until it is told that the server has them; others' files stay."""
    spec = tiny(tmp_path, **{**NETWORK, "module__kind": kind})
    other = tiny(tmp_path, **{**NETWORK, "module__kind": kind}, classifier__steps=5)
    site = open_site(spec, NODE)
    report, files = fit_modules(spec, site, CPU)
    caplog.clear()
    with caplog.at_level(logging.INFO, "flwr"):
        again, same = fit_modules(spec, site, CPU)
    assert same == files and "of its fit" not in caplog.text and caplog.text.count("is fitted already") == 2
    took, told = (one.work.ended - one.work.began for one in (report, again))
    assert told == pytest.approx(took, abs=0.5)
    fit_modules(other, site, CPU)
    assert len(finished(spec)) == 4
    drop_finished_fits(spec, "0")
    assert len(finished(spec)) == 4
    drop_finished_fits(spec, site.owner)
    assert len(finished(spec)) == 2
    caplog.clear()
    with caplog.at_level(logging.INFO, "flwr"):
        assert fit_modules(other, site, CPU)[1].keys() == files.keys()
    assert "of its fit" not in caplog.text


def test_fits_go_when_the_server_has_all_of_them(tmp_path):
    """A node deletes what it keeps when all of it is in the broadcast, and until then nothing."""
    spec = tiny(tmp_path)
    site = open_site(spec, NODE)
    _, files = fit_modules(spec, site, CPU)
    drop_received(spec, site.owner, [*files][:1])
    assert len(finished(spec)) == 2
    drop_received(spec, site.owner, [*files, "another's"])
    assert finished(spec) == []


def test_fits_of_what_a_node_holds_no_more_are_not_kept(tmp_path):
    """The file of a class that is gone, or of other images of a class, goes when the node fits again: nobody will have it."""
    spec = tiny(tmp_path)
    site = open_site(spec, NODE)
    first, second = sorted(set(site.own.labels.tolist()))
    fit_modules(spec, site, CPU)
    _, files = fit_modules(spec, of_one_class(site, first, 30), CPU)
    (left,) = finished(spec)
    assert module_id(left.read_bytes()) in files and left.name.startswith(f"{site.owner}+{first}+") and second != first


def test_the_seconds_of_a_finished_fit_are_told(tmp_path):
    """A node that sends what it fitted before accounts for the seconds of these fits, not for those of finding the files."""
    spec = tiny(tmp_path)
    site = open_site(spec, NODE)
    fit_modules(spec, site, CPU)
    for path in finished(spec):
        path.rename(path.with_name(path.name.rpartition("-")[0] + "-100.5.module"))
    work = fit_modules(spec, site, CPU)[0].work
    assert work.ended - work.began == pytest.approx(201.0)


def test_nothing_is_kept_that_nobody_would_delete(tmp_path):
    """Where nodes are never told that the server has their modules, or write no checkpoints, they keep no files of fits."""
    for changes in ({"synthesis__site": "server"}, {"module__checkpoint_seconds": 0.0}):
        spec = tiny(tmp_path, **changes)
        fit_modules(spec, open_site(spec, NODE), CPU)
        assert finished(spec) == []


@pytest.mark.parametrize("damage", [b"", b"no module", None])
def test_a_finished_fit_that_is_not_whole_is_made_anew(damage, tmp_path):
    """A kept file that was damaged is left out, and where none can be written the fit is there all the same."""
    spec = tiny(tmp_path / "run")
    site = open_site(spec, NODE)
    label = int(site.own.labels[0])
    if damage is None:
        (cache_root(spec) / "fits").touch()
    whole = fit_module(spec, site, label, CPU).data
    for path in finished(spec):
        path.write_bytes(damage)
    assert fit_module(spec, site, label, CPU).data == whole


@pytest.mark.parametrize("changed", ["granularity", "class", "set", "licence"])
def test_what_a_manifest_tells_besides_belongs_to_a_finished_fit(changed, tmp_path):
    """With a coarser number of images or other names a module is another than the file that lies there."""
    spec = tiny(tmp_path)
    first = replace(open_site(spec, NODE), count_granularity=2)
    label, info = int(first.own.labels[0]), first.splits.info
    fit_module(spec, first, label, CPU)
    other = {
        "class": {"classes": (*info.classes[:label], "other", *info.classes[label + 1 :])},
        "set": {"name": "other"},
        "licence": {"licence": "other"},
    }
    site = replace(first, count_granularity=50)
    if changed != "granularity":
        site = replace(first, splits=replace(first.splits, info=replace(info, **other[changed])))
    manifest = decode_module(fit_module(spec, site, label, CPU).data)[0]
    told = (manifest.label_name, manifest.dataset, manifest.licence)
    assert told == (site.splits.info.classes[label], site.splits.info.name, site.splits.info.licence)
    assert manifest.num_examples % site.count_granularity == 0 and manifest.num_examples >= site.count_granularity


def test_images_shown_do_not_tell_the_classes_size(tmp_path):
    """Images shown follow from the settings, or are passes over the number that is told, so they tell no more than it does."""
    for kind in ("edm", "gaussian_mixture"):
        spec = tiny(tmp_path, **{**NETWORK, "module__kind": kind})
        site = replace(open_site(spec, NODE), count_granularity=50)
        label = int(site.own.labels[0])
        for count in (64, 65):  # 12 steps of 16 images are three passes over 64
            manifest = decode_module(fit_module(spec, of_one_class(site, label, count), label, CPU).data)[0]
            assert manifest.num_examples == 50
            assert manifest.images_shown == 12 * 16 if kind == "edm" else manifest.images_shown % 50 == 0


@pytest.mark.parametrize(("granularity", "same"), [(50, True), (1, False)])
def test_shapes_tell_a_rounded_size_roughly(granularity, same, tmp_path):
    """Where numbers are rounded modules of 20 and of 30 images have tensors of the same shapes, with exact ones of others."""
    spec = tiny(tmp_path, module__gaussian_mixture__components=32, module__gaussian_mixture__images_per_mixture=5)
    site, shapes = replace(open_site(spec, NODE), count_granularity=granularity), []
    label = int(site.own.labels[0])
    for count in (20, 30):
        state = decode_module(fit_module(spec, of_one_class(site, label, count), label, CPU).data)[1]
        shapes.append({name: tensor.shape for name, tensor in state.items()})
    assert (shapes[0] == shapes[1]) is same


def test_rounded_sizes_stand_in_no_sentence(tmp_path):
    """Where numbers are rounded a class is declined, or gets a simpler kind, in the same words whatever its size."""
    spec, single = tiny(tmp_path, **NETWORK), tiny(tmp_path, **NETWORK, module__min_images=1)
    site = replace(open_site(spec, NODE), count_granularity=50)
    label = int(site.own.labels[0])
    for counts, said in (
        ((3, 9), "too few images: a module needs at least 10; lower module.min-images or pool classes"),
        ((12, 39), "gaussian_mixture in the place of edm: fewer images than module.network-images = 40"),
    ):
        assert all(sentences(spec, of_one_class(site, label, count)) == {said} for count in counts)
    one = of_one_class(site, label, 1)
    equal = replace(one, own=one.own.subset([0] * 12))
    assert sentences(single, one) == sentences(single, equal) == {ONE_IMAGE}


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"module__edm__learning_rate": 1e-3},
        {"module__holdout": 0.2},
        {"threads": 2},
        {"deterministic": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_another_fit_is_not_continued(change, tmp_path):
    """Another seed or setting begins anew beside the checkpoint that lies there, and ends like without it."""
    spec = tiny(tmp_path / "broken", **NETWORK, module__checkpoint_seconds=1e-9)
    site = open_site(spec, NODE)
    label = int(site.own.labels[0])
    interrupted(spec, site, label)
    lying = unfinished(spec)
    other, clean = (tiny(tmp_path / out, **NETWORK | change, module__checkpoint_seconds=1e-9) for out in ("broken", "clean"))
    assert fit_module(other, site, label, CPU).data == fit_module(clean, site, label, CPU).data
    assert unfinished(spec) == lying


@pytest.mark.parametrize("other", ["libraries", "granularity"])
def test_a_checkpoint_of_other_conditions_is_not_continued(other, tmp_path, monkeypatch):
    """With other versions of libraries, or where numbers are now rounded, a fit begins anew beside the checkpoint there."""
    spec = tiny(tmp_path, **NETWORK, module__checkpoint_seconds=1e-9)
    site = open_site(spec, NODE)
    label = int(site.own.labels[0])
    interrupted(spec, site, label)
    lying = unfinished(spec)
    if other == "libraries":
        monkeypatch.setattr("clients.module_factory.library_versions", lambda *names: {"torch": "2.0.0"})
    fit_module(spec, replace(site, count_granularity=50 if other == "granularity" else 1), label, CPU)
    assert len(lying) == 1 and unfinished(spec) == lying


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gaussian_mixture"])
def test_networks_need_their_number_of_images(kind):
    """A network kind gives way to the mixture exactly below ``network-images``; the mixture itself never does."""
    spec = ModuleSpec(network_images=30)
    assert choose_kind(spec, kind, 30) == (kind, "")
    simple, note = choose_kind(spec, kind, 29)
    assert simple == "gaussian_mixture" and note.startswith(f"gaussian_mixture in the place of {kind}: 29 images, fewer than")
    assert choose_kind(spec, "gaussian_mixture", 1) == ("gaussian_mixture", "")


def test_the_node_config_goes_before_the_run():
    """A node's own ``module.kind`` counts, without one the run's, and one that there is not is refused with what there is."""
    spec = RunSpec()
    assert kind_of(spec, {}) == spec.module.kind
    assert all(kind_of(spec, {"module.kind": kind}) == kind for kind in KINDS)
    with pytest.raises(ConfigError, match=r"unknown module.kind 'GMM'; there are: .*edm.*start the node with one of these"):
        kind_of(spec, {"module.kind": "GMM"})


def test_a_node_tells_how_much_memory_it_took(tmp_path):
    """A fit's report names the most bytes that its process held: at least what torch alone takes."""
    spec = tiny(tmp_path)
    report, _ = fit_modules(spec, open_site(spec, NODE), CPU)
    assert report.peak_memory > 50e6 and report.fallbacks == ()
