"""From noise to images: integrators of the two ordinary differential equations, with any number of evaluations."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
Velocity = Callable[[Tensor, Tensor], Tensor]


def sigma_schedule(steps: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """Return the ``steps + 1`` noise levels from ``sigma_max`` down to ``sigma_min`` and 0 (EDM, equation 5)."""
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = [(ends[0] + i / max(steps - 1, 1) * (ends[1] - ends[0])) ** rho for i in range(max(steps - 1, 1))]
    # The last level is not computed: where rho is small its root is lost beside that of the first.
    return [*levels, sigma_min, 0.0] if steps > 1 else [*levels, 0.0]


def heun_steps(evaluations: int) -> tuple[int, int]:
    """Return how many steps ``evaluations`` pay for, and how many of them, the first ones, are of second order."""
    steps = evaluations // 2 + 1
    return steps, evaluations - steps


def heun(denoise: Denoise, x: Tensor, sigmas: list[float], corrected: int | None = None) -> Tensor:
    """Integrate the probability-flow ODE by Heun's second-order method (EDM, algorithm 1, without churn).

    Parameters
    ----------
    denoise : callable
        D(x, sigma) with sigma (b,).
    x : Tensor
        (b, C, H, W) noise of standard deviation ``sigmas[0]``.
    sigmas : list of float
        Decreasing noise levels; where the last is 0, the last step is Euler's and so ends in D itself.
    corrected : int, optional
        Number of steps, the first ones, that are Heun's; the others are Euler's. By default all that can be.
    """
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        slope = (x - denoise(x, x.new_full((len(x),), sigma))) / sigma
        euler = x + (following - sigma) * slope
        if following == 0 or (corrected is not None and step >= corrected):
            x = euler
            continue
        second = (euler - denoise(euler, x.new_full((len(x),), following))) / following
        x = x + (following - sigma) * (slope + second) / 2
    return x


def dpm_solver_2m(denoise: Denoise, x: Tensor, sigmas: list[float]) -> Tensor:
    """Integrate by DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2), one evaluation per step.

    Each step is exact for a denoiser that is constant, and of second order in its length in -ln(sigma); the denoiser's slope
    comes from the step before. The first step, one after a step of no length, and one to 0 are of first order. Parameters are
    those of `heun`.
    """
    earlier: Tensor | None = None
    last = 0.0
    for sigma, following in pairwise(sigmas):
        clean = denoise(x, x.new_full((len(x),), sigma))
        if following == 0:
            return clean
        ratio = torch.tensor(following / sigma, dtype=torch.float64)
        step = float(-ratio.log())
        ahead = clean if earlier is None or not last else clean + step / (2 * last) * (clean - earlier)
        x = float(ratio) * x + (1 - float(ratio)) * ahead
        earlier, last = clean, step
    return x


def euler(velocity: Velocity, x: Tensor, evaluations: int) -> Tensor:
    """Integrate dx/dt = v(x, t) from noise at t = 1 to images at t = 0 in equal steps of first order."""
    times = torch.linspace(1, 0, evaluations + 1).tolist()
    for t, following in pairwise(times):
        x = x + (following - t) * velocity(x, x.new_full((len(x),), t))
    return x


def midpoint(velocity: Velocity, x: Tensor, evaluations: int) -> Tensor:
    """Integrate dx/dt = v(x, t) from t = 1 to t = 0 by the midpoint rule, of second order, two evaluations per step.

    Where ``evaluations`` is odd, the last step is Euler's.
    """
    times = torch.linspace(1, 0, (evaluations + 1) // 2 + 1).tolist()
    for step, (t, following) in enumerate(pairwise(times)):
        slope = velocity(x, x.new_full((len(x),), t))
        if 2 * step + 1 < evaluations:
            middle = (t + following) / 2
            slope = velocity(x + (middle - t) * slope, x.new_full((len(x),), middle))
        x = x + (following - t) * slope
    return x
