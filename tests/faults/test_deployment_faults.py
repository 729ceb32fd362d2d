"""Sites that fail, as processes: in one session images vanish, a site hangs, and a client, a node and the server are killed."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from local_grid import LocalGrid, tiny
from meetings import Meetings, held_app

from clients.client_app import app as client_app
from sims.deploy_demo import differing
from sims.digit_folders import write_digit_folders
from sims.processes.deployment import Deployment, SiteNode
from sims.status import RunState, read_state
from strategies.server_app import run

pytestmark = pytest.mark.slow

SITES = {"hanging": (5, 6), "killed": (1, 2), "steady": (3, 4), "unmounted": (7, 8)}  # partitions 0 to 3
TIMEOUT = 25.0
SECRET = "secret-place"


@dataclass
class Session:
    """What the test saw: the sites' folders, the log, the state of the run at the faults, and the seconds of each step."""

    run: Path
    folders: dict[str, Path]
    lines: list[str] = field(default_factory=list)
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
    """Return the run: sites with images of their own, Gaussian mixtures, and a timeout that a hanging site exceeds."""
    return tiny(out, data__name="sites", num_clients=len(SITES), connect_timeout=60.0, timeout=TIMEOUT)


def collecting(meetings, began, session, deployment, folders):
    """Let a client be killed while it fits, another hang, images vanish, and the server die before the broadcast."""
    for name in ("killed-train", "hanging-train", "unmounted-train", "server-broadcast"):
        meetings.hold(name)
    os.kill(meetings.await_process("killed-train"), signal.SIGKILL)
    session.seconds["client killed"] = time.monotonic() - began
    meetings.await_process("unmounted-train")
    away = folders["unmounted"].rename(folders["unmounted"].with_name("away"))
    meetings.release("unmounted-train")
    server = meetings.await_process("server-broadcast")
    session.run = next(session.run.glob("sites-*"))
    session.look("collected", began)
    os.kill(server, signal.SIGKILL)
    time.sleep(0.5)
    session.look("server killed", began)
    session.kept = {str(path.relative_to(session.run)): path.read_bytes() for path in session.run.glob("nodes/*/fit.json")}
    away.rename(folders["unmounted"])
    meetings.release("killed-train")
    meetings.release("hanging-train")
    node = deployment.nodes["killed"]
    os.killpg(node.pid, signal.SIGTERM)
    node.wait(30)
    deployment.start_node(node_of("killed", folders), label="killed-again")
    session.seconds["node restarted"] = time.monotonic() - began


def broadcasting(meetings, began, session, deployment):
    """Let a node be killed between its upload and the broadcast."""
    meetings.await_process("server-broadcast")
    session.look("collected again", began)
    os.killpg(deployment.nodes["hanging"].pid, signal.SIGKILL)
    meetings.release("server-broadcast")


def node_of(name, folders):
    """Return the SuperNode of that site."""
    return SiteNode(name, {"data": f"folder:{folders[name]}"})


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Run the same spec twice on one deployment, with all faults."""
    out, folder = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("meetings")
    folders = write_digit_folders(tmp_path_factory.mktemp(SECRET), SITES, per_class=30)
    app, meetings, session = held_app(tmp_path_factory.mktemp("app")), Meetings(folder), Session(out, folders)
    spec, began = settings(out), time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FF_HELD", str(folder))
        with Deployment([node_of(name, folders) for name in SITES]) as deployment, ThreadPoolExecutor() as pool:
            deployment.await_nodes()
            session.seconds["deployed"] = time.monotonic() - began
            first = pool.submit(deployment.run, app, spec.flat(), stream=session.lines.append)
            collecting(meetings.while_running(first, session.lines), began, session, deployment, folders)
            meetings.hold("server-broadcast")
            second = pool.submit(deployment.run, app, spec.flat(), stream=session.lines.append)
            broadcasting(meetings.while_running(second, session.lines), began, session, deployment)
            assert second.result().completed
            session.look("ended", began)
            assert not first.result().completed
            session.seconds["first run's end known"] = time.monotonic() - began
    (out / "seconds.json").write_text(json.dumps(session.seconds, indent=1))
    (out / "server.log").write_text("\n".join(session.lines))
    return session


def test_sites_that_fail_do_not_hold_up_the_others(session):
    """After the timeout the run goes on with the site that uploaded, and names the three that did not."""
    state = session.states["collected"]
    assert session.receipts["collected"] == {"fit-2"}
    assert [node.state for node in state.nodes] == ["missing", "missing", "modules are here", "missing"]
    assert all("no reply in time" in state.nodes[partition].reasons[0] for partition in (0, 1))


def test_images_that_vanish_are_named_by_rule_and_remedy_alone(session):
    """A site whose folder is gone when it fits says so at once, and neither log nor files of the run name the folder."""
    (reason,) = session.states["collected"].nodes[3].reasons
    assert "a folder of class folders is read there; correct the path" in reason
    files = {path.name: path.read_bytes() for path in session.run.rglob("*") if path.is_file()}
    assert [name for name, data in files.items() if SECRET.encode() in data] == []
    assert len(session.lines) > 50 and not [line for line in session.lines if SECRET in line]


def test_a_killed_server_loses_nothing_that_had_arrived(session):
    """With the server gone its modules are there, the status says that nobody is at work, and its exit code is 1."""
    state = session.states["server killed"]
    assert (state.at_work, state.exit_code, session.receipts["server killed"]) == (False, 1, {"fit-2"})


def test_a_run_that_goes_on_asks_nobody_to_fit_again(session):
    """The second run collects the three that were missing, and the first site's modules are those of the first run."""
    assert session.receipts["collected again"] >= {"fit-0", "fit-1", "fit-2", "fit-3"}
    assert {name: (session.run / name).read_bytes() for name in session.kept} == session.kept and len(session.kept) == 1
    transfers = [json.loads(line) for line in (session.run / "ledger.jsonl").read_text().splitlines()]
    assert [one["partition"] for one in transfers if (one["what"], one["direction"]) == ("modules", "up")] == [0, 1, 2, 3]


def test_a_site_that_leaves_after_its_upload_costs_its_answer_alone(session):
    """The run ends with all modules and the answers of three, who score it; it is partial, and names the site that left."""
    state = session.states["ended"]
    assert (state.stage, state.exit_code) == ("done", 3)
    assert [node.state for node in state.nodes] == ["missing, modules are here", "answered", "answered", "answered"]
    metrics = json.loads((session.run / "metrics.json").read_text())
    assert [gap["partition"] for gap in metrics["missing"]] == [0]
    assert set(metrics["results"]) == {"server", "client_mean", "product_of_experts", "student"}
    assert metrics["results"]["server"]["scored_by"] == ["killed", "steady", "unmounted"]


def test_faults_change_no_byte_of_what_is_made(session, tmp_path):
    """Modules and the server's classifier are those of a run without faults, byte for byte."""
    nodes = {number: dict(node_of(name, session.folders).config) | {"name": name} for number, name in enumerate(SITES)}
    unbroken = run(LocalGrid(client_app, len(SITES), node_config=nodes), settings(tmp_path)).path
    assert set(differing(session.run, unbroken)) == {
        "classifiers/student.safetensors",  # it is distilled from three answers
        "nodes/0/logits.safetensors",
        "nodes/0/weights.safetensors",
    }
