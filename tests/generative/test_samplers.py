"""The integrators, on equations whose solutions are known."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from closed_forms import Loud, normal
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from ff_flower.generative.edm import Denoiser
from ff_flower.generative.gaussian_prior import GaussianPrior
from ff_flower.generative.samplers import dpm_solver_2m, euler, heun, heun_steps, midpoint, sigma_schedule

LOW, HIGH = 0.02, 10.0


def _ratios(errors: list[float]) -> list[float]:
    return [coarse / fine for coarse, fine in pairwise(errors)]


@pytest.mark.parametrize("independent", [True, False])
@pytest.mark.parametrize("integrate", [heun, dpm_solver_2m])
def test_denoisers_samplers_have_order_two(prior: GaussianPrior, integrate: Callable[..., Tensor], independent: bool) -> None:
    """A Gaussian's path is (C + sigma^2 I)^(1/2) z, so sqrt(1 + sigma^2) z for C = I; halving the steps quarters the error."""
    prior = GaussianPrior.isotropic(9).double() if independent else prior
    z = normal(6, 1, 3, 3)
    exact = prior.noisy(z, LOW)
    assert not independent or torch.allclose(exact, math.sqrt(1 + LOW**2) * z)
    errors = []
    for steps in (64, 128, 256, 512):
        end = integrate(prior, prior.noisy(z, HIGH), sigma_schedule(steps + 1, LOW, HIGH, 7.0)[:-1])
        errors.append(float((end - exact).abs().max()))
    assert errors[-1] < 1e-3 and all(3.5 < ratio < 4.5 for ratio in _ratios(errors))


@pytest.mark.parametrize(("integrate", "power"), [(midpoint, 2), (euler, 1)])
def test_velocitys_samplers_have_their_order(integrate: Callable[..., Tensor], power: int) -> None:
    """Along dx/dt = x, which ends in x / e, twice the steps divide the midpoint rule's error by 4 and Euler's by 2."""
    x = normal(6, 1, 3, 3)
    errors = [float((integrate(lambda x, t: x, x, power * steps) - x / math.e).abs().max()) for steps in (64, 128, 256, 512)]
    assert all(0.95 * 2**power < ratio < 1.05 * 2**power for ratio in _ratios(errors))


@pytest.mark.parametrize(("integrate", "power"), [(midpoint, 2), (euler, 1)])
def test_a_gaussian_flows_along_its_exact_path(prior: GaussianPrior, integrate: Callable[..., Tensor], power: int) -> None:
    """A Gaussian flows along ((1 - t)^2 C + t^2 I)^(1/2) z to C^(1/2) z, at least with the sampler's order."""
    z = normal(6, 1, 3, 3)
    exact = prior.noisy(z, 0.0)
    errors = [float((integrate(prior.velocity, z, power * steps) - exact).abs().max()) for steps in (64, 128, 256, 512)]
    assert errors[-1] < 0.01 and all(ratio > 0.95 * 2**power for ratio in _ratios(errors))


@pytest.mark.parametrize("evaluations", range(1, 21))
def test_evaluations_are_counted_exactly(evaluations: int) -> None:
    """For any number E of evaluations each sampler asks its network exactly E times."""
    asked = 0

    def answer(x: Tensor, level: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        assert level.shape == x.shape[:1] and (level > 0).all()
        return 0.5 * x

    x = normal(2, 1, 2, 2)
    steps, corrected = heun_steps(evaluations)
    euler(answer, x, evaluations)
    midpoint(answer, x, evaluations)
    heun(answer, x, sigma_schedule(steps, LOW, HIGH, 7.0), corrected)
    dpm_solver_2m(answer, x, sigma_schedule(evaluations, LOW, HIGH, 7.0))
    assert asked == 4 * evaluations


def test_levels_that_round_to_one_are_no_division_by_zero() -> None:
    """Where the lowest level is the highest but for rounding, steps have no length, and the result is the denoiser's."""
    levels = sigma_schedule(6, 9.999999999999998, 10.0, 100.0)
    assert max(levels) - min(levels[:-1]) < 1e-12
    for integrate in (heun, dpm_solver_2m):
        end = integrate(lambda x, level: 0 * x + 3, normal(2, 1, 2, 2), levels)
        assert torch.allclose(end, torch.full_like(end, 3))


def test_odd_evaluations_correct_every_step_but_the_last() -> None:
    """Of Heun's steps all that can be are of second order where the number of evaluations is odd, as in EDM's algorithm 1."""
    for evaluations in range(1, 20, 2):
        steps, corrected = heun_steps(evaluations)
        assert (steps, corrected) == ((evaluations + 1) // 2, (evaluations - 1) // 2)


@pytest.mark.parametrize("evaluations", range(1, 10))
@pytest.mark.parametrize("integrate", [euler, midpoint])
def test_straight_paths_land_exactly(integrate: Callable[..., Tensor], evaluations: int) -> None:
    """Where all data are one point, v = (x - x0) / t, and any number of steps ends in x0."""
    goal = normal(1, 1, 3, 3, seed=1)
    end = integrate(lambda x, t: (x - goal) / t[:, None, None, None], normal(4, 1, 3, 3), evaluations)
    assert torch.allclose(end, goal.expand_as(end), atol=1e-7)


@pytest.mark.parametrize("steps", range(1, 10))
@pytest.mark.parametrize("integrate", [heun, dpm_solver_2m])
def test_a_constant_denoiser_is_reached_exactly(integrate: Callable[..., Tensor], steps: int) -> None:
    """Where all data are one point, D = x0: each level is reached on the line x0 + sigma z, and the end is x0."""
    goal, z = normal(1, 1, 3, 3, seed=1), normal(4, 1, 3, 3)
    sigmas = sigma_schedule(steps, LOW, HIGH, 7.0)
    start = goal + sigmas[0] * z
    for stop in range(1, steps + 2):
        assert torch.allclose(integrate(lambda x, sigma: goal.expand_as(x), start, sigmas[:stop]), goal + sigmas[stop - 1] * z)


@pytest.mark.parametrize("integrate", [heun, dpm_solver_2m])
def test_the_last_step_ends_in_the_denoiser(prior: GaussianPrior, integrate: Callable[..., Tensor]) -> None:
    """A step to sigma = 0 returns D(x; sigma) itself."""
    denoiser, x = Denoiser(Loud(), prior), normal(2, 1, 3, 3)
    assert torch.allclose(integrate(denoiser, x, [2.0, 0.0]), denoiser(x, x.new_full((2,), 2.0)))


def test_a_heun_step_follows_the_mean_slope(prior: GaussianPrior) -> None:
    """Heun's step follows the mean of the slopes at both ends, and one that is not corrected the slope at its beginning."""
    denoiser, x = Denoiser(Loud(), prior), normal(2, 1, 3, 3)
    first = (x - denoiser(x, x.new_full((2,), 2.0))) / 2.0
    second = (x - first - denoiser(x - first, x.new_full((2,), 1.0))) / 1.0
    assert torch.allclose(heun(denoiser, x, [2.0, 1.0]), x - (first + second) / 2)
    assert torch.allclose(heun(denoiser, x, [2.0, 1.0], corrected=0), x - first)


def test_a_midpoint_step_follows_the_slope_in_the_middle() -> None:
    """One step of the midpoint rule from t = 1 to 0 follows the velocity at t = 1/2, where half an Euler step leads."""
    x = normal(2, 1, 3, 3)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) * (1 + t)[:, None, None, None]

    half = x - velocity(x, x.new_ones(2)) / 2
    assert torch.allclose(midpoint(velocity, x, 2), x - velocity(half, x.new_full((2,), 0.5)))
    assert torch.allclose(midpoint(velocity, x, 1), euler(velocity, x, 1))


@given(steps=st.integers(2, 50), low=st.floats(0.001, 0.5), high=st.floats(1.0, 100.0), rho=st.floats(0.1, 100.0))
@example(steps=5, low=0.05, high=10.0, rho=0.1)  # the root of the last level is 10^-23 of that of the first
def test_the_schedule_falls_from_end_to_end(steps: int, low: float, high: float, rho: float) -> None:
    """The levels fall from sigma_max to sigma_min and then to 0, evenly in their rho-th roots (EDM, equation 5)."""
    sigmas = sigma_schedule(steps, low, high, rho)
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0
    assert sigmas[0] == pytest.approx(high) and sigmas[-2] == low
    assert all(larger > smaller for larger, smaller in pairwise(sigmas))
    gaps = [larger ** (1 / rho) - smaller ** (1 / rho) for larger, smaller in pairwise(sigmas[:-1])]
    assert gaps == pytest.approx([gaps[0]] * len(gaps), rel=1e-6, abs=1e-9)


def test_heuns_steps_are_finite_for_the_least_rho(prior: GaussianPrior) -> None:
    """With the least ``rho`` that the settings allow Heun's method ends in numbers, and no step divides by 0."""
    sigmas = sigma_schedule(5, 0.05, 10.0, 0.1)
    assert heun(prior, prior.noisy(normal(2, 1, 3, 3), 10.0), sigmas).isfinite().all()


def test_one_step_goes_from_the_top_to_zero() -> None:
    """With a single step the schedule is sigma_max and 0."""
    assert sigma_schedule(1, 0.02, 80.0, 7.0) == [pytest.approx(80.0), 0.0]
