"""A private SuperLink: it runs apps, tells the truth about them, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

from ff_flower.errors import ConfigError, RunError
from sims.processes.log_filter import LogFilter
from sims.processes.packing import copy_of_app
from sims.processes.process_groups import process_groups
from sims.processes.session import FlowerSession

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow

PYPROJECT = """
[project]
name = "ff-session-test"
version = "0.1.0"
description = "One message to each node and back"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "ff-flower"
fab-include = ["echo/**"]

[tool.flwr.app.components]
serverapp = "echo.server_app:app"
clientapp = "echo.client_app:app"

[tool.flwr.app.config]
mode = "answer"
out = ""

[tool.flwr.app.config.deep]
value = 1.0
"""

SERVER = """
import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    config = context.run_config
    if config["mode"] == "raise":
        raise ValueError("'raise': must be answer; say answer\\nin two lines")
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.1)
    content = RecordDict({"question": ConfigRecord({"value": config["deep.value"]})})
    replies = grid.send_and_receive([Message(content, dst_node_id=node, message_type="query") for node in nodes])
    answers = sorted(reply.content["answer"]["partition"] for reply in replies)
    Path(config["out"]).write_text(json.dumps([config["deep.value"], answers]))
"""

CLIENT = """
import time

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message, context):
    if context.run_config["mode"] == "sleep":
        time.sleep(600)
    answer = ConfigRecord({"partition": context.node_config["partition-id"]})
    return Message(RecordDict({"answer": answer}), reply_to=message)
"""


@pytest.fixture
def echo_app(tmp_path) -> Path:
    """Write an app that asks two nodes for their partition."""
    app = tmp_path / "echo-app"
    (app / "echo").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PYPROJECT)
    for name, text in {"__init__": "", "server_app": SERVER, "client_app": CLIENT}.items():
        (app / "echo" / f"{name}.py").write_text(text)
    return app


def test_the_copy_of_an_app_is_its_latest_state(echo_app, tmp_path):
    """A session submits the files of now; an app whose bundle is not whole folders is submitted from where it is."""
    for text in ("", "# changed"):
        (echo_app / "echo" / "__init__.py").write_text(text)
        folder = tmp_path / f"copy{len(text)}"
        assert copy_of_app(echo_app, folder) == folder and (folder / "echo" / "__init__.py").read_text() == text
    for settings in ('fab-include = ["echo/*.py"]', 'fab-include = ["echo/**"]\nfab-exclude = ["echo/server_app.py"]', ""):
        (echo_app / "pyproject.toml").write_text(PYPROJECT.replace('fab-include = ["echo/**"]', settings))
        assert copy_of_app(echo_app, tmp_path / "none") == echo_app


def living(groups: set[int]) -> list[str]:
    """Return the processes of these groups that have not ended, by what the system says of them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(group) in groups and state not in "ZX":
                found.append(stat.parent.name)
    return found


def test_a_session_tells_the_truth_and_leaves_nothing(echo_app, tmp_path):
    """Success, an exception in the ServerApp and a refused run are told apart, and then no process or file is left."""
    out = tmp_path / "out.json"
    quiet = LogFilter()
    with FlowerSession() as session:
        good = session.run(echo_app, {"out": str(out), "deep.value": 0.5}, num_supernodes=2)
        bad = session.run(echo_app, {"mode": "raise"}, num_supernodes=2, stream=lambda line: list(quiet.feed(line)))
        with pytest.raises(ConfigError, match=r"sead: must stand in \[tool.flwr.app.config\] of .*pyproject.toml; add"):
            session.run(echo_app, {"sead": 1}, num_supernodes=2)
        (echo_app / "echo" / "client_app.py").unlink()
        with pytest.raises(RunError, match=r"(?s)Flower refused the run:.*client_app"):
            session.run(echo_app, {}, num_supernodes=2)
        groups, home = process_groups(session.home), session.home
    assert (good.completed, good.details, json.loads(out.read_text())) == (True, "", [0.5, [0, 1]])
    assert (bad.status, bad.details) == ("finished:failed", "'raise': must be answer; say answer\nin two lines")
    assert quiet.errors == ["ValueError: 'raise': must be answer; say answer\nin two lines (echo/server_app.py, line 16)"]
    assert len(groups) == 2
    assert living(groups) == []
    assert not home.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_mid_run_leaves_nothing(echo_app, number):
    """SIGTERM, Ctrl-C and a closed terminal during a run end SuperLink, simulation and Ray, and remove the folder."""
    program = f"""
        import signal
        from pathlib import Path
        from sims.processes.process_groups import process_groups
        from sims.processes.session import FlowerSession

        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with FlowerSession() as session:
            def tell(line):
                if "Starting Flower Simulation" in line:
                    print(session.home, *process_groups(session.home), flush=True)
            session.run(Path({str(echo_app)!r}), {{"mode": "sleep"}}, num_supernodes=2, stream=tell)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    home, *groups = process.stdout.readline().split()
    with suppress(subprocess.TimeoutExpired):
        process.wait(8)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGINT if number == signal.SIGINT else 128 + number), errors
    assert len(groups) == 3
    assert living({int(group) for group in groups}) == []
    assert not Path(home).exists()


def test_a_session_without_flower_says_so(monkeypatch, tmp_path):
    """Where flower-superlink is on no path, the session is refused and its folder is gone."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    session = FlowerSession()
    with pytest.raises(RunError, match=r"flower-superlink: must be beside .*; install"):
        session.__enter__()
    assert not session.home.exists()
