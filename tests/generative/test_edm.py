"""The EDM denoiser and its loss, against closed forms (Karras et al. 2022)."""

import math

import pytest
import torch
from closed_forms import LEVELS, Loud, Silent, normal
from torch import Tensor

from ff_flower.config import EDMSpec
from ff_flower.data import to_uint8
from ff_flower.generative import BLOCK, EDMModule
from ff_flower.generative.edm import Denoiser
from ff_flower.generative.gaussian_prior import GaussianPrior


def test_the_silent_denoiser_is_the_best_of_a_gaussian(prior: GaussianPrior) -> None:
    """Where the network says zero, the denoiser is the Gaussian's posterior mean."""
    x = normal(len(LEVELS), 1, 3, 3)
    assert torch.allclose(Denoiser(Silent(), prior)(x, LEVELS), prior(x, LEVELS))


def test_without_directions_it_is_the_preconditioning_of_edm() -> None:
    """For independent pixels of unit variance D = c_skip x + c_out F(c_in x) with the coefficients of EDM's table 1."""
    x, sigma = normal(len(LEVELS), 1, 3, 3), LEVELS[:, None, None, None]
    denoised = Denoiser(Loud(), GaussianPrior.isotropic(9).double())(x, LEVELS)
    total = sigma**2 + 1
    c_skip, c_out, c_in, c_noise = 1 / total, sigma / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4
    raw = torch.tanh(c_in * x - 2 * c_skip * x + c_noise)
    assert torch.allclose(denoised, c_skip * x + c_out * raw, atol=1e-6)


def test_loss_of_the_silent_network_has_a_closed_form(prior: GaussianPrior) -> None:
    """At F = 0 the loss is the mean of |y - G(y + sigma n)|^2 / c_out^2, whose expectation over the Gaussian's y and n is 1."""
    n = 20_000
    clean, noise = prior.noisy(normal(n, 1, 3, 3, seed=1), 0.0), normal(n, 1, 3, 3, seed=2)
    sigma = (normal(n, seed=3) * 1.2 - 1.2).exp()
    error = clean - prior(clean + sigma[:, None, None, None] * noise, sigma)
    loss = Denoiser(Silent(), prior).loss(clean, sigma, noise)
    assert torch.allclose(loss, (error.square().flatten(1).mean(1) / prior.error(sigma).square()).mean())
    assert abs(loss - 1) < 5 * math.sqrt(2 / n)


def test_loss_is_the_weighted_error_of_the_denoiser(prior: GaussianPrior) -> None:
    """For any network the loss is the mean of |D(y + sigma n; sigma) - y|^2 / c_out^2 (EDM, equation 8)."""
    denoiser, levels = Denoiser(Loud(), prior), LEVELS[:, None, None, None]
    clean, noise = normal(5, 1, 3, 3, seed=1), normal(5, 1, 3, 3, seed=2)
    error = denoiser(clean + levels * noise, LEVELS) - clean
    expected = (error / prior.error(LEVELS)[:, None, None, None]).square().mean()
    assert torch.allclose(denoiser.loss(clean, LEVELS, noise), expected, rtol=1e-4)


def test_training_levels_are_log_normal() -> None:
    """Uniform numbers become noise levels whose logarithm is normal with mean p_mean and deviation p_std (EDM, table 1)."""
    module = EDMModule(EDMSpec(p_mean=-0.7, p_std=1.3), (1, 8, 8))
    normals = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert torch.allclose(module._levels(torch.special.ndtr(normals)), (1.3 * normals - 0.7).exp(), rtol=1e-4)


@pytest.mark.parametrize(("sampler", "evaluations"), [("heun", 81), ("dpmpp-2m", 80)])
def test_a_silent_module_samples_its_gaussian(zeros: Tensor, sampler: str, evaluations: int) -> None:
    """A module whose network is zero turns its stream z into centre + scale C (C + sigma_min^2 I)^(-1/2) z."""
    spec = EDMSpec.model_validate(
        {"channels": 8, "levels": 1, "steps": 1, "batch_size": 4, "rank": 8, "sampler": sampler, "evaluations": evaluations}
    )
    fitted = EDMModule(spec, (1, 8, 8)).fit(zeros, seed=0).state()
    state = {name: value * (not name.startswith("model.network")) for name, value in fitted.items()}
    drawn = EDMModule.restore(spec, (1, 8, 8), state).sample(10, torch.Generator().manual_seed(4))
    prior = GaussianPrior(*(state[f"model.prior.{name}"] for name in ("directions", "deviations", "floor")))
    z = torch.randn((BLOCK, 1, 8, 8), generator=torch.Generator().manual_seed(4))[:10]
    exact = prior(prior.noisy(z, spec.sigma_min), torch.full((10,), spec.sigma_min)) * state["scale"] + state["centre"]
    assert (drawn.int() - to_uint8(exact).int()).abs().max() <= 2
