"""Who is let into a deployment of real processes, whose modules count, what leaves its sites, and what it leaves behind."""

import json

import pytest
from meetings import SECRETS, SITES

from ff_flower.registry import ModuleRegistry, SignaturePolicy
from sims.processes.process_groups import process_groups

pytestmark = pytest.mark.slow


def test_strangers_are_refused(session):
    """SuperNodes without a registered key, with the key of another, or that trust another authority end; keys are taken once."""
    assert set(session.refusals) == {"unregistered", "foreign", "twin", "twice"}
    assert session.refusals["twice"].startswith("the SuperLink does not register steady.pub")
    assert "Failed to activate SuperNode" in session.refusals["unregistered"]
    assert "Failed to activate SuperNode" in session.refusals["twin"]
    assert "CERTIFICATE_VERIFY_FAILED" in session.refusals["foreign"]


def test_a_node_of_another_run_is_refused(session):
    """A SuperNode with a registered key that was started for another run takes nobody's place, and a note names why."""
    metrics = json.loads((session.run / "metrics.json").read_text())
    assert metrics["sites"] == [*SITES]
    (note,) = [note for note in metrics["notes"] if note.startswith("a node is left out")]
    assert "a node cannot take part: this node has no images" in note


def test_sites_sign_what_they_send(session):
    """Where signatures are required, each module of the deployment is kept with one that verifies by its owner's key."""
    registry, policy = ModuleRegistry(session.run / "modules"), SignaturePolicy.read(session.signers, required=True)
    assert len(registry) == sum(map(len, SITES.values()))
    for module in registry:
        signature = (session.run / "modules" / f"{module.module_id}.sig").read_bytes()
        assert policy.check(module.manifest.owner, module.module_id, signature)


def test_the_server_learns_no_path_and_no_file_name(session):
    """Neither the streamed log, the SuperLink's own nor a file of the run names a site's folder or one of its files."""
    files = {path.name: path.read_bytes() for path in session.run.rglob("*") if path.is_file()}
    assert len(files) > 20 and len(session.lines) > 50
    assert [name for name, data in files.items() if any(secret.encode() in data for secret in SECRETS)] == []
    assert [line for line in session.lines if any(secret in line for secret in SECRETS)] == []


def test_nothing_is_left_of_a_deployment(session):
    """After its end no process of SuperLink, SuperNodes or clients lives, and the folder with keys and logs is gone."""
    assert len(session.groups) >= 4
    assert process_groups(session.home) == set()
    assert not session.home.exists()
