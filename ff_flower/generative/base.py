"""The grammar of every generative module: construct, ``fit``, ``sample``, ``state``, ``restore``.

Sample *k* is a function of the module's state and of row *k* of one stream of normal numbers. The stream is drawn, and
the network evaluated, in batches of one fixed shape, so that a longer request repeats a shorter one bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from ..config import ImageShape, KindSpec
from ..config.modules import NetworkSpec
from ..data.transforms import to_uint8
from ..errors import ModuleError, NotFittedError

SpecT = TypeVar("SpecT", bound=KindSpec)
Progress = Callable[[int, float, float], None]
Check = Callable[[Tensor], None]

BLOCK = 64
GPU_BLOCKS = 8
GPU_NUMBERS = 2**30  # held at a time: 4 GiB of float32
ONE_IMAGE = "one image, or equal ones: a module learns nothing from one image; check the class's files, or pool classes"


@dataclass(frozen=True)
class FitOptions:
    """How a fit is watched, limited and resumed; the defaults train for the spec's whole budget.

    Attributes
    ----------
    progress : callable, optional
        Called now and then with (images shown, share of the budget that is spent, loss).
    holdout : float
        Share of the images that is not trained on and tells which step's weights are kept; 0 keeps the last.
    max_seconds : float
        The schedule is shortened to this time; 0 sets no limit.
    checkpoint : Path, optional
        Where an unfinished fit is kept, and from which it continues.
    checkpoint_seconds : float
        Pause between two checkpoints.
    compile_on_cpu : bool
        Whether a network's training is compiled on a CPU as it is on a GPU.
    coarse_counts : bool
        Whether a module may tell the number of images roughly only: of directions, components and Gaussians there are then at
        most the largest power of two that the images allow, and no error names their number.
    """

    progress: Progress | None = None
    holdout: float = 0.0
    max_seconds: float = 0.0
    checkpoint: Path | None = None
    checkpoint_seconds: float = 60.0
    compile_on_cpu: bool = False
    coarse_counts: bool = False


class GenerativeModule(ABC, Generic[SpecT]):
    """A generative model of the images of one class.

    Parameters
    ----------
    spec : KindSpec
        Settings of this kind; ``module.spec`` has them with a size's placeholders filled in.
    image_shape : tuple of int
        ``(C, H, W)`` of the images.
    device : torch.device
        Where fitting and sampling are done.
    """

    kind: ClassVar[str]
    batch_blocks: int = 1

    def __init__(self, spec: SpecT, image_shape: ImageShape, device: torch.device | str = "cpu") -> None:
        self.spec = spec.resolved(image_shape)
        self.image_shape = image_shape
        self.device = torch.device(device)
        self.images_shown = 0

    def fit(self, images: Tensor, seed: int, options: FitOptions = FitOptions()) -> Self:
        """Learn the distribution of ``images``.

        Parameters
        ----------
        images : Tensor
            (n, C, H, W) uint8 in [0, 255], all of one class.
        seed : int
            Root of every random number of the fit; equal seeds give equal states on one machine.
        options : FitOptions
            How the fit is watched, limited and resumed.

        Raises
        ------
        ModuleError
            When the images do not fit ``image_shape``, are all equal, or training ends in weights that are not finite.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape or not len(images):
            shape = images.shape[1:] if options.coarse_counts else images.shape
            raise ModuleError(
                f"images of shape {tuple(shape)} and type {images.dtype}: a {self.kind} module for {self.image_shape} "
                "takes at least one uint8 image of that shape; check data.size"
            )
        if len(images) > 1 and bool((images == images[:1]).all()):
            exact = f"{len(images)} equal images: a module learns nothing from one image; check the class's files"
            raise ModuleError(ONE_IMAGE if options.coarse_counts else exact)
        self._fit(images, seed, options)
        broken = [name for name, tensor in self.state().items() if not torch.isfinite(tensor).all()]
        if broken:
            raise ModuleError(f"weights {broken[0]!r} are not finite after fitting: lower the learning rate or the budget")
        return self

    @torch.inference_mode()
    def sample(self, n: int, generator: torch.Generator, start: int = 0, check: Check | None = None) -> Tensor:
        """Return samples ``start`` to ``start + n - 1`` of the stream that ``generator`` begins.

        Parameters
        ----------
        n : int
            Number of samples.
        generator : torch.Generator
            A fresh CPU generator; the whole stream follows from its seed. Or one that stands where a batch begins.
        start : int
            Index of the first sample, counted from where the generator stands.
        check : callable, optional
            Is shown every batch before it is clamped and quantized: (b, C, H, W) floats, about [-1, 1]; may refuse by raising.

        Returns
        -------
        Tensor
            (n, C, H, W) uint8 in [0, 255], on the CPU.

        Raises
        ------
        NotFittedError
            Before ``fit`` or ``restore``.
        """
        self.state()
        # Batches begin at their multiples: a sample has the same place in its batch whatever was asked for.
        first, stop = start // (BLOCK * self.batch_blocks) * self.batch_blocks, -(-(start + n) // BLOCK)
        for _ in range(first):
            self._noise(generator)
        parts = []
        for noise, rows in self._batches(generator, stop - first):
            batch = self._generate(noise.to(self.device))[:rows]
            if check is not None:
                check(batch)
            parts.append(to_uint8(batch).cpu())
        images = torch.cat(parts) if parts else torch.empty((0, *self.image_shape), dtype=torch.uint8)
        offset = start - first * BLOCK
        return images[offset : offset + n]

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return everything that ``sample`` needs, by name; raise `NotFittedError` before ``fit``."""

    @classmethod
    @abstractmethod
    def restore(
        cls, spec: SpecT, image_shape: ImageShape, state: Mapping[str, Tensor], device: torch.device | str = "cpu"
    ) -> Self:
        """Build a fitted module from ``state``; raise `ModuleError` where names or shapes do not belong to ``spec``."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the normal numbers from which one sample is made."""

    @abstractmethod
    def _fit(self, images: Tensor, seed: int, options: FitOptions) -> None:
        """Learn from checked images."""

    @abstractmethod
    def _generate(self, noise: Tensor) -> Tensor:
        """Turn (b, *latent_shape) standard normal numbers into (b, C, H, W) images, about [-1, 1]."""

    def _noise(self, generator: torch.Generator) -> Tensor:
        return torch.randn((BLOCK, *self.latent_shape), generator=generator)

    def _batches(self, generator: torch.Generator, blocks: int) -> Iterator[tuple[Tensor, int]]:
        """Yield noise for ``blocks`` blocks in batches of one shape, the last perhaps filled up, and the rows to keep of each."""
        for begin in range(0, blocks, self.batch_blocks):
            drawn = [self._noise(generator) for _ in range(min(self.batch_blocks, blocks - begin))]
            filling = [torch.zeros_like(drawn[0])] * (self.batch_blocks - len(drawn))
            yield torch.cat(drawn + filling), len(drawn) * BLOCK


def allowed(count: int, coarse: bool) -> int:
    """Return ``count``, or where a ``coarse`` number is wanted the largest power of two that is not above it; 0 stays 0."""
    return 1 << (count.bit_length() - 1) if coarse and count else count


def blocks_at_once(spec: NetworkSpec, image_shape: ImageShape, device: torch.device) -> int:
    """Return how many blocks a network samples in one batch: one on a CPU, up to 8 on a GPU, as its memory allows."""
    if device.type != "cuda":
        return 1
    most = max(1, min(GPU_BLOCKS, GPU_NUMBERS // (BLOCK * spec.activations(image_shape))))
    return 1 << (most.bit_length() - 1)


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], kind: str) -> None:
    """Refuse a ``state`` whose names or shapes are not ``expected`` (ModuleError)."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(shapes.keys() ^ expected.keys()):
        raise ModuleError(f"tensor {name!r}: a {kind} module of this spec has exactly {len(expected)} others; refit it")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ModuleError(f"tensor {name!r} has shape {shapes[name]}: a {kind} module of this spec has {shape}; refit it")


def not_fitted(kind: str) -> NotFittedError:
    """Return the error of a module that is asked before it learned."""
    return NotFittedError(f"this {kind} module holds no weights: call fit or restore first")
