"""Replies are taken one by one when they arrive: who is killed while others still work loses nothing that was there.

A reply is of the node that was asked, whatever it says of its sender: Flower hands over the metadata that a node wrote, and its
own messages about nodes that are gone name nobody. What answers no message that was sent is nobody's.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.superlink.grid import InMemoryGrid
from google.protobuf.message import DecodeError

from ff_flower.reports import plain_text

logger = logging.getLogger("flwr")

PULL_SECONDS = 1.0
QUIET_SECONDS = 60.0
# What Flower raises where a reply's bytes are not those of the objects that they say they are.
MALFORMED = (ArithmeticError, AttributeError, DecodeError, LookupError, RecursionError, TypeError, ValueError)


class ArrivalGrid(Grid):
    """Flower's grid, with a ``send_and_receive`` that hands over every reply as soon as it is there.

    Flower's own keeps all replies to itself until the last one has come, or the time is over, and fails where a node has gone
    since the message to it was made.

    Parameters
    ----------
    grid : Grid
        Where the nodes are.
    take : callable from Message, optional
        Receives every reply, once, in the order of arrival.
    wait : callable from collection of int, optional
        Told the ids of the nodes that have not replied, whenever none has for ``quiet_seconds``.
    quiet_seconds : float
        How long nothing may come before ``wait`` is called.
    """

    def __init__(
        self,
        grid: Grid,
        take: Callable[[Message], None] = lambda reply: None,
        wait: Callable[[Collection[int]], None] = lambda nodes: None,
        quiet_seconds: float = QUIET_SECONDS,
    ) -> None:
        self.grid, self.take, self.wait, self.quiet_seconds = grid, take, wait, quiet_seconds

    def set_run(self, run: Run) -> None:
        """Tell the grid which run it is of."""
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self.grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message; Flower prefers `Message` itself."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the connected nodes."""
        return self.grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the connected nodes."""
        return self.grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their ids."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and take their replies as they come.

        Parameters
        ----------
        messages : iterable of Message
            At most one per node.
        timeout : float, optional
            Seconds after which nobody is waited for; without one every node is.

        Returns
        -------
        list of Message
            All replies, in the order of arrival, each with the id of the node that was asked. A node that did not reply in time
            has none.
        """
        sent = list(messages)
        pushed = set(self.push_messages(sent)) if sent else set()
        waiting = {message.metadata.message_id: message.metadata.dst_node_id for message in sent}
        waiting = {message_id: node for message_id, node in waiting.items() if message_id in pushed}
        del messages, sent
        pause: float = getattr(self.grid, "pull_interval", PULL_SECONDS)
        end = float("inf") if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        heard = time.monotonic()
        while waiting:
            before, sweep = len(replies), time.monotonic()
            for message_id, message in self._arrived(list(waiting)):
                if (node := waiting.pop(message_id, None)) is not None:
                    message.metadata.__dict__["_src_node_id"] = node
                    self.take(message)
                    replies.append(message)
            if len(replies) > before:
                heard = time.monotonic()
                continue  # verifying what came may outlast the time, and others wait to be taken then
            if time.monotonic() >= end:
                break
            if time.monotonic() - heard >= self.quiet_seconds:
                self.wait(tuple(waiting.values()))
                heard = time.monotonic()
            time.sleep(max(pause, time.monotonic() - sweep))  # many nodes do not keep the SuperLink busy
        return replies

    def _arrived(self, waiting: Collection[str]) -> Iterator[tuple[str, Message]]:
        """Yield the replies that are there, each with the id of the message that it answers.

        In a simulation they are objects of this process. Elsewhere they are pulled one by one: what cannot be read takes no other
        with it, and the SuperLink then says of its sender, when it is asked again, that there is no reply any more. What comes
        along without answering that message is left out; a node can send such, and cannot know the ids of others' messages.
        """
        if isinstance(self.grid, InMemoryGrid):
            for message in self.pull_messages(set(waiting)):
                yield message.metadata.reply_to_message_id, message
            return
        for message_id in waiting:
            try:
                found = list(self.pull_messages([message_id]))
            except MALFORMED as error:
                reason = f"{type(error).__name__}: {plain_text(str(error))}"
                logger.warning("what a node sent cannot be read and is left out: %s", reason)
                continue
            for message in found:
                if message.metadata.reply_to_message_id == message_id:
                    yield message_id, message
                else:
                    logger.warning("a message that answers none of the server's is left out")
