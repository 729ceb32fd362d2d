"""A Flower Grid without processes: messages are handed to the ClientApp in order, replies come back shuffled."""

import random
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from ff_flower.config import RunSpec, from_run_config
from ff_flower.messages import read_files

Tamper = Callable[[int, Message], Message | None]


class LocalGrid(Grid):
    """Runs a real ClientApp for ``num_nodes`` nodes in this process.

    Parameters
    ----------
    client_app : ClientApp
        The app of every node.
    num_nodes : int
        Nodes; node i has partition i and a node id that says nothing about it.
    shuffle : int
        Seed of the order in which nodes are listed and replies come back.
    tamper : callable, optional
        ``tamper(partition, reply)`` may change a reply, or return None to lose it.
    node_config : mapping from int to mapping, optional
        What the node of a partition finds in its node-config beside its partition.

    Attributes
    ----------
    asked : list of tuple
        Message type and partition of every message, in order.
    fitted : list of int
        Partitions whose replies brought module files, in order.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        shuffle: int = 0,
        tamper: Tamper | None = None,
        node_config: Mapping[int, Mapping[str, str]] | None = None,
    ) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.random = random.Random(shuffle)
        self.app, self.tamper = client_app, tamper
        self.asked: list[tuple[str, int]] = []
        self.fitted: list[int] = []
        self.on_the_way: list[tuple[str, Message]] = []  # replies, each with the id of the message that it answers
        self.sent = 0
        ids = self.random.sample(range(1000, 9999), num_nodes)
        self.contexts = {
            node_id: Context(
                run_id=1,
                node_id=node_id,
                node_config={"partition-id": partition, "num-partitions": num_nodes, **(node_config or {}).get(partition, {})},
                state=RecordDict(),
                run_config={},
            )
            for partition, node_id in enumerate(ids)
        }

    def set_run(self, run: object) -> None:
        """Flower's interface; there is no run to know."""

    @property
    def run(self) -> None:
        """Flower's interface; there is no run to know."""

    def create_message(self, *args: object, **kwargs: object) -> Message:
        """Flower's interface; strategies make messages themselves."""
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand every message to its node; return the ids of those that are answered, so that nobody waits for the others."""
        replies: list[tuple[str, Message]] = []
        for message in messages:
            context = self.contexts[message.metadata.dst_node_id]
            partition = int(context.node_config["partition-id"])
            self.asked.append((message.metadata.message_type, partition))
            self.sent += 1
            message.metadata.__dict__["_message_id"] = f"message-{self.sent}"
            reply: Message | None = self.app(message, context)
            assert isinstance(reply, Message), "a ClientApp that returns anything else stalls its node"
            if reply.has_content() and (read_files(reply.content, "modules") or "references" in reply.content):
                self.fitted.append(partition)
            reply = self.tamper(partition, reply) if self.tamper else reply
            if reply is not None:
                replies.append((message.metadata.message_id, reply))
        self.random.shuffle(replies)
        self.on_the_way += replies
        return [message_id for message_id, _ in replies]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the reply that arrives next, if it is one to these messages: replies arrive in random order."""
        if not self.on_the_way or self.on_the_way[0][0] not in set(message_ids):
            return []
        return [self.on_the_way.pop(0)[1]]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Hand every message to its node and return the replies in random order."""
        message_ids = self.push_messages(messages)
        return [reply for message_id in message_ids for reply in self.pull_messages([message_id])]


class GrowingGrid(LocalGrid):
    """A grid of which one node more registers at every look."""

    seen = 0

    def get_node_ids(self) -> list[int]:
        """Return the nodes that have registered so far."""
        self.seen = min(self.seen + 1, len(self.contexts))
        return super().get_node_ids()[: self.seen]


class SilentGrid(LocalGrid):
    """A grid of which some nodes never reply, though they got their messages."""

    pull_interval = 0.02

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Return the ids of all messages."""
        messages = list(messages)
        super().push_messages(messages)
        return [message.metadata.message_id for message in messages]


def error_reply(message: Message, reason: str) -> Message:
    """Return the reply of a node whose app raised, in the place of its ``message``."""
    failed = Message(Error(code=2, reason=reason), reply_to=message)
    failed.metadata.__dict__["_src_node_id"] = message.metadata.src_node_id
    failed.metadata.__dict__["_reply_to_message_id"] = message.metadata.reply_to_message_id
    return failed


def settings(**changes: object) -> Mapping[str, object]:
    """Return a flat run configuration from keyword arguments, ``__`` standing for a dot and ``_`` for a hyphen."""
    return {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}


def tiny(out: object, **changes: object) -> RunSpec:
    """Return the smallest run that uses every part: digits, five nodes of two classes, Gaussian mixtures, four steps.

    Parameters
    ----------
    out : path
        Folder of run directories.
    **changes
        What differs, named as in `settings`.
    """
    smallest = {
        "num_clients": 5,
        "server_threads": 1,
        "partition__classes_per_node": 2,
        "module__kind": "gaussian_mixture",
        "module__gaussian_mixture__components": 8,
        "synthesis__samples_per_class": 10,
        "classifier__width": 8,
        "classifier__steps": 4,
        "classifier__batch_size": 32,
        "distillation__steps": 4,
        "averaging__rounds": 2,
    }
    return from_run_config(settings(out=str(out), **(smallest | changes)))  # type: ignore[arg-type]
