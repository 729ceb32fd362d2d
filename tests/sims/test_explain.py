"""What ``ff-flower explain`` says of the keys of a run."""

import re

import pytest
from typer.testing import CliRunner

from ff_flower.config import RunSpec
from ff_flower.errors import ConfigError
from sims.cli import app
from sims.explain import chosen, explanations


def test_every_key_is_explained():
    """The keys are those of a run with its defaults; each has a sentence on what it is, so that no docstring leaves one out."""
    every = explanations()
    assert {one.key: one.default for one in every} == {
        key: str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
        for key, value in RunSpec().flat().items()
    }
    assert [one.key for one in every if not re.fullmatch(r"[A-Z`].{10,}[.]", one.meaning)] == []
    assert [one.key for one in every if not one.values or "``" in one.meaning] == []


def test_values_are_what_a_run_takes():
    """Ranges and names are those by which keys are checked."""
    said = {one.key: one.values for one in explanations()}
    assert said["partition.kind"] == "pathological, silos, dirichlet, iid, shards"
    assert (said["classifier.width"], said["module.holdout"]) == ("whole, from 8 to 512 a multiple of 8", "from 0 to 0.5")
    assert (said["seed"], said["module.edm.steps"], said["averaging.learning-rate"]) == (
        "whole, from 0",
        "whole, from 1",
        "above 0",
    )
    assert (said["deterministic"], said["out"], said["classifier.ema"]) == ("true, false", "text", "from 0 below 1")


def test_a_subclass_has_the_last_word():
    """A key that a kind explains anew is explained so; the others have the words of the class that they come from."""
    said = {one.key: one.meaning for one in explanations()}
    assert said["module.vae.rank"].startswith("Directions in which that noise") and said["module.edm.rank"].startswith(
        "Directions of the G"
    )
    assert said["module.vae.steps"] == said["module.edm.steps"] == "Optimizer steps and images per step."


def test_keys_are_chosen_by_name_table_or_last_part():
    """A name is a key, the table that holds keys, or the last part of keys; a key is told once."""
    assert [one.key for one in chosen(["seed"])] == ["seed"]
    assert {one.key.rpartition(".")[0] for one in chosen(["module.vae"])} == {"module.vae"}
    assert [one.key for one in chosen(["classifier.steps", "steps"])] == [
        "classifier.steps",
        *(f"module.{kind}.steps" for kind in ("edm", "flow", "vae")),
        "distillation.steps",
    ]
    with pytest.raises(ConfigError, match=r"unknown key 'sead' \(did you mean 'seed'\?\); `ff-flower explain` lists all"):
        chosen(["sead"])


def test_the_command_prints_a_table():
    """``ff-flower explain`` prints what was asked for, or says which name is unknown."""
    shown = CliRunner().invoke(app, ["explain", "transport", "--markdown"])
    assert shown.exit_code == 0 and '| transport | "inline" | inline, reference | `inline`: module files' in shown.stdout
    assert CliRunner().invoke(app, ["explain", "nothing"]).exit_code == 2
