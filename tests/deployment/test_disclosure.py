"""What an error tells the server: everything in a simulation; from a site with its own images no path and no file's name."""

import pytest

from clients.disclosure import ASIDE, reason_of
from ff_flower.errors import ConfigError, DataError, ModuleError, RunError, VerificationError

SITE = {"name": "north", "data": "folder:/srv/private images/trial-7"}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            DataError("/srv/private images/trial-7/cat/a b.png is no image (x); hold images only; hide it"),
            "hold images only; hide it",
        ),
        (DataError("no paths here"), "DataError"),
        (ModuleError("7 images: a module needs at least 10"), "7 images: a module needs at least 10"),
        (
            VerificationError("owner", "'a' in a module from 'b'; a node sends its own only"),
            "owner: 'a' in a module from 'b'; a node sends its own only",
        ),
        (
            RunError("/home/me/runs/cache/x: cannot be written (full); free some space"),
            "(a path): cannot be written (full); free some space",
        ),
        (ConfigError("~/keys/north: cannot be read; C:\\keys too"), "(a path): cannot be read; (a path) too"),
        (RunError("trial-7 is not good"), "RunError"),
        (PermissionError(13, "denied", "/srv/private images/trial-7/cat/a b.png"), "PermissionError: "),
        (ValueError("Mueller, Anna.png"), "ValueError: "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_site_tells_the_rule_and_the_remedy_alone(error, told):
    """Paths are blanked, sentences that begin with a file lose their beginning, and errors of others tell their type."""
    separator = "" if told.endswith(": ") else "; "
    assert reason_of(error, SITE) == f"{told}{separator}{ASIDE}"


def test_a_simulated_node_tells_all():
    """In a simulation, where the images are the researcher's own, the sentence arrives whole."""
    assert reason_of(DataError("/data/a.png is no image"), {"partition-id": 0}) == "/data/a.png is no image"
    assert reason_of(ValueError("/data"), {}) == "ValueError: /data"


def test_a_file_name_in_any_sentence_silences_it(tmp_path):
    """A sentence that holds the name of one of the site's files is not told at all."""
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "anna-m.png").touch()
    assert reason_of(ModuleError("anna-m.png; odd"), {"data": f"folder:{tmp_path}"}) == f"ModuleError; {ASIDE}"
