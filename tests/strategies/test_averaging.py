"""FedAvg and FedProx: what they reduce to, the mean by hand, and that neither order nor empty nodes change a bit."""

import math
import struct
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from local_grid import LocalGrid, error_reply, tiny
from safetensors.torch import load_file

from clients.client_app import app
from clients.local_sgd import local_update
from clients.site import open_site
from ff_flower.classifiers import Schedule, cross_entropy, predict, train
from ff_flower.data import ImageSet, load_splits
from ff_flower.metrics import Ledger, classification_metrics
from ff_flower.run_directory import RunDirectory
from ff_flower.seeding import derive_seed
from strategies.averaging import RepeatableAveraging, RoundHistory
from strategies.server_app import run

CPU = torch.device("cpu")


def weights_of(one, name="last_round"):
    """Return a kept classifier's bytes."""
    return (one.directory.path / f"classifiers/{name}.safetensors").read_bytes()


def history_of(spec):
    """Return a round history of ``spec`` on its images."""
    return RoundHistory(spec, load_splits(spec.data, spec.seed), RunDirectory.open(spec), CPU)


@pytest.fixture(scope="module")
def fedavg(run_tiny, tmp_path_factory):
    """Return two rounds of FedAvg."""
    return run_tiny(tiny(tmp_path_factory.mktemp("fedavg"), method="fedavg"), shuffle=1)


def test_one_node_is_plain_training(run_tiny, tmp_path):
    """FedAvg with one node and E local epochs in one round is E epochs of SGD on all images, to the last bit."""
    settings = {"num_clients": 1, "partition__kind": "iid", "averaging__rounds": 1, "averaging__local_epochs": 2}
    one = run_tiny(tiny(tmp_path, method="fedavg", classifier__batch_size=128, **settings))
    spec, splits = one.spec, load_splits(one.spec.data, one.spec.seed)
    network = history_of(spec).initial()
    steps = 2 * math.ceil(len(splits.train) / 128)
    averaging = spec.averaging
    schedule = Schedule(steps, 128, averaging.learning_rate, averaging.weight_decay, averaging.momentum)
    torch.set_num_threads(1)
    train(
        network,
        splits.train.images,
        cross_entropy(splits.train.labels),
        spec.classifier,
        schedule,
        policy=splits.info.augmentation,
        seed=derive_seed(spec.seed, "averaging", 0, 1),
        device=CPU,
    )
    averaged = load_file(one.directory.path / "classifiers/last_round.safetensors")
    assert all(torch.equal(averaged[name], weight) for name, weight in network.state_dict().items())


def test_fedprox_with_mu_zero_is_fedavg(fedavg, run_tiny, tmp_path):
    """Without the weight of its proximal term FedProx gives FedAvg's classifier bit for bit; with it another one."""
    without, plain = (run_tiny(tiny(tmp_path, method="fedprox", averaging__proximal_mu=mu), shuffle=2) for mu in (0.0, 1.0))
    assert weights_of(without) == weights_of(fedavg) != weights_of(plain)
    assert without.metrics["results"] == fedavg.metrics["results"]


def test_the_order_of_replies_changes_no_bit(fedavg, run_tiny, tmp_path):
    """Other node ids and another order of replies give the same classifiers, results and ledger."""
    again = run_tiny(tiny(tmp_path, method="fedavg"), shuffle=44)
    assert all(weights_of(again, name) == weights_of(fedavg, name) for name in ("last_round", "best_round"))
    assert again.metrics["results"] == fedavg.metrics["results"]
    ledgers = [(one.directory.path / "ledger.jsonl").read_bytes() for one in (fedavg, again)]
    assert ledgers[0] == ledgers[1]


def test_a_round_is_the_weighted_mean_by_hand(run_tiny, tmp_path):
    """After one round the global weights are the sum over partitions, in order, of local weights times their share of images."""
    one = run_tiny(tiny(tmp_path, method="fedavg", averaging__rounds=1), shuffle=3)
    initial = history_of(one.spec).initial().state_dict()
    torch.set_num_threads(1)
    sites = [open_site(one.spec, {"partition-id": p, "num-partitions": 5}) for p in range(5)]
    images = sum(len(site.own) for site in sites)
    mean = {name: np.zeros(tuple(weight.shape), np.float32) for name, weight in initial.items()}
    for site in sites:
        local = local_update(one.spec, site, initial, 1, CPU)
        mean = {name: total + local[name].numpy() * (len(site.own) / images) for name, total in mean.items()}
    kept = load_file(one.directory.path / "classifiers/last_round.safetensors")
    assert all(np.array_equal(kept[name].numpy(), weight) for name, weight in mean.items())


def test_the_ledger_is_rounds_times_nodes_times_the_classifier(fedavg):
    """Every round sends the classifier's bytes down to every node and up from it; the results need all of them."""
    network = history_of(fedavg.spec).initial()
    record = ArrayRecord(network.state_dict())
    total = 2 * 5 * sum(len(array.data) for array in record.values())
    assert fedavg.metrics["bytes"] == {"up": total, "down": total, "weights-up": total, "weights-down": total}
    for result in fedavg.metrics["results"].values():
        assert result["bytes"] == {"up": total, "down": total}


def test_last_and_best_round_are_reported(fedavg):
    """The last round's score stands beside the one of the round that validation data prefer; ``rounds.json`` holds all."""
    rounds, results = fedavg.directory.read_json("rounds.json"), fedavg.metrics["results"]
    assert set(results) == {"last_round", "best_round"} and len(rounds) == fedavg.metrics["rounds"] == 2
    best = results["best_round"]["round"]
    assert rounds[best - 1]["val_accuracy"] == max(entry["val_accuracy"] for entry in rounds)
    assert results["last_round"]["accuracy"] == rounds[-1]["test_accuracy"]
    assert results["best_round"]["accuracy"] == rounds[best - 1]["test_accuracy"]


def test_kept_classifiers_score_what_is_reported(fedavg):
    """The classifiers in the run directory, scored anew, have the reported accuracies."""
    splits = load_splits(fedavg.spec.data, fedavg.spec.seed)
    for name in ("last_round", "best_round"):
        network = history_of(fedavg.spec).initial()
        network.load_state_dict(load_file(fedavg.directory.path / f"classifiers/{name}.safetensors"))
        metrics = classification_metrics(predict(network, splits.test.images, CPU), splits.test.labels)
        assert metrics.accuracy == fedavg.metrics["results"][name]["accuracy"]


@pytest.mark.parametrize(("accuracies", "best"), [([0.5], 1), ([0.1, 0.5, 0.2], 2), ([0.5, 0.1, 0.5], 1), ([0.1, 0.2, 0.3], 3)])
def test_the_best_round_is_the_first_of_highest_validation_accuracy(accuracies, best, tmp_path):
    """The best round is chosen by validation accuracy alone, and among equals it is the first."""
    history = history_of(tiny(tmp_path, method="fedavg"))
    history.val_accuracy = accuracies
    assert history.best_round == best


def test_test_images_do_not_choose_the_round(tmp_path):
    """With the test labels exchanged for others the same round is best and the same classifier is kept."""
    spec = tiny(tmp_path, method="fedavg")
    splits = load_splits(spec.data, spec.seed)
    shifted = ImageSet(splits.test.images, (splits.test.labels + 1) % 10)
    kept = []
    for test in (splits.test, shifted):
        directory = RunDirectory(tmp_path / str(len(kept)))
        history = RoundHistory(spec, replace(splits, test=test), directory, CPU)
        for number, seed in enumerate((3, 5, 7), start=1):
            network = history.initial()
            with torch.no_grad():
                network[-1].bias.copy_(torch.randn(10, generator=torch.Generator().manual_seed(seed)))
            history.evaluate(number, ArrayRecord(network.state_dict()))
        kept.append((history.best_round, directory.path.joinpath("classifiers/best_round.safetensors").read_bytes()))
    assert kept[0] == kept[1]


def test_before_the_first_round_nothing_is_scored(tmp_path):
    """The untrained classifier, round 0 for Flower, is neither scored nor kept."""
    history = history_of(tiny(tmp_path, method="fedavg"))
    assert history.evaluate(0, ArrayRecord(history.initial().state_dict())) is None and history.test == []


def updates(strategy, rows):
    """Return replies of (node id, partition, examples, weight) rows to a strategy that sent a single weight."""
    LocalGrid(app, 1)
    strategy._sent = ArrayRecord({"w": Array(np.zeros(1, np.float32))})
    replies = []
    for node, partition, examples, weight in rows:
        content = RecordDict(
            {
                "arrays": ArrayRecord({"w": Array(np.array([weight], np.float32))}),
                "metrics": MetricRecord({"num-examples": examples, "partition-id": partition}),
                "report": ConfigRecord({"json": ""}),
            }
        )
        replies.append(Message(content, dst_node_id=1, message_type="train.average"))
        replies[-1].metadata.__dict__["_src_node_id"] = node
    strategy._asked = [node for node, *_ in rows]
    return replies


def mean_of(strategy, rows):
    """Return the weight that the strategy makes of the rows."""
    arrays, _ = strategy.aggregate_train(1, updates(strategy, rows))
    return arrays["w"].numpy().item()


@pytest.fixture
def strategy(tmp_path):
    """Return a strategy of three nodes."""
    return RepeatableAveraging(tiny(tmp_path, method="fedavg", num_clients=3), Ledger())


def test_the_mean_by_hand(strategy):
    """One image of weight 2 and three of weight 6 make 5, whatever the node ids."""
    assert mean_of(strategy, [(11, 2, 3, 6.0), (12, 0, 1, 2.0), (13, 1, 0, 100.0)]) == 5.0
    assert mean_of(strategy, [(13, 2, 3, 6.0), (11, 0, 1, 2.0), (12, 1, 0, 100.0)]) == 5.0
    assert strategy.missing == []


def test_nodes_without_images_do_not_change_the_mean(strategy):
    """A node with zero examples leaves the mean bit for bit as it is without that node."""
    rows = [(11, 0, 3, 0.1), (12, 1, 7, 0.3)]
    assert mean_of(strategy, [*rows, (13, 2, 0, 0.7)]) == mean_of(strategy, rows)


def npy(header):
    """Return a change that sends the bytes of an array with this header."""
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(4)
    return lambda content: content["arrays"].__setitem__("w", Array("float32", (1,), "numpy.ndarray", data))


def typed(dtype, value=50.0):
    """Return a change that sends the weight in another dtype."""
    return lambda content: content.__setitem__("arrays", ArrayRecord({"w": Array(np.array([value], dtype))}))


BROKEN = {
    "not finite": lambda content: content.__setitem__("arrays", ArrayRecord({"w": Array(np.array([np.nan], np.float32))})),
    "another shape": lambda content: content.__setitem__("arrays", ArrayRecord({"w": Array(np.zeros(2, np.float32))})),
    "another name": lambda content: content.__setitem__("arrays", ArrayRecord({"v": Array(np.zeros(1, np.float32))})),
    "whole numbers": lambda content: content.__setitem__("arrays", ArrayRecord({"w": Array(np.zeros(1, np.int64))})),
    "no bytes": lambda content: content["arrays"].__setitem__("w", Array("float32", (1,), "numpy.ndarray", b"garbage")),
    "another stype": lambda content: content["arrays"].__setitem__("w", Array("float32", (1,), "pickle", b"garbage")),
    "no bytes at all": lambda content: content["arrays"].__setitem__("w", Array("float32", (1,), "numpy.ndarray", b"")),
    "an archive": lambda content: content["arrays"].__setitem__("w", Array("float32", (1,), "numpy.ndarray", b"PK\x03\x04")),
    "a header without end": npy("{'descr': '<f4', ("),
    "a header of no type": npy("{'descr': ',', 'fortran_order': False, 'shape': (1,)}"),
    "a shape beyond all memory": npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**70},)}}"),
    "half precision": typed(np.float16),
    "double precision": typed(np.float64, 1e300),
    "extended precision": typed(np.longdouble),
    "swapped bytes": typed(">f4"),
    "no weights": lambda content: content.__delitem__("arrays"),
    "two classifiers": lambda content: content.__setitem__("more", content["arrays"]),
    "no examples": lambda content: content["metrics"].__delitem__("num-examples"),
    "other metrics": lambda content: content["metrics"].__setitem__("loss", 1.0),
    "two metrics": lambda content: content.__setitem__("more", content["metrics"]),
    "less than none": lambda content: content["metrics"].__setitem__("num-examples", -3),
    "half an image": lambda content: content["metrics"].__setitem__("num-examples", 0.5),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_an_update_that_cannot_be_averaged_is_left_out_and_named(fault, strategy):
    """A reply of other weights, of none, or of no count takes no part in the mean; its node is missing from the round."""
    replies = updates(strategy, [(11, 0, 1, 2.0), (12, 1, 5, 50.0), (13, 2, 3, 6.0)])
    BROKEN[fault](replies[1].content)
    arrays, _ = strategy.aggregate_train(4, replies)
    assert arrays["w"].numpy().item() == 5.0
    ((partition, reason),) = [(failure.partition, failure.reason) for failure in strategy.missing]
    assert partition == 1 and reason.startswith("round 4: ")
    assert {transfer.partition for transfer in strategy.ledger.transfers} == {0, 2}


def test_a_node_missing_from_any_round_is_named(run_tiny, tmp_path):
    """A node that failed in the first round alone is named with that round, and the run is not done."""
    failed = []

    def tamper(sender, reply):
        if sender == 2 and not failed:
            failed.append(sender)
            return error_reply(reply, "MemoryError: no memory left")
        return reply

    one = run_tiny(tiny(tmp_path, method="fedavg"), tamper=tamper)
    assert one.metrics["missing"] == [{"partition": 2, "reason": "round 1: MemoryError: no memory left"}]
    assert not one.directory.is_done("run", one.spec.digest())


class LosingGrid(LocalGrid):
    """A grid that loses the node of partition 2 after the first round: it is listed no more, and Flower cannot send to it."""

    def _gone(self, node_id):
        return self.sent >= len(self.contexts) and self.contexts[node_id].node_config["partition-id"] == 2

    def get_node_ids(self):
        """Return the nodes that are left."""
        return [node_id for node_id in super().get_node_ids() if not self._gone(node_id)]

    def push_messages(self, messages):
        """Send what can be sent; None stands for the rest."""
        messages = list(messages)
        gone = [message for message in messages if self._gone(message.metadata.dst_node_id)]
        return [*super().push_messages([message for message in messages if message not in gone]), *[None] * len(gone)]

    def send_and_receive(self, messages, *, timeout=None):
        """Refuse, as Flower's grid does, to pull what was never sent."""
        message_ids = self.push_messages(messages)
        assert None not in message_ids, "bad argument type for built-in operation"
        return [reply for message_id in message_ids for reply in self.pull_messages([message_id])]


def test_a_node_that_is_gone_is_missing_from_the_rounds_after(tmp_path):
    """Rounds go on without a node that disconnects between them; it is named in each, and nobody waits for it."""
    spec = tiny(tmp_path, method="fedavg", averaging__rounds=3)
    directory = run(LosingGrid(app, spec.num_clients), spec)
    metrics = directory.read_json("metrics.json")
    assert metrics["missing"] == [{"partition": 2, "reason": f"round {number}: no reply"} for number in (2, 3)]
    assert len(directory.read_json("rounds.json")) == 3
    sent = Counter(one.server_round for one in Ledger.read(directory.path / "ledger.jsonl").transfers if one.direction == "down")
    assert sent == {1: 5, 2: 4, 3: 4}  # what was not sent is not counted


def test_scores_of_overwritten_classifiers_do_not_stay(tmp_path):
    """Rounds begin anew with every session, so that one that dies leaves no scores of the classifiers that it overwrote."""
    spec = tiny(tmp_path, method="fedavg", averaging__rounds=3)
    directory = run(LosingGrid(app, spec.num_clients), spec)

    def interrupt(partition, reply):
        if (directory.path / "rounds.json").exists():
            return reply
        raise KeyboardInterrupt

    assert directory.metrics()["results"]
    with pytest.raises(KeyboardInterrupt):
        run(LocalGrid(app, spec.num_clients, tamper=interrupt), spec)
    assert directory.metrics() == {} and (directory.path / "classifiers" / "last_round.safetensors").exists()


class RestartingGrid(LocalGrid):
    """A grid whose node of partition 2 restarts after the first round, under another id; nodes that ``end`` then are gone."""

    end: tuple[int, ...] = ()
    restarted = False

    def get_node_ids(self):
        """Return the nodes that are there."""
        if self.sent and not self.restarted:
            self.restarted = True
            former = {int(one.node_config["partition-id"]): node_id for node_id, one in self.contexts.items()}
            self.contexts[former[2] + 10_000] = self.contexts.pop(former[2])
            for partition in self.end:
                del self.contexts[former[partition]]
        return super().get_node_ids()


@pytest.mark.parametrize("end", [(), (4,)], ids=["nobody ends", "another ends"])
def test_a_node_that_restarts_between_rounds_takes_part_in_the_next(end, fedavg, tmp_path):
    """Rounds go on with a node that has another id since its restart, whoever else is gone, as if it had kept the former one."""
    grid = RestartingGrid(app, fedavg.spec.num_clients)
    grid.end = end
    metrics = run(grid, tiny(tmp_path, method="fedavg")).read_json("metrics.json")
    assert [gap["partition"] for gap in metrics["missing"]] == list(end)
    assert end or metrics["results"] == fedavg.metrics["results"]


class UnreachableGrid(LosingGrid):
    """A grid of which the node of partition 2 is listed, and gone when it is sent anything."""

    def _gone(self, node_id):
        return self.contexts[node_id].node_config["partition-id"] == 2

    def get_node_ids(self):
        """Return all nodes."""
        return LocalGrid.get_node_ids(self)


@pytest.mark.parametrize("method", ["local", "fedavg"])
def test_a_node_that_goes_while_it_is_asked_is_missing(method, tmp_path):
    """Who is listed and cannot be sent to any more is named as missing, and the others' results are there."""
    spec = tiny(tmp_path, method=method)
    metrics = run(UnreachableGrid(app, spec.num_clients), spec).read_json("metrics.json")
    assert {one["partition"] for one in metrics["missing"]} == {2} and metrics["results"]


def test_a_second_attempt_counts_its_own_bytes_alone(fedavg, tmp_path):
    """Rounds are not resumed: a run made again costs, and reports, what one run costs."""
    copy = fedavg.copy(tmp_path)
    (copy.directory.path / "metrics.json").unlink()
    again = copy.again()
    assert again.metrics["bytes"] == fedavg.metrics["bytes"] and again.metrics["results"] == fedavg.metrics["results"]
    assert again.again().grid.asked == []
