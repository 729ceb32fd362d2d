"""The main job as a user starts it, in real Flower on real images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sims.processes.session import FlowerSession
from sims.run import FAILED, Resources, execute, resolve_spec

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "num-clients": 2,
    "partition.classes-per-node": 5,
    "synthesis.samples-per-class": 20,
    "classifier.width": 8,
    "classifier.steps": 5,
    "distillation.steps": 5,
    "server-threads": 1,
}

pytestmark = pytest.mark.slow


def main_job(runs: Path, **settings) -> subprocess.CompletedProcess[str]:
    """Run ``python -m sims.run --preset tiny`` with small settings, changed by ``settings``."""
    changed = SMALL | {key.replace("_", "."): value for key, value in settings.items()}
    options = [part for key, value in changed.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "sims.run", "--preset", "tiny", *options]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"FF_RUNS": str(runs)}, capture_output=True, text=True, timeout=300)


def test_the_main_job_ends_with_its_table(tmp_path):
    """A run on the digits exits with 0, prints every consensus and the run directory, and leaves what it says there."""
    done = main_job(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    directory = Path(done.stdout.strip().rpartition("run directory: ")[2])
    assert directory == (tmp_path / "latest").resolve()
    metrics = json.loads((directory / "metrics.json").read_text())
    assert set(metrics["results"]) == {"server", "client_mean", "product_of_experts", "student"}
    assert all(name in done.stdout for name in metrics["results"])
    assert "Traceback" not in done.stdout + done.stderr


def test_a_failed_job_says_why_once(tmp_path):
    """A run that cannot be done exits with 1, gives the app's own message once and no traceback, and keeps Flower's log."""
    done = main_job(tmp_path, data_name="digitz")
    assert done.returncode == FAILED, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert said.count("unknown data set 'digitz'") == 1
    assert "Traceback" not in said
    assert "Traceback" in (tmp_path / "failed.log").read_text()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two cores")
def test_one_ray_worker_or_two_give_the_same_bytes(tmp_path):
    """Module files and classifiers do not depend on how many Ray workers there are, nor on which of two runs made them."""
    settings = [
        *("num-clients=2", "partition.classes-per-node=5", "module.edm.channels=8", "module.edm.steps=4", "server-threads=1"),
        *("synthesis.samples-per-class=20", "classifier.width=8", "classifier.steps=4", "distillation.steps=4"),
    ]
    made = []
    with FlowerSession() as session:
        for cpus in (1, os.cpu_count() or 1):
            spec = resolve_spec("", [*settings, f"out={tmp_path / str(cpus)}"])
            finished = execute(session, spec, Resources(cpus), tell=lambda line: None)
            assert finished.exit_code == 0, finished.error
            files = finished.directory.rglob("*.safetensors")
            made.append({path.relative_to(finished.directory).as_posix(): path.read_bytes() for path in files})
    assert len(made[0]) == 10 + 2 * 2 + 2
    assert made[0] == made[1]
