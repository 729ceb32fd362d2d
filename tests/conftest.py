"""What tests share: the folder of real image sets."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real image sets: ``FF_DATA``, else ``../shared/datasets`` beside the checkout; skips where neither is."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "datasets"
    folder = Path(os.environ.get("FF_DATA", beside))
    if not (folder / "bloodmnist.npz").is_file():
        pytest.skip(f"no real image sets in {folder}: set FF_DATA to the folder of the MedMNIST .npz files")
    return folder
