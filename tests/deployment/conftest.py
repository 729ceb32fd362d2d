"""Class folders of real digits for three sites, and a whole run of them in this process."""

import pytest
from own_sites import CLASSES, deployed, make, own

from sims.digit_folders import write_digit_folders


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Return the folders of three sites with disjoint classes, 30 images of each."""
    return write_digit_folders(tmp_path_factory.mktemp("secret-place"), CLASSES, per_class=30)


@pytest.fixture(scope="session")
def consortium(folders, tmp_path_factory):
    """Return a whole run of three deployed sites."""
    return make(own(tmp_path_factory.mktemp("server") / "out"), deployed(folders))
