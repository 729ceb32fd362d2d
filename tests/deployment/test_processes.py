"""A deployment that cannot be started as it is asked for; one that runs is in ``tests/faults``."""

import pytest

from ff_flower.errors import ConfigError
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
