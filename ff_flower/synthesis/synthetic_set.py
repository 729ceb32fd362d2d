"""The class-balanced synthetic set, with provenance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..data import ImageSet
from ..errors import ModuleError
from ..generative import BLOCK, GenerativeModule, restore_module
from ..registry import ModuleRegistry
from ..seeding import generator
from .allocation import Share
from .sample_cache import SampleCache


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
        return self.data.digest()


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
    RunError
        When the cache cannot be written, for example to a full disk.
    """
    if not shares:
        raise ModuleError("no module to sample: at least one must be registered; see the refusals in the report")

    @lru_cache(maxsize=1)  # the chunks of one module follow each other
    def samples(module_id: str) -> _Samples:
        return _Samples(load_module(registry, module_id, device), lambda: sample_stream(root_seed, module_id))

    def draw(module_id: str, start: int, stop: int) -> Tensor:
        return samples(module_id).draw(start, stop)

    image_shape = registry.get(shares[0].module_id).manifest.image_shape
    cache.fill(shares, root_seed, image_shape, draw, first)
    counts = torch.tensor([share.count for share in shares])
    images = torch.empty((int(counts.sum()), *image_shape), dtype=torch.uint8)
    for share, part in zip(shares, torch.split(images, counts.tolist()), strict=True):
        cache.read(share, root_seed, part)
    labels = torch.tensor([share.label for share in shares]).repeat_interleave(counts)
    provenance = torch.arange(len(shares)).repeat_interleave(counts)
    return SyntheticDataset(ImageSet(images, labels), provenance, tuple(shares))


class _Samples:
    """The samples of one module, piece by piece; the noise of pieces in ascending order is drawn once.

    Parameters
    ----------
    module : GenerativeModule
        Fitted.
    begin : callable
        Returns the beginning of the stream of noise.
    """

    def __init__(self, module: GenerativeModule[Any], begin: Callable[[], torch.Generator]) -> None:
        self.module, self.begin = module, begin
        self._stream: torch.Generator | None = None
        self._reached = 0  # the sample whose noise the stream gives next, where a batch begins

    def draw(self, start: int, stop: int) -> Tensor:
        """Return samples ``start`` to ``stop - 1``, uint8 (stop - start, C, H, W)."""
        stream, reached, self._stream = self._stream, self._reached, None  # a drawing that fails leaves no stream behind
        if stream is None or start < reached:
            stream, reached = self.begin(), 0
        images = self.module.sample(stop - start, stream, start - reached)
        if stop % (BLOCK * self.module.batch_blocks) == 0:
            self._stream, self._reached = stream, stop
        return images


def sample_stream(root_seed: int, module_id: str) -> torch.Generator:
    """Return the beginning of the stream of noise from which a module's samples are made."""
    return generator(root_seed, "sample", module_id)


def load_module(registry: ModuleRegistry, module_id: str, device: torch.device | str = "cpu") -> GenerativeModule[Any]:
    """Return the fitted module of a registered file."""
    manifest, state = registry.load(module_id)
    return restore_module(manifest.kind, manifest.spec, manifest.image_shape, state, device)
