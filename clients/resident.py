"""What a process that serves several nodes keeps from one message to the next.

A node of a simulation works in whichever process is free, and every node builds the same synthetic set: a process reads,
verifies and samples a set of modules once, for all nodes that it serves. At most one set is kept.
"""

from collections.abc import Callable

from ff_flower.synthesis import SyntheticDataset

_sets: dict[str, tuple[SyntheticDataset, str]] = {}


def resident_set(key: str, build: Callable[[], SyntheticDataset]) -> tuple[SyntheticDataset, str]:
    """Return the synthetic set of ``key`` with its digest, built where this process does not hold it; nothing may write to it.

    Parameters
    ----------
    key : str
        Digest of all that the set, and the decision to use these modules, depend on.
    build : callable
        Makes it. What it raises is raised, and nothing is kept.
    """
    if key not in _sets:
        _sets.clear()  # before the next is built, so that there are never two in memory
        synthetic = build()
        _sets[key] = synthetic, synthetic.digest()
    return _sets[key]


def drop_resident_sets() -> None:
    """Forget the synthetic set that this process holds: it contains samples of every module."""
    _sets.clear()
