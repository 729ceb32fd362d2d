"""A deployment that cannot be started as it is asked for; one that runs is in ``tests/faults``."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from ff_flower.errors import ConfigError, RunError
from sims.processes import superlink
from sims.processes.deployment import Deployment, SiteNode
from sims.processes.superlink import free_port


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


def test_a_supernode_that_is_late_shows_its_log(monkeypatch, tmp_path):
    """Where not all SuperNodes connect in time, the error has the last lines of each one's log, which goes with the session."""
    deployment = Deployment([SiteNode("north"), SiteNode("south")])
    deployment.home = tmp_path
    for name in ("north", "south"):
        (tmp_path / "nodes" / name).mkdir(parents=True)
        deployment.node_log(name).write_text(f"begun\n{name} waits\n")
    monkeypatch.setattr(deployment, "online", lambda: 1)
    with pytest.raises(RunError, match=r"(?s)1 of 2 SuperNodes are connected .*north: north waits\n.*south: south waits"):
        deployment.await_nodes(seconds=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_ending_signal_is_an_exception(number):
    """In a session SIGTERM and SIGHUP raise SystemExit, none interrupts its end, and afterwards the former answers are back."""
    with ExitStack() as undo:
        undo.callback(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_DFL))
        before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        session = undo.enter_context(ExitStack())
        superlink._exit_on_signals(session)
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(number)
        superlink._ignore_signals()
        signal.raise_signal(number)
        session.close()
        assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert ended.value.code == 128 + number


def test_nohup_is_left_alone():
    """Where SIGHUP is ignored already, as under nohup, a session goes on when its terminal closes."""
    program = (
        "import signal; from contextlib import ExitStack; from sims.processes import superlink\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with ExitStack() as undo:\n"
        "    superlink._exit_on_signals(undo)\n"
        "    signal.raise_signal(signal.SIGHUP)\n"
        "print('goes on')"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "goes on\n"


def test_the_folder_of_images_is_the_callers(monkeypatch, tmp_path):
    """A relative FF_DATA names the same folder in a session's processes, which start elsewhere; an empty one stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FF_DATA", "images/sets")
    assert superlink._environment(tmp_path)["FF_DATA"] == str(tmp_path / "images" / "sets")
    monkeypatch.setenv("FF_DATA", "")
    assert superlink._environment(tmp_path)["FF_DATA"] == os.environ["FF_DATA"] == ""
