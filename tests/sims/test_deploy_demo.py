"""The demonstration of a deployment, as a user starts it: it comes to its tables, and no signal leaves anything behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from ff_flower.config import RunSpec
from ff_flower.errors import RunError
from sims import deploy_demo
from sims.processes.process_groups import process_groups
from sims.processes.superlink import COMPLETED, RunOutcome

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

slow = pytest.mark.slow


class Staged:
    """A deployment of which the stage is empty: no process, and a log for each that there would be."""

    port, end = 0, None

    def __init__(self, sites):
        self.sites = sites

    def __enter__(self):
        """Begin."""
        return self

    def __exit__(self, *raised):
        """End."""

    def await_nodes(self):
        """Fail where nobody comes."""
        if self.end is None:
            raise RunError("0 of 3 SuperNodes are connected")

    def run(self, app, flat, *, stream):
        """Come to the end that a test sets."""
        stream(f"INFO :      run directory: {Path(flat['out']) / 'mine'}")
        if isinstance(self.end, Exception):
            raise self.end
        return self.end

    def keep_logs(self, folder):
        """Write a log per process."""
        paths = [folder / f"{name}.log" for name in ("superlink", *(site.name for site in self.sites))]
        for path in paths:
            path.write_text("")
        return paths


@pytest.fixture
def staged(monkeypatch):
    """Let the demonstration take place on a `Staged` deployment; return its class, whose ``end`` may be set."""
    monkeypatch.setattr(Staged, "end", None)
    monkeypatch.setattr(deploy_demo, "Deployment", Staged)
    return Staged


def test_the_result_is_that_of_the_demonstrations_own_run(staged, tmp_path):
    """The demonstration shows the run that its log names, though ``latest`` is another's that ended later in the same folder."""
    keys = ("method", "dataset", "partition", "results", "seconds", "bytes")
    for seed, name in enumerate(("mine", "another")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(dict.fromkeys(keys) | {"seed": seed}))
    (tmp_path / "latest").symlink_to("another")
    staged.end = RunOutcome("1", COMPLETED, "", 0.0)
    ended = deploy_demo.deploy(RunSpec(out=str(tmp_path)), {"north": tmp_path}, lambda line: None)
    assert (ended.directory, ended.metrics["seed"]) == (tmp_path / "mine", 0)


@pytest.mark.parametrize(
    "end",
    [None, RunError("Flower refused the run"), RunOutcome("1", "finished:failed", "why", 0.0)],
    ids=["no SuperNode", "refused", "failed"],
)
def test_logs_are_kept_however_a_deployment_ends(staged, tmp_path, end):
    """Where SuperNodes do not come up, Flower refuses the run, or it fails, the logs of all processes and Flower's are there."""
    staged.end, logs, runs, told = end, tmp_path / "logs", tmp_path / "runs", []
    logs.mkdir()
    try:
        ended = deploy_demo.deploy(RunSpec(out=str(runs)), {"north": tmp_path}, told.append, logs)
    except RunError as error:
        assert end is None or error is end
        assert (runs / "failed.log").read_text().endswith(f"{error}\n")
    else:
        assert (ended.error, ended.metrics) == ("why", None) and "run directory" in (runs / "failed.log").read_text()
    assert sorted(path.name for path in logs.iterdir()) == ["north.log", "superlink.log"]
    assert f"2 logs of the SuperLink and the SuperNodes: {logs}" in told


def test_a_folder_of_logs_that_cannot_be_made_is_refused_before_the_job(staged, tmp_path):
    """A file in the place of the folder is answered at once, with exit code 2; a folder that fills up hides no other error."""
    (tmp_path / "logs").write_text("")
    command = Typer()
    command.command()(deploy_demo.main)
    refused = CliRunner().invoke(command, ["--keep-logs", str(tmp_path / "logs"), "--set", f"out={tmp_path / 'runs'}"])
    assert refused.exit_code == 2 and f"{tmp_path / 'logs'}: cannot be made" in refused.output
    assert "class folders" not in refused.output
    told = []
    with pytest.raises(RunError, match="0 of 3 SuperNodes"):
        deploy_demo.deploy(RunSpec(out=str(tmp_path)), {"north": tmp_path}, told.append, tmp_path / "logs")
    assert f"{tmp_path / 'logs'}: the logs cannot be kept (Not a directory)" in told


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


@slow
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


@slow
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
