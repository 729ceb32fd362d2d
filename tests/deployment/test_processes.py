"""A SuperLink and SuperNodes as processes: one session shows that they do the job, whom they refuse, and what they keep quiet."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from own_sites import CLASSES, make, own

from ff_flower.errors import ConfigError, RunError
from ff_flower.registry import ModuleRegistry, SignaturePolicy, write_key_pair
from sims.deploy_demo import differing
from sims.processes.certificates import AUTHORITY, make_certificates, make_node_keys
from sims.processes.deployment import Deployment, SiteNode
from sims.processes.process_groups import process_groups
from sims.processes.superlink import free_port
from sims.run import APP

SECRETS = (b"secret-place", b"patient-")


@dataclass(frozen=True)
class Seen:
    """What is left of a session after its end."""

    home: Path
    groups: set[int]
    completed: bool
    run: Path
    log: bytes
    refusals: dict[str, str]
    twice: str


@pytest.fixture(scope="module")
def public_keys(tmp_path_factory):
    """Return the folder of the sites' public keys; their private ones lie in its neighbour ``private``."""
    root = tmp_path_factory.mktemp("signing")
    (root / "public").mkdir()
    for name in CLASSES:
        _, public = write_key_pair(name, root / "private")
        public.rename(root / "public" / public.name)
    return root / "public"


@pytest.fixture(scope="module")
def session(folders, public_keys, tmp_path_factory):
    """Run the smallest job on a deployment whose sites sign their modules, while strangers knock."""
    out = tmp_path_factory.mktemp("server")
    strangers = tmp_path_factory.mktemp("strangers")
    make_certificates(strangers)
    unknown, guest = make_node_keys(strangers, ["stranger", "guest"])
    lines: list[str] = []
    signer = {name: str(public_keys.with_name("private") / f"{name}.key") for name in folders}
    sites = [
        SiteNode(name, {"data": f"folder:{folder}", "signing-key": signer[name], "public-keys": str(public_keys)})
        for name, folder in folders.items()
    ]
    signed = {"trust__require_signature": True, "trust__public_keys": str(public_keys)}
    with Deployment(sites) as deployment:
        stranger = SiteNode("stranger", {"data": "folder:/nowhere"})
        knocking = {
            "unregistered": deployment.start_node(stranger, unknown, label="unregistered"),
            "foreign": deployment.start_node(
                stranger, deployment.home / "keys" / "north", strangers / AUTHORITY, label="foreign"
            ),
        }
        with pytest.raises(RunError) as twice:
            deployment.register(deployment.home / "keys" / "north.pub", "south-again")
        deployment.register(guest.with_suffix(".pub"), "guest")
        guest_node = deployment.start_node(SiteNode("guest", {"partition-id": 1, "num-partitions": 7}), guest)
        deployment.await_nodes()
        while deployment.online() == len(CLASSES):
            assert guest_node.poll() is None, deployment.node_log("guest").read_text()
        knocking["twin"] = deployment.start_node(stranger, deployment.home / "keys" / "north", label="twin")
        outcome = deployment.run(APP, own(out, connect_timeout=60, **signed).flat(), stream=lines.append)
        end = time.monotonic() + 30
        while any(node.poll() is None for node in knocking.values()) and time.monotonic() < end:
            time.sleep(0.2)
        refusals = {label: deployment.node_log(label).read_text() for label, node in knocking.items() if node.poll()}
        log = b"\n".join([*(line.encode() for line in lines), (deployment.home / "superlink.log").read_bytes()])
        groups = process_groups(deployment.home)
    return Seen(deployment.home, groups, outcome.completed, (out / "latest").resolve(), log, refusals, str(twice.value))


@pytest.mark.slow
def test_processes_do_what_a_simulation_does(session, folders, tmp_path):
    """Over TLS, with a process per message, every module, answer and classifier is what one process makes, byte for byte."""
    assert session.completed
    places = ",".join(f"{name}=folder:{folder}" for name, folder in folders.items())
    rehearsal = make(own(tmp_path, data__sites=places), {number: {} for number in range(len(CLASSES))})
    assert rehearsal.metrics["missing"] == []
    assert differing(session.run, rehearsal.path) == []


@pytest.mark.slow
def test_sites_sign_what_they_send(session, public_keys):
    """Where signatures are required, each module of the deployment is kept with one that verifies by its owner's key."""
    registry, policy = ModuleRegistry(session.run / "modules"), SignaturePolicy.read(public_keys, required=True)
    assert len(registry) == sum(map(len, CLASSES.values()))
    for module in registry:
        signature = (session.run / "modules" / f"{module.module_id}.sig").read_bytes()
        assert policy.check(module.manifest.owner, module.module_id, signature)


@pytest.mark.slow
def test_strangers_are_refused(session):
    """SuperNodes without a registered key, with the key of another, or that trust another authority end; keys are taken once."""
    assert set(session.refusals) == {"unregistered", "foreign", "twin"}
    assert "Failed to activate SuperNode" in session.refusals["unregistered"]
    assert "Failed to activate SuperNode" in session.refusals["twin"]
    assert "CERTIFICATE_VERIFY_FAILED" in session.refusals["foreign"]
    assert session.twice.startswith("the SuperLink does not register north.pub")


@pytest.mark.slow
def test_a_node_of_another_run_is_refused(session):
    """A SuperNode with a registered key that was started for another run takes nobody's place, and a note names why."""
    metrics = json.loads((session.run / "metrics.json").read_text())
    assert (metrics["sites"], metrics["missing"]) == (sorted(CLASSES), [])
    (note,) = metrics["notes"]
    assert note.startswith("a node is left out: a node cannot take part: this node has no images")


@pytest.mark.slow
def test_the_server_learns_no_path_and_no_file_name(session):
    """Neither the streamed log, the SuperLink's own nor a file of the run names a site's folder or one of its files."""
    files = {path.name: path.read_bytes() for path in session.run.rglob("*") if path.is_file()}
    assert len(files) > 20 and len(session.log) > 1000
    assert [name for name, data in files.items() if any(secret in data for secret in SECRETS)] == []
    assert [secret for secret in SECRETS if secret in session.log] == []


@pytest.mark.slow
def test_nothing_is_left_of_a_deployment(session):
    """After its end no process of SuperLink, SuperNodes or clients lives, and the folder with keys and logs is gone."""
    assert len(session.groups) >= 4
    assert process_groups(session.home) == set()
    assert not session.home.exists()


def test_a_port_in_use_is_refused():
    """A SuperLink on a port where somebody listens is refused before anything starts."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: cannot be used .*; stop who listens there or take"):
            Deployment([SiteNode("north")], port=port).__enter__()
    assert free_port() > 0


def test_certificates_that_are_not_there_are_refused(tmp_path):
    """A folder without the SuperLink's certificate is refused with the command that makes it, and no folder stays behind."""
    deployment = Deployment([SiteNode("north")], certificates=tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"has no ca.crt, server.pem, server.key; make them with `ff-flower certificates .*`"):
        deployment.__enter__()
    assert not deployment.home.exists()


def test_two_supernodes_of_one_name_are_refused():
    """Each SuperNode has a key of its own, called by its name."""
    with pytest.raises(ConfigError, match="north: must be the name of one SuperNode only"):
        Deployment([SiteNode("north"), SiteNode("north")])
