"""What is best for a Gaussian, against its covariance matrix written out."""

import pytest
import torch
from closed_forms import LEVELS, TIMES, normal
from torch import Tensor

from ff_flower.data import to_unit
from ff_flower.generative.gaussian_prior import SMALLEST, GaussianPrior

EYE = torch.eye(9, dtype=torch.float64)


def test_the_posterior_mean_has_a_closed_form(prior: GaussianPrior, covariance: Tensor) -> None:
    """For N(0, C) the best denoiser is C (C + sigma^2 I)^-1 x, and its mean square error is that of this matrix."""
    x = normal(len(LEVELS), 1, 3, 3)
    for sigma, image, found, error in zip(LEVELS, x.flatten(1), prior(x, LEVELS).flatten(1), prior.error(LEVELS), strict=True):
        gain = covariance @ torch.linalg.inv(covariance + sigma**2 * EYE)
        left = EYE - gain
        assert torch.allclose(found, gain @ image)
        assert torch.allclose(error.square(), (left @ covariance @ left.T + sigma**2 * gain @ gain.T).trace() / 9)


def test_the_velocity_has_a_closed_form(prior: GaussianPrior, covariance: Tensor) -> None:
    """For x = (1 - t) y + t n, E[n - y | x] = K x with K = (t I - (1 - t) C) cov(x)^-1, and its error is cov(n - y) less K's."""
    x = normal(len(TIMES), 1, 3, 3)
    found, errors = prior.velocity(x, TIMES).flatten(1), prior.velocity_error(TIMES)
    for t, image, velocity, error in zip(TIMES, x.flatten(1), found, errors, strict=True):
        mixed, joint = (1 - t) ** 2 * covariance + t**2 * EYE, t * EYE - (1 - t) * covariance
        gain = joint @ torch.linalg.inv(mixed)
        assert torch.allclose(velocity, gain @ image)
        assert torch.allclose(error.square(), (EYE + covariance - gain @ joint.T).trace() / 9)


def test_velocity_and_posterior_mean_are_one_estimate(prior: GaussianPrior) -> None:
    """With s = t / (1 - t), v(x, t) = (x - D(x / (1 - t); s)) / t, and the velocity's error is D's divided by t."""
    x, t = normal(4, 1, 3, 3), TIMES[:4]
    denoised = prior(x / (1 - t)[:, None, None, None], t / (1 - t))
    assert torch.allclose(prior.velocity(x, t), (x - denoised) / t[:, None, None, None])
    assert torch.allclose(prior.velocity_error(t), prior.error(t / (1 - t)) / t)


def test_velocity_at_the_ends(prior: GaussianPrior, covariance: Tensor) -> None:
    """Where x is the image (t = 0) the velocity is -x, where it is the noise (t = 1) it is x."""
    x = normal(2, 1, 3, 3)
    assert torch.allclose(prior.velocity(x, torch.tensor([0.0, 1.0]).double()), torch.stack([-x[0], x[1]]))
    ends = prior.velocity_error(torch.tensor([0.0, 1.0]).double())
    assert torch.allclose(ends, torch.stack([torch.tensor(1.0).double(), (covariance.trace() / 9).sqrt()]))


def test_noise_is_drawn_with_the_covariance_of_noisy_images(prior: GaussianPrior, covariance: Tensor) -> None:
    """Standard normal numbers become draws of N(0, C + sigma^2 I), by its symmetric square root."""
    root = prior.noisy(EYE.reshape(9, 1, 3, 3), 1.5).flatten(1)
    assert torch.allclose(root, root.T)
    assert torch.allclose(root @ root, covariance + 1.5**2 * EYE)


def test_independent_pixels_need_no_directions() -> None:
    """The isotropic prior divides by 1 + sigma^2, and room for directions changes nothing."""
    x = normal(len(LEVELS), 1, 3, 3)
    for rank in (0, 4):
        prior = GaussianPrior.isotropic(9, rank).double()
        assert torch.allclose(prior(x, LEVELS), x / (1 + LEVELS.square())[:, None, None, None])
        assert torch.allclose(prior.error(LEVELS), LEVELS / (1 + LEVELS.square()).sqrt())


def test_the_prior_is_the_gaussian_of_the_images(zeros: Tensor) -> None:
    """Centre and scale standardize the images; the prior has the largest eigenvalues of their covariance and the others' mean."""
    rows = to_unit(zeros).flatten(1)
    prior, centre, scale = GaussianPrior.fit(rows, 5, seed=0)
    standard = (rows - centre) / scale
    assert torch.allclose(standard.mean(0), torch.zeros(64), atol=2e-3)
    assert standard.square().mean() == pytest.approx(1.0, rel=2e-3)
    values, vectors = torch.linalg.eigh(standard.T.cov())
    assert torch.allclose(prior.deviations.square(), values.flip(0)[:5], rtol=5e-3)
    assert torch.allclose((prior.directions @ vectors.flip(1)[:, :5]).abs(), torch.eye(5), atol=2e-2)
    assert prior.floor.square() == pytest.approx(float(values[:-5].mean()), rel=5e-3)
    for tensor in (centre, scale, *prior.state_dict().values()):
        assert torch.equal(tensor, tensor.half().float())


@pytest.mark.parametrize(("rows", "rank", "expected"), [(1, 8, 0), (2, 8, 1), (10, 8, 5), (30, 8, 8), (30, 0, 0), (30, 99, 8)])
def test_directions_are_fewer_than_images_and_pixels(rows: int, rank: int, expected: int) -> None:
    """A prior of n images of D pixels has at most n / 2 and D - 1 directions, and finite numbers."""
    prior, centre, scale = GaussianPrior.fit(normal(rows, 9).float(), rank, seed=0)
    assert prior.directions.shape == (expected, 9) and prior.deviations.shape == (expected,)
    assert all(tensor.isfinite().all() for tensor in (centre, scale, *prior.state_dict().values()))


@pytest.mark.parametrize(
    ("rows", "rank", "expected"), [(1, 8, 0), (2, 8, 1), (14, 8, 4), (15, 8, 4), (16, 8, 8), (30, 3, 3), (99, 99, 8)]
)
def test_coarse_directions_are_powers_of_two(rows: int, rank: int, expected: int) -> None:
    """Where their number may be told roughly only, n images allow at most the largest power of two up to n / 2 of directions."""
    prior, *_ = GaussianPrior.fit(normal(rows, 9).float(), rank, seed=0, coarse=True)
    assert prior.directions.shape == (expected, 9) and prior.deviations.shape == (expected,)


def test_copies_of_few_images_leave_next_to_nothing() -> None:
    """Sixteen copies of each of four images, which span fewer dimensions than the rank, give a finite prior with a low floor."""
    for seed in range(4):
        prior, *_ = GaussianPrior.fit(normal(4, 784, seed=seed).float().repeat(16, 1), 32, seed)
        assert all(tensor.isfinite().all() for tensor in prior.state_dict().values())
        assert prior.floor < 5 * SMALLEST


def test_a_variance_below_zero_is_none(zeros: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rounding takes the variance that the directions leave below 0, the floor is the smallest there is."""
    from sklearn.decomposition import PCA

    below = property(lambda self: -1e-7, lambda self, found: None)
    monkeypatch.setattr(PCA, "noise_variance_", below, raising=False)
    prior, *_ = GaussianPrior.fit(to_unit(zeros).flatten(1), 5, seed=0)
    assert float(prior.floor) == pytest.approx(SMALLEST, rel=1e-3)


def test_few_images_do_not_pass_for_all_there_are() -> None:
    """Fitted to fewer images than pixels the prior expects others to differ as much from its directions as they do, or more."""
    rows = normal(40, 400).float()
    prior, centre, scale = GaussianPrior.fit(rows, 999, seed=0)
    others = (normal(200, 400, seed=1).float() - centre) / scale
    rest = others - others @ prior.directions.T @ prior.directions
    assert prior.floor.square() > 0.5 * rest.square().sum(1).mean() / (400 - len(prior.directions))


def test_padding_changes_nothing(prior: GaussianPrior) -> None:
    """Directions that are none leave posterior mean, velocity, their errors and the noise as they were."""
    wide, x = prior.padded(7), normal(4, 1, 3, 3)
    assert wide.directions.shape == (7, 9) and wide.deviations.shape == (7,)
    for level, one in ((LEVELS[:4], "forward"), (TIMES[:4], "velocity")):
        assert torch.allclose(getattr(wide, one)(x, level), getattr(prior, one)(x, level))
    assert torch.allclose(wide.error(LEVELS), prior.error(LEVELS))
    assert torch.allclose(wide.velocity_error(TIMES), prior.velocity_error(TIMES))
    assert torch.allclose(wide.noisy(x, 0.3), prior.noisy(x, 0.3))
