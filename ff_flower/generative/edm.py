"""The ``edm`` module: a denoiser under EDM preconditioning (Karras et al. 2022, arXiv 2206.00364)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import EDMSpec
from .diffusion import DiffusionModule, PriorCorrection, per_image
from .gaussian_prior import GaussianPrior
from .samplers import dpm_solver_2m, heun, heun_steps, sigma_schedule


class Denoiser(PriorCorrection):
    """D(x; sigma), the estimate of the clean image, as a Gaussian's posterior mean plus a network's correction.

    D(x; sigma) = G(x; sigma) + c_out(sigma) F([c_in x, G(x; sigma)]; c_noise), which is EDM's equation 7 with the class's own
    Gaussian in the place of independent pixels (see `GaussianPrior`).
    """

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Denoise (b, C, H, W) images at noise levels sigma (b,)."""
        first = self.prior(x, level)
        denoised: Tensor = first + per_image(self.prior.error(level)) * self._correction(x, level, first, None)
        return denoised

    def loss(self, clean: Tensor, level: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the mean of lambda(sigma) |D(y + n; sigma) - y|^2 with lambda = 1 / c_out^2 (EDM, equation 8)."""
        noisy = clean + per_image(level) * noise
        first = self.prior(noisy, level)
        target = (clean - first) / per_image(self.prior.error(level))
        return F.mse_loss(self._correction(noisy, level, first, condition), target)

    def _correction(self, x: Tensor, sigma: Tensor, first: Tensor, condition: Tensor | None) -> Tensor:
        c_in = per_image((sigma.square() + 1).rsqrt())
        raw: Tensor = self.network(torch.cat([c_in * x, first], dim=1), sigma.log() / 4, condition)
        return raw.float()


class EDMModule(DiffusionModule[EDMSpec]):
    """A `Denoiser` under EDM's training, sampled by Heun's method or DPM-Solver++(2M)."""

    kind = "edm"
    model_class = Denoiser

    def _levels(self, uniform: Tensor) -> Tensor:
        sigma: Tensor = (torch.special.ndtri(uniform) * self.spec.p_std + self.spec.p_mean).exp()
        return sigma

    def _integrate(self, model: nn.Module, prior: GaussianPrior, noise: Tensor) -> Tensor:
        spec = self.spec
        heuns = spec.sampler == "heun"
        steps, corrected = heun_steps(spec.evaluations) if heuns else (spec.evaluations, 0)
        sigmas = sigma_schedule(steps, spec.sigma_min, spec.sigma_max, spec.rho)
        start = prior.noisy(noise, sigmas[0])
        return heun(model, start, sigmas, corrected) if heuns else dpm_solver_2m(model, start, sigmas)
