"""Validation scores of finished runs: the same classifiers, the same metrics, other images."""

import json

import numpy as np
import pytest
from local_grid import LocalGrid, tiny
from typer.testing import CliRunner

from clients.client_app import app as client_app
from sims.cli import app
from sims.report import load_metrics
from sims.validate import validated
from strategies.server_app import run

RESULTS = {
    "federated-factory": {"server", "client_mean", "product_of_experts", "student"},
    "fedavg": {"last_round", "best_round"},
    "centralized": {"centralized"},
}


def write_set(path, digits, val):
    """Write digits as an npz of the MedMNIST format, with ``val`` as its validation images."""
    parts = {"train": digits.train, "val": val, "test": digits.test}
    arrays = {f"{name}_images": part.images[:, 0].numpy() for name, part in parts.items()}
    np.savez(path, **arrays, **{f"{name}_labels": part.labels.numpy()[:, None] for name, part in parts.items()})


def make(folder, **changes):
    """Run the smallest federation on the set in ``folder``; return its run directory."""
    spec = tiny(folder / "runs", data__name=f"npz:{folder / 'own.npz'}", **changes)
    return run(LocalGrid(client_app, spec.num_clients), spec).path


def validate(*runs):
    """Call the command."""
    return CliRunner().invoke(app, ["validate", *map(str, runs)])


@pytest.mark.parametrize("method", RESULTS)
def test_where_validation_images_are_the_test_images_the_scores_are_those_of_the_run(digits, tmp_path, method):
    """Every classifier that a run keeps is scored again, and by the same metrics: on the same images the same numbers."""
    write_set(tmp_path / "own.npz", digits, digits.test)
    path = make(tmp_path, method=method)
    told, again = load_metrics(path), validated(path)
    assert set(again["results"]) == RESULTS[method] and again == told


def test_the_test_images_play_no_part(digits, tmp_path):
    """On the training images in the place of validation images, the scores differ from the run's, and the table says whose."""
    write_set(tmp_path / "own.npz", digits, digits.train)
    path = make(tmp_path, method="centralized")
    again = validated(path)["results"]["centralized"]
    assert again["accuracy"] != load_metrics(path)["results"]["centralized"]["accuracy"]
    printed = validate(path).output
    assert "On validation images" in printed and f"{100 * again['accuracy']:.2f}" in printed


def test_several_runs_are_summarized(digits, tmp_path):
    """Two seeds become one row with their mean and standard deviation."""
    write_set(tmp_path / "own.npz", digits, digits.val)
    paths = [make(tmp_path, method="centralized", seed=seed) for seed in (0, 1)]
    scores = [100 * validated(path)["results"]["centralized"]["accuracy"] for path in paths]
    assert f"{np.mean(scores):.2f} ± {np.std(scores, ddof=1):.2f}" in validate(*paths).output


def test_runs_without_classifiers_are_named_and_left_out(digits, tmp_path):
    """Of several runs those that keep no classifier, as `local` keeps none, are named beside the table of the others."""
    write_set(tmp_path / "own.npz", digits, digits.val)
    local, whole = (make(tmp_path, method=method) for method in ("local", "centralized"))
    both, alone = validate(local, whole), validate(whole)
    assert both.exit_code == 0 and alone.stdout == both.stdout and f"{local} (local)" in both.stderr


def test_what_cannot_be_scored_is_refused_with_the_reason(digits, tmp_path):
    """No classifiers, no validation images, a damaged file, changed images and no run: each is named, with exit code 2."""
    write_set(tmp_path / "own.npz", digits, digits.val)
    local, whole = make(tmp_path, method="local"), make(tmp_path, method="centralized")
    unheld = run(*_without_validation(tmp_path)).path
    asked = {"keeps no classifier": validate(local), "val-fraction": validate(unheld), "metrics.json": validate(tmp_path)}
    (whole / "classifiers/centralized.safetensors").write_bytes(b"{}")
    asked["is no cnn of this run"] = validate(whole)
    (whole / "images.json").write_text(json.dumps({"sha256": "0" * 64}))
    asked["was made of other images"] = validate(whole)
    for reason, result in asked.items():
        assert result.exit_code == 2 and reason in result.output


def _without_validation(folder):
    spec = tiny(folder / "runs", data__val_fraction=0.0, method="centralized")
    return LocalGrid(client_app, spec.num_clients), spec
