"""The main job as a user starts it, in real Flower on real images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ff_flower.machine import usable_cores
from sims.run import FAILED

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "num-clients": 2,
    "partition.classes-per-node": 5,
    "module.edm.channels": 8,
    "module.edm.steps": 4,
    "synthesis.samples-per-class": 20,
    "classifier.width": 8,
    "classifier.steps": 4,
    "distillation.steps": 4,
    "server-threads": 1,
}

pytestmark = pytest.mark.slow


def main_job(runs: Path, *options: str, **settings) -> subprocess.CompletedProcess[str]:
    """Run ``python -m sims.run`` with small settings, changed by ``settings``."""
    changed = SMALL | {key.replace("_", "."): value for key, value in settings.items()}
    pairs = [part for key, value in changed.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "sims.run", *options, *pairs]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"FF_RUNS": str(runs)}, capture_output=True, text=True, timeout=300)


def tensor_files(runs: Path) -> dict[str, bytes]:
    """Return the modules, answers and classifiers of the latest run."""
    run = (runs / "latest").resolve()
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run the main job once; return its folder and what it said."""
    runs = tmp_path_factory.mktemp("runs")
    return runs, main_job(runs)


def test_the_main_job_ends_with_its_table(finished):
    """A run on the digits exits with 0, prints every consensus and the run directory, and leaves what it says there."""
    runs, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    directory = Path(done.stdout.strip().rpartition("run directory: ")[2])
    assert directory == (runs / "latest").resolve()
    metrics = json.loads((directory / "metrics.json").read_text())
    assert set(metrics["results"]) == {"server", "client_mean", "product_of_experts", "student"}
    assert all(name in done.stdout for name in metrics["results"])
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.skipif(usable_cores() < 2, reason="two workers need two cores")
def test_one_ray_worker_or_two_give_the_same_bytes(finished, tmp_path):
    """Module files and classifiers do not depend on how many Ray workers there are, nor on which of two runs made them."""
    done = main_job(tmp_path, "--cpus-per-client", str(usable_cores()))
    assert done.returncode == 0, done.stdout + done.stderr
    made = tensor_files(tmp_path)
    assert len(made) == 10 + 2 * 2 + 2
    assert made == tensor_files(finished[0])


def test_a_failed_job_says_why_once(tmp_path):
    """A run that cannot be done exits with 1, gives the app's own message once and no traceback, and keeps Flower's log."""
    done = main_job(tmp_path, data_name="digitz")
    assert done.returncode == FAILED, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert said.count("unknown data set 'digitz'") == 1
    assert "Traceback" not in said
    assert "Traceback" in (tmp_path / "failed.log").read_text()
