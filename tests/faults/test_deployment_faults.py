"""Machines that fail, as processes: one session in which a client, a node and the server are killed, and a node hangs."""

import json
import os
import shutil
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from local_grid import LocalGrid, tiny

from clients.client_app import app as client_app
from sims.deploy_demo import differing
from sims.deployment import Deployment, SiteNode
from sims.run import APP
from sims.status import RunState, read_state
from strategies.server_app import run

pytestmark = pytest.mark.slow

HELD_APP = Path(__file__).parent / "held_app"
NODES = ("steady", "killed", "hanging")
TIMEOUT = 25.0


def held_app(folder):
    """Return the folder of the product's app with the held apps in the place of its own."""
    for package in ("ff_flower", "strategies", "clients", "sims"):
        shutil.copytree(APP / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in HELD_APP.glob("*.py"):
        shutil.copy(file, folder)
    text = (APP / "pyproject.toml").read_text(encoding="utf-8")
    for old, new in (
        ("strategies.server_app:app", "held_server:app"),
        ("clients.client_app:app", "held_client:app"),
        ('fab-include = ["', 'fab-include = ["held*.py", "'),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    for name in ("README.md", "LICENSE"):
        shutil.copy(APP / name, folder)
    return folder


@dataclass
class Meetings:
    """The folder in which processes and the test meet."""

    folder: Path
    running: Future | None = None
    lines: list[str] = field(default_factory=list)

    def hold(self, name):
        """Let the next process of that name wait."""
        (self.folder / f"{name}.here").unlink(missing_ok=True)
        (self.folder / f"{name}.hold").touch()

    def release(self, name):
        """Let it go on."""
        (self.folder / f"{name}.hold").unlink()

    def await_process(self, name, seconds=120.0):
        """Return the id of the process that waits."""
        here, end = self.folder / f"{name}.here", time.monotonic() + seconds
        while not (here.exists() and here.read_text()):
            ended = self.running is not None and self.running.done() and self.running.result()
            assert not ended and time.monotonic() < end, "\n".join([f"nobody came to {name}; the log:", *self.lines])
            time.sleep(0.05)
        return int(here.read_text())

    def while_running(self, running, lines):
        """Return the meetings of a run, which may end before they come about, and its log."""
        return replace(self, running=running, lines=lines)


@dataclass
class Session:
    """What the test saw: the state of the run at the faults, what stood in its directory, and the seconds of each step."""

    run: Path
    states: dict[str, RunState] = field(default_factory=dict)
    receipts: dict[str, set[str]] = field(default_factory=dict)
    kept: dict[str, bytes] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def look(self, name, began):
        """Note what is here now."""
        self.states[name] = read_state(self.run)
        self.receipts[name] = set(json.loads((self.run / "receipts.json").read_text()))
        self.seconds[name] = time.monotonic() - began


def settings(out):
    """Return the run: three nodes, Gaussian mixtures, and a timeout that a hanging node exceeds."""
    return tiny(out, num_clients=3, partition__kind="dirichlet", connect_timeout=60.0, timeout=TIMEOUT)


def collecting(meetings, began, session, deployment):
    """Let one client be killed while it fits, another hang past the timeout, and the server die before the broadcast."""
    for name in ("1-train", "2-train", "server-broadcast"):
        meetings.hold(name)
    os.kill(meetings.await_process("1-train"), signal.SIGKILL)
    session.seconds["client killed"] = time.monotonic() - began
    server = meetings.await_process("server-broadcast")
    session.run = next(session.run.glob("digits-*"))
    session.look("collected", began)
    os.kill(server, signal.SIGKILL)
    time.sleep(0.5)
    session.look("server killed", began)
    session.kept = {str(path.relative_to(session.run)): path.read_bytes() for path in session.run.glob("nodes/*/fit.json")}
    meetings.release("1-train")
    meetings.release("2-train")
    node = deployment.nodes["killed"]
    os.killpg(node.pid, signal.SIGTERM)
    node.wait(30)
    deployment.start_node(node_of("killed"), label="killed-again")
    session.seconds["node restarted"] = time.monotonic() - began


def broadcasting(meetings, began, session, deployment):
    """Let a node be killed between its upload and the broadcast."""
    meetings.await_process("server-broadcast")
    session.look("collected again", began)
    os.killpg(deployment.nodes["hanging"].pid, signal.SIGKILL)
    meetings.release("server-broadcast")


def node_of(name):
    """Return the node of that name."""
    return SiteNode(name, {"partition-id": NODES.index(name), "num-partitions": len(NODES)})


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Run the same spec twice on one deployment, with all faults."""
    out, folder = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("meetings")
    app, meetings, session = held_app(tmp_path_factory.mktemp("app")), Meetings(folder), Session(out)
    spec, began, lines = settings(out), time.monotonic(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FF_HELD", str(folder))
        with Deployment([node_of(name) for name in NODES]) as deployment, ThreadPoolExecutor() as pool:
            deployment.await_nodes()
            session.seconds["deployed"] = time.monotonic() - began
            first = pool.submit(deployment.run, app, spec.flat(), stream=lines.append)
            collecting(meetings.while_running(first, lines), began, session, deployment)
            meetings.hold("server-broadcast")
            second = pool.submit(deployment.run, app, spec.flat(), stream=lines.append)
            broadcasting(meetings.while_running(second, lines), began, session, deployment)
            assert second.result().completed
            session.look("ended", began)
            assert not first.result().completed
            session.seconds["first run's end known"] = time.monotonic() - began
    (out / "seconds.json").write_text(json.dumps(session.seconds, indent=1))
    (out / "server.log").write_text("\n".join(lines))
    return session


def test_a_killed_client_and_a_hanging_node_do_not_hold_up_the_others(session):
    """After the timeout the run goes on with the node that uploaded, and names the two that did not."""
    state = session.states["collected"]
    assert session.receipts["collected"] == {"fit-0"}
    assert [node.state for node in state.nodes] == ["modules are here", "missing", "missing"]
    assert all("no reply in time" in node.reasons[0] for node in state.nodes[1:])


def test_a_killed_server_loses_nothing_that_had_arrived(session):
    """With the server gone its modules are there, the status says that nobody is at work, and its exit code is 1."""
    state = session.states["server killed"]
    assert (state.at_work, state.exit_code, session.receipts["server killed"]) == (False, 1, {"fit-0"})


def test_a_run_that_goes_on_asks_nobody_to_fit_again(session):
    """The second run collects the two that were missing, and the first node's modules are those of the first run."""
    assert session.receipts["collected again"] >= {"fit-0", "fit-1", "fit-2"}
    assert {name: (session.run / name).read_bytes() for name in session.kept} == session.kept and len(session.kept) == 1
    transfers = [json.loads(line) for line in (session.run / "ledger.jsonl").read_text().splitlines()]
    assert [one["partition"] for one in transfers if (one["what"], one["direction"]) == ("modules", "up")] == [0, 1, 2]


def test_a_node_that_leaves_after_its_upload_costs_its_answer_alone(session):
    """The run ends with the modules of all nodes and the answers of two; it is partial, and names the node that left."""
    state = session.states["ended"]
    assert (state.stage, state.exit_code) == ("done", 3)
    assert [node.state for node in state.nodes] == ["answered", "answered", "missing, modules are here"]
    metrics = json.loads((session.run / "metrics.json").read_text())
    assert [gap["partition"] for gap in metrics["missing"]] == [2]
    assert set(metrics["results"]) == {"server", "client_mean", "product_of_experts", "student"}


def test_faults_change_no_byte_of_what_is_made(session, tmp_path):
    """Modules and the server's classifier are those of a run without faults, byte for byte."""
    unbroken = run(LocalGrid(client_app, 3), settings(tmp_path)).path
    assert set(differing(session.run, unbroken)) == {
        "classifiers/student.safetensors",  # it is distilled from two answers
        "nodes/2/logits.safetensors",
        "nodes/2/weights.safetensors",
    }
