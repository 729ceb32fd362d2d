"""What a process keeps that serves one node after the other: the set that all of them build, and nothing that grows."""

import gc
from pathlib import Path

import pytest
from flwr.app import Message
from local_grid import LocalGrid, tiny

from clients import node_classifier
from clients.client_app import app
from clients.resident import drop_resident_sets, resident_set
from ff_flower import messages

STATUS = Path("/proc/self/status")


def ask(grid, kind, content):
    """Send the same content to every node, and return the contents of the replies."""
    sent = [Message(content, dst_node_id=node, message_type=kind) for node in grid.get_node_ids()]
    replies = grid.send_and_receive(sent)
    assert not any(reply.has_error() for reply in replies), replies[0].error
    return [reply.content for reply in replies]


def broadcast(spec, fitted):
    """Return the message of all modules that were fitted."""
    files = {name: data for content in fitted for name, data in messages.read_files(content, "modules").items()}
    content = messages.request_records(spec, range(spec.num_clients))
    content.update(messages.module_records(files, None))
    return content


def resident_megabytes():
    """Return the private memory of this process, in megabytes."""
    gc.collect()
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not STATUS.exists(), reason="memory is read from /proc")
def test_a_hundred_messages_take_no_more_memory_than_twenty(tmp_path):
    """After 20 messages in one process, fits and answers of five nodes in turn, 80 more leave its memory flat."""
    spec = tiny(tmp_path, consensus="logits")
    grid, held = LocalGrid(app, 5), []
    for _ in range(10):
        fitted = ask(grid, "train", messages.request_records(spec, range(5)))
        ask(grid, "evaluate", broadcast(spec, fitted))
        held.append(resident_megabytes())
    assert len(grid.asked) == 100
    assert max(held[2:]) - held[1] < 8, held


def test_nodes_of_one_process_build_the_set_once(tmp_path, monkeypatch):
    """Five nodes in one process verify and sample a set of modules once; another set is built anew."""
    built, build = [], node_classifier._synthesize
    monkeypatch.setattr(node_classifier, "_synthesize", lambda *arguments: built.append(1) or build(*arguments))
    drop_resident_sets()
    spec = tiny(tmp_path)
    grid = LocalGrid(app, 5)
    fitted = ask(grid, "train", messages.request_records(spec, range(5)))
    ask(grid, "evaluate", broadcast(spec, fitted))
    assert len(built) == 1
    ask(grid, "evaluate", broadcast(spec, fitted[1:]))
    assert len(built) == 2


def test_what_cannot_be_built_is_not_kept():
    """A build that raises leaves nothing, and the next one is tried."""
    drop_resident_sets()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            resident_set("key", lambda: 1 // 0)
