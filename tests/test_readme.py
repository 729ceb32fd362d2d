"""The README: what it shows runs, and what it names is there."""

import re
from pathlib import Path

import pytest
import torch
import typer
from local_grid import LocalGrid, tiny

from clients.client_app import app
from ff_flower.config import RunSpec
from sims.cli import app as commands
from sims.run import presets
from strategies.server_app import run

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
TABLES = ("averaging", "classifier", "data", "distillation", "manifest", "module", "partition", "synthesis", "trust")


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    """The example reads the newest run's classifier and module, and scores the one and samples the other."""
    (example,) = re.findall(r"## Use from Python\n\n```python\n(.*?)```", TEXT, re.DOTALL)
    spec = tiny(tmp_path / "runs", synthesis__site="server")
    directory = run(LocalGrid(app, spec.num_clients), spec)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    said = capsys.readouterr().out.split("accuracy")[1]
    accuracy = directory.read_json("metrics.json")["results"]["server"]["accuracy"]
    assert float(said.split("(")[1].split(")")[0]) == pytest.approx(accuracy, abs=1e-4)
    samples = names["samples"]
    assert isinstance(samples, torch.Tensor) and samples.shape == (16, 1, 8, 8) and samples.dtype == torch.uint8


def test_every_key_exists():
    """Every key of a run that the text or a command names is one, and so is every default that a command changes."""
    known = RunSpec().flat()
    named = set(re.findall(rf"`((?:{'|'.join(TABLES)})\.[a-z0-9.-]+)[` =]", TEXT))
    named |= set(re.findall(r"--set ([a-z0-9.-]+)=", TEXT))
    assert len(named) > 40 and named - {"key"} <= {*known}


def test_every_command_and_preset_exists():
    """Every subcommand of ``ff-flower`` and every preset that is named is there."""
    there = {*typer.main.get_command(commands).commands}
    named = set(re.findall(r"(?:^|`)ff-flower ([a-z-]+)", TEXT, re.MULTILINE))
    assert len(named) > 8 and named <= there
    assert set(re.findall(r"(?:PRESET=|--preset )([a-z-]+)", TEXT)) <= {*presets()}


def test_every_link_leads_somewhere():
    """Links within the page have their heading, and links and paths to files their file."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
    targets = re.findall(r"\]\(([^)\s]+)\)", TEXT)
    assert {target[1:] for target in targets if target.startswith("#")} <= anchors
    files = {target for target in targets if not target.startswith(("#", "http"))}
    files |= set(re.findall(r"`((?:ff_flower|strategies|clients|sims|tests)/[A-Za-z0-9_/.]+)`", TEXT))
    assert len(files) > 8 and [name for name in sorted(files) if not (ROOT / name).exists()] == []
