"""The ``flow`` module: rectified flow (Liu et al. 2022, arXiv 2209.03003), which is flow matching along straight lines."""

import torch
from torch import Tensor, nn

from ..config import FlowSpec
from .diffusion import DiffusionModule, PriorCorrection, per_image
from .gaussian_prior import GaussianPrior
from .samplers import euler, midpoint


class VelocityField(PriorCorrection):
    """v(x, t), the estimate of noise - clean at x = (1 - t) clean + t noise: a Gaussian's, plus a network's correction."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Return the velocity at (b, C, H, W) images of times t (b,), 0 for images and 1 for noise."""
        first = self.prior.velocity(x, level)
        velocity: Tensor = first + per_image(self.prior.velocity_error(level)) * self._correction(x, level, first, None)
        return velocity

    def loss(self, clean: Tensor, level: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the mean of |v(x, t) - (noise - clean)|^2 (Liu et al. 2022, equation 1)."""
        mixed = torch.lerp(clean, noise, per_image(level))
        first = self.prior.velocity(mixed, level)
        correction = per_image(self.prior.velocity_error(level)) * self._correction(mixed, level, first, condition)
        return (first + correction - (noise - clean)).square().mean()

    def _correction(self, x: Tensor, t: Tensor, first: Tensor, condition: Tensor | None) -> Tensor:
        c_in = per_image(((1 - t).square() + t.square()).rsqrt())
        raw: Tensor = self.network(torch.cat([c_in * x, first], dim=1), torch.logit(t, 1e-4) / 4, condition)
        return raw.float()


class FlowModule(DiffusionModule[FlowSpec]):
    """A `VelocityField`, integrated by the midpoint rule or Euler's."""

    kind = "flow"
    model_class = VelocityField

    def _levels(self, uniform: Tensor) -> Tensor:
        return torch.sigmoid(torch.special.ndtri(uniform) * self.spec.t_std + self.spec.t_mean)

    def _integrate(self, model: nn.Module, prior: GaussianPrior, noise: Tensor) -> Tensor:
        integrate = midpoint if self.spec.sampler == "midpoint" else euler
        return integrate(model, noise, self.spec.evaluations)
