"""The mixture of Gaussians against its closed form, and its smallest classes."""

import pytest
import torch
from torch import Tensor

from ff_flower.config import GaussianMixtureSpec
from ff_flower.data import to_unit
from ff_flower.errors import ModuleError
from ff_flower.generative import GaussianMixtureModule

SHAPE = (1, 4, 4)
QUANTIZATION = (1 / 127.5) ** 2 / 12  # variance of rounding to grey levels


def _two_clouds(n: int = 400) -> Tensor:
    """Return grey images of two kinds, far from black and white, with correlated pixels."""
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn((16, 16), generator=random) * 2.5
    shift = torch.where(torch.rand((n, 1), generator=random) < 0.3, 25.0, -10.0)
    pixels = 128 + shift + torch.randn((n, 16), generator=random) @ mixing
    return pixels.round().clamp(0, 255).to(torch.uint8).reshape(-1, *SHAPE)


def _fit(images: Tensor, seed: int = 0, **settings: float) -> GaussianMixtureModule:
    return GaussianMixtureModule(GaussianMixtureSpec(**settings), tuple(images.shape[1:])).fit(images, seed)


def _moments(module: GaussianMixtureModule) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and covariance (D, D) of the fitted mixture in pixels of [-1, 1]."""
    state = {name: tensor.double() for name, tensor in module.state().items()}
    weights, means = state["weights"], state["means"]
    center = weights @ means
    within = torch.einsum("m,mij,mkj->ik", weights, state["factors"], state["factors"])
    between = torch.einsum("m,mi,mj->ij", weights, means, means) - torch.outer(center, center)
    covariance = state["basis"].T @ (within + between) @ state["basis"]
    residual = state["residual"].square().diag() * module.spec.residual_noise
    return state["mean"] + center @ state["basis"], covariance + residual


@pytest.mark.parametrize(
    "settings", [{"components": 3, "mixtures": 2, "residual_noise": True}, {"components": 16, "mixtures": 3}]
)
def test_samples_have_the_moments_of_the_mixture(settings: dict[str, int]) -> None:
    """Mean and covariance of many samples are the fitted mixture's closed form, up to Monte-Carlo error and rounding."""
    module = _fit(_two_clouds(), **settings)
    n = 20_000
    samples = to_unit(module.sample(n, torch.Generator().manual_seed(1))).flatten(1).double()
    mean, covariance = _moments(module)
    variance = covariance.diag() + QUANTIZATION
    assert ((samples.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    spread = ((torch.outer(variance, variance) + covariance**2) / n).sqrt()
    found = samples.T.cov() - QUANTIZATION * torch.eye(16)
    assert ((found - covariance).abs() < 6 * spread).all()


@pytest.mark.parametrize("mixtures", [1, 3])
def test_the_mixture_has_the_moments_of_the_images(mixtures: int) -> None:
    """With all components, expectation maximization keeps the images' mean and, up to regularization, their covariance."""
    images = _two_clouds()
    module = _fit(images, components=16, mixtures=mixtures, regularization=1e-6)
    pixels = to_unit(images).flatten(1).double()
    mean, covariance = _moments(module)
    assert torch.allclose(mean, pixels.mean(0), atol=1e-5)
    assert torch.allclose(covariance, pixels.T.cov(correction=0), atol=1e-5)


def test_residual_noise_restores_each_pixels_variance() -> None:
    """What few components drop comes back as noise: each pixel has its variance again, and less without the noise."""
    images = _two_clouds()
    truth = to_unit(images).flatten(1).double().var(0, correction=0)
    kept, dropped = (_moments(_fit(images, components=3, mixtures=1, residual_noise=noise))[1].diag() for noise in (True, False))
    assert torch.allclose(kept, truth, rtol=5e-3)
    assert (dropped < truth).all() and dropped.sum() < 0.95 * truth.sum()


def test_small_classes_get_fewer_gaussians() -> None:
    """There is one Gaussian per images_per_mixture images, at least one and at most mixtures."""
    images = _two_clouds(65)
    counts = [len(_fit(images[:n], components=2, mixtures=3, images_per_mixture=20).state()["weights"]) for n in (5, 39, 40, 65)]
    assert counts == [1, 1, 2, 3]
    assert len(_fit(images, components=2, mixtures=2, images_per_mixture=20).state()["weights"]) == 2


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Number of distinct clusters")
def test_one_image_is_repeated() -> None:
    """A class of one image is learned without NaN and sampled as that very image."""
    image = _two_clouds(1)
    module = _fit(image, residual_noise=True)
    assert all(tensor.isfinite().all() for tensor in module.state().values())
    assert (module.sample(9, torch.Generator().manual_seed(0)) == image).all()


@pytest.mark.parametrize("n", [2, 3, 5, 16, 17])
def test_fewer_images_than_components_work(n: int) -> None:
    """With n images there are at most n - 1 components; the module is finite and its mean is the images'."""
    images = _two_clouds(n)
    module = _fit(images, components=32)
    assert len(module.state()["basis"]) == min(16, n - 1)
    assert all(tensor.isfinite().all() for tensor in module.state().values())
    assert torch.allclose(_moments(module)[0], to_unit(images).flatten(1).double().mean(0), atol=1e-5)


def test_a_state_without_gaussians_is_refused() -> None:
    """A state of no Gaussians or no components, from which nothing could be drawn, is refused before it is sampled."""
    state = _fit(_two_clouds(30), components=3).state()
    none = {name: state[name][:0] for name in ("weights", "means", "factors")}
    flat = {"basis": state["basis"][:0], "means": state["means"][:, :0], "factors": state["factors"][:, :0, :0]}
    for changed in (none, flat):
        with pytest.raises(ModuleError, match="has shape"):
            GaussianMixtureModule.restore(GaussianMixtureSpec(), SHAPE, state | changed)


def test_a_state_larger_than_its_settings_is_refused() -> None:
    """More Gaussians or components than the settings allow are refused: they decide what sampling costs."""
    state = _fit(_two_clouds(60), components=3, mixtures=2).state()
    for spec in (GaussianMixtureSpec(components=2), GaussianMixtureSpec(mixtures=1)):
        with pytest.raises(ModuleError, match="has shape"):
            GaussianMixtureModule.restore(spec, SHAPE, state)
