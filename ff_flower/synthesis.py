"""From modules to one class-balanced data set, the same at every node.

`allocate` shares each class's quota among its owners, `synthesize` draws the samples. Sample *k* of a module depends on
(module_id, root seed, k) alone; so every node builds the same set, a larger quota extends a smaller one, and without one
owner's modules all other samples stay as they were.
"""

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import ImageSet
from .errors import ModuleError
from .generative import GenerativeModule, restore_module
from .registry import ModuleRegistry, RegisteredModule
from .seeding import generator


@dataclass(frozen=True)
class Share:
    """How many samples one module contributes to the synthetic set."""

    module_id: str
    label: int
    count: int


@dataclass(frozen=True)
class SyntheticDataset:
    """Synthetic images with their labels and their origin.

    Attributes
    ----------
    data : ImageSet
        uint8 images and labels, ordered by label, then owner, then sample index.
    provenance : Tensor
        (n,) int64, for each image the index into ``shares`` of the module it came from.
    shares : tuple of Share
        The allocation.
    """

    data: ImageSet
    provenance: Tensor
    shares: tuple[Share, ...]

    def __len__(self) -> int:
        return len(self.data)

    def digest(self) -> str:
        """Return the SHA-256 of images and labels, by which nodes and server see that they hold the same set."""
        content = hashlib.sha256(repr(tuple(self.data.images.shape)).encode())
        content.update(self.data.images.numpy().tobytes())
        content.update(self.data.labels.numpy().tobytes())
        return content.hexdigest()


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


class SampleCache:
    """Samples on disk, by module and root seed, shared by all processes of a machine.

    A module's samples are drawn by whoever comes first, under a lock, and mapped into memory by the others. A request for
    more than is stored draws only what is missing.

    Parameters
    ----------
    folder : Path
        Where ``<module_id>-<root seed>.npy`` files are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, module_id: str, root_seed: int) -> Path:
        """Return the file of a module's samples."""
        return self.folder / f"{module_id}-{root_seed}.npy"

    def fill(self, requests: Sequence[Share], root_seed: int, draw: Callable[[Share, int], Tensor], first: int = 0) -> None:
        """See that every request can be read, drawing what is missing.

        Parameters
        ----------
        requests : sequence of Share
            What will be read.
        root_seed : int
            Root seed of the run.
        draw : callable
            ``draw(share, start)`` returns samples ``start`` to ``share.count - 1`` as uint8.
        first : int
            Where to begin; processes that begin at different places share the work.
        """
        from filelock import FileLock, Timeout

        rotated = [*requests[first % len(requests) :], *requests[: first % len(requests)]] if requests else []
        for patience in (0.0, -1.0):
            waiting = []
            for share in rotated:
                path = self.path(share.module_id, root_seed)
                try:
                    with FileLock(f"{path}.lock", timeout=patience):
                        self._extend(path, share, draw)
                except Timeout:
                    waiting.append(share)
            rotated = waiting

    def read(self, share: Share, root_seed: int) -> Tensor:
        """Return the first ``share.count`` samples, uint8 (count, C, H, W); `fill` must have been called."""
        stored = np.load(self.path(share.module_id, root_seed), mmap_mode="r", allow_pickle=False)
        return torch.from_numpy(np.array(stored[: share.count]))

    @staticmethod
    def _extend(path: Path, share: Share, draw: Callable[[Share, int], Tensor]) -> None:
        parts = []
        if path.exists():
            parts.append(np.load(path, allow_pickle=False))
        have = sum(len(part) for part in parts)
        if have >= share.count:
            return
        parts.append(draw(share, have).numpy())
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb") as file:
            np.save(file, np.concatenate(parts))
        unfinished.replace(path)


def synthesize(
    registry: ModuleRegistry, shares: Sequence[Share], root_seed: int, cache: SampleCache, device: torch.device, first: int = 0
) -> SyntheticDataset:
    """Draw the allocated samples of all modules.

    Parameters
    ----------
    registry : ModuleRegistry
        Holds the verified module files.
    shares : sequence of Share
        What `allocate` returned.
    root_seed : int
        Root seed of the run.
    cache : SampleCache
        Keeps the samples of each module.
    device : torch.device
        Where networks are evaluated.
    first : int
        Index of the share to begin with, see `SampleCache.fill`.

    Raises
    ------
    ModuleError
        When there is nothing to draw.
    """
    if not shares:
        raise ModuleError("no module to sample: at least one must be registered; see the refusals in the report")

    def draw(share: Share, start: int) -> Tensor:
        stream = generator(root_seed, "sample", share.module_id)
        return load_module(registry, share.module_id, device).sample(share.count - start, stream, start)

    cache.fill(shares, root_seed, draw, first)
    images = [cache.read(share, root_seed) for share in shares]
    counts = torch.tensor([share.count for share in shares])
    labels = torch.tensor([share.label for share in shares]).repeat_interleave(counts)
    provenance = torch.arange(len(shares)).repeat_interleave(counts)
    return SyntheticDataset(ImageSet(torch.cat(images), labels), provenance, tuple(shares))


def load_module(registry: ModuleRegistry, module_id: str, device: torch.device | str = "cpu") -> GenerativeModule[Any]:
    """Return the fitted module of a registered file."""
    manifest, state = registry.load(module_id)
    return restore_module(manifest.kind, manifest.spec, manifest.image_shape, state, device)
