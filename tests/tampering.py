"""What a node may do to its replies, for the tests of faults."""

from flwr.app import ConfigRecord, MetricRecord
from local_grid import error_reply

LIAR = 3


def at(kind, change, partition=LIAR):
    """Return a tamper that applies ``change`` to one node's replies of one kind."""

    def tamper(sender, reply):
        return change(reply) if (sender, reply.metadata.message_type) == (partition, kind) else reply

    return tamper


def failing(reply):
    """Let the node's app raise."""
    return error_reply(reply, "Traceback (most recent call last):\n  File x\nMemoryError: no memory left")


def lost(reply):
    """Let the reply never arrive."""


def report_of(text):
    """Return a change that puts ``text`` in the place of the report."""

    def change(reply):
        reply.content["report"] = ConfigRecord({"json": text})
        return reply

    return change


def claim(partition):
    """Return a change by which the node claims another partition."""

    def change(reply):
        reply.content["metrics"] = MetricRecord({"num-examples": 1, "partition-id": partition})
        return reply

    return change
