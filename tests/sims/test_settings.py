"""What decides over a run before it starts: presets, --set, resources; and what its end means."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ff_flower import machine
from ff_flower.config import RunSpec
from ff_flower.errors import ConfigError, RunError
from ff_flower.run_directory import output_root
from sims import run as main_job
from sims.cli import MODULES, app
from sims.processes.superlink import COMPLETED, RunOutcome
from sims.run import APP, FAILED, PARTIAL, REFUSED, Finished, Resources, follow, presets, resolve_spec


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


@pytest.mark.parametrize("setting", ["out=~runs", "data.root=~nobody-here/x", "trust.public-keys=~nobody-here"])
def test_a_home_that_there_is_not_is_refused(setting):
    """A path whose beginning looks like a home, and is none, is answered in one sentence, as is such a preset."""
    for options in (["--set", setting], ["--preset", "~nobody-here/mine.toml"]):
        refused = CliRunner().invoke(app, ["run", *options])
        assert refused.exit_code == REFUSED and "must begin with ~/ for your own home" in refused.output
    assert machine.path_of("~/x") == Path.home() / "x"


@pytest.mark.parametrize("key", ["exclude", "data.classes"])
@pytest.mark.parametrize("text", ["3", "007", "1e5", "true", "2024-01-01"])
def test_text_is_taken_as_it_is_written(key, text):
    """A key that takes text takes what TOML reads as a number, a truth or a date, with quotes or without, as those characters."""
    bare, quoted = (resolve_spec("", ["data.name=sites", setting]) for setting in (f"{key}={text}", f'{key} = "{text}"'))
    assert bare == quoted and bare.flat()[key] == text


def test_a_folder_may_be_called_by_a_number(tmp_path, monkeypatch):
    """A folder whose name TOML would read as a number is one like any other."""
    monkeypatch.chdir(tmp_path)
    assert resolve_spec("", ["data.root=2024"]).data.root == str(tmp_path / "2024")


def test_a_preset_is_toml(tmp_path):
    """In a file, where quotes stay, a number in the place of text is refused."""
    (tmp_path / "mine.toml").write_text("exclude = 3\n")
    with pytest.raises(ConfigError, match="exclude = 3: must be a valid string"):
        resolve_spec(str(tmp_path / "mine.toml"))


def test_the_printed_defaults_are_a_preset(tmp_path):
    """What `ff-flower config` prints can be kept, changed and run: without a change it is the defaults."""
    path = tmp_path / "mine.toml"
    path.write_text(CliRunner().invoke(app, ["config"]).stdout)
    assert resolve_spec(str(path)) == resolve_spec()
    path.write_text(path.read_text().replace("num-clients = 10", "num-clients = 7"))
    assert resolve_spec(str(path)).num_clients == 7


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


def write_metrics(folder, seed):
    """Write what a finished run leaves at the least."""
    folder.mkdir(parents=True)
    keys = ("method", "dataset", "partition", "results", "seconds", "bytes")
    (folder / "metrics.json").write_text(json.dumps(dict.fromkeys(keys) | {"seed": seed}))


def test_a_run_is_where_its_log_says(tmp_path):
    """The result of a run is read from the directory that its log names, though ``latest`` has moved to another's meanwhile."""
    for seed, name in enumerate(("mine", "another")):
        write_metrics(tmp_path / name, seed)
    (tmp_path / "latest").symlink_to("another")

    def submit(stream):
        stream(f"INFO :      run directory: {tmp_path / 'mine'}")
        return RunOutcome("1", COMPLETED, "", 0.0)

    ended = follow(submit, RunSpec(out=str(tmp_path)), tell=lambda line: None)
    assert (ended.directory, ended.metrics["seed"], ended.error) == (tmp_path / "mine", 0, "")
    assert not (tmp_path / "failed.log").exists()


@pytest.mark.parametrize("lost", [False, True], ids=["it fails", "Flower is lost"])
def test_a_run_that_fails_leaves_its_log(lost, tmp_path):
    """Whether it fails or Flower refuses it, ``failed.log`` has the log of this run, no earlier one's, and its place is told."""
    out, told = tmp_path / "runs", []
    out.mkdir()
    (out / "failed.log").write_text("of an earlier run")

    def submit(stream):
        stream("DEBUG :     what nobody is shown")
        if lost:
            raise RunError("the SuperLink does not answer")
        return RunOutcome("1", "finished:failed", "why", 0.0)

    spec = RunSpec(out=str(out))
    if lost:
        with pytest.raises(RunError, match="does not answer"):
            follow(submit, spec, tell=told.append)
    else:
        assert follow(submit, spec, tell=told.append).exit_code == FAILED
    expected = ["DEBUG :     what nobody is shown", *(["the SuperLink does not answer"] if lost else [])]
    assert (out / "failed.log").read_text().splitlines() == expected
    assert told[-1] == f"Flower's whole log: {out / 'failed.log'}"


def test_a_log_that_cannot_be_written_hides_nothing(tmp_path):
    """Where ``out`` is no folder, a failed run says so beside its own error."""
    (tmp_path / "runs").write_text("")
    told = []
    spec = RunSpec(out=str(tmp_path / "runs"))
    ended = follow(lambda stream: RunOutcome("1", "finished:failed", "why", 0.0), spec, tell=told.append)
    assert (ended.error, told[0]) == ("why", "ERROR: why") and "cannot be written" in told[1]


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
