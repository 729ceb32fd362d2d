"""A run that has forgotten is whole, and verifying it finds whatever of the forgotten comes back."""

import shutil

import pytest
from federations import copied, forget_owner, made, three_classes

from ff_flower.registry import SignaturePolicy
from ff_flower.unlearning import Work, forget
from ff_flower.verification import verify_run


def broken(path):
    """Return what is broken in a run directory."""
    return {(finding.place, finding.rule) for finding in verify_run(path, SignaturePolicy())[0] if finding.broken}


@pytest.mark.parametrize("file", [False, True])
def test_a_run_that_is_not_rebuilt_yet_is_whole(file, uploaded, digits, tmp_path):
    """Between the purge and the next run every hash and cross reference holds, also where no record names a file's classes."""
    path = uploaded
    if file:
        images = three_classes(digits, tmp_path / "abc.npz")
        path = made(tmp_path / "run", num_clients=3, synthesis__site="server", data__name=f"npz:{images}")
    assert forget(path, ["1"], (), Work()).error == ""
    assert broken(path) == set() and not (path / "metrics.json").exists() and list((path / "modules").glob("*.safetensors"))


def test_a_run_that_has_forgotten_is_whole(several_classes, tmp_path):
    """Before and after an owner is forgotten every hash and cross reference holds; a module that comes back is found."""
    path = copied(several_classes, tmp_path)
    assert broken(path) == set()
    kept = {one.name: one for one in (several_classes / "modules").glob("*.safetensors")}
    assert forget_owner(path, "1").error == ""
    assert broken(path) == set()
    gone = sorted(kept.keys() - {one.name for one in (path / "modules").glob("*.safetensors")})
    assert len(gone) == 2
    shutil.copy(kept[gone[0]], path / "modules")
    assert (f"modules/{gone[0]}", "forgotten") in broken(path)
