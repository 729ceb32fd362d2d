"""The ``vae`` module: a variational autoencoder (Kingma & Welling 2013, arXiv 1312.6114) sampled through a mixture.

Two changes make it useful for a class of few images. Both networks correct the class's probabilistic principal components,
so that the first step is already their exact fit; and latent numbers are not drawn from the standard normal prior, which
training only approaches, but from a mixture fitted to those of the images (Ghosh et al. 2020, arXiv 1903.12436).
"""

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from ..accelerator import accelerate, low_precision, place
from ..config import ImageShape, VAESpec
from ..data.transforms import augment, to_unit
from ..seeding import derive_seed, generator, seeded
from .autoencoder import Decoder, Encoder, begin
from .base import FitOptions, GenerativeModule, allowed, blocks_at_once, check_state, not_fitted
from .diffusion import shuffled_copies, symmetry_policy
from .gaussian_prior import SMALLEST, GaussianPrior
from .mixture import GaussianMixtureDensity
from .training import Objective, Training, split_holdout

ROWS = 4096
BATCH = 256


class Autoencoder(Objective):
    """Encoder and decoder of standardized images, with the negative evidence lower bound as the loss.

    Parameters
    ----------
    spec : VAESpec
        Resolved.
    image_shape : tuple of int
        (C, H, W).
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, spec: VAESpec, image_shape: ImageShape) -> None:
        super().__init__()
        self.spec = spec
        self.policy = symmetry_policy(spec.symmetry)
        self.encoder, self.decoder = Encoder(spec, image_shape), Decoder(spec, image_shape)
        self.register_buffer("centre", torch.zeros(image_shape))
        self.register_buffer("scale", torch.ones(()))

    def draw(self, images: Tensor, random: torch.Generator) -> tuple[Tensor, ...]:
        """Return standardized images and the normal numbers of the posterior samples."""
        noise = torch.randn((len(images), self.spec.latent), generator=random, device=images.device)
        return (augment(images, self.policy, random) - self.centre) / self.scale, noise

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return -log p(x | z) + beta KL(q(z | x) | N(0, 1)) per pixel, less a constant.

        The likelihood is a Gaussian whose variance is the batch's mean square error, which is the best one
        (Rybkin et al. 2021, arXiv 2006.13202, equation 6).
        """
        images, noise = inputs
        mean, log_variance = self.encoder(images)
        error = images - self.decoder(mean + (log_variance / 2).exp() * noise)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        loss: Tensor = 0.5 * error.square().mean().clamp_min(SMALLEST**2).log() + self.spec.beta * kl / self.decoder.grid.pixels
        return loss


class LatentSampler(nn.Module):
    """All that a module file holds: a decoder, the density of its latent numbers, and the texture that it cannot draw.

    Parameters
    ----------
    decoder : Decoder
        From latent numbers to standardized images.
    density : GaussianMixtureDensity
        Of the latent numbers.
    texture : GaussianPrior or None
        Of what the decoder leaves of standardized images.
    image_shape : tuple of int
        (C, H, W).
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self, decoder: Decoder, density: GaussianMixtureDensity, texture: GaussianPrior | None, image_shape: ImageShape
    ) -> None:
        super().__init__()
        self.decoder, self.density, self.texture = decoder, density, texture
        self.register_buffer("centre", torch.zeros(image_shape))
        self.register_buffer("scale", torch.ones(()))


class VAEModule(GenerativeModule[VAESpec]):
    """A decoder, and a mixture of Gaussians from which it is given latent numbers; the encoder stays at the site."""

    kind = "vae"

    def __init__(self, spec: VAESpec, image_shape: ImageShape, device: torch.device | str = "cpu") -> None:
        super().__init__(spec, image_shape, device)
        self.batch_blocks = blocks_at_once(self.spec, image_shape, self.device)
        self._sampler: LatentSampler | None = None
        self._decode: nn.Module | None = None

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """One number that chooses the Gaussian, ``latent`` for the decoder, and one per pixel where there is texture."""
        return (1 + self.spec.latent + math.prod(self.image_shape) * (self.spec.texture > 0),)

    def state(self) -> dict[str, Tensor]:
        """Return the decoder, the mixture, the texture if there is one, and the standardization."""
        if self._sampler is None:
            raise not_fitted(self.kind)
        return dict(self._sampler.state_dict())

    @classmethod
    def restore(
        cls, spec: VAESpec, image_shape: ImageShape, state: Mapping[str, Tensor], device: torch.device | str = "cpu"
    ) -> Self:
        """Build a fitted module from its tensors; mixture and texture may be smaller than ``spec`` allows."""
        module = cls(spec, image_shape, device)
        mixtures = max(1, min(state.get("density.weights", torch.empty(0)).numel(), spec.mixtures))
        rank = min(state.get("texture.deviations", torch.empty(0)).numel(), module.spec.rank)
        with torch.device("meta"):
            empty = module._build(mixtures, rank)
        check_state(state, {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}, cls.kind)
        sampler = seeded(lambda: module._build(mixtures, rank), seed=0)
        sampler.load_state_dict(dict(state))
        module._take(sampler)
        return module

    def _build(self, mixtures: int, rank: int) -> LatentSampler:
        density = GaussianMixtureDensity.empty(mixtures, self.spec.latent)
        texture = GaussianPrior.isotropic(math.prod(self.image_shape), rank) if self.spec.texture else None
        return LatentSampler(Decoder(self.spec, self.image_shape), density, texture, self.image_shape)

    def _fit(self, images: Tensor, seed: int, options: FitOptions) -> None:
        kept, held = split_holdout(to_unit(images), options.holdout, seed)
        rows = shuffled_copies(kept, self.spec.symmetry, seed)
        prior, centre, scale = GaussianPrior.fit(rows.flatten(1), self.spec.latent, seed, options.coarse_counts)
        network = seeded(lambda: Autoencoder(self.spec, self.image_shape), derive_seed(seed, "init"))
        network.centre.copy_(centre.reshape(self.image_shape))
        network.scale.copy_(scale)
        begin(network.encoder, network.decoder, prior)
        training = Training(place(network, self.device), kept.to(self.device), held.to(self.device), self.spec, seed, options)
        best = training.run()
        assert isinstance(best, Autoencoder)
        self.images_shown = training.images_shown
        self._take(self._second_stage(best, rows[:ROWS], len(kept), seed, options.coarse_counts))

    @torch.no_grad()
    def _second_stage(self, network: Autoencoder, rows: Tensor, distinct: int, seed: int, coarse: bool) -> LatentSampler:
        """Fit the mixture to posterior samples of the images, and the texture to what the decoder leaves of them."""
        latents, rest = [], []
        random = generator(seed, "latents", device=self.device)
        for part in torch.split(rows, BATCH):
            images = (part.to(self.device) - network.centre) / network.scale
            with low_precision(self.device):
                mean, log_variance = network.encoder(images)
                noise = torch.randn(mean.shape, generator=random, device=self.device)
                latents.append(mean + (log_variance / 2).exp() * noise)
                if self.spec.texture:
                    rest.append((images - network.decoder(latents[-1])).cpu())
        mixtures = max(1, min(self.spec.mixtures, allowed(distinct // self.spec.images_per_mixture, coarse)))
        density, *_ = GaussianMixtureDensity.fit(torch.cat(latents).cpu(), mixtures, self.spec.regularization, seed, rounds=30)
        texture = _texture(torch.cat(rest).flatten(1), self.spec.rank, seed, coarse) if self.spec.texture else None
        sampler = LatentSampler(network.decoder, density, texture, self.image_shape)
        sampler.centre.copy_(network.centre)
        sampler.scale.copy_(network.scale)
        return sampler

    def _take(self, sampler: LatentSampler) -> None:
        self._sampler = place(sampler.eval().requires_grad_(False), self.device)
        self._decode = accelerate(sampler.decoder, self.device)

    def _generate(self, noise: Tensor) -> Tensor:
        assert self._sampler is not None and self._decode is not None
        latent, sampler = 1 + self.spec.latent, self._sampler
        drawn = sampler.density(noise[:, :latent])
        with low_precision(self.device):
            standardized: Tensor = self._decode(drawn)
        if sampler.texture is not None:
            pixels = noise[:, latent:].reshape(-1, *self.image_shape)
            standardized = standardized + self.spec.texture * sampler.texture.noisy(pixels, 0.0)
        return standardized * sampler.scale + sampler.centre


def _texture(rest: Tensor, rank: int, seed: int, coarse: bool) -> GaussianPrior:
    """Return the Gaussian of what the decoder leaves (n, D), in units of standardized images."""
    standard, _, scale = GaussianPrior.fit(rest, rank, derive_seed(seed, "texture"), coarse)
    return GaussianPrior(standard.directions, standard.deviations * scale, standard.floor * scale)
