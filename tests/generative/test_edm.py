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
from ff_flower.generative.edm import Denoiser, heun, sigma_schedule, symmetric_copies, warmup_cosine
from ff_flower.generative.gaussian_prior import GaussianPrior
from ff_flower.generative.unet import Attention, ResidualBlock, UNet

LEVELS = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=torch.float64)


class Silent(nn.Module):
    """A raw network F that says zero, with as many channels as an image."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Map (b, 2 C, H, W) to zeros (b, C, H, W)."""
        return torch.zeros_like(x[:, : x.shape[1] // 2])


class Loud(nn.Module):
    """A raw network F that depends on all it is given."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Map (b, 2 C, H, W) and (b,) to (b, C, H, W)."""
        noisy, first = x.chunk(2, dim=1)
        return torch.tanh(noisy - 2 * first + level[:, None, None, None])


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def prior() -> GaussianPrior:
    """Return a Gaussian of nine pixels, narrow in most directions and wide in three."""
    directions = torch.linalg.qr(_random(9, 9))[0][:3]
    return GaussianPrior(directions, torch.tensor([2.0, 1.0, 0.3]).double(), torch.tensor(0.2).double())


@pytest.fixture(scope="module")
def covariance(prior: GaussianPrior) -> Tensor:
    """Return the covariance (9, 9) of that Gaussian, written out."""
    along = prior.directions.T @ prior.directions
    return prior.directions.T @ prior.deviations.square().diag() @ prior.directions + 0.04 * (torch.eye(9) - along)


def _fit(images: Tensor, seed: int = 0, **settings: float | str) -> EDMModule:
    spec = EDMSpec(**({"channels": 8, "steps": 6, "batch_size": 32, "sampling_steps": 3} | settings))
    return EDMModule(spec, tuple(images.shape[1:])).fit(images, seed)


@pytest.fixture(scope="module")
def zeros(digits: Splits) -> Tensor:
    """Return scans of the digit zero."""
    return digits.train.of_label(0).images


@pytest.fixture(scope="module")
def state(zeros: Tensor) -> dict[str, Tensor]:
    """Return the state of a module fitted to the zeros for 150 steps, with EDM's own preconditioning."""
    return _fit(zeros, rank=0, steps=150, learning_rate=5e-3).state()


@pytest.fixture(scope="module")
def trained(state: dict[str, Tensor]) -> Denoiser:
    """Return the denoiser in that state."""
    denoiser = Denoiser(UNet(2, 1, channels=8), GaussianPrior.isotropic(64))
    denoiser.load_state_dict({name[len("denoiser.") :]: value for name, value in state.items() if name.startswith("denoiser.")})
    return denoiser.eval()


def test_the_silent_denoiser_is_the_best_of_a_gaussian(prior: GaussianPrior, covariance: Tensor) -> None:
    """For N(0, C) the best denoiser is C (C + sigma^2 I)^-1 x, which is D with F = 0, and its mean square error is c_out^2."""
    x = _random(len(LEVELS), 1, 3, 3)
    denoised = Denoiser(Silent(), prior)(x, LEVELS).flatten(1)
    for sigma, image, found, error in zip(LEVELS, x.flatten(1), denoised, prior.error(LEVELS), strict=True):
        gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(9))
        assert torch.allclose(found, gain @ image)
        left = torch.eye(9) - gain
        expected = (left @ covariance @ left.T + sigma**2 * gain @ gain.T).trace() / 9
        assert torch.allclose(error.square(), expected)


def test_without_directions_it_is_the_preconditioning_of_edm() -> None:
    """For independent pixels of unit variance D = c_skip x + c_out F(c_in x) with the coefficients of EDM's table 1."""
    x, sigma = _random(len(LEVELS), 1, 3, 3), LEVELS[:, None, None, None]
    denoised = Denoiser(Loud(), GaussianPrior.isotropic(9).double())(x, LEVELS)
    total = sigma**2 + 1
    c_skip, c_out, c_in, c_noise = 1 / total, sigma / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4
    raw = torch.tanh(c_in * x - 2 * c_skip * x + c_noise)
    assert torch.allclose(denoised, c_skip * x + c_out * raw, atol=1e-6)


def test_noise_is_drawn_with_the_covariance_of_noisy_images(prior: GaussianPrior, covariance: Tensor) -> None:
    """Standard normal numbers become draws of N(0, C + sigma^2 I), by its symmetric square root."""
    root = prior.noisy(torch.eye(9).double().reshape(9, 1, 3, 3), 1.5).flatten(1)
    assert torch.allclose(root, root.T)
    assert torch.allclose(root @ root, covariance + 1.5**2 * torch.eye(9))


def test_loss_of_the_silent_network_has_a_closed_form(prior: GaussianPrior) -> None:
    """At F = 0 the loss is the mean of |y - G(y + sigma n)|^2 / c_out^2, whose expectation over the Gaussian's y and n is 1."""
    n = 20_000
    clean, noise = prior.noisy(_random(n, 1, 3, 3, seed=1), 0.0), _random(n, 1, 3, 3, seed=2)
    sigma = (_random(n, seed=3) * 1.2 - 1.2).exp()
    error = clean - prior(clean + sigma[:, None, None, None] * noise, sigma)
    loss = Denoiser(Silent(), prior).loss(clean, sigma, noise)
    assert torch.allclose(loss, (error.square().flatten(1).mean(1) / prior.error(sigma).square()).mean())
    assert abs(loss - 1) < 5 * math.sqrt(2 / n)


def test_loss_is_the_weighted_error_of_the_denoiser(prior: GaussianPrior) -> None:
    """For any network the loss is the mean of |D(y + sigma n; sigma) - y|^2 / c_out^2 (EDM, equation 8)."""
    denoiser, levels = Denoiser(Loud(), prior), LEVELS[:, None, None, None]
    clean, noise = _random(5, 1, 3, 3, seed=1), _random(5, 1, 3, 3, seed=2)
    error = denoiser(clean + levels * noise, LEVELS) - clean
    expected = (error / prior.error(LEVELS)[:, None, None, None]).square().mean()
    assert torch.allclose(denoiser.loss(clean, LEVELS, noise), expected, rtol=1e-4)


@pytest.mark.parametrize("independent", [True, False])
def test_heun_converges_to_the_exact_path_with_order_two(prior: GaussianPrior, independent: bool) -> None:
    """A Gaussian's path is (C + sigma^2 I)^(1/2) z, so sqrt(1 + sigma^2) z for C = I; halving Heun's steps quarters the error."""
    prior = GaussianPrior.isotropic(9).double() if independent else prior
    z = _random(6, 1, 3, 3)
    exact = prior.noisy(z, 0.02)
    assert not independent or torch.allclose(exact, math.sqrt(1 + 0.02**2) * z)
    errors = []
    for steps in (65, 129, 257):
        end = heun(Denoiser(Silent(), prior), prior.noisy(z, 10.0), sigma_schedule(steps, 0.02, 10.0, 7.0)[:-1])
        errors.append(float((end - exact).abs().max()))
    assert errors[-1] < 1e-3
    assert all(3.6 < coarse / fine < 4.4 for coarse, fine in pairwise(errors))


def test_the_last_step_ends_in_the_denoiser(prior: GaussianPrior) -> None:
    """A step to sigma = 0 returns D(x; sigma) itself, and Heun's step elsewhere follows the mean of the slopes at both ends."""
    denoiser, x = Denoiser(Loud(), prior), _random(2, 1, 3, 3)
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


def test_a_silent_module_samples_its_gaussian(zeros: Tensor) -> None:
    """A module whose network is zero turns its stream z into centre + scale C (C + sigma_min^2 I)^(-1/2) z."""
    module = _fit(zeros, steps=1, rank=8, sampling_steps=80)
    state = {name: value * (not name.startswith("denoiser.network")) for name, value in module.state().items()}
    drawn = EDMModule.restore(module.spec, (1, 8, 8), state).sample(10, torch.Generator().manual_seed(4))
    prior = GaussianPrior(*(state[f"denoiser.prior.{name}"] for name in ("directions", "deviations", "floor")))
    low = module.spec.sigma_min
    z = torch.randn((BLOCK, 1, 8, 8), generator=torch.Generator().manual_seed(4))[:10]
    exact = prior(prior.noisy(z, low), torch.full((10,), low)) * state["scale"] + state["centre"]
    assert (drawn.int() - to_uint8(exact).int()).abs().max() <= 5


def test_training_learns_the_class(zeros: Tensor, state: dict[str, Tensor], trained: Denoiser) -> None:
    """Training on one class brings the loss below that of the silent network, with which training begins."""
    clean = (to_unit(zeros) - state["centre"]) / state["scale"]
    random = torch.Generator().manual_seed(5)
    sigma = (torch.randn(len(clean), generator=random) * 1.4 - 0.4).exp()
    noise = torch.randn(clean.shape, generator=random)
    with torch.no_grad():
        assert trained.loss(clean, sigma, noise) < 0.9 * Denoiser(Silent(), trained.prior).loss(clean, sigma, noise)


def test_a_trained_network_looks_at_the_noise_level(trained: Denoiser) -> None:
    """After training the same input at another level gives another output."""
    x = _random(2, 2, 8, 8).float()
    with torch.no_grad():
        low, high = (trained.network(x, torch.full((2,), level)) for level in (-1.0, 1.0))
    assert (low - high).abs().max() > 1e-3


def test_another_seed_gives_other_weights(zeros: Tensor) -> None:
    """Fits from two seeds end in different weights."""
    first, second = (_fit(zeros, seed, steps=2).state() for seed in (0, 1))
    assert any(not torch.equal(first[name], second[name]) for name in first)


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


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("copies", [1, 2, 7])
def test_equal_images_are_learned(copies: int) -> None:
    """A class of one image, or of equal ones, has a finite module, whose prior has fewer directions than images."""
    state = _fit(torch.full((copies, 3, 4, 4), 200, dtype=torch.uint8), steps=2).state()
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert len(state["denoiser.prior.deviations"]) == copies - 1
    assert torch.allclose(state["centre"], torch.full((3, 4, 4), 200 / 127.5 - 1), atol=1e-3)


@pytest.mark.parametrize(("symmetry", "square", "oblong"), [("none", 1, 1), ("mirror", 2, 2), ("dihedral", 8, 4)])
def test_symmetric_copies_are_a_group(symmetry: str, square: int, oblong: int) -> None:
    """An image without symmetry has 1, 2 or 8 different copies, 4 where the sides differ; copies of a copy are the same set."""
    for sides, count in (((3, 3), square), ((2, 3), oblong)):
        image = torch.arange(math.prod(sides)).reshape(1, 1, *sides)
        copies = {tuple(copy.flatten().tolist()): copy for copy in symmetric_copies(image, symmetry)}
        assert len(copies) == count and {copy.shape for copy in copies.values()} == {image.shape}
        for copy in copies.values():
            assert {tuple(again.flatten().tolist()) for again in symmetric_copies(copy, symmetry)} == set(copies)


@pytest.mark.parametrize("symmetry", ["mirror", "dihedral"])
def test_a_symmetric_class_is_learned(symmetry: str) -> None:
    """Images of unequal sides are learned under any symmetry, and the centre has the symmetry."""
    images = torch.randint(0, 256, (5, 1, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    centre = _fit(images, steps=1, symmetry=symmetry).state()["centre"]
    assert torch.equal(centre, centre.flip(-1))
    assert symmetry == "mirror" or torch.equal(centre, centre.flip(-2))


def test_images_shown_counts_repetitions(zeros: Tensor) -> None:
    """Every step shows one batch, whatever the number of images."""
    assert _fit(zeros[:3], steps=2, batch_size=5).images_shown == 10


def test_divergence_is_refused(zeros: Tensor) -> None:
    """Training that ends in weights that are not finite raises an error with a remedy, so that no such module is sent."""
    with pytest.raises(ModuleError, match="not finite after fitting: lower the learning rate"):
        _fit(zeros, steps=4, learning_rate=1e38)


@pytest.mark.parametrize(("sides", "patch"), [((7, 7), 1), ((28, 28), 2), ((9, 5), 4), ((8, 8), 1), ((1, 1), 1), ((5, 8), 2)])
def test_the_network_keeps_any_shape_and_begins_at_zero(sides: tuple[int, int], patch: int) -> None:
    """For any height and width the output has the input's, and before training it is zero."""
    output = UNet(6, 3, channels=8, depth=2, patch=patch)(torch.randn((2, 6, *sides)), torch.zeros(2))
    assert output.shape == (2, 3, *sides) and not output.any()


def test_blocks_begin_as_the_identity_plus_a_bias() -> None:
    """Before training, a residual block and an attention add the same number to every pixel of a channel, whatever the input."""
    x, embedding = _random(2, 8, 4, 4).float(), _random(2, 6).float()
    outputs = [ResidualBlock(8, 6, attention)(x, embedding) for attention in (False, True)] + [Attention(8)(x)]
    for added in (output - x for output in outputs):
        assert torch.allclose(added, added[:1, :, :1, :1].expand_as(added), atol=1e-6)


def test_the_learning_rate_rises_and_falls() -> None:
    """Over 100 steps the rate climbs linearly for 10, is 1, halves midway down the cosine and would be 0 after the last."""
    rates = [warmup_cosine(step, 100) for step in range(101)]
    assert rates[:11] == pytest.approx([(step + 1) / 10 for step in range(10)] + [1.0])
    assert rates[100] == pytest.approx(0.0) and warmup_cosine(55, 100) == pytest.approx(0.5)
    assert all(before >= after for before, after in pairwise(rates[9:]))


@pytest.mark.parametrize("symmetry", ["none", "mirror", "dihedral"])
def test_a_fit_improves_on_its_gaussian_whatever_the_symmetry(symmetry: str) -> None:
    """On the images it was fitted to, the network denoises better than the Gaussian that it corrects."""
    random = torch.Generator().manual_seed(0)
    bright = torch.randint(0, 2, (64, 1, 4, 4), generator=random).repeat_interleave(2, 2).repeat_interleave(2, 3)
    images = (bright * 200 + 20).to(torch.uint8)
    spec = EDMSpec(channels=8, steps=60, batch_size=32, rank=4, learning_rate=1e-2, symmetry=symmetry)
    network = EDMModule(spec, (1, 8, 8)).fit(images, seed=0)._network
    clean = network.standardize(to_unit(images))
    sigma = torch.full((len(images),), 0.5)
    noisy = clean + 0.5 * torch.randn(clean.shape, generator=random)
    with torch.no_grad():
        better, gaussian = ((d(noisy, sigma) - clean).square().mean() for d in (network.denoiser, network.denoiser.prior))
    assert better < 0.9 * gaussian
