"""Whole runs that the tests of unlearning copy, each made once."""

import pytest
from federations import AT_THE_SERVER, SEVERAL_CLASSES, copied, made


@pytest.fixture(scope="session")
def several_classes(tmp_path_factory):
    """Return a run whose nodes hold two classes each, every class being held by one node."""
    return made(tmp_path_factory.mktemp("several"), **SEVERAL_CLASSES)


@pytest.fixture(scope="session")
def at_the_server(tmp_path_factory):
    """Return a run whose server alone synthesizes."""
    return made(tmp_path_factory.mktemp("server"), **AT_THE_SERVER)


@pytest.fixture
def whole(several_classes, tmp_path):
    """Return a copy of the run with two classes per node."""
    return copied(several_classes, tmp_path)


@pytest.fixture
def uploaded(at_the_server, tmp_path):
    """Return a copy of the run whose server alone synthesizes."""
    return copied(at_the_server, tmp_path)
