"""Seeds by path."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ff_flower.seeding import derive_seed, generator, library_seed, numpy_generator, seeded

paths = st.lists(st.one_of(st.text(max_size=8), st.integers(-(2**40), 2**40)), max_size=4)


def test_seed_is_the_head_of_a_digest() -> None:
    """The seed of ("module", 3, 7) under root 5 is the leading 63 bits of the SHA-256 of ``[5,"module",3,7]``."""
    digest = hashlib.sha256(b'[5,"module",3,7]').hexdigest()
    assert derive_seed(5, "module", 3, 7) == int(digest[:16], 16) // 2


@given(root=st.integers(0, 2**63 - 1), first=paths, second=paths)
def test_paths_have_seeds_of_their_own(root: int, first: list[str | int], second: list[str | int]) -> None:
    """Two seeds under one root are equal exactly when their paths are."""
    seeds = derive_seed(root, *first), derive_seed(root, *second)
    assert (seeds[0] == seeds[1]) == (first == second)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("pair", [[("a", "b"), ("ab",)], [(1,), ("1",)], [(1, 2), (12,)], [(), ("",)], [("a", "b"), ("b", "a")]])
def test_the_bounds_of_the_parts_count(pair: list[tuple[str | int, ...]]) -> None:
    """Paths that look alike when written in one line are still different paths."""
    assert derive_seed(0, *pair[0]) != derive_seed(0, *pair[1])


def test_the_root_counts() -> None:
    """Under another root the same path has another seed."""
    assert len({derive_seed(root, "module", 0, 0) for root in range(100)}) == 100


def test_processes_agree() -> None:
    """Processes that hash strings differently derive the same seeds and draw the same numbers."""
    code = (
        "from ff_flower.seeding import *; "
        "print(derive_seed(1, 'ä', 2), int(generator(1, 'x').initial_seed()), numpy_generator(1, 'x').integers(2**40))"
    )
    salted = [os.environ | {"PYTHONHASHSEED": salt} for salt in ("1", "2")]
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=salt) for salt in salted]
    printed = [process.communicate(timeout=120)[0].split() for process in started]
    here = [derive_seed(1, "ä", 2), generator(1, "x").initial_seed(), numpy_generator(1, "x").integers(2**40)]
    assert printed == [[str(number) for number in here]] * 2


@given(root=st.integers(0, 2**63 - 1), path=paths)
def test_library_seeds_fit_in_32_bits(root: int, path: list[str | int]) -> None:
    """A library's seed is one that NumPy's oldest generator, and so scikit-learn, accepts."""
    assert library_seed(root, *path) == derive_seed(root, *path) % 2**32
    np.random.RandomState(library_seed(root, *path))


def test_generators_begin_at_their_seed() -> None:
    """The generators of a path are torch's and NumPy's own, started with the path's seed."""
    seed = derive_seed(3, "noise", 1)
    assert torch.equal(
        torch.randn(5, generator=generator(3, "noise", 1)), torch.randn(5, generator=torch.Generator().manual_seed(seed))
    )
    assert numpy_generator(3, "noise", 1).random() == np.random.default_rng(seed).random()


def test_seeded_building_leaves_the_global_generator_alone() -> None:
    """What is built under a seed depends on that seed alone, and the global stream goes on as if nothing had been built."""
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    built = seeded(lambda: torch.rand(3), 7)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(built, seeded(lambda: torch.rand(3), 7))
    assert not torch.equal(built, seeded(lambda: torch.rand(3), 8))
