"""The demonstration of a deployment, as a user starts it: it comes to its tables, and no signal leaves anything behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sims.processes.process_groups import process_groups

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "module.kind": "gaussian_mixture",
    "module.gaussian-mixture.components": 2,
    "synthesis.samples-per-class": 20,
    "synthesis.site": "server",  # a process is started for every message
    "classifier.width": 8,
    "classifier.steps": 5,
}
START = (  # a test that was started in the background has SIGINT ignored
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('sims.deploy_demo', run_name='__main__')"
)

pytestmark = pytest.mark.slow


@pytest.fixture
def temporary():
    """Return a folder for temporary files, with a path that is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def demonstration(temporary, runs):
    """Start the demonstration with the smallest settings."""
    options = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    return subprocess.Popen(
        [sys.executable, "-c", START, "--per-class", "20", "--floor", "0", *options],
        cwd=ROOT,
        env=os.environ | {"FF_RUNS": str(runs), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_demonstration_ends_with_its_tables(temporary, tmp_path):
    """It prints its results, leaves its run directory, and no process and no other file."""
    process = demonstration(temporary, tmp_path)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, output + errors
    metrics = json.loads((tmp_path / "latest" / "metrics.json").read_text())
    assert metrics["sites"] == ["Clinic-North", "Clinic-South", "Clinic-West"]
    assert (metrics["missing"], set(metrics["results"])) == ([], {"server"})
    assert f"run directory: {(tmp_path / 'latest').resolve()}" in output
    assert (process_groups(temporary), list(temporary.iterdir())) == (set(), [])


@pytest.mark.parametrize(
    ("number", "after"),
    [(signal.SIGTERM, "a SuperLink with TLS"), (signal.SIGINT, "run directory: ")],
    ids=["while sites connect", "in mid-run"],
)
def test_a_signal_leaves_nothing(temporary, tmp_path, number, after):
    """SIGTERM and Ctrl-C end SuperLink, SuperNodes and their clients, and remove folders with keys, images and logs."""
    process = demonstration(temporary, tmp_path)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if after in line:
            break
    assert len(process_groups(temporary)) >= 4, "".join(lines)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, -signal.SIGKILL), errors
    assert "Traceback" not in errors
    assert (process_groups(temporary), list(temporary.iterdir())) == (set(), [])
