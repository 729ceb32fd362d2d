"""One root seed, and a path for every use of chance.

``derive_seed(root, *path)`` gives each use its own stream, so that no result depends on the number of
workers, the order of replies, or on what was drawn before.
"""

import hashlib
import json
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

PathPart = str | int
Built = TypeVar("Built")


def derive_seed(root: int, *path: PathPart) -> int:
    """Return the seed that belongs to ``path`` under ``root``.

    Parameters
    ----------
    root : int
        The root seed of the run.
    *path : str or int
        What the numbers are for, for example ``("module", partition_id, label)``.

    Returns
    -------
    int
        An integer in ``[0, 2**63)``, equal on every machine: the leading bits of the SHA-256 of the path's JSON.
    """
    text = json.dumps([int(root), *path], separators=(",", ":"), ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(root: int, *path: PathPart, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a torch generator on ``device``, seeded for ``path`` (see `derive_seed`)."""
    return torch.Generator(device=device).manual_seed(derive_seed(root, *path))


def numpy_generator(root: int, *path: PathPart) -> np.random.Generator:
    """Return a NumPy generator seeded for ``path`` (see `derive_seed`)."""
    return np.random.default_rng(derive_seed(root, *path))


def library_seed(root: int, *path: PathPart) -> int:
    """Return a seed in ``[0, 2**32)``, for libraries that take no larger one (scikit-learn, flwr-datasets)."""
    return derive_seed(root, *path) % 2**32


def seeded(build: Callable[[], Built], seed: int) -> Built:
    """Return ``build()`` with torch's global generator set to ``seed`` for its duration, for initializers that know no other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
