"""One whole signed run, made once, and copies of it that tests may damage."""

import shutil

import pytest
from local_grid import LocalGrid, tiny

from clients.client_app import app
from ff_flower.registry import SignaturePolicy, write_key_pair
from strategies.server_app import run


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Return the folders of the owners' private and public keys."""
    private, public = tmp_path_factory.mktemp("private"), tmp_path_factory.mktemp("public")
    for owner in range(5):
        _, made = write_key_pair(str(owner), private)
        made.rename(public / made.name)
    return private, public


@pytest.fixture(scope="session")
def policy(keys):
    """Return the policy of the run's own keys."""
    return SignaturePolicy.read(keys[1], required=True)


@pytest.fixture(scope="session")
def signed_run(tmp_path_factory, keys):
    """Return the directory of a whole run whose modules are all signed."""
    spec = tiny(tmp_path_factory.mktemp("signed"), trust__require_signature=True, trust__public_keys=str(keys[1]))
    configs = {owner: {"signing-key": str(keys[0] / f"{owner}.key")} for owner in range(5)}
    return run(LocalGrid(app, spec.num_clients, 3, None, configs), spec).path


@pytest.fixture
def copied(signed_run, tmp_path):
    """Return a copy of the run that a test may damage."""
    return shutil.copytree(signed_run, tmp_path / "run")
