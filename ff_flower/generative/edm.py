"""The ``edm`` module: a denoiser under EDM preconditioning (Karras et al. 2022, arXiv 2206.00364)."""

import copy
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..accelerator import accelerate, low_precision, place
from ..config import EDMSpec
from ..data.transforms import to_unit
from ..seeding import derive_seed, generator, seeded
from .base import GenerativeModule, Progress, check_state, not_fitted
from .unet import UNet


class Denoiser(nn.Module):
    """D(x; sigma), the estimate of the clean image (EDM, equation 7), around a raw network F.

    Parameters
    ----------
    network : Module
        F(x, level), with x of unit variance.
    sigma_data : float
        Standard deviation of the clean pixels.
    """

    sigma_data: Tensor

    def __init__(self, network: nn.Module, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("sigma_data", torch.tensor(sigma_data))

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return c_skip, c_out, c_in and c_noise (EDM, table 1), each shaped like ``sigma``."""
        total = sigma.square() + self.sigma_data.square()
        c_skip = self.sigma_data.square() / total
        c_out = sigma * self.sigma_data / total.sqrt()
        return c_skip, c_out, total.rsqrt(), sigma.log() / 4

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise (b, C, H, W) images at noise levels (b,)."""
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma[:, None, None, None])
        denoised: Tensor = c_skip * x + c_out * self.network(c_in * x, c_noise.flatten()).float()
        return denoised

    def loss(self, clean: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Return the mean of lambda(sigma) |D(y + n; sigma) - y|^2 with lambda = 1 / c_out^2 (EDM, equation 8)."""
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma[:, None, None, None])
        noisy = clean + sigma[:, None, None, None] * noise
        target = (clean - c_skip * noisy) / c_out
        return F.mse_loss(self.network(c_in * noisy, c_noise.flatten()).float(), target)


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
    """A compact U-Net denoiser, its EMA weights, and the Heun sampler."""

    kind = "edm"

    def __init__(self, spec: EDMSpec, image_shape: tuple[int, int, int], device: torch.device | str = "cpu") -> None:
        super().__init__(spec, image_shape, device)
        self.batch_blocks = 8 if self.device.type == "cuda" else 1
        self._denoiser: Denoiser | None = None

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The image's shape: sampling begins with an image of pure noise."""
        return self.image_shape

    def state(self) -> dict[str, Tensor]:
        """Return the EMA weights and ``sigma_data``."""
        if self._denoiser is None:
            raise not_fitted(self.kind)
        return dict(self._denoiser.state_dict())

    @classmethod
    def restore(
        cls, spec: EDMSpec, image_shape: tuple[int, int, int], state: Mapping[str, Tensor], device: torch.device | str = "cpu"
    ) -> Self:
        """Build a fitted module from EMA weights."""
        module = cls(spec, image_shape, device)
        with torch.device("meta"):
            empty = module._build(1.0)
        check_state(state, {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}, cls.kind)
        denoiser = module._build(1.0)
        denoiser.load_state_dict(dict(state))
        module._denoiser = place(denoiser.eval(), module.device)  # type: ignore[assignment]
        return module

    def _build(self, sigma_data: float) -> Denoiser:
        return Denoiser(UNet(self.image_shape, self.spec.channels, self.spec.depth, self.spec.patch), sigma_data)

    def _fit(self, images: Tensor, seed: int, progress: Progress | None) -> None:
        data = to_unit(images.to(self.device))
        # Stored at half precision, and so rounded to it here: what was trained is what will be sampled.
        sigma_data = max(float(data.std(correction=0).half()), 0.05)
        denoiser = place(seeded(lambda: self._build(sigma_data), derive_seed(seed, "init")), self.device)
        average = copy.deepcopy(denoiser).eval().requires_grad_(False)
        self._optimize(denoiser, average, data, generator(seed, "steps", device=self.device), progress)
        self._denoiser = average  # type: ignore[assignment]
        self.images_shown = self.spec.steps * self.spec.batch_size

    def _optimize(
        self, denoiser: nn.Module, average: nn.Module, data: Tensor, random: torch.Generator, progress: Progress | None
    ) -> None:
        """Take AdamW steps on EDM's loss, with warm-up and cosine decay, and follow the weights by a moving average."""
        spec, shape = self.spec, (self.spec.batch_size, *self.image_shape)
        weights: list[Tensor] = list(denoiser.parameters())
        averages: list[Tensor] = list(average.parameters())
        optimizer = torch.optim.AdamW(weights, lr=spec.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, spec.steps))
        loss_of = accelerate(_Loss(denoiser), self.device)
        for step in range(1, spec.steps + 1):
            index = torch.randint(len(data), (spec.batch_size,), generator=random, device=self.device)
            sigma = (torch.randn(len(index), generator=random, device=self.device) * spec.p_std + spec.p_mean).exp()
            noise = torch.randn(shape, generator=random, device=self.device)
            with low_precision(self.device):
                loss = loss_of(data[index], sigma, noise)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                torch._foreach_lerp_(averages, weights, 1 / (1 + spec.ema * step))
            if progress is not None and (step % max(1, spec.steps // 4) == 0):
                progress(step, spec.steps, float(loss))

    def _generate(self, noise: Tensor) -> Tensor:
        assert self._denoiser is not None
        spec = self.spec
        sigmas = sigma_schedule(spec.sampling_steps, spec.sigma_min, spec.sigma_max, spec.rho)
        with low_precision(self.device):
            return heun(self._denoiser, noise * sigmas[0], sigmas)


class _Loss(nn.Module):
    """The denoiser's loss as a module's forward, which is what can be compiled."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, clean: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        loss: Tensor = self.denoiser.loss(clean, sigma, noise)  # type: ignore[operator]
        return loss


def warmup_cosine(step: int, steps: int, warmup: float = 0.05) -> float:
    """Return the learning rate at ``step`` as a share of its peak: linear up, then a half cosine down to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
