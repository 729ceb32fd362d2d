"""Nodes: all of them or an error, replies by partition, and a named reason for every one that is missing."""

import itertools
import time

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.superlink.grid import InMemoryGrid
from hypothesis import given
from hypothesis import strategies as st
from local_grid import GrowingGrid, LocalGrid, error_reply

from clients.client_app import app
from ff_flower.errors import RunError, VerificationError
from ff_flower.reports import Answer, Interval
from strategies import nodes
from strategies.arrivals import ArrivalGrid
from strategies.nodes import (
    Failure,
    check_answer,
    in_partition_order,
    instructions,
    last_line,
    missing_nodes,
    wait_for_nodes,
)


def reply(node, partition):
    """Return a reply from ``node`` that claims ``partition``; None claims nothing."""
    content = RecordDict() if partition is None else RecordDict({"metrics": MetricRecord({"partition-id": partition})})
    message = Message(content, dst_node_id=1, message_type="train")
    message.metadata.__dict__["_src_node_id"] = node
    return message


@pytest.fixture(autouse=True)
def identity():
    """Let Flower make messages outside a run."""
    LocalGrid(app, 1)


def test_nodes_are_listed_in_ascending_order():
    """The ids of exactly the expected nodes come sorted, in whatever order the grid lists them."""
    listed = [wait_for_nodes(LocalGrid(app, 6, shuffle), 6) for shuffle in range(3)]
    assert all(ids == sorted(ids) and len(ids) == 6 for ids in listed)


def test_nodes_that_come_late_are_waited_for():
    """While nodes keep registering the wait goes on, also where each comes later than the standstill after the first."""
    assert len(wait_for_nodes(GrowingGrid(app, 8), 8, seconds=30, standstill=0.35)) == 8


class SlowGrid(LocalGrid):
    """A grid whose last node registers a second after the others."""

    def get_node_ids(self):
        """Return the nodes that have registered so far."""
        self.began = getattr(self, "began", time.monotonic())
        return super().get_node_ids()[: len(self.contexts) - (time.monotonic() < self.began + 1)]


class SimulatedGrid(SlowGrid, InMemoryGrid):
    """The same as Flower's grid of a simulation."""


def test_only_a_simulation_has_registered_all_after_a_standstill(monkeypatch):
    """A SuperNode may connect at any time of the whole wait; simulated nodes that register no more end it early."""
    monkeypatch.setattr(nodes, "STANDSTILL_SECONDS", 0.3)
    assert len(wait_for_nodes(SlowGrid(app, 3), 3, seconds=30)) == 3
    for grid in (SimulatedGrid(app, 3), ArrivalGrid(SimulatedGrid(app, 3), print, print)):
        with pytest.raises(RunError, match="2 SuperNodes"):
            wait_for_nodes(grid, 3, seconds=30)


class RestartedGrid(LocalGrid):
    """A grid that for half a second lists a node beside those that are there: it was killed, and came back under another id."""

    def get_node_ids(self):
        """Return the nodes that are listed."""
        self.began = getattr(self, "began", time.monotonic())
        return [*super().get_node_ids(), *[1] * (time.monotonic() < self.began + 0.5)]


def test_a_node_that_was_started_again_is_counted_once():
    """Of a SuperNode that was killed two ids are listed until Flower misses it, and the run waits for that."""
    assert wait_for_nodes(RestartedGrid(app, 3), 3, seconds=30) == sorted(LocalGrid(app, 3).get_node_ids())


@pytest.mark.parametrize(("present", "expected"), [(3, 5), (5, 3)])
def test_another_number_of_nodes_is_refused_with_its_remedy(present, expected):
    """Fewer nodes than the spec has, or more, end the run with both numbers and the command that makes them equal."""
    remedy = rf'{present} SuperNodes.*num-clients is {expected}.*--federation-config "num-supernodes={expected}'
    with pytest.raises(RunError, match=remedy):
        wait_for_nodes(LocalGrid(app, present), expected, seconds=0.3)


def test_a_standstill_ends_the_wait_early():
    """Where nodes have registered and no more come, the wait ends with the standstill, not with the full time."""
    began = time.monotonic()
    with pytest.raises(RunError, match="2 SuperNodes"):
        wait_for_nodes(LocalGrid(app, 2), 3, seconds=60, standstill=0.3)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(("timeout", "lives"), [(5.0, 43200.0), (86400.0, 86400.0)])
def test_a_reply_is_valid_as_long_as_it_is_waited_for(timeout, lives):
    """A message lives for the whole timeout, where that is longer than Flower's twelve hours too."""
    messages = instructions(RecordDict(), [7, 9], "train", timeout)
    assert [(one.metadata.dst_node_id, one.metadata.ttl) for one in messages] == [(7, lives), (9, lives)]


def test_replies_come_in_the_order_of_partitions():
    """Whatever the order of replies and the node ids, contents are listed by partition."""
    messages = [reply(100 - p, p) for p in range(4)]
    for order in itertools.permutations(messages):
        contents, failures = in_partition_order(order, [97, 98, 99, 100], 4)
        assert list(contents) == [0, 1, 2, 3] and failures == []
        assert all(contents[p] is messages[p].content for p in range(4))


@pytest.mark.parametrize("claim", [None, -1, 4, 2**40, 1.0, [1]])
def test_a_claim_of_no_partition_is_a_failure(claim):
    """A reply whose partition-id is absent, no whole number or out of range is left out and says what it claimed."""
    contents, failures = in_partition_order([reply(11, 0), reply(12, claim)], [11, 12], 4)
    assert list(contents) == [0]
    assert failures == [Failure(-1, f"partition-id {claim!r}: it must be 0 to 3")]


def test_a_metrics_record_of_another_type_claims_nothing():
    """A record called ``metrics`` that is no MetricRecord does not count as a claim."""
    message = reply(11, None)
    message.content["metrics"] = ConfigRecord({"partition-id": 1})
    contents, failures = in_partition_order([message], [11], 4)
    assert contents == {} and "partition-id None" in failures[0].reason


def test_a_partition_claimed_twice_is_taken_from_nobody():
    """Of two nodes that claim one partition neither is believed, whichever came first; the others are."""
    messages = [reply(11, 0), reply(12, 1), reply(13, 1), reply(14, 3)]
    outcomes = [in_partition_order(order, [11, 12, 13, 14], 4) for order in itertools.permutations(messages)]
    for contents, failures in outcomes:
        assert list(contents) == [0, 3]
        missing = missing_nodes(failures, contents, 4)
        assert [failure.partition for failure in missing] == [1, 2]
        assert all("partition-id 1 is claimed by 2 nodes: give every SuperNode its own" in f.reason for f in missing)


def test_silent_and_failing_nodes_are_named():
    """An asked node without a reply, and one whose app raised, are failures with a sentence each."""
    contents, failures = in_partition_order([reply(11, 0), error_reply(reply(12, 1), "boom")], [11, 12, 13], 3)
    assert list(contents) == [0]
    assert failures == [Failure(-1, "boom"), Failure(-1, "no reply in time")]


def test_a_known_node_that_fails_is_named_by_its_partition():
    """Where the server knows a node's partition, its failure carries it."""
    known = {11: 0, 12: 2, 13: 1}
    _, failures = in_partition_order([error_reply(reply(12, 2), "boom")], [11, 12, 13], 3, known)
    assert failures == [Failure(0, "no reply in time"), Failure(1, "no reply in time"), Failure(2, "boom")]


@given(st.sets(st.integers(0, 9)), st.lists(st.builds(Failure, st.integers(-1, 9), st.sampled_from("abc")), max_size=6))
def test_every_absent_partition_has_one_reason(present, failures):
    """Exactly the absent partitions are listed, each with its own reason where there is one, else with all that have no owner."""
    missing = missing_nodes(failures, present, 10)
    assert [failure.partition for failure in missing] == sorted(set(range(10)) - present)
    own = {failure.partition: failure.reason for failure in failures}
    others = "; ".join(sorted({failure.reason for failure in failures if failure.partition == -1})) or "no reply"
    assert all(failure.reason == own.get(failure.partition, others) for failure in missing)


def test_an_answer_is_of_its_node_and_of_all_classes():
    """An answer that names another partition, or has not one recall per class, is refused by the rule ``report``."""
    metrics = {"accuracy": 0.5, "auroc": None, "macro_f1": 0.5, "per_class_recall": [0.5] * 3}
    answer = Answer(2, metrics, "", Interval(0, 1))
    check_answer(answer, 2, 3)
    with pytest.raises(VerificationError, match="report: an answer of partition 2 came from 1"):
        check_answer(answer, 1, 3)
    with pytest.raises(VerificationError, match="report: an answer with 3 recalls; there are 10 classes"):
        check_answer(answer, 2, 10)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "no reason given"),
        (" \n\n", "no reason given"),
        ("one sentence", "one sentence"),
        ("Traceback (most recent call last):\n  File x\nValueError: 3 is wrong\n\n", "ValueError: 3 is wrong"),
        ("\x1b[36mray::train()\x1b[39m\n\x1b[31mRunError: stop\x1b[0m", "RunError: stop"),
        ("<class 'ValueError'>:<'3 is wrong'>", "<class 'ValueError'>:<'3 is wrong"),
    ],
)
def test_the_useful_line_of_an_error_is_its_last(text, line):
    """Of a traceback the last line that says something is kept, without terminal colours."""
    assert last_line(text) == line
