"""The EDM denoiser, its sampler and its network, against closed forms (Karras et al. 2022)."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ff_flower.config import EDMSpec
from ff_flower.data import Splits, to_uint8, to_unit
from ff_flower.errors import ModuleError
from ff_flower.generative import BLOCK, EDMModule
from ff_flower.generative.edm import Denoiser, heun, sigma_schedule, warmup_cosine
from ff_flower.generative.unet import Attention, ResidualBlock, UNet

S = 0.5  # sigma_data, the standard deviation of the clean pixels
LEVELS = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=torch.float64)


class OfGaussian(nn.Module):
    """The raw network F that makes D optimal for pixels of N(mean, S^2): zero for mean 0."""

    def __init__(self, mean: float = 0.0) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Return sigma * mean / (S sqrt(S^2 + sigma^2)), where level = ln(sigma) / 4."""
        sigma = (4 * level).exp()
        return (sigma * self.mean / (S * (S**2 + sigma**2).sqrt()))[:, None, None, None].expand_as(x)


def _denoiser(mean: float = 0.0) -> Denoiser:
    return Denoiser(OfGaussian(mean), S).double()


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _fit(images: Tensor, seed: int = 0, **settings: float) -> EDMModule:
    spec = EDMSpec(**({"channels": 8, "steps": 60, "batch_size": 32, "sampling_steps": 3} | settings))
    return EDMModule(spec, tuple(images.shape[1:])).fit(images, seed)


@pytest.fixture(scope="module")
def zeros(digits: Splits) -> Tensor:
    """Return scans of the digit zero."""
    return digits.train.of_label(0).images


@pytest.fixture(scope="module")
def trained(zeros: Tensor) -> Denoiser:
    """Return the denoiser of a module fitted to the zeros for 60 steps."""
    state = _fit(zeros).state()
    denoiser = Denoiser(UNet((1, 8, 8), channels=8), 1.0)
    denoiser.load_state_dict(state)
    return denoiser.eval()


@pytest.mark.parametrize("mean", [0.0, 0.3, -1.0])
def test_preconditioning_holds_the_optimal_denoiser_of_a_gaussian(mean: float) -> None:
    """For pixels of N(m, s^2) the optimal denoiser is (s^2 x + sigma^2 m) / (s^2 + sigma^2): with m = 0, F = 0 is optimal."""
    x = _random(len(LEVELS), 1, 3, 3)
    sigma = LEVELS[:, None, None, None]
    expected = (S**2 * x + sigma**2 * mean) / (S**2 + sigma**2)
    assert torch.allclose(_denoiser(mean)(x, LEVELS), expected, atol=1e-6)


def test_preconditioning_keeps_unit_variance() -> None:
    """The network's input and target have variance 1 at every sigma, and c_noise is ln(sigma) / 4."""
    c_skip, c_out, c_in, c_noise = _denoiser().coefficients(LEVELS)
    one = torch.ones_like(LEVELS)
    assert torch.allclose(c_in**2 * (S**2 + LEVELS**2), one)
    assert torch.allclose(((1 - c_skip) ** 2 * S**2 + c_skip**2 * LEVELS**2) / c_out**2, one)
    assert torch.allclose(c_noise, LEVELS.log() / 4)


def test_loss_of_the_zero_network_has_a_closed_form() -> None:
    """At F = 0 the loss is the mean of (sigma y / s - s n)^2 / (s^2 + sigma^2), whose expectation over y and n is 1."""
    clean, noise = S * _random(50_000, 1, 1, 1, seed=1), _random(50_000, 1, 1, 1, seed=2)
    sigma = (_random(50_000, seed=3) * 1.2 - 1.2).exp()
    levels = sigma[:, None, None, None]
    loss = _denoiser().loss(clean, sigma, noise)
    assert torch.allclose(loss, ((levels * clean / S - S * noise) ** 2 / (S**2 + levels**2)).mean())
    assert abs(loss - 1) < 5 * math.sqrt(2 / 50_000)


def test_loss_is_the_weighted_error_of_the_denoiser() -> None:
    """For any network the loss is the mean of |D(y + sigma n; sigma) - y|^2 / c_out^2 (EDM, equation 8)."""
    denoiser = _denoiser(mean=0.7)
    clean, noise, levels = _random(5, 1, 4, 4, seed=1), _random(5, 1, 4, 4, seed=2), LEVELS[:, None, None, None]
    error = denoiser(clean + levels * noise, LEVELS) - clean
    expected = (error / denoiser.coefficients(levels)[1]).square().mean()
    assert torch.allclose(denoiser.loss(clean, LEVELS, noise), expected, rtol=1e-4)


@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_heun_converges_to_the_exact_path_with_order_two(mean: float) -> None:
    """The path of a Gaussian is x - m growing as sqrt(s^2 + sigma^2); halving Heun's steps quarters the distance from it."""
    start = 10 * _random(6, 1, 2, 2)
    exact = mean + (start - mean) * math.sqrt((S**2 + 0.02**2) / (S**2 + 10**2))
    errors = []
    for steps in (33, 65, 129):
        end = heun(_denoiser(mean), start, sigma_schedule(steps, 0.02, 10.0, 7.0)[:-1])
        errors.append(float((end - exact).abs().max()))
    assert errors[-1] < 1e-3
    assert all(3.5 < coarse / fine < 4.5 for coarse, fine in pairwise(errors))


def test_the_last_step_ends_in_the_denoiser() -> None:
    """A step to sigma = 0 returns D(x; sigma) itself, and Heun's step elsewhere is the mean of the slopes at both ends."""
    denoiser, x = _denoiser(0.3), _random(2, 1, 2, 2)
    level = {sigma: x.new_full((2,), sigma) for sigma in (2.0, 1.0)}
    assert torch.allclose(heun(denoiser, x, [2.0, 0.0]), denoiser(x, level[2.0]))
    first = (x - denoiser(x, level[2.0])) / 2.0
    euler = x - first
    second = (euler - denoiser(euler, level[1.0])) / 1.0
    assert torch.allclose(heun(denoiser, x, [2.0, 1.0]), x - (first + second) / 2)


@given(steps=st.integers(2, 50), low=st.floats(0.001, 0.5), high=st.floats(1.0, 100.0), rho=st.floats(1.0, 10.0))
def test_the_schedule_falls_from_end_to_end(steps: int, low: float, high: float, rho: float) -> None:
    """The levels fall from sigma_max to sigma_min and then to 0, evenly in their rho-th roots (EDM, equation 5)."""
    sigmas = sigma_schedule(steps, low, high, rho)
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0
    assert sigmas[0] == pytest.approx(high) and sigmas[-2] == pytest.approx(low)
    assert all(larger > smaller for larger, smaller in pairwise(sigmas))
    gaps = [larger ** (1 / rho) - smaller ** (1 / rho) for larger, smaller in pairwise(sigmas[:-1])]
    assert gaps == pytest.approx([gaps[0]] * len(gaps), rel=1e-6, abs=1e-9)


def test_one_step_goes_from_the_top_to_zero() -> None:
    """With a single step the schedule is sigma_max and 0."""
    assert sigma_schedule(1, 0.02, 80.0, 7.0) == [pytest.approx(80.0), 0.0]


def test_a_silent_network_samples_the_gaussian_of_its_noise() -> None:
    """A module whose network is zero shrinks its stream of noise along the exact path to N(0, sigma_data^2)."""
    spec = EDMSpec(channels=8, sampling_steps=60)
    shape = (1, 4, 4)
    state = {name: torch.zeros_like(tensor) for name, tensor in Denoiser(UNet(shape, 8), S).state_dict().items()}
    drawn = EDMModule.restore(spec, shape, state | {"sigma_data": torch.tensor(S)}).sample(10, torch.Generator().manual_seed(4))
    noise = torch.randn((BLOCK, *shape), generator=torch.Generator().manual_seed(4))[:10]
    low = S**2 + spec.sigma_min**2
    exact = noise * spec.sigma_max * math.sqrt(low / (S**2 + spec.sigma_max**2)) * S**2 / low
    assert (drawn.int() - to_uint8(exact).int()).abs().max() <= 2


def test_training_learns_the_class(zeros: Tensor, trained: Denoiser) -> None:
    """Sixty steps on one class bring the loss below that of the zero network, with which training begins."""
    clean = to_unit(zeros)
    random = torch.Generator().manual_seed(5)
    sigma = (torch.randn(len(clean), generator=random) * 1.2 - 1.2).exp()
    noise = torch.randn(clean.shape, generator=random)
    silent = Denoiser(OfGaussian(), float(trained.sigma_data))
    with torch.no_grad():
        assert trained.loss(clean, sigma, noise) < 0.7 * silent.loss(clean, sigma, noise)


def test_a_trained_network_looks_at_the_noise_level(trained: Denoiser) -> None:
    """After training the same input at another level gives another output."""
    x = _random(2, 1, 8, 8).float()
    with torch.no_grad():
        low, high = (trained.network(x, torch.full((2,), level)) for level in (-1.0, 1.0))
    assert (low - high).abs().max() > 1e-3


def test_another_seed_gives_other_weights(zeros: Tensor) -> None:
    """Fits from two seeds end in different weights."""
    first, second = (_fit(zeros, seed, steps=2).state() for seed in (0, 1))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_sigma_data_is_the_spread_of_the_pixels(zeros: Tensor) -> None:
    """sigma_data is the standard deviation of the pixels in [-1, 1], at least 0.05, and a number that float16 holds exactly."""
    spread = _fit(zeros, steps=1).state()["sigma_data"]
    assert spread == pytest.approx(float(to_unit(zeros).std(correction=0)), rel=1e-3)
    blank = _fit(torch.full((3, 1, 8, 8), 200, dtype=torch.uint8), steps=1).state()["sigma_data"]
    assert blank == pytest.approx(0.05, rel=1e-3)
    assert all(value == value.half().float() for value in (spread, blank))


def test_images_shown_counts_repetitions(zeros: Tensor) -> None:
    """Every step shows one batch, whatever the number of images."""
    assert _fit(zeros[:3], steps=2, batch_size=5).images_shown == 10


def test_divergence_is_refused(zeros: Tensor) -> None:
    """Training that ends in weights that are not finite raises an error with a remedy and leaves no such module on the wire."""
    with pytest.raises(ModuleError, match="not finite after fitting: lower the learning rate"):
        _fit(zeros, steps=4, learning_rate=1e38)


@pytest.mark.parametrize(
    ("shape", "patch"), [((1, 7, 7), 1), ((3, 28, 28), 2), ((1, 9, 5), 4), ((3, 8, 8), 1), ((1, 1, 1), 1), ((1, 5, 8), 2)]
)
def test_the_network_keeps_any_shape_and_begins_at_zero(shape: tuple[int, int, int], patch: int) -> None:
    """For any height and width the output has the input's shape, and before training it is zero."""
    network = UNet(shape, channels=8, depth=2, patch=patch)
    output = network(torch.randn((2, *shape)), torch.zeros(2))
    assert output.shape == (2, *shape) and not output.any()


def test_blocks_begin_as_the_identity() -> None:
    """Before training, a residual block of equal widths and an attention return their input."""
    x, embedding = _random(2, 8, 4, 4).float(), _random(2, 6).float()
    assert torch.equal(ResidualBlock(8, 8, 6)(x, embedding), x)
    assert torch.equal(Attention(8)(x), x)


def test_the_learning_rate_rises_and_falls() -> None:
    """Over 100 steps the rate climbs linearly for 5, is 1, halves midway down the cosine and would be 0 after the last."""
    rates = [warmup_cosine(step, 100) for step in range(101)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert rates[100] == pytest.approx(0.0) and warmup_cosine(53, 101, warmup=5 / 101) == pytest.approx(0.5)
    assert all(before >= after for before, after in pairwise(rates[4:]))
