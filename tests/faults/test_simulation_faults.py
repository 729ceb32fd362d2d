"""A client that dies in a simulation takes its Ray actor with it: what the run says, and what the next session makes of it."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from local_grid import LocalGrid, tiny
from meetings import Meetings, held_app

from clients.client_app import app as client_app
from sims.deploy_demo import differing
from sims.processes.session import FlowerSession
from sims.status import read_state
from strategies.server_app import run

pytestmark = pytest.mark.slow

NODES = 3


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="an actor must be left when the other dies")
def test_a_client_that_dies_in_a_simulation_costs_that_session_alone(tmp_path, monkeypatch):
    """The session ends by itself and names it; the next keeps what had arrived, and ends with the bytes of an unbroken run."""
    folder = tmp_path / "meetings"
    folder.mkdir()
    monkeypatch.setenv("FF_HELD", str(folder))
    app, meetings, lines = held_app(tmp_path / "app"), Meetings(folder), []
    spec = tiny(tmp_path / "out", num_clients=NODES, partition__kind="dirichlet", timeout=60.0, min_modules=1)
    with FlowerSession() as session, ThreadPoolExecutor() as pool:
        meetings.hold("1-train")
        running = pool.submit(session.run, app, spec.flat(), num_supernodes=NODES, stream=lines.append)
        os.kill(meetings.while_running(running, lines).await_process("1-train"), signal.SIGKILL)
        meetings.release("1-train")
        assert running.result().completed
        directory = next(Path(spec.out).glob("digits-*"))
        first, kept = read_state(directory), {path: path.read_bytes() for path in directory.glob("nodes/*/fit.json")}
        assert session.run(app, spec.flat(), num_supernodes=NODES, stream=lines.append).completed
    assert (first.exit_code, first.nodes[1].state) == (3, "missing")
    assert "worker process has died" in first.nodes[1].reasons[0]
    assert kept and {path: path.read_bytes() for path in kept} == kept
    assert read_state(directory).exit_code == 0
    unbroken = run(LocalGrid(client_app, NODES), spec.model_copy(update={"out": str(tmp_path / "unbroken")})).path
    assert differing(directory, unbroken) == []
