"""What ``edm`` and ``flow`` share: a U-Net that corrects a Gaussian's best guess, trained on standardized images."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from ..accelerator import accelerate, low_precision, place
from ..config import ImageShape, UNetSpec
from ..data.transforms import AugmentationPolicy, augment, to_unit
from ..seeding import derive_seed, generator, seeded
from .augmentation import CONDITIONS, augment_and_tell
from .base import FitOptions, GenerativeModule, blocks_at_once, check_state, not_fitted
from .gaussian_prior import NUMBERS, ROWS, GaussianPrior
from .training import Objective, Training, split_holdout
from .unet import UNet

UNetSpecT = TypeVar("UNetSpecT", bound=UNetSpec)
Levels = Callable[[Tensor], Tensor]


class PriorCorrection(nn.Module):
    """An estimate from a noisy image: what is best for a Gaussian, plus a network's correction in units of its error.

    Parameters
    ----------
    network : Module
        F(images, level, condition); zero at the beginning.
    prior : GaussianPrior
        The Gaussian.
    """

    def __init__(self, network: nn.Module, prior: GaussianPrior) -> None:
        super().__init__()
        self.network, self.prior = network, prior

    @abstractmethod
    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Estimate from (b, C, H, W) noisy images at noise levels (b,)."""

    @abstractmethod
    def loss(self, clean: Tensor, level: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the mean weighted square error of the estimate from ``clean`` with ``noise`` at noise levels (b,)."""


def per_image(values: Tensor) -> Tensor:
    """Return (b,) values in the shape (b, 1, 1, 1)."""
    return values[:, None, None, None]


class StandardizedModel(Objective):
    """A model of standardized images, with the class's centre and scale: all that a module file holds.

    Parameters
    ----------
    model : PriorCorrection
        Of images of zero mean and unit variance.
    image_shape : tuple of int
        (C, H, W).
    spec : UNetSpec
        Gives symmetry and augmentation of the training images.
    levels : callable
        Maps uniform (b,) numbers to the noise levels of training.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, model: PriorCorrection, image_shape: ImageShape, spec: UNetSpec, levels: Levels) -> None:
        super().__init__()
        self.model, self.spec, self.levels = model, spec, levels
        self.policy = symmetry_policy(spec.symmetry)
        self.register_buffer("centre", torch.zeros(image_shape))
        self.register_buffer("scale", torch.ones(()))

    def draw(self, images: Tensor, random: torch.Generator) -> tuple[Tensor, ...]:
        """Return standardized images, noise levels, noise, and, in training, what told augmentation did."""
        images = augment(images, self.policy, random)
        told: tuple[Tensor, ...] = ()
        if self.spec.augmentation and self.training:
            images, label = augment_and_tell(images, self.spec.augmentation, random)
            told = (label,)
        strata = torch.arange(len(images), device=images.device)
        # One noise level in each of as many equally probable strata: the loss varies less than with independent draws.
        uniform = (strata + torch.rand(len(strata), generator=random, device=images.device)) / len(strata)
        noise = torch.randn(images.shape, generator=random, device=images.device)
        return (images - self.centre) / self.scale, self.levels(uniform.clamp(1e-4, 1 - 1e-4)), noise, *told

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the model's loss."""
        loss: Tensor = self.model.loss(*inputs)
        return loss

    def images(self, standardized: Tensor) -> Tensor:
        """Undo the standardization."""
        return standardized * self.scale + self.centre


class DiffusionModule(GenerativeModule[UNetSpecT]):
    """A compact U-Net that corrects the class's Gaussian, and the moving average of its weights."""

    model_class: ClassVar[type[PriorCorrection]]

    def __init__(self, spec: UNetSpecT, image_shape: ImageShape, device: torch.device | str = "cpu") -> None:
        super().__init__(spec, image_shape, device)
        self.batch_blocks = blocks_at_once(self.spec, image_shape, self.device)
        self._network: StandardizedModel | None = None
        self._rank = 0
        self._evaluate: nn.Module | None = None

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The image's shape: sampling begins with an image of pure noise."""
        return self.image_shape

    def state(self) -> dict[str, Tensor]:
        """Return the averaged weights, the prior, and the standardization."""
        if self._network is None:
            raise not_fitted(self.kind)
        tensors = dict(self._network.state_dict())
        return tensors | {name: tensors[name][: self._rank] for name in ("model.prior.directions", "model.prior.deviations")}

    @classmethod
    def restore(
        cls, spec: UNetSpecT, image_shape: ImageShape, state: Mapping[str, Tensor], device: torch.device | str = "cpu"
    ) -> Self:
        """Build a fitted module from its tensors; the prior may have fewer directions than ``spec.rank``."""
        module = cls(spec, image_shape, device)
        rank = min(state.get("model.prior.deviations", torch.empty(0)).numel(), module.spec.rank)
        with torch.device("meta"):
            empty = module._build(GaussianPrior.isotropic(math.prod(image_shape), rank))
        check_state(state, {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}, cls.kind)
        prior = GaussianPrior(*(state[f"model.prior.{name}"] for name in ("directions", "deviations", "floor")))
        network = seeded(lambda: module._build(module._of_one_shape(prior)), seed=0)
        network.load_state_dict({**state, **network.model.prior.state_dict(prefix="model.prior.")})
        module._take(network, rank)
        return module

    @abstractmethod
    def _levels(self, uniform: Tensor) -> Tensor:
        """Map uniform numbers to the noise levels of training."""

    @abstractmethod
    def _integrate(self, model: nn.Module, prior: GaussianPrior, noise: Tensor) -> Tensor:
        """Turn normal numbers into standardized images."""

    def _build(self, prior: GaussianPrior) -> StandardizedModel:
        spec, channels = self.spec, self.image_shape[0]
        conditions = CONDITIONS if spec.augmentation else 0
        unet = UNet(2 * channels, channels, spec.channels, spec.depth, spec.patch, spec.levels, conditions)
        return StandardizedModel(self.model_class(unet, prior), self.image_shape, spec, self._levels)

    def _of_one_shape(self, prior: GaussianPrior, compiled: bool = False) -> GaussianPrior:
        """Return the prior with all the directions that the spec allows where networks are compiled, once for all classes."""
        return prior.padded(self.spec.rank) if compiled or self.device.type == "cuda" else prior

    def _fit(self, images: Tensor, seed: int, options: FitOptions) -> None:
        kept, held = split_holdout(to_unit(images), options.holdout, seed)
        rows = shuffled_copies(kept, self.spec.symmetry, seed)
        if self.spec.augmentation:  # what the Gaussian does not expect, its error would weigh far too much
            rows, _ = augment_and_tell(rows, self.spec.augmentation, generator(seed, "told rows"))
        prior, centre, scale = GaussianPrior.fit(rows.flatten(1), self.spec.rank, seed, options.coarse_counts)
        network = seeded(lambda: self._build(self._of_one_shape(prior, options.compile_on_cpu)), derive_seed(seed, "init"))
        network.centre.copy_(centre.reshape(self.image_shape))
        network.scale.copy_(scale)
        network = place(network, self.device)
        training = Training(network, kept.to(self.device), held.to(self.device), self.spec, seed, options)
        best = training.run()
        assert isinstance(best, StandardizedModel)
        self._take(best, len(prior.deviations))
        self.images_shown = training.images_shown

    def _take(self, network: StandardizedModel, rank: int) -> None:
        self._rank = rank
        self._network = place(network.eval().requires_grad_(False), self.device)
        self._evaluate = accelerate(self._network.model, self.device)

    def _generate(self, noise: Tensor) -> Tensor:
        assert self._network is not None and self._evaluate is not None
        with low_precision(self.device):
            return self._network.images(self._integrate(self._evaluate, self._network.model.prior, noise))


def symmetric_copies(images: Tensor, symmetry: str) -> Iterator[Tensor]:
    """Yield ``images`` (n, C, H, W) under every element of the group that ``symmetry`` names: 1, 2, or 8 (4 if oblong)."""
    sides = [images] if symmetry == "none" else [images, images.flip(-1)]
    square = images.shape[-1] == images.shape[-2]
    turns = range(0, 4 if symmetry == "dihedral" else 1, 1 if square else 2)
    yield from (torch.rot90(side, turn, (2, 3)) for side in sides for turn in turns)


def shuffled_copies(images: Tensor, symmetry: str, seed: int, most: int = ROWS) -> Tensor:
    """Return `symmetric_copies` in random order, at most ``most`` and `NUMBERS` pixels: what a class's Gaussian is fitted to."""
    count = sum(1 for _ in symmetric_copies(images[:1], symmetry))
    most = min(most, NUMBERS // images[0].numel())
    chosen = torch.randperm(count * len(images), generator=generator(seed, "rows"))[:most]
    elements, numbers = chosen // len(images), chosen % len(images)
    copies = torch.empty((len(chosen), *images.shape[1:]))
    for element in range(count):
        mine = elements == element
        copies[mine] = next(islice(symmetric_copies(images[numbers[mine]], symmetry), element, None))
    return copies


def symmetry_policy(symmetry: str) -> AugmentationPolicy:
    """Return the augmentation that turns training images at random under the group of `symmetric_copies`."""
    return AugmentationPolicy(horizontal_flip=symmetry == "mirror", dihedral=symmetry == "dihedral")
