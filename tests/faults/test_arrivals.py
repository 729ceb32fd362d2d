"""Arrivals: whatever had arrived when the server died is kept, in whatever order it came, and nobody waits for the dead."""

import json
import logging
import time

import pytest
from flwr.app import Message, RecordDict
from local_grid import LocalGrid, SilentGrid, error_reply, tiny
from tampering import LIAR, at, claim, failing, lost

from clients.client_app import app
from ff_flower.run_directory import RunDirectory
from strategies.arrivals import ArrivalGrid
from strategies.nodes import Failure
from strategies.progress import Progress, seconds_left
from strategies.server_app import run


class Killed(BaseException):
    """The end of the server's process."""


class DyingGrid(LocalGrid):
    """A grid whose server dies when it looks for a further reply of a kind."""

    def __init__(self, num_nodes, kind, replies, shuffle=0):
        super().__init__(app, num_nodes, shuffle)
        self.kind, self.left = kind, replies

    def pull_messages(self, message_ids):
        """Return one reply, or die."""
        asked, reply = self.on_the_way[0] if self.on_the_way else ("", None)
        if reply and asked in set(message_ids) and reply.metadata.message_type == self.kind:
            self.left -= 1
            if self.left < 0:
                raise Killed
        return super().pull_messages(message_ids)


def contents(path):
    """Return every file that a run's results rest on, by name, without times and without what it cost."""
    files = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*.safetensors")}
    metrics = json.loads((path / "metrics.json").read_text())
    for result in metrics["results"].values():
        result.pop("bytes")
    return files, metrics["results"], metrics["missing"], metrics["quarantined"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the directory of a run without faults."""
    return run(LocalGrid(app, 5, shuffle=1), tiny(tmp_path_factory.mktemp("whole"))).path


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_what_had_arrived_is_never_asked_for_again(kind, whole, tmp_path):
    """A server killed after two of five replies has kept two: the next asks the other three, and ends like an unbroken run."""
    spec = tiny(tmp_path)
    with pytest.raises(Killed):
        run(DyingGrid(5, kind, replies=2, shuffle=3), spec)
    (path,) = tmp_path.glob("digits-*")
    stage = "fit" if kind == "train" else "answer"
    kept = {name for name in json.loads((path / "receipts.json").read_text()) if name.startswith(f"{stage}-")}
    assert len(kept) == 2
    again = LocalGrid(app, 5, shuffle=4)
    assert contents(run(again, spec).path) == contents(whole)
    there = {int(name.partition("-")[2]) for name in kept}
    if kind == "train":
        assert sorted(again.fitted) == sorted(set(range(5)) - there)
    else:
        assert again.fitted == [] and {p for kind, p in again.asked if kind == "evaluate"} == set(range(5)) - there


def test_the_bytes_of_a_killed_server_are_not_forgotten(whole, tmp_path):
    """What crossed the wire before the server was killed stands in the ledger of the run that goes on."""
    spec = tiny(tmp_path)
    with pytest.raises(Killed):
        run(DyingGrid(5, "train", replies=3), spec)
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (whole, run(LocalGrid(app, 5), spec).path)]
    assert metrics[0]["bytes"] == metrics[1]["bytes"]


FAULTS = {"claims another's partition": claim(1), "claims none": claim(99), "raises": failing, "is silent": lost}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_order_of_arrival_changes_nothing(fault, tmp_path):
    """With a faulty node and replies in any order, files, results and reasons are the same."""
    found = []
    for shuffle in (0, 1, 2):
        spec = tiny(tmp_path / str(shuffle), synthesis__site="server")
        found.append(contents(run(LocalGrid(app, 5, shuffle, at("train", FAULTS[fault])), spec).path))
    assert found[0] == found[1] == found[2]
    assert LIAR in {gap["partition"] for gap in found[0][2]}


def test_every_arrival_is_one_line(tmp_path, caplog):
    """The log says of each node which classes came, how many images their fits saw, in how long, and how many nodes are here."""
    with caplog.at_level(logging.INFO, logger="flwr"):
        run(LocalGrid(app, 5), tiny(tmp_path))
    lines = [record.getMessage() for record in caplog.records]
    fits, answers = ([line for line in lines if line.startswith(f"{stage}: node ")] for stage in ("fit", "answers"))
    for number, (fit, answer) in enumerate(zip(fits, answers, strict=True), start=1):
        assert "modules of" in fit and "images shown in" in fit and f"{number} of 5 nodes here" in fit
        assert "classifier of" in answer and f"{number} of 5 nodes here" in answer
    assert len(fits) == len([line for line in lines if line.startswith("contributed: node ")]) == 5


@pytest.mark.parametrize(
    ("at_once", "left"),
    [(False, 30.0), (True, 20.0)],
)
def test_the_time_that_is_left(at_once, left):
    """After 10 s for one class: three more one after the other take 30 s; three of one site beside it are done at 30 s."""
    assert seconds_left({0: 10.0}, [1], {0: 1, 1: 3}, elapsed=10.0, at_once=at_once) == left


def test_no_time_is_told_before_anything_is_known():
    """Without an arrival, and without a node that waits, nothing is estimated."""
    assert seconds_left({}, [1], {}, 5.0, False) == seconds_left({0: 1.0}, [], {}, 5.0, False) == 0.0


def test_silence_ends_with_the_timeout_and_is_told_meanwhile():
    """Replies are handed over one by one; then the silent nodes are told of until the time is over, and no longer."""
    grid, taken, told = SilentGrid(app, 3, tamper=lambda partition, reply: None if partition == 1 else reply), [], []
    silent = next(node for node, context in grid.contexts.items() if context.node_config["partition-id"] == 1)
    messages = [Message(RecordDict(), dst_node_id=node, message_type="query.introduce") for node in grid.contexts]
    began = time.monotonic()
    arrivals = ArrivalGrid(grid, taken.append, told.append, quiet_seconds=0.1)
    replies = arrivals.send_and_receive(messages, timeout=0.5)
    assert 0.5 <= time.monotonic() - began < 5
    assert taken == replies and len(replies) == 2
    assert len(told) >= 2 and all(list(nodes) == [silent] for nodes in told)


def test_nobody_is_asked_without_messages():
    """Without a message nothing is sent, and nobody is waited for."""
    arrivals = ArrivalGrid(LocalGrid(app, 2), lambda reply: None, lambda nodes: None)
    assert arrivals.send_and_receive([], timeout=60) == []


def test_sites_are_called_by_their_names(tmp_path, caplog):
    """Where nodes are sites the log and the reasons have their names; a place that nobody has taken is a number."""
    progress = Progress(RunDirectory(tmp_path), ["north", "south"])
    progress.enter("fit")
    progress.expect({0, 1, 2}, {0: 1, 1: 2}, at_once=True)
    with caplog.at_level(logging.INFO, logger="flwr"):
        progress.arrived(0, "modules of three", 40.0)
        progress.waiting_for(2)
        progress.missing([Failure(1, "no reply in time")])
    arrival, news, gap = (record.getMessage() for record in caplog.records)
    assert arrival == "fit: node 0 (north): modules of three in 40.0 s; 1 of 3 nodes here, about 80 s left"
    assert news.endswith("2 of the asked nodes have not replied; wanted are node 1 (south), node 2")
    assert gap == "fit: node 1 (south) is missing: no reply in time"
    assert json.loads((tmp_path / "progress.json").read_text())["failures"] == [{"partition": 1, "reason": "no reply in time"}]


def test_replies_that_wait_while_others_are_verified_are_taken():
    """What has arrived before the time is over is taken, however long the server works on what came before it."""
    grid, taken = LocalGrid(app, 3), []

    def take(reply):
        time.sleep(0.3)
        taken.append(reply)

    messages = [Message(RecordDict(), dst_node_id=node, message_type="query.introduce") for node in grid.contexts]
    replies = ArrivalGrid(grid, take, lambda nodes: None).send_and_receive(messages, timeout=0.2)
    assert len(replies) == 3 and taken == replies


@pytest.mark.parametrize(("forged", "taken"), [("_src_node_id", 3), ("_reply_to_message_id", 2)])
def test_a_reply_is_of_the_node_that_was_asked(forged, taken):
    """Whatever a reply says of its sender, it is the asked node's; one that says it answers another message is nobody's."""

    def forge(partition, reply):
        if partition == 1:
            reply.metadata.__dict__[forged] = {"_src_node_id": 7, "_reply_to_message_id": "message-1"}[forged]
        return reply

    grid = LocalGrid(app, 3, tamper=forge)
    messages = [Message(RecordDict(), dst_node_id=node, message_type="query.introduce") for node in grid.contexts]
    messages.sort(key=lambda message: grid.contexts[message.metadata.dst_node_id].node_config["partition-id"])
    replies = ArrivalGrid(grid).send_and_receive(messages, timeout=0.5)
    first, second, third = (message.metadata.dst_node_id for message in messages)
    wanted = [first, second, third] if taken == 3 else [first, third]
    assert sorted(reply.metadata.src_node_id for reply in replies) == sorted(wanted)


def test_what_comes_along_is_nobodys():
    """A message that answers none, which the SuperLink hands over with a reply, takes no node's place."""

    class Crowded(LocalGrid):
        def pull_messages(self, message_ids):
            return [Message(RecordDict(), dst_node_id=1, message_type="query"), *super().pull_messages(message_ids)]

    grid = Crowded(app, 3)
    messages = [Message(RecordDict(), dst_node_id=node, message_type="query.introduce") for node in grid.contexts]
    replies = ArrivalGrid(grid).send_and_receive(messages, timeout=60)
    assert sorted(reply.metadata.src_node_id for reply in replies) == sorted(grid.contexts)
    assert all(reply.metadata.reply_to_message_id for reply in replies)


def test_flowers_own_word_on_a_node_is_its_reason(tmp_path):
    """Where Flower says in a node's place why there is no reply, that is why the node is missing, and nothing else is."""

    def gone(reply):
        said = error_reply(reply, "Error: Node Unavailable")
        said.metadata.__dict__["_src_node_id"] = 1  # the SuperLink's
        return said

    metrics = run(LocalGrid(app, 5, tamper=at("train", gone)), tiny(tmp_path)).read_json("metrics.json")
    assert metrics["missing"] == [{"partition": LIAR, "reason": "Error: Node Unavailable"}]


class MangledGrid(LocalGrid):
    """A grid at which one node's modules come in bytes that are not what they say they are, and are gone then, as in Flower."""

    def __init__(self, num_nodes):
        super().__init__(app, num_nodes)
        self.gone = {}

    def pull_messages(self, message_ids):
        """Return one reply, or raise as Flower does where it cannot be unpacked."""
        if known := self.gone.keys() & set(message_ids):
            return [self.gone.pop(known.pop())]
        found = super().pull_messages(message_ids)
        for reply in found:
            node = self.contexts[reply.metadata.src_node_id].node_config
            if (node["partition-id"], reply.metadata.message_type) == (LIAR, "train"):
                self.gone[reply.metadata.reply_to_message_id] = error_reply(reply, "Error: Message Unavailable")
                raise ValueError("Expecting value: line 1 column 1 (char 0)")
        return found


def test_a_reply_that_cannot_be_unpacked_is_one_nodes_fault(tmp_path, caplog):
    """The node is missing, and the log says why; what the others sent is kept, and the run goes on with it."""
    with caplog.at_level(logging.WARNING, logger="flwr"):
        directory = run(MangledGrid(5), tiny(tmp_path))
    metrics = directory.read_json("metrics.json")
    assert metrics["missing"] == [{"partition": LIAR, "reason": "Error: Message Unavailable"}]
    assert "what a node sent cannot be read and is left out: ValueError: Expecting value" in caplog.text
    assert len(list((directory.path / "modules").glob("*.safetensors"))) == 8 and "student" in metrics["results"]


def test_fits_whose_reply_was_lost_are_not_made_again(tmp_path, caplog):
    """A node whose reply never arrived sends its modules at once when it is asked again, at the seconds that they took."""
    first = run(LocalGrid(app, 5, tamper=at("train", lost)), tiny(tmp_path))
    kept = sorted((tmp_path / "cache" / "fits").iterdir())
    assert len(kept) == 2 and all(path.name.startswith(f"{LIAR}+") for path in kept)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="flwr"):
        again = run(LocalGrid(app, 5), tiny(tmp_path))
    assert caplog.text.count("is fitted already") == 2 and "of its fit" not in caplog.text
    assert contents(again.path)[:3] == contents(run(LocalGrid(app, 5), tiny(tmp_path / "whole")).path)[:3]
    assert first.path == again.path and list((tmp_path / "cache" / "fits").iterdir()) == []
