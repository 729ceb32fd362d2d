"""The autoencoder at its closed form, the density of its latent numbers, and what a module file holds of it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import normal
from torch import Tensor

from ff_flower.config import ImageShape, VAESpec
from ff_flower.data import to_unit
from ff_flower.errors import ConfigError, ModuleError
from ff_flower.generative import FitOptions, VAEModule
from ff_flower.generative.autoencoder import Decoder, Encoder, begin
from ff_flower.generative.gaussian_prior import GaussianPrior
from ff_flower.generative.mixture import GaussianMixtureDensity
from ff_flower.generative.vae import Autoencoder

SHAPE = (1, 3, 3)
SMALL = {"channels": 8, "depth": 1, "levels": 2, "latent": 5}


def _spec(shape: ImageShape = SHAPE, **settings: float | str) -> VAESpec:
    return VAESpec.model_validate(SMALL | settings).resolved(shape)


def _fit(images: Tensor, **settings: float | str) -> VAEModule:
    budget = {"steps": 4, "batch_size": 16}
    return VAEModule(_spec(tuple(images.shape[1:]), **(budget | settings)), tuple(images.shape[1:])).fit(images, seed=0)


def _at_its_beginning(prior: GaussianPrior, **settings: float) -> Autoencoder:
    """Return an autoencoder that is this Gaussian's principal components, in double precision."""
    network = Autoencoder(_spec(**settings), SHAPE).double()
    begin(network.encoder, network.decoder, prior)
    return network


def test_the_decoder_begins_as_the_gaussian(prior: GaussianPrior, covariance: Tensor) -> None:
    """W W^T + f^2 I is the Gaussian's covariance, W being the decoder of a network that has learned nothing."""
    decoder = _at_its_beginning(prior).decoder
    images = decoder(torch.eye(5).double()).flatten(1)
    # Decoded images are of single precision.
    assert torch.allclose(images.T @ images + prior.floor**2 * torch.eye(9), covariance, atol=1e-6)


def test_the_encoder_begins_as_the_posterior(prior: GaussianPrior, covariance: Tensor) -> None:
    """At the beginning q(z | x) is the posterior of the linear Gaussian model, W^T C^-1 x and I - W^T C^-1 W."""
    network = _at_its_beginning(prior)
    weight, x = network.decoder.linear.weight.double(), normal(4, *SHAPE)
    gain = weight.T @ torch.linalg.inv(covariance)
    mean, log_variance = network.encoder(x)
    assert torch.allclose(mean, x.flatten(1) @ gain.T, atol=1e-5)
    assert torch.allclose(torch.eye(5) - gain @ weight, log_variance[0].exp().diag().double(), atol=1e-6)
    assert torch.equal(log_variance, log_variance[:1].expand(4, -1))


def test_the_loss_begins_at_the_entropy(prior: GaussianPrior, covariance: Tensor) -> None:
    """Where the posterior is exact the bound is tight: the loss of the Gaussian's images is its entropy per pixel."""
    n = 20_000
    loss = _at_its_beginning(prior)(prior.noisy(normal(n, *SHAPE, seed=1), 0.0), normal(n, 5, seed=2))
    constant = 0.5 * (1 + math.log(2 * math.pi))
    entropy = 0.5 * torch.logdet(covariance) / 9 + constant
    assert abs(loss + constant - entropy) < 5 * math.sqrt(1 / (2 * 9 * n))


def test_beta_weighs_the_divergence(prior: GaussianPrior) -> None:
    """The loss is affine in beta, with the divergence of q from N(0, I) per pixel as its slope."""
    images, noise = normal(64, *SHAPE), normal(64, 5, seed=1)
    losses = [_at_its_beginning(prior, beta=beta)(images, noise) for beta in (0.0, 1.0, 3.0)]
    mean, log_variance = _at_its_beginning(prior).encoder(images)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1).mean() / 9
    assert torch.allclose(losses[1] - losses[0], divergence)
    assert torch.allclose(losses[2] - losses[0], 3 * divergence)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14), (2, 1, 5)])
@pytest.mark.parametrize(("patch", "levels"), [(1, 1), (2, 2), (1, 3)])
def test_any_sides_go_in_and_come_out(shape: ImageShape, patch: int, levels: int) -> None:
    """Images of any height and width are padded on the way in and cut on the way out, at any patch and number of levels."""
    spec = _spec(shape, patch=patch, levels=levels)
    mean, log_variance = Encoder(spec, shape)(torch.zeros(2, *shape))
    assert mean.shape == log_variance.shape == (2, 5)
    assert Decoder(spec, shape)(mean).shape == (2, *shape)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_mixture_of_nothing_is_refused() -> None:
    """Points that are not finite, or that all are one beyond what regularization mends, end in an error with its remedy."""
    with pytest.raises(ModuleError, match="not finite"):
        GaussianMixtureDensity.fit(torch.full((9, 2), torch.nan), 1, 1e-3, 0)
    with pytest.raises(ModuleError, match="raise regularization"):
        GaussianMixtureDensity.fit(torch.full((9, 2), 1e200, dtype=torch.float64), 2, 1e-300, 0)


def test_training_that_diverges_is_refused() -> None:
    """An autoencoder whose weights are not finite makes no module, and no other error than the other kinds."""
    images = (torch.rand((20, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 255).byte()
    with pytest.raises(ModuleError, match="not finite"):
        _fit(images, learning_rate=1e38)


def test_a_mixture_is_found_again() -> None:
    """Two Gaussians of known share, mean and covariance are recovered from their draws, and drawn from once more."""
    truth = GaussianMixtureDensity(
        torch.tensor([0.25, 0.75]),
        torch.tensor([[-3.0, 0.0], [3.0, 1.0]]),
        torch.tensor([[[1.0, 0], [0.5, 0.5]], [[0.3, 0], [0, 2]]]),
    )
    rows = truth(normal(20_000, 3).float())
    found, rounds, likelihood = GaussianMixtureDensity.fit(rows, 2, 1e-6, seed=0)
    order = found.weights.argsort()
    for name, value in truth.state_dict().items():
        assert torch.allclose(found.state_dict()[name][order], value, atol=0.06), name
    assert 1 <= rounds <= 200 and math.isfinite(likelihood)
    again = found(normal(20_000, 3, seed=1).float())
    assert torch.allclose(again.mean(0), rows.mean(0), atol=0.1)
    assert torch.allclose(again.T.cov(), rows.T.cov(), atol=0.3)


@pytest.mark.parametrize(("images", "gaussians"), [(1, 1), (10, 1), (39, 1), (40, 2), (90, 3)])
def test_small_classes_get_fewer_gaussians(zeros: Tensor, images: int, gaussians: int) -> None:
    """There is one Gaussian for every ``images_per_mixture`` images, at least one and at most ``mixtures``."""
    module = _fit(zeros[:images], images_per_mixture=20, mixtures=3)
    assert module.state()["density.weights"].shape == (gaussians,)
    assert module.sample(2, torch.Generator().manual_seed(0)).shape == (2, 1, 8, 8)


def test_the_encoder_stays_at_the_site(zeros: Tensor) -> None:
    """The state is decoder, mixture and standardization, so that no image can be encoded with a module file."""
    parts = {name.partition(".")[0] for name in _fit(zeros).state()}
    assert parts == {"decoder", "density", "centre", "scale"}
    assert parts | {"texture"} == {name.partition(".")[0] for name in _fit(zeros, texture=0.5).state()}


def test_samples_have_the_moments_of_the_images(zeros: Tensor) -> None:
    """What the decoder draws and its texture leave nothing out: at the beginning, mean and covariance are the images'."""
    module = _fit(zeros, steps=1, learning_rate=1e-9, texture=1.0, mixtures=1, rank=63, regularization=1e-9)
    state = {name: value.double() for name, value in module.state().items()}
    weight = state["decoder.linear.weight"]
    centre = state["centre"].flatten() + state["scale"] * weight @ state["density.means"][0]
    assert torch.allclose(centre, to_unit(zeros).flatten(1).double().mean(0), atol=0.05)
    within = weight @ state["density.factors"][0]
    texture = state["texture.directions"].T * state["texture.deviations"]
    drawn = state["scale"] ** 2 * (within @ within.T + texture @ texture.T)
    expected = to_unit(zeros).flatten(1).double().T.cov()
    assert (drawn - expected).norm() < 0.1 * expected.norm()


def test_texture_is_a_share_of_what_is_left(zeros: Tensor) -> None:
    """Texture adds to the same smooth samples a deviation in proportion to its share."""
    module, stream = _fit(zeros, texture=1.0), normal(64, 1 + 5 + 64).float()
    drawn = {}
    for share in (1e-9, 0.5, 1.0):
        module.spec = module.spec.model_copy(update={"texture": share})
        drawn[share] = module._generate(stream)
    assert torch.allclose(drawn[0.5] - drawn[1e-9], (drawn[1.0] - drawn[1e-9]) / 2, atol=1e-5)
    assert (drawn[1.0] - drawn[1e-9]).std() > 0.05


def test_training_lowers_the_loss(zeros: Tensor) -> None:
    """Two hundred steps leave less of the images than the principal components that they began with."""
    rest = []
    for rate in (1e-9, 3e-3):
        module = _fit(zeros, texture=1.0, steps=200, learning_rate=rate, rank=0)
        rest.append(float(module.state()["texture.floor"]))
    assert rest[1] < 0.9 * rest[0]


@pytest.mark.parametrize("at", [1, 3, 4])
def test_an_interrupted_fit_continues_to_the_same_bytes(at: int, tmp_path: Path, zeros: Tensor) -> None:
    """A fit that is interrupted and resumed ends in the bytes of an unbroken one, and leaves no checkpoint."""
    reports = iter(range(1, 5))

    def progress(*report: float) -> None:
        if next(reports) == at:
            raise KeyboardInterrupt

    def fit(**options: Any) -> dict[str, bytes]:
        shape = tuple(zeros.shape[1:])
        module = VAEModule(_spec(shape, steps=12, batch_size=16, symmetry="mirror"), shape)
        state = module.fit(zeros, 3, FitOptions(holdout=0.2, **options)).state()
        return {name: tensor.numpy().tobytes() for name, tensor in state.items()}

    path = tmp_path / "fit"
    with pytest.raises(KeyboardInterrupt):
        fit(progress=progress, checkpoint=path, checkpoint_seconds=0.0)
    assert path.is_file()
    assert fit(checkpoint=path) == fit() and not path.exists()


def test_too_large_images_are_refused() -> None:
    """An image larger than the size takes is refused before any work, with the next size as a remedy."""
    with pytest.raises(ConfigError, match="set its size to 'auto' or 'small'"):
        VAEModule(VAESpec(size="tiny"), (1, 17, 17))
    assert VAEModule(VAESpec(size="large"), (3, 128, 128)).latent_shape == (129,)
