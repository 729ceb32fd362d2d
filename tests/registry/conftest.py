"""One tiny module of the digits, shared by the registry's tests."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ff_flower.registry import Expectation, ModuleManifest, encode_module


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., ModuleManifest]:
    """Return a function that makes the manifest of a tiny module of class 3 of the digits, changed as its keywords say."""

    def make(**changes: Any) -> ModuleManifest:
        fields: dict[str, Any] = {
            "kind": "edm",
            "spec": {"channels": 32, "learning-rate": 2e-3, "residual-noise": False, "schedule": "karras"},
            "label": 3,
            "label_name": "three",
            "image_shape": (1, 8, 8),
            "num_examples": 147,
            "owner": "3",
            "dataset": "digits",
            "images_shown": 38400,
            "root_seed": 0,
            "wire_dtype": "float32",
            "libraries": {"torch": "2.0.0"},
            "licence": "CC BY 4.0",
        }
        return ModuleManifest(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def tiny_state() -> dict[str, torch.Tensor]:
    """Return four tensors: two floating, one integer scalar, one empty."""
    return {
        "net.weight": torch.tensor([[0.1, -1.5, 3e-5], [2.0, 1 / 3, -0.0]]),
        "net.bias": torch.tensor([0.25, 1e-7]),
        "steps": torch.tensor(300),
        "pca.components": torch.zeros(0, 64),
    }


@pytest.fixture(scope="session")
def tiny_file(make_manifest: Callable[..., ModuleManifest], tiny_state: dict[str, torch.Tensor]) -> bytes:
    """Return a valid module file of about one kilobyte."""
    return encode_module(tiny_state, make_manifest())


@pytest.fixture(scope="session")
def digits_run() -> Expectation:
    """Return what the tiny module's run expects of any module."""
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return Expectation(dataset="digits", root_seed=0, image_shape=(1, 8, 8), label_names=names)
