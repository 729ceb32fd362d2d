"""What decides over a run before it starts: presets, --set, resources; and what its end means."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ff_flower import machine
from ff_flower.config import RunSpec
from ff_flower.errors import ConfigError
from ff_flower.run_directory import output_root
from sims import run as main_job
from sims.cli import MODULES, app
from sims.run import APP, FAILED, PARTIAL, REFUSED, Finished, Resources, presets, resolve_spec


@pytest.fixture(autouse=True)
def _own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("FF_RUNS", str(tmp_path / "runs"))


def test_settings_win_over_presets_over_defaults(tmp_path):
    """A key of --set beats the preset's, and the preset's beats the default."""
    preset = tmp_path / "mine.toml"
    preset.write_text('seed = 3\nnum-clients = 4\n[module]\nkind = "gaussian_mixture"\n')
    spec = resolve_spec(str(preset), ["seed=5", "module.edm.steps=7", "method=fedavg", "partition.alpha = 1"])
    assert (spec.seed, spec.num_clients, spec.module.kind) == (5, 4, "gaussian_mixture")
    assert (spec.module.edm.steps, spec.method, spec.partition.alpha) == (7, "fedavg", 1.0)
    assert spec.classifier == RunSpec().classifier


def test_folders_become_absolute(tmp_path, monkeypatch):
    """Folders are made absolute from here, since the run's processes start elsewhere, and name the same place as there."""
    monkeypatch.chdir(tmp_path)
    spec = resolve_spec("", ["out=there", "data.root=images"])
    assert (spec.out, spec.data.root) == (str(tmp_path / "there"), str(tmp_path / "images"))
    assert resolve_spec().out == str(tmp_path / "runs") == str(output_root(RunSpec()))
    monkeypatch.delenv("FF_RUNS")
    assert resolve_spec().out == str(output_root(RunSpec()))
    assert resolve_spec().data.root == ""


@pytest.mark.parametrize("arguments", [["--help"], ["presets"], ["config"], ["run", "--help"], ["compare", "--help"]])
def test_what_computes_nothing_does_not_wait_for_torch(arguments):
    """Overviews, settings, and the process that starts a simulation do without torch, whose import takes seconds."""
    program = f"import sys; from sims.cli import app; app({arguments}, standalone_mode=False); assert 'torch' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", program], cwd=APP, capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (0, "") and len(said.stdout.splitlines()) > 10


def test_the_console_lists_each_module_by_its_first_line():
    """A command that is imported late stands in the overview with the first words of its docstring, and answers for itself."""
    overview = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["--help"]).stdout
    for module in MODULES:
        command = importlib.import_module(f"sims.{module}").main
        assert re.search(rf"{module.replace('_', '-')} +{re.escape(command.__doc__.splitlines()[0])}", overview)


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_valid_and_says_what_it_is(name):
    """A preset resolves to a spec, and its first line is a comment on what it is and costs."""
    resolve_spec(name)
    assert presets()[name].read_text().startswith("# ")


@pytest.mark.parametrize(
    ("preset", "settings", "message"),
    [
        ("tinny", [], r"unknown preset 'tinny' \(did you mean 'tiny'\?\); there are: .*tiny"),
        ("absent.toml", [], "absent.toml: cannot be read .*; there are: .*tiny"),
        ("", ["seed"], "'seed': must be key=value, for example"),
        ("", ["sead=1"], r"unknown key 'sead' \(did you mean 'seed'\?\)"),
        ("", ["seed=one"], "seed = 'one': must be a valid integer"),
        ("", ["partition.alpha=-1"], "partition.alpha = -1: must be greater than 0"),
        ("", ["method=fedsgd"], "method = 'fedsgd': must be 'federated-factory'"),
        ("", ["module=3"], "unknown key 'module'"),
        ("", ["seed=[1, 2]"], r"seed = \[1, 2\]: must be a valid integer"),
    ],
)
def test_bad_settings_are_refused(preset, settings, message):
    """What no spec accepts is refused by name, value and rule, before anything starts."""
    with pytest.raises(ConfigError, match=message):
        resolve_spec(preset, settings)


@pytest.mark.parametrize(("content", "message"), [("seed = ", "must be TOML"), ("[data]\nnme = 1", "unknown key 'data.nme'")])
def test_bad_presets_are_refused(tmp_path, content, message):
    """A preset that is no TOML, or has a key that no spec has, is refused."""
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        resolve_spec(str(path))


@pytest.mark.parametrize(
    ("cpus", "gpus"), [(0, 0.0), ((os.cpu_count() or 1) + 1, 0.0), (1, -0.5), (1, 1.5), (1, float("nan")), (1, 4096.0)]
)
def test_resources_that_do_not_exist_are_refused(cpus, gpus):
    """More cores or GPUs than the machine has, no core at all, less than no GPU, and one and a half are refused."""
    with pytest.raises(ConfigError, match=r"per-client = .*: must be .*; take"):
        Resources(cpus, gpus)


def test_a_share_of_a_gpu_needs_a_gpu(monkeypatch):
    """Where torch sees no GPU a share of one is refused before anything starts; where it sees one, four clients may share it."""
    monkeypatch.setattr(main_job, "visible_gpus", lambda: 0)
    with pytest.raises(ConfigError, match=r"gpus-per-client = 0.25: must be 0 on this machine, where torch sees no GPU; take 0"):
        Resources(1, 0.25)
    monkeypatch.setattr(main_job, "visible_gpus", lambda: 1)
    assert Resources(1, 0.25).gpus == 0.25


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", None), ("150000 100000", 1), ("5000 100000", 1)])
def test_a_container_has_the_cores_of_its_quota(monkeypatch, tmp_path, quota, cores):
    """A quota of one and a half cores is one core, as for Ray; without a quota all cores of the affinity count."""
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(machine, "QUOTA", tmp_path / "cpu.max")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert machine.usable_cores() == (cores or allowed)


def test_the_exit_code_tells_how_a_run_ended():
    """0 is a whole run, 1 a failed one, 3 one without a node or scores, or with a refused module; a declined class is no gap."""
    whole = {"missing": [], "quarantined": [], "declined": [{"partition": 0, "label": 1, "reason": "few images"}]}
    ends = [
        whole,
        None,
        whole | {"missing": [{"partition": 0, "reason": "lost"}]},
        whole | {"quarantined": [{"partition": 0, "rule": "size", "detail": "too long"}]},
        whole | {"unscored": True},
    ]
    assert [Finished(Path(), end, "", ()).exit_code for end in ends] == [0, FAILED, PARTIAL, PARTIAL, PARTIAL]


def test_the_command_refuses_with_the_message_alone():
    """``python -m sims.run`` with an unknown preset ends with code 2, at once, and says one line."""
    done = subprocess.run(
        [sys.executable, "-m", "sims.run", "--preset", "x"], cwd=APP, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (REFUSED, "")
    assert done.stderr.startswith("unknown preset 'x'; there are: ")
    assert done.stderr.count("\n") == 1


def test_the_script_refuses_alike():
    """``ff-flower run`` and ``ff-flower report`` give the message and code 2 for what they cannot use."""
    runner = CliRunner()
    assert runner.invoke(app, ["run", "--set", "seed=x"]).exit_code == REFUSED
    answer = runner.invoke(app, ["report", "nowhere"])
    assert (answer.exit_code, answer.stderr.startswith("nowhere: cannot be read")) == (REFUSED, True)


def test_the_script_lists_what_there_is():
    """``ff-flower`` lists data sets with their licences, presets with their cost, and all keys as TOML."""
    runner = CliRunner()
    assert "| digits |" in runner.invoke(app, ["datasets", "--markdown"]).stdout
    assert "| tiny | Quick look" in runner.invoke(app, ["presets", "--markdown"]).stdout
    assert runner.invoke(app, ["config"]).stdout.startswith("[tool.flwr.app.config]\nmethod = ")
