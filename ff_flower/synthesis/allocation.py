"""How many samples each module contributes."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from ..registry import RegisteredModule


@dataclass(frozen=True)
class Share:
    """How many samples one module contributes to the synthetic set."""

    module_id: str
    label: int
    count: int


def allocate(modules: Sequence[RegisteredModule], samples_per_class: int) -> tuple[Share, ...]:
    """Share ``samples_per_class`` samples of each class among its modules by their number of examples.

    By Sainte-Laguë's method: module i takes its k-th sample at time (2k - 1) / num_examples_i, the first in registry order
    winning ties, until the quota is reached. So no count falls when the quota grows or when another owner leaves, which
    largest remainders do not guarantee (the Alabama paradox).

    Parameters
    ----------
    modules : sequence of RegisteredModule
        In registry order.
    samples_per_class : int
        Quota of every class.

    Returns
    -------
    tuple of Share
        In the order of ``modules``; shares of no samples are left out.
    """
    owners: dict[int, list[RegisteredModule]] = defaultdict(list)
    for module in modules:
        owners[module.manifest.label].append(module)
    counts: dict[str, int] = {}
    for group in owners.values():
        turns = heapq.merge(*(_turns(position, module.manifest.num_examples) for position, module in enumerate(group)))
        taken = Counter(position for _, position in islice(turns, samples_per_class))
        counts |= {module.module_id: taken[position] for position, module in enumerate(group)}
    shares = (Share(module.module_id, module.manifest.label, counts[module.module_id]) for module in modules)
    return tuple(share for share in shares if share.count)


def _turns(position: int, num_examples: int) -> Iterator[tuple[float, int]]:
    """Yield when the module at ``position`` takes its samples, one after the other without end."""
    return ((odd / num_examples, position) for odd in count(1, 2))
