"""``ff-flower status`` tells what is here, what is waited for and what is missing, at any moment, and changes nothing."""

import json
import os
import shutil

import pytest
from local_grid import LocalGrid, tiny
from tampering import LIAR, at, failing, with_files
from typer.testing import CliRunner

from clients.client_app import app
from ff_flower.unlearning import Work, forget
from sims.cli import app as console
from sims.status import read_state
from strategies.server_app import run


def bytes_of(path):
    """Return every file of a run directory."""
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the directory of a run without faults."""
    return run(LocalGrid(app, 5), tiny(tmp_path_factory.mktemp("whole"))).path


class Looking(LocalGrid):
    """A grid at which somebody asks for the status before every reply is taken."""

    def __init__(self, out):
        super().__init__(app, 5)
        self.out, self.seen = out, []

    def pull_messages(self, message_ids):
        """Return one reply, after a look."""
        if found := super().pull_messages(message_ids):
            (path,) = self.out.glob("digits-*")
            before = bytes_of(path)
            self.seen.append(read_state(path))
            assert bytes_of(path) == before
        return found


def test_a_run_under_way_is_told_as_it_is(tmp_path):
    """While replies come the stage, the server at work and one node more each time are told, with an exit code of 1."""
    grid = Looking(tmp_path)
    run(grid, tiny(tmp_path))
    assert [state.stage for state in grid.seen] == ["fit"] * 5 + ["answers"] * 5
    assert {state.exit_code for state in grid.seen} == {1} and all(state.at_work for state in grid.seen)
    for number, (fit, answer) in enumerate(zip(grid.seen[:5], grid.seen[5:], strict=True)):
        states = [node.state for node in fit.nodes]
        assert (states.count("modules are here"), states.count("waited for")) == (number, 5 - number)
        assert [node.state for node in answer.nodes].count("answered") == number
    assert "the server is at work" in grid.seen[0].headline(grid.seen[0].since)


def test_a_whole_run_is_told_in_numbers(whole):
    """Of a whole run every node answered, its bytes are the ledger's and its accuracy is its answer's; the exit code is 0."""
    state, metrics = read_state(whole), json.loads((whole / "metrics.json").read_text())
    assert (state.exit_code, state.stage, state.at_work) == (0, "done", None)
    assert sum(node.bytes_up for node in state.nodes) == metrics["bytes"]["up"]
    assert sum(node.bytes_down for node in state.nodes) == metrics["bytes"]["down"]
    assert sum(node.module_bytes for node in state.nodes) == metrics["bytes"]["modules-up"]
    for node, told in zip(state.nodes, metrics["nodes"], strict=True):
        answer = json.loads((whole / f"nodes/{node.partition}/answer.json").read_text())
        assert node.accuracy == told["accuracy"] == answer["metrics"]["accuracy"]
        assert list(node.classes) == [metrics["classes"][label] for label in told["labels"]] and len(node.classes) == 2
        assert (node.state, node.kinds, node.reasons) == ("answered", ("gaussian_mixture",), ())
        assert (told["bytes_up"], told["bytes_down"]) == (node.bytes_up, node.bytes_down)


def test_a_run_that_forgot_is_not_whole_until_it_is_made_again(whole, tmp_path):
    """After a request to forget, and before anything is made again, a run that was whole has begun and not ended."""
    shutil.copytree(whole.parent, tmp_path / "copy", symlinks=True)
    path = tmp_path / "copy" / whole.name
    forget(path, ["3"], (), Work())
    state = read_state(path)
    assert (state.stage, state.whole, state.exit_code, state.at_work) == ("start", False, 1, True)
    assert " for " not in state.headline(0.0) and state.nodes[0].state == "modules are here"


@pytest.mark.parametrize(("method", "told"), [("fedavg", "took part"), ("local", "took part"), ("centralized", "not asked")])
def test_nobody_is_waited_for_in_a_baseline_that_has_ended(method, told, tmp_path):
    """Nodes of a whole baseline, which keeps nothing of single nodes, took part in it, or were not asked."""
    state = read_state(run(LocalGrid(app, 5), tiny(tmp_path, method=method)).path)
    assert {node.state for node in state.nodes} == {told} and state.headline(0.0) == "done: whole"


def garbage(report, files):
    """Cut the first module short."""
    name = next(iter(files))
    return report, files | {name: files[name][:-1]}


@pytest.mark.parametrize(
    ("change", "state", "reason"),
    [
        (failing, "missing", "missing: MemoryError: no memory left"),
        (with_files(garbage), "modules are here", "a module is quarantined: offsets"),
    ],
)
def test_a_partial_run_names_what_is_missing(change, state, reason, tmp_path):
    """A run that ended without a node, or with a refused module, names both node and reason, and its exit code is 3."""
    path = run(LocalGrid(app, 5, tamper=at("train", change)), tiny(tmp_path, synthesis__site="server")).path
    node = read_state(path).nodes[LIAR]
    assert node.state == state and node.reasons[0].startswith(reason)
    done = CliRunner().invoke(console, ["status", str(path)])
    assert done.exit_code == 3 and f"node {LIAR}: {reason}" in done.output and "partial" in done.output


def test_a_failed_run_says_why(tmp_path):
    """A run that ended for too few modules says so with its causes, and its exit code is 1."""
    spec = tiny(tmp_path, synthesis__site="server", min_modules=10)
    with pytest.raises(Exception, match="min-modules"):
        run(LocalGrid(app, 5, tamper=at("train", failing)), spec)
    (path,) = tmp_path.glob("digits-*")
    done = CliRunner().invoke(console, ["status", str(path)])
    assert done.exit_code == 1 and "failed: 8 modules of 8 classes arrived: min-modules is 10" in done.output
    assert f"node {LIAR}: missing: MemoryError: no memory left" in done.output


def test_a_server_that_is_gone_is_told_apart(whole, tmp_path):
    """A stage whose process is no more is told as such, and on another machine nothing is claimed of it."""
    progress = json.loads((whole / "progress.json").read_text()) | {"stage": "fit"}
    child = os.fork()
    if child == 0:
        os._exit(0)
    for name in ("spec.json", "receipts.json"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    told = []
    for changes in ({"process": child}, {"process": os.getpid()}, {"host": "elsewhere"}):
        (tmp_path / "progress.json").write_text(json.dumps(progress | changes))
        told.append(read_state(tmp_path).at_work)
    os.waitpid(child, 0)
    assert told[1:] == [True, None]
    (tmp_path / "progress.json").write_text(json.dumps(progress | {"process": child}))
    assert read_state(tmp_path).at_work is False
    assert "start the run again" in read_state(tmp_path).headline(0.0)


def test_the_excluded_are_not_missing(tmp_path):
    """An owner who is excluded is named so, without a reason, and the run is whole."""
    state = read_state(run(LocalGrid(app, 5), tiny(tmp_path, synthesis__site="server", exclude="3")).path)
    assert (state.exit_code, state.nodes[LIAR].state, state.nodes[LIAR].reasons) == (0, "excluded", ())


def test_json_is_the_same_account(whole):
    """With --json the command prints the state and its exit code as one object."""
    done = CliRunner().invoke(console, ["status", str(whole), "--json"])
    told = json.loads(done.output)
    assert (done.exit_code, told["exit_code"], told["whole"], len(told["nodes"])) == (0, 0, True, 5)


def test_what_is_no_run_is_refused(tmp_path):
    """A folder without a spec is refused with exit code 2 and the remedy."""
    done = CliRunner().invoke(console, ["status", str(tmp_path)])
    assert done.exit_code == 2 and "name a run directory" in done.output
