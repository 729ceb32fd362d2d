"""The ``edm`` module: a denoiser under EDM preconditioning (Karras et al. 2022, arXiv 2206.00364)."""

import copy
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..accelerator import accelerate, low_precision, place
from ..config import EDMSpec
from ..data.transforms import AugmentationPolicy, augment, to_unit
from ..seeding import derive_seed, generator, seeded
from .base import GenerativeModule, Progress, check_state, not_fitted
from .gaussian_prior import GaussianPrior
from .unet import UNet


class Denoiser(nn.Module):
    """D(x; sigma), the estimate of the clean image, as a Gaussian's posterior mean plus a network's correction.

    D(x; sigma) = G(x; sigma) + c_out(sigma) F([c_in x, G(x; sigma)]; c_noise), which is EDM's equation 7 with the class's own
    Gaussian in the place of independent pixels (see `GaussianPrior`). Images are standardized: zero mean, unit variance.

    Parameters
    ----------
    network : Module
        F(images, level); zero at the beginning, when D is the best denoiser of the Gaussian.
    prior : GaussianPrior
        G and its error c_out.
    """

    def __init__(self, network: nn.Module, prior: GaussianPrior) -> None:
        super().__init__()
        self.network, self.prior = network, prior

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise (b, C, H, W) images at noise levels (b,)."""
        first = self.prior(x, sigma)
        denoised: Tensor = first + self._per_image(self.prior.error(sigma)) * self._correction(x, sigma, first)
        return denoised

    def loss(self, clean: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Return the mean of lambda(sigma) |D(y + n; sigma) - y|^2 with lambda = 1 / c_out^2 (EDM, equation 8)."""
        noisy = clean + self._per_image(sigma) * noise
        first = self.prior(noisy, sigma)
        target = (clean - first) / self._per_image(self.prior.error(sigma))
        return F.mse_loss(self._correction(noisy, sigma, first), target)

    def _correction(self, x: Tensor, sigma: Tensor, first: Tensor) -> Tensor:
        c_in = self._per_image((sigma.square() + 1).rsqrt())
        raw: Tensor = self.network(torch.cat([c_in * x, first], dim=1), sigma.log() / 4)
        return raw.float()

    @staticmethod
    def _per_image(values: Tensor) -> Tensor:
        return values[:, None, None, None]


def sigma_schedule(steps: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """Return the ``steps + 1`` noise levels from ``sigma_max`` down to ``sigma_min`` and 0 (EDM, equation 5)."""
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(ends[0] + i / max(steps - 1, 1) * (ends[1] - ends[0])) ** rho for i in range(steps)] + [0.0]


def heun(denoiser: nn.Module, x: Tensor, sigmas: list[float]) -> Tensor:
    """Integrate the probability-flow ODE by Heun's second-order method (EDM, algorithm 1, without churn).

    Parameters
    ----------
    denoiser : callable
        D(x, sigma) with sigma (b,).
    x : Tensor
        (b, C, H, W) noise of standard deviation ``sigmas[0]``.
    sigmas : list of float
        Decreasing noise levels; where the last is 0, the last step is Euler's and so ends in D itself.
    """
    for sigma, following in pairwise(sigmas):
        slope = (x - denoiser(x, x.new_full((len(x),), sigma))) / sigma
        euler: Tensor = x + (following - sigma) * slope
        if following == 0:
            return euler
        corrected = (euler - denoiser(euler, x.new_full((len(x),), following))) / following
        x = x + (following - sigma) * (slope + corrected) / 2
    return x


class EDMModule(GenerativeModule[EDMSpec]):
    """A compact U-Net that corrects the class's Gaussian denoiser, its EMA weights, and the Heun sampler."""

    kind = "edm"

    def __init__(self, spec: EDMSpec, image_shape: tuple[int, int, int], device: torch.device | str = "cpu") -> None:
        super().__init__(spec, image_shape, device)
        self.batch_blocks = 8 if self.device.type == "cuda" else 1
        self._network: _Standardized | None = None

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The image's shape: sampling begins with an image of pure noise."""
        return self.image_shape

    def state(self) -> dict[str, Tensor]:
        """Return the EMA weights, the prior, and the standardization."""
        if self._network is None:
            raise not_fitted(self.kind)
        return dict(self._network.state_dict())

    @classmethod
    def restore(
        cls, spec: EDMSpec, image_shape: tuple[int, int, int], state: Mapping[str, Tensor], device: torch.device | str = "cpu"
    ) -> Self:
        """Build a fitted module from its tensors; the prior may have fewer directions than ``spec.rank``."""
        module = cls(spec, image_shape, device)
        rank = min(state.get("denoiser.prior.deviations", torch.empty(0)).numel(), spec.rank)
        with torch.device("meta"):
            empty = module._build(GaussianPrior.isotropic(math.prod(image_shape), rank))
        check_state(state, {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}, cls.kind)
        network = seeded(lambda: module._build(GaussianPrior.isotropic(math.prod(image_shape), rank)), seed=0)
        network.load_state_dict(dict(state))
        module._network = place(network.eval(), module.device)
        return module

    def _build(self, prior: GaussianPrior) -> "_Standardized":
        spec, channels = self.spec, self.image_shape[0]
        unet = UNet(2 * channels, channels, spec.channels, spec.depth, spec.patch)
        return _Standardized(Denoiser(unet, prior), self.image_shape)

    def _fit(self, images: Tensor, seed: int, progress: Progress | None) -> None:
        data = to_unit(images)
        rows = torch.cat(list(symmetric_copies(data, self.spec.symmetry))).flatten(1)
        rows = rows[torch.randperm(len(rows), generator=generator(seed, "rows"))]
        prior, centre, scale = GaussianPrior.fit(rows, self.spec.rank, seed)
        network = seeded(lambda: self._build(prior), derive_seed(seed, "init"))
        network.centre.copy_(centre.reshape(self.image_shape))
        network.scale.copy_(scale)
        network = place(network, self.device)
        average = copy.deepcopy(network).eval().requires_grad_(False)
        self._optimize(network, average, data.to(self.device), generator(seed, "steps", device=self.device), progress)
        self._network = average
        self.images_shown = self.spec.steps * self.spec.batch_size

    def _optimize(
        self,
        network: "_Standardized",
        average: "_Standardized",
        data: Tensor,
        random: torch.Generator,
        progress: Progress | None,
    ) -> None:
        """Take AdamW steps on EDM's loss, with warm-up and cosine decay, and follow the weights by a moving average."""
        spec, shape = self.spec, (self.spec.batch_size, *self.image_shape)
        weights: list[Tensor] = list(network.parameters())
        averages: list[Tensor] = list(average.parameters())
        optimizer = torch.optim.AdamW(weights, lr=spec.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, spec.steps))
        loss_of = accelerate(_Loss(network.denoiser), self.device)
        policy = AugmentationPolicy(horizontal_flip=spec.symmetry == "mirror", dihedral=spec.symmetry == "dihedral")
        strata = torch.arange(spec.batch_size, device=self.device)
        recent = torch.ones((), device=self.device)  # the loss of a Gaussian class, with which every fit begins
        for step in range(1, spec.steps + 1):
            index = torch.randint(len(data), (spec.batch_size,), generator=random, device=self.device)
            clean = network.standardize(augment(data[index], policy, random))
            # One noise level in each of as many equally probable strata: the loss varies less than with independent draws.
            uniform = (strata + torch.rand(len(strata), generator=random, device=self.device)) / len(strata)
            sigma = (torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4)) * spec.p_std + spec.p_mean).exp()
            noise = torch.randn(shape, generator=random, device=self.device)
            with low_precision(self.device):
                loss = loss_of(clean, sigma, noise)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                torch._foreach_lerp_(averages, weights, 1 / (1 + spec.ema * step))
            recent = recent.lerp(loss.detach(), 0.05)
            if progress is not None and step % max(1, spec.steps // 4) == 0:
                progress(step, spec.steps, float(recent))

    def _generate(self, noise: Tensor) -> Tensor:
        assert self._network is not None
        spec, denoiser = self.spec, self._network.denoiser
        sigmas = sigma_schedule(spec.sampling_steps, spec.sigma_min, spec.sigma_max, spec.rho)
        with low_precision(self.device):
            return self._network.images(heun(denoiser, denoiser.prior.noisy(noise, sigmas[0]), sigmas))


class _Standardized(nn.Module):
    """A denoiser of standardized images, with the class's centre and scale: all that a module file holds."""

    centre: Tensor
    scale: Tensor

    def __init__(self, denoiser: Denoiser, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.register_buffer("centre", torch.zeros(image_shape))
        self.register_buffer("scale", torch.ones(()))

    def standardize(self, images: Tensor) -> Tensor:
        return (images - self.centre) / self.scale

    def images(self, standardized: Tensor) -> Tensor:
        return standardized * self.scale + self.centre


def symmetric_copies(images: Tensor, symmetry: str) -> Iterator[Tensor]:
    """Yield ``images`` (n, C, H, W) under every element of the group that ``symmetry`` names: 1, 2, or 8 (4 if oblong)."""
    sides = [images] if symmetry == "none" else [images, images.flip(-1)]
    square = images.shape[-1] == images.shape[-2]
    turns = range(0, 4 if symmetry == "dihedral" else 1, 1 if square else 2)
    yield from (torch.rot90(side, turn, (2, 3)) for side in sides for turn in turns)


class _Loss(nn.Module):
    """The denoiser's loss as a module's forward, which is what can be compiled."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, clean: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        return self.denoiser.loss(clean, sigma, noise)


def warmup_cosine(step: int, steps: int, warmup: float = 0.1) -> float:
    """Return the learning rate at ``step`` as a share of its peak: linear up, then a half cosine down to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
