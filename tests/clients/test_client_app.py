"""The ClientApp: every handler answers every message, and what goes wrong is one sentence."""

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from local_grid import LocalGrid, tiny

from clients.client_app import app
from ff_flower import messages
from ff_flower.registry import decode_module, module_id
from strategies.averaging import RoundHistory

HANDLERS = ("train", "train.average", "evaluate", "evaluate.local")


def ask(content, handler, **node_config):
    """Return the reply of one node, as Flower would get it."""
    LocalGrid(app, 1)
    message = Message(content, dst_node_id=1, message_type=handler)
    message.metadata.__dict__["_message_id"] = "message"
    context = Context(run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config={})
    reply = app(message, context)
    assert isinstance(reply, Message)
    return reply


def refusal(content, handler, **node_config):
    """Return the reason of an error reply."""
    reply = ask(content, handler, **node_config)
    assert reply.has_error() and "Traceback" not in reply.error.reason
    return reply.error.reason


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Return a folder of run directories."""
    return tmp_path_factory.mktemp("clients")


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_message_that_is_no_request_is_answered_with_its_rule(handler):
    """An empty message, whatever its kind, is answered by what a request consists of."""
    assert "a request has 'spec' and 'request'" in refusal(RecordDict(), handler, **{"partition-id": 0, "num-partitions": 5})


@pytest.mark.parametrize("handler", HANDLERS)
def test_another_servers_code_is_answered_with_the_remedy(handler, out):
    """A node that runs other code than the server answers with how to start both from one checkout."""
    content = messages.request_records(tiny(out), range(5))
    content["request"]["source-digest"] = "other"
    assert "stop it and start it from the checkout" in refusal(content, handler, **{"partition-id": 0, "num-partitions": 5})


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("config", [{}, {"partition-id": 5, "num-partitions": 5}, {"partition-id": "0", "num-partitions": 5}])
def test_a_node_that_does_not_know_its_partition_says_how_to_tell_it(handler, config, out):
    """A node started without a partition-id within num-partitions answers with the option to start it with."""
    reason = refusal(messages.request_records(tiny(out), range(5)), handler, **config)
    assert "--node-config" in reason and "\n" not in reason


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_federation_of_another_size_is_answered_with_the_remedy(handler, out):
    """A node of a federation that is larger than the spec's answers with the command that makes both equal."""
    reason = refusal(messages.request_records(tiny(out), range(5)), handler, **{"partition-id": 0, "num-partitions": 6})
    assert "6 SuperNodes, num-clients is 5" in reason and "num-supernodes=5" in reason


def test_a_node_that_has_nothing_left_to_do_says_only_who_it_is(out):
    """A node whose modules are registered already loads no image and sends no module."""
    reply = ask(messages.request_records(tiny(out), [0, 1]), "train", **{"partition-id": 3, "num-partitions": 5})
    assert dict(reply.content["metrics"]) == {"num-examples": 0, "partition-id": 3}
    assert messages.read_files(reply.content, "modules") == {}


def test_missing_images_are_one_sentence(out):
    """A data set that is not where the spec says is answered by the path, without a traceback."""
    spec = tiny(out, data__name="npz:/no/such.npz")
    for handler in HANDLERS:
        reason = refusal(messages.request_records(spec, range(5)), handler, **{"partition-id": 0, "num-partitions": 5})
        assert reason.startswith("/no/such.npz does not exist")


def test_weights_of_another_network_are_refused(out):
    """Global weights that do not fit the spec's classifier are answered by an error, and so are none at all."""
    content = messages.request_records(tiny(out), range(5))
    node = {"partition-id": 0, "num-partitions": 5}
    assert "KeyError: 'arrays'" in refusal(content, "train.average", **node)
    content["arrays"] = messages.ArrayRecord({"a.weight": torch.zeros(2)})
    assert "RuntimeError" in refusal(content, "train.average", **node)


def test_broadcast_bytes_that_are_no_module_are_refused(out):
    """A node verifies every broadcast file once more: garbage is answered by the broken rule, an empty set by what is missing."""
    content = messages.request_records(tiny(out), range(5))
    node = {"partition-id": 0, "num-partitions": 5}
    assert "no module to sample" in refusal(content, "evaluate", **node)
    content["modules"] = messages.file_record({"a" * 64: b"garbage"})
    assert refusal(content, "evaluate", **node).startswith("size: 7 bytes")


def test_broadcast_modules_of_other_settings_are_refused(out):
    """A node accepts no module whose settings the run did not ask for: they decide what sampling it costs."""
    node = {"partition-id": 2, "num-partitions": 5}
    reply = ask(messages.request_records(tiny(out, module__gaussian_mixture__components=4), range(5)), "train", **node)
    content = messages.request_records(tiny(out), range(5))
    content["modules"] = reply.content["modules"]
    assert refusal(content, "evaluate", **node).startswith("spec: ['components']")


def test_modules_are_named_by_their_bytes(out):
    """A node sends one file per class, named by its SHA-256, and its report says which is whose."""
    reply = ask(messages.request_records(tiny(out), range(5)), "train", **{"partition-id": 2, "num-partitions": 5})
    report, files = messages.read_fit_reply(reply.content)
    assert report.partition == 2 and report.declined == () and len(files) == 2
    for name, data in files.items():
        manifest, _ = decode_module(data)
        assert name == module_id(data) == report.modules[str(manifest.label)]
        assert manifest.owner == "2" and manifest.num_examples == report.label_counts[str(manifest.label)]
    assert reply.content["metrics"]["num-examples"] == sum(report.label_counts.values())


def test_a_node_without_images_returns_the_global_weights(out):
    """In averaging a node without images sends back what it got, with zero examples; alone it says only who it is."""
    from ff_flower.data import cached_partition_indices, load_splits
    from ff_flower.run_directory import RunDirectory, cache_root

    spec = tiny(out, method="fedavg", num_clients=12, partition__kind="dirichlet", partition__alpha=0.01)
    splits = load_splits(spec.data, spec.seed)
    labels = splits.train.labels.numpy()
    parts = cached_partition_indices(labels, 12, spec.partition, spec.seed, cache_root(spec) / "partitions")
    empty = [partition for partition, part in enumerate(parts) if not len(part)]
    assert empty, "the partition of this test leaves some node without images"
    weights = RoundHistory(spec, splits, RunDirectory.open(spec), torch.device("cpu")).initial().state_dict()
    content = messages.request_records(spec, range(12))
    content["arrays"] = messages.ArrayRecord(weights)
    reply = ask(content, "train.average", **{"partition-id": empty[0], "num-partitions": 12})
    assert reply.content["metrics"]["num-examples"] == 0
    returned = reply.content["arrays"].to_torch_state_dict()
    assert all(torch.equal(returned[name], weight) for name, weight in weights.items())
    alone = ask(messages.request_records(spec, range(12)), "evaluate.local", **{"partition-id": empty[0], "num-partitions": 12})
    assert alone.content["metrics"] == {"num-examples": 0, "partition-id": empty[0]}
