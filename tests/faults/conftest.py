"""One deployment of real processes for the tests of faults and of strangers: what happened, as they find it."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from local_grid import tiny
from meetings import SECRETS, SITES, TIMEOUT, Meetings, held_app

from ff_flower.errors import RunError
from ff_flower.registry import write_key_pair
from sims.digit_folders import write_digit_folders
from sims.processes.certificates import AUTHORITY, make_certificates, make_node_keys
from sims.processes.deployment import Deployment, SiteNode
from sims.processes.process_groups import process_groups
from sims.status import RunState, read_state


@dataclass
class Session:
    """What the tests saw: sites and strangers, the log, the state of the run at the faults, and the seconds of each step."""

    run: Path
    sites: dict[str, SiteNode]
    home: Path = Path()
    groups: set[int] = field(default_factory=set)
    refusals: dict[str, str] = field(default_factory=dict)
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

    @property
    def signers(self):
        """The folder of the sites' public keys."""
        return Path(self.sites["steady"].config["public-keys"])

    def settings(self, out):
        """Return the run: own images, Gaussian mixtures, signatures required, and a timeout that a hanging site exceeds."""
        signed = {"trust__require_signature": True, "trust__public_keys": str(self.signers)}
        return tiny(out, data__name="sites", num_clients=len(SITES), connect_timeout=60.0, timeout=TIMEOUT, **signed)


def make_sites(folder):
    """Return the SuperNodes by name, each with images of its own and a key by which it signs its modules."""
    folders = write_digit_folders(folder / SECRETS[0], SITES, per_class=30)
    (folder / "public").mkdir()
    for name in SITES:
        _, public = write_key_pair(name, folder / "private")
        public.rename(folder / "public" / public.name)
    common = {"public-keys": str(folder / "public")}
    keys = {name: common | {"signing-key": str(folder / "private" / f"{name}.key")} for name in SITES}
    return {name: SiteNode(name, {"data": f"folder:{folders[name]}", **keys[name]}) for name in SITES}


def knock(deployment, folder):
    """Start SuperNodes that have no business here; return those that must end, by why."""
    make_certificates(folder)
    unknown, guest = make_node_keys(folder, ["stranger", "guest"])
    taken, stranger = deployment.home / "keys" / "steady", SiteNode("stranger", {"data": "folder:/nowhere"})
    deployment.register(guest.with_suffix(".pub"), "guest")
    deployment.start_node(SiteNode("guest", {"partition-id": 1, "num-partitions": 7}), guest)  # as for another run
    return {
        "unregistered": deployment.start_node(stranger, unknown, label="unregistered"),
        "foreign": deployment.start_node(stranger, taken, folder / AUTHORITY, label="foreign"),
        "twin": deployment.start_node(stranger, taken, label="twin"),
    }


def collecting(meetings, began, session, deployment):
    """Let a client be killed while it fits, another hang, images vanish, and the server die before the broadcast."""
    for name in ("killed-train", "hanging-train", "unmounted-train", "server-broadcast"):
        meetings.hold(name)
    os.kill(meetings.await_process("killed-train"), signal.SIGKILL)
    session.seconds["client killed"] = time.monotonic() - began
    meetings.await_process("unmounted-train")
    folder = Path(session.sites["unmounted"].config["data"].removeprefix("folder:"))
    away = folder.rename(folder.with_name("away"))
    meetings.release("unmounted-train")
    server = meetings.await_process("server-broadcast")
    session.run = next(session.run.glob("sites-*"))
    session.look("collected", began)
    os.kill(server, signal.SIGKILL)
    time.sleep(0.5)
    session.look("server killed", began)
    session.kept = {str(path.relative_to(session.run)): path.read_bytes() for path in session.run.glob("nodes/*/fit.json")}
    away.rename(folder)
    meetings.release("killed-train")
    meetings.release("hanging-train")
    node = deployment.nodes["killed"]
    os.killpg(node.pid, signal.SIGTERM)
    node.wait(30)
    deployment.start_node(session.sites["killed"], label="killed-again")
    session.seconds["node restarted"] = time.monotonic() - began


def broadcasting(meetings, began, session, deployment):
    """Let a node be killed between its upload and the broadcast."""
    meetings.await_process("server-broadcast")
    session.look("collected again", began)
    os.killpg(deployment.nodes["hanging"].pid, signal.SIGKILL)
    meetings.release("server-broadcast")


@pytest.fixture(scope="session")
def session(tmp_path_factory):
    """Run the same spec twice on one deployment, with all faults, while strangers knock."""
    out, folder = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("meetings")
    app, meetings = held_app(tmp_path_factory.mktemp("app")), Meetings(folder)
    session = Session(out, make_sites(tmp_path_factory.mktemp("sites")))
    spec, began = session.settings(out), time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FF_HELD", str(folder))
        with Deployment([*session.sites.values()]) as deployment, ThreadPoolExecutor() as pool:
            deployment.await_nodes()
            with pytest.raises(RunError) as twice:
                deployment.register(deployment.home / "keys" / "steady.pub", "steady-again")
            strangers = knock(deployment, tmp_path_factory.mktemp("strangers"))
            session.seconds["deployed"] = time.monotonic() - began
            first = pool.submit(deployment.run, app, spec.flat(), stream=session.lines.append)
            collecting(meetings.while_running(first, session.lines), began, session, deployment)
            meetings.hold("server-broadcast")
            patient = spec.model_copy(update={"timeout": 1.6 * TIMEOUT})  # three sites start processes at once
            second = pool.submit(deployment.run, app, patient.flat(), stream=session.lines.append)
            broadcasting(meetings.while_running(second, session.lines), began, session, deployment)
            assert second.result().completed
            session.look("ended", began)
            assert not first.result().completed
            session.seconds["first run's end known"] = time.monotonic() - began
            ended = [label for label, node in strangers.items() if node.poll()]
            session.refusals = {label: deployment.node_log(label).read_text() for label in ended} | {"twice": str(twice.value)}
            session.lines += (deployment.home / "superlink.log").read_text(errors="replace").splitlines()
            session.home, session.groups = deployment.home, process_groups(deployment.home)
    (out / "seconds.json").write_text(json.dumps(session.seconds, indent=1))
    (out / "server.log").write_text("\n".join(session.lines))
    return session
