"""``ff-flower verify`` on runs that have forgotten somebody."""

from federations import forget_owner
from typer.testing import CliRunner

from sims.cli import app


def test_a_run_that_has_forgotten_is_whole(uploaded):
    """Every hash and cross reference of a run directory holds before and after an owner is forgotten."""
    assert CliRunner().invoke(app, ["verify", str(uploaded)]).exit_code == 0
    forget_owner(uploaded, "3")
    done = CliRunner().invoke(app, ["verify", str(uploaded)])
    assert done.exit_code == 0, done.output
