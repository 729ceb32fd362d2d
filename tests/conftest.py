"""What tests share: the folder of real image sets, scikit-learn's digits, and the manifest of a module."""

import errno
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import settings

from ff_flower.config import DataSpec
from ff_flower.data import Splits, load_splits
from ff_flower.generative import GenerativeModule
from ff_flower.registry import ModuleManifest

settings.register_profile("repeatable", derandomize=True)  # the same code, the same verdict; sims/fuzz.py explores
settings.load_profile("repeatable")
HERE = Path(__file__).resolve().parent


@cache  # a file has hundreds of tests
def starts_flower(path: Path) -> bool:
    """Tell whether a file has tests that start Flower."""
    return "mark.slow" in path.read_text(encoding="utf-8")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the tests that start Flower, which last longest, where several workers share the tests."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not starts_flower(item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share the tests out among workers: files that start Flower take turns, other tests stay with those of their folder."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = HERE.parent / nodeid.partition("::")[0]
            return "flower" if starts_flower(path) else path.relative_to(HERE).parts[0]

    return ByFolder(config, log)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Compute on one thread, as nodes do: tiny tensors gain nothing from more, and lose much on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real image sets: ``FF_DATA``, else ``../shared/datasets`` beside the checkout; skips where neither is."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "datasets"
    folder = Path(os.environ.get("FF_DATA", beside))
    if not (folder / "bloodmnist.npz").is_file():
        pytest.skip(f"no real image sets in {folder}: set FF_DATA to the folder of the MedMNIST .npz files")
    return folder


@pytest.fixture(scope="session")
def digits() -> Splits:
    """Return scikit-learn's digits, split by seed 0: (n, 1, 8, 8) scans of ten classes."""
    return load_splits(DataSpec(), seed=0)


@pytest.fixture(scope="session")
def full_disk() -> Callable[..., NoReturn]:
    """Return what stands for a function that writes, where the disk is full."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fail


@pytest.fixture(scope="session")
def describe() -> Callable[..., ModuleManifest]:
    """Return a function that makes the manifest of a module of the digits, changed as its keywords say."""

    def make(module: GenerativeModule[Any], **changes: Any) -> ModuleManifest:
        fields: dict[str, Any] = {
            "kind": module.kind,
            "spec": module.spec.flat(),
            "label": 3,
            "label_name": "3",
            "image_shape": module.image_shape,
            "num_examples": 40,
            "owner": "0",
            "dataset": "digits",
            "images_shown": module.images_shown,
            "root_seed": 0,
            "wire_dtype": "float32",
            "libraries": {"torch": "2.0.0"},
            "licence": "CC BY 4.0",
        }
        return ModuleManifest(**(fields | changes))

    return make
