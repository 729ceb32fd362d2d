"""The velocity field and its loss, against closed forms (Liu et al. 2022)."""

import pytest
import torch
from closed_forms import TIMES, Loud, Silent, normal
from torch import Tensor

from ff_flower.config import FlowSpec
from ff_flower.data import to_uint8
from ff_flower.generative import BLOCK, FlowModule
from ff_flower.generative.flow import VelocityField
from ff_flower.generative.gaussian_prior import GaussianPrior


def test_the_silent_field_is_the_best_of_a_gaussian(prior: GaussianPrior) -> None:
    """Where the network says zero, the velocity is the Gaussian's."""
    x = normal(len(TIMES), 1, 3, 3)
    assert torch.allclose(VelocityField(Silent(), prior)(x, TIMES), prior.velocity(x, TIMES))


def test_the_network_corrects_in_units_of_the_error(prior: GaussianPrior) -> None:
    """The field is the Gaussian's v plus its root mean square error times F of x at unit scale, of v and of logit(t) / 4."""
    x, times = normal(4, 1, 3, 3), TIMES[:4]
    t = times[:, None, None, None]
    first = prior.velocity(x, times)
    raw = torch.tanh(x / ((1 - t) ** 2 + t**2).sqrt() - 2 * first + torch.log(t / (1 - t)) / 4)
    found = VelocityField(Loud(), prior)(x, times)
    assert torch.allclose(found, first + prior.velocity_error(times)[:, None, None, None] * raw, atol=1e-5)


def test_loss_of_the_silent_network_has_a_closed_form(prior: GaussianPrior) -> None:
    """At F = 0 the loss is the error of the Gaussian's velocity, whose expectation over y and n is velocity_error^2."""
    n = 20_000
    clean, noise = prior.noisy(normal(n, 1, 3, 3, seed=1), 0.0), normal(n, 1, 3, 3, seed=2)
    for time in (0.05, 0.5, 0.95):
        t = torch.full((n,), time, dtype=torch.float64)
        velocity = prior.velocity((1 - time) * clean + time * noise, t)
        loss = VelocityField(Silent(), prior).loss(clean, t, noise)
        assert torch.allclose(loss, (velocity - (noise - clean)).square().mean())
        assert float(loss) == pytest.approx(float(prior.velocity_error(t)[0].square()), rel=0.03)


def test_loss_is_the_error_of_the_field(prior: GaussianPrior) -> None:
    """For any network the loss is the mean of |v((1 - t) y + t n, t) - (n - y)|^2 (Liu et al. 2022, equation 1)."""
    field, t = VelocityField(Loud(), prior), TIMES[:, None, None, None]
    clean, noise = normal(5, 1, 3, 3, seed=1), normal(5, 1, 3, 3, seed=2)
    expected = (field((1 - t) * clean + t * noise, TIMES) - (noise - clean)).square().mean()
    assert torch.allclose(field.loss(clean, TIMES, noise), expected, rtol=1e-4)


def test_training_times_are_logistic_normal() -> None:
    """Uniform numbers become times whose logit is normal with mean t_mean and deviation t_std."""
    module = FlowModule(FlowSpec(t_mean=0.3, t_std=1.2), (1, 8, 8))
    normals = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert torch.allclose(torch.logit(module._levels(torch.special.ndtr(normals))), 1.2 * normals + 0.3, atol=1e-4)


@pytest.mark.parametrize(("sampler", "evaluations", "tolerance"), [("midpoint", 60, 2), ("euler", 240, 4)])
def test_a_silent_module_samples_its_gaussian(zeros: Tensor, sampler: str, evaluations: int, tolerance: int) -> None:
    """A module whose network is zero turns its stream z into centre + scale C^(1/2) z."""
    spec = FlowSpec.model_validate(
        {"channels": 8, "levels": 1, "steps": 1, "batch_size": 4, "rank": 8, "sampler": sampler, "evaluations": evaluations}
    )
    fitted = FlowModule(spec, (1, 8, 8)).fit(zeros, seed=0).state()
    state = {name: value * (not name.startswith("model.network")) for name, value in fitted.items()}
    drawn = FlowModule.restore(spec, (1, 8, 8), state).sample(10, torch.Generator().manual_seed(4))
    prior = GaussianPrior(*(state[f"model.prior.{name}"] for name in ("directions", "deviations", "floor")))
    z = torch.randn((BLOCK, 1, 8, 8), generator=torch.Generator().manual_seed(4))[:10]
    exact = prior.noisy(z, 0.0) * state["scale"] + state["centre"]
    assert (drawn.int() - to_uint8(exact).int()).abs().max() <= tolerance
