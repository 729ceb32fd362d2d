"""Local-only and centralized training: what they report, what they ask, and that they are plain training."""

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from local_grid import error_reply, tiny

from ff_flower.classifiers import fit_classifier, predict, weights_file
from ff_flower.data import load_splits
from ff_flower.errors import ConfigError
from ff_flower.metrics import classification_metrics
from ff_flower.seeding import derive_seed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def local(run_tiny, tmp_path_factory):
    """Return a run without communication."""
    return run_tiny(tiny(tmp_path_factory.mktemp("local"), method="local"))


@pytest.fixture(scope="module")
def centralized(run_tiny, tmp_path_factory):
    """Return a run on all images at the server."""
    return run_tiny(tiny(tmp_path_factory.mktemp("centralized"), method="centralized"))


def plain(spec, splits, data, *path):
    """Train a classifier on ``data`` without any federation."""
    torch.set_num_threads(1)
    seed = derive_seed(spec.seed, "classifier", *path)
    policy = splits.info.augmentation
    return fit_classifier(data, spec.classifier, splits.num_classes, policy=policy, seed=seed, device=CPU)


def test_centralized_asks_no_node_and_sends_no_byte(centralized):
    """The centralized classifier needs no federation: no message, no byte, no round."""
    assert centralized.grid.asked == [] and centralized.metrics["rounds"] == 0
    assert centralized.metrics["bytes"] == {"up": 0, "down": 0}
    assert set(centralized.metrics["results"]) == {"centralized"}


def test_centralized_is_plain_training_on_all_images(centralized):
    """The kept classifier is what the one training loop makes of all training images, and scores what is reported."""
    spec = centralized.spec
    splits = load_splits(spec.data, spec.seed)
    network = plain(spec, splits, splits.train, "centralized")
    kept = (centralized.directory.path / "classifiers/centralized.safetensors").read_bytes()
    assert weights_file(network.state_dict()) == kept
    metrics = classification_metrics(predict(network, splits.test.images, CPU), splits.test.labels).as_dict()
    assert centralized.metrics["results"]["centralized"] == metrics | {"bytes": {"up": 0, "down": 0}}


def test_local_is_the_mean_of_plain_training_at_each_node(local):
    """The local result is the mean, with its standard deviation, over classifiers that see one node's images each."""
    from clients.site import open_site

    accuracies = []
    for partition in range(5):
        site = open_site(local.spec, {"partition-id": partition, "num-partitions": 5})
        network = plain(local.spec, site.splits, site.own, partition)
        test = site.splits.test
        accuracies.append(classification_metrics(predict(network, test.images, CPU), test.labels).accuracy)
    result = local.metrics["results"]["local"]
    assert result["accuracy"] == np.mean(accuracies) and result["accuracy_std"] == np.std(accuracies)


def test_local_sends_no_model_and_knows_only_its_classes(local):
    """Without communication nothing is exchanged, and two classes of ten bound what a node can get right."""
    assert local.metrics["bytes"] == {"up": 0, "down": 0} and local.metrics["rounds"] == 0
    assert {kind for kind, _ in local.grid.asked} == {"evaluate.local"} and len(local.grid.asked) == 5
    assert local.metrics["results"]["local"]["accuracy"] < 0.3


@pytest.mark.parametrize("method", ["local", "centralized"])
def test_a_finished_baseline_is_not_made_again(method, request):
    """The same spec once more asks no node and leaves every file as it was."""
    one = request.getfixturevalue(method)
    before = {path: path.stat().st_mtime_ns for path in one.directory.outputs()}
    again = one.again()
    assert again.grid.asked == [] and {path: path.stat().st_mtime_ns for path in again.directory.outputs()} == before


def broken(reply):
    """Send garbage for a report."""
    reply.content["report"] = ConfigRecord({"json": "garbage"})
    return reply


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda reply: error_reply(reply, "boom"), "boom"),
        (lambda reply: None, "no reply in time"),
        (broken, "report: not JSON"),
    ],
)
def test_a_node_missing_from_local_is_named(change, reason, local, run_tiny, tmp_path):
    """The mean is over the nodes that answered; the one that did not is named, and the run is not done."""
    one = run_tiny(tiny(tmp_path, method="local"), tamper=lambda sender, reply: change(reply) if sender == 4 else reply)
    ((partition, found),) = [(failure["partition"], failure["reason"]) for failure in one.metrics["missing"]]
    assert partition == 4 and found.startswith(reason) and "local" in one.metrics["results"]
    assert not one.directory.is_done("run", one.spec.digest())


def test_nodes_without_images_cannot_learn_alone(run_tiny, tmp_path):
    """The mean of local classifiers is that of the nodes that hold images; the others are named, and the run is whole."""
    settings = {"num_clients": 12, "partition__kind": "dirichlet", "partition__alpha": 0.02}
    one = run_tiny(tiny(tmp_path, method="local", **settings))
    counts = one.directory.read_json("label_distribution.json")["counts"]
    empty = [str(partition) for partition, row in enumerate(counts) if not any(row)]
    assert one.metrics["missing"] == [] and one.directory.is_done("run", one.spec.digest())
    assert one.metrics["notes"] == [
        f"the mean leaves out nodes that hold no images and so learn nothing alone: {', '.join(empty)}"
    ]


def test_who_is_missing_from_local_is_told_from_who_holds_nothing(run_tiny, tmp_path):
    """Beside nodes without images the one that fails is missing, with its own reason alone."""
    settings = {"num_clients": 12, "partition__kind": "dirichlet", "partition__alpha": 0.02}
    whole = run_tiny(tiny(tmp_path / "whole", method="local", **settings))
    counts = whole.directory.read_json("label_distribution.json")["counts"]
    holder = next(partition for partition, row in enumerate(counts) if any(row))
    one = run_tiny(
        tiny(tmp_path / "partial", method="local", **settings),
        tamper=lambda sender, reply: error_reply(reply, "boom") if sender == holder else reply,
    )
    assert one.metrics["missing"] == [{"partition": holder, "reason": "boom"}]


@pytest.mark.parametrize("method", ["fedavg", "fedprox"])
def test_averaging_needs_validation_images(method, run_tiny, tmp_path):
    """Without validation images no round can be preferred, which is said before the first round."""
    with pytest.raises(ConfigError, match=r"set data\.val-fraction above 0"):
        run_tiny(tiny(tmp_path, method=method, data__val_fraction=0.0))
