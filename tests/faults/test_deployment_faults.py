"""Sites that fail, as processes: in one session images vanish, a site hangs, and a client, a node and the server are killed."""

import json

import pytest
from local_grid import LocalGrid
from meetings import SECRETS, SITES

from clients.client_app import app as client_app
from sims.deploy_demo import differing
from strategies.server_app import run

pytestmark = pytest.mark.slow


def test_sites_that_fail_do_not_hold_up_the_others(session):
    """After the timeout the run goes on with the site that uploaded, and names the three that did not."""
    state = session.states["collected"]
    assert session.receipts["collected"] == {"fit-2"}
    assert [node.state for node in state.nodes] == ["missing", "missing", "modules are here", "missing"]
    assert all("no reply in time" in state.nodes[partition].reasons[0] for partition in (0, 1))


def test_images_that_vanish_are_named_by_rule_and_remedy_alone(session):
    """A site whose folder is gone when it fits says so at once, without the folder's name."""
    (reason,) = session.states["collected"].nodes[3].reasons
    assert "a folder of class folders is read there; correct the path" in reason
    assert not any(secret in reason for secret in SECRETS)


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
    """Over TLS, a process per message, all modules, answers and classifiers are those of one process without faults."""
    nodes = {number: dict(site.config) | {"name": name} for number, (name, site) in enumerate(session.sites.items())}
    unbroken = run(LocalGrid(client_app, len(SITES), node_config=nodes), session.settings(tmp_path)).path
    assert set(differing(session.run, unbroken)) == {
        "classifiers/student.safetensors",  # it is distilled from three answers
        "nodes/0/logits.safetensors",
        "nodes/0/weights.safetensors",
    }
