"""Nodes of one federation with modules of different kinds: by their own choice, or because a class is too small."""

import numpy as np
import pytest
import torch
from local_grid import LocalGrid, tiny

from clients.client_app import app
from ff_flower.errors import ConfigError
from ff_flower.registry import decode_module
from strategies.server_app import run

SMALL_EDM = {"module__edm__channels": 8, "module__edm__steps": 3, "module__edm__evaluations": 2, "module__edm__batch_size": 16}


def decoded(one):
    """Return manifest and tensors of a run's modules, by label and owner."""
    modules = [decode_module(data) for data in one.modules().values()]
    return {(manifest.label, manifest.owner): (manifest, state) for manifest, state in modules}


def test_each_node_may_choose_its_kind(upload_only, run_tiny, tmp_path):
    """With edm at one node, by its node-config, the others' mixtures stay as they were, and the run is whole and repeats."""
    choice = {3: {"module.kind": "edm"}}
    first, second = (run_tiny(tiny(tmp_path / str(i), **SMALL_EDM), shuffle=i, node_config=choice) for i in range(2))
    assert {(owner, manifest.kind) for (_, owner), (manifest, _) in decoded(first).items()} == {
        (owner, "edm" if owner == "3" else "gaussian_mixture") for owner in "01234"
    }
    assert len(set(first.modules()) & set(upload_only.modules())) == 8
    assert all(first.metrics[key] == [] for key in ("quarantined", "missing", "declined", "fallbacks", "notes"))
    assert set(first.metrics["results"]) == {"server", "client_mean", "product_of_experts", "student"}
    everything = ("modules", "nodes", "classifiers")
    assert first.files(*everything) == second.files(*everything) and first.scores() == second.scores()


@pytest.mark.parametrize("kind", ["edn", "", 3])
def test_a_kind_that_there_is_not_ends_that_node_alone(kind, run_tiny, tmp_path):
    """A node-config with an unknown kind is answered by what there is and the remedy; the run goes on without the node."""
    spec = tiny(tmp_path, synthesis__site="server")
    one = run_tiny(spec, node_config={3: {"module.kind": kind}})
    ((partition, reason),) = [(failure["partition"], failure["reason"]) for failure in one.metrics["missing"]]
    assert partition == 3 and f"node-config: unknown module.kind {str(kind)!r}" in reason
    assert "edm, flow, gaussian_mixture" in reason and "start the node with one of these or without it" in reason
    assert len(one.modules()) == 8 and one.again().metrics["missing"] == []


def test_a_small_class_gets_the_mixture_and_says_so(upload_only, run_tiny, tmp_path, caplog):
    """Below ``network-images`` a node of networks fits the mixture that a node of mixtures would, and all accounts say so."""
    reports = {node: upload_only.directory.read_json(f"nodes/{node}/fit.json")["label_counts"] for node in range(5)}
    node, counts = next((node, counts) for node, counts in reports.items() if len(set(counts.values())) == 2)
    fewer, more = sorted(counts.values())
    small, large = (next(int(label) for label, count in counts.items() if count == wanted) for wanted in (fewer, more))
    settings = SMALL_EDM | {"synthesis__site": "server", "module__network_images": more}
    one = run_tiny(tiny(tmp_path, **settings), node_config={node: {"module.kind": "edm"}})
    note = f"gaussian_mixture in the place of edm: {fewer} images, fewer than module.network-images = {more}"
    assert one.metrics["fallbacks"] == [{"partition": node, "label": small, "reason": note}]
    found, before = decoded(one), decoded(upload_only)
    assert {key: manifest.note for key, (manifest, _) in found.items() if manifest.note} == {(small, str(node)): note}
    assert {key for key, (manifest, _) in found.items() if manifest.kind == "edm"} == {(large, str(node))}
    (manifest, state), (_, expected) = found[small, str(node)], before[small, str(node)]
    assert manifest.kind == "gaussian_mixture" and all(torch.equal(state[name], expected[name]) for name in expected)
    warnings = [record.getMessage() for record in caplog.records if note in record.getMessage()]
    assert len(warnings) == 1 and warnings[0].startswith("fit: 1 module")
    assert one.again().metrics["fallbacks"] == one.metrics["fallbacks"]


@pytest.mark.parametrize("kind", ["gaussian_mixture", "edm"])
def test_classes_from_which_nothing_can_be_learned_are_declined(kind, run_tiny, tmp_path):
    """A class of one image, and one of equal images, are declined with the reason, and the run goes on with the others."""
    counts, pixels = (30, 1, 30, 30), np.random.default_rng(0)
    labels = np.repeat(np.arange(4), counts)
    train = pixels.integers(0, 256, (len(labels), 2, 2), dtype=np.uint8).repeat(4, 1).repeat(4, 2)  # smooth enough to be vetted
    train[labels == 2] = 7
    arrays = {"train_images": train, "train_labels": labels}
    for split in ("val", "test"):
        arrays |= {f"{split}_images": train[:40:10], f"{split}_labels": np.arange(4)}
    np.savez(tmp_path / "bad.npz", **arrays)
    settings = SMALL_EDM | {"num_clients": 2, "module__min_images": 1, "module__network_images": 20, "module__kind": kind}
    settings |= {"synthesis__site": "server", "data__name": f"npz:{tmp_path / 'bad.npz'}"}
    one = run_tiny(tiny(tmp_path, **settings))
    assert {(declined["label"], declined["reason"]) for declined in one.metrics["declined"]} == {
        (1, "1 image: a module of it would be the image itself; add images or pool classes"),
        (2, "30 equal images: a module learns nothing from one image; check the class's files"),
    }
    assert {label for label, _ in decoded(one)} == {0, 3} and "server" in one.metrics["results"]
    assert one.metrics["missing"] == [] and one.again().grid.asked == []


def test_a_size_that_cannot_take_the_images_ends_the_run_first(tmp_path):
    """Where the size of the run's network is too small for the images no node is asked, and the remedy is named."""
    grid = LocalGrid(app, 5)
    said = "images of 20 x 20 pixels: a network of size 'tiny' takes up to 16; set its size to 'auto' or 'small', or data.size"
    with pytest.raises(ConfigError, match=said):
        run(grid, tiny(tmp_path, module__kind="flow", module__flow__size="tiny", data__size=20))
    assert grid.asked == []


def test_other_kinds_need_not_take_the_images(run_tiny, tmp_path):
    """A run of mixtures goes on where the networks' size is too small; a node that chooses such a network says so."""
    spec = tiny(tmp_path, data__size=20, synthesis__site="server", module__edm__size="tiny")
    one = run_tiny(spec, node_config={3: {"module.kind": "edm"}})
    (missing,) = one.metrics["missing"]
    assert missing["partition"] == 3 and "a network of size 'tiny' takes up to 16" in missing["reason"]
    assert len(one.modules()) == 8
