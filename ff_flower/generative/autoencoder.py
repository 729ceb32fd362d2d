"""Encoder and decoder of the ``vae`` module: probabilistic principal components, corrected by residual networks."""

from collections.abc import Iterable
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ImageShape, VAESpec
from .gaussian_prior import GaussianPrior
from .unet import ResidualBlock, widths


class Grid:
    """The feature maps of both networks.

    Parameters
    ----------
    spec : VAESpec
        Resolved: widths, levels, patch and latent numbers.
    image_shape : tuple of int
        (C, H, W).
    """

    def __init__(self, spec: VAESpec, image_shape: ImageShape) -> None:
        channels, self.height, self.width = image_shape
        multiple = spec.patch * 2 ** (spec.levels - 1)
        self.padding = (0, -self.width % multiple, 0, -self.height % multiple)
        self.sides = widths(spec.channels, spec.levels)
        self.patch, self.folded = spec.patch, channels * spec.patch**2
        self.pixels = channels * self.height * self.width
        self.lowest = (self.sides[-1], (self.height + self.padding[3]) // multiple, (self.width + self.padding[1]) // multiple)
        self.features = self.lowest[0] * self.lowest[1] * self.lowest[2]


class Encoder(nn.Module):
    """Mean and logarithmic variance of the latent numbers of a standardized image, as a Gaussian per number.

    It begins as the posterior of probabilistic principal components (Tipping & Bishop 1999, equation 3.27): U diag(d^2) U^T +
    f^2 has posterior means sqrt(d^2 - f^2) / d^2 U^T x and variances f^2 / d^2.
    """

    def __init__(self, spec: VAESpec, image_shape: ImageShape) -> None:
        super().__init__()
        self.grid = grid = Grid(spec, image_shape)
        embedding = 4 * spec.channels
        self.linear = nn.Linear(grid.pixels, spec.latent, bias=False)
        self.log_variance = nn.Parameter(torch.zeros(spec.latent))
        self.embed = nn.Sequential(nn.Linear(spec.latent, embedding), nn.SiLU())
        self.entry = nn.Conv2d(grid.folded, grid.sides[0], 3, padding=1)
        self.blocks = nn.ModuleList(_blocks(side, embedding, spec.depth) for side in grid.sides)
        self.down = nn.ModuleList(nn.Conv2d(wide, wider, 2, stride=2) for wide, wider in pairwise(grid.sides))
        self.norm = nn.GroupNorm(8, grid.sides[-1])
        self.exit = nn.Linear(grid.features, 2 * spec.latent)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (b, C, H, W) to the means and logarithmic variances (b, latent)."""
        with torch.autocast(x.device.type, enabled=False):
            scores = self.linear(x.flatten(1))
        embedding = self.embed(scores)
        image = self.entry(F.pixel_unshuffle(F.pad(x, self.grid.padding), self.grid.patch))
        image = _through(self.blocks[0], image, embedding)
        for down, blocks in zip(self.down, list(self.blocks)[1:], strict=True):
            image = _through(blocks, down(image), embedding)
        mean, log_variance = self.exit(F.silu(self.norm(image)).flatten(1)).float().chunk(2, dim=1)
        return scores + mean, (self.log_variance + log_variance).clamp(-15.0, 5.0)


class Decoder(nn.Module):
    """The mean image of latent numbers: W z plus a residual network's correction, which is zero at the beginning."""

    def __init__(self, spec: VAESpec, image_shape: ImageShape) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.grid = grid = Grid(spec, image_shape)
        embedding, sides = 4 * spec.channels, grid.sides[::-1]
        self.linear = nn.Linear(spec.latent, grid.pixels, bias=False)
        self.embed = nn.Sequential(nn.Linear(spec.latent, embedding), nn.SiLU())
        self.entry = nn.Linear(spec.latent, grid.features)
        self.blocks = nn.ModuleList(_blocks(side, embedding, spec.depth) for side in sides)
        self.up = nn.ModuleList(nn.Conv2d(wider, 4 * wide, 1) for wider, wide in pairwise(sides))
        self.norm = nn.GroupNorm(8, sides[-1])
        self.exit = nn.Conv2d(sides[-1], grid.folded, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(cast(Tensor, self.exit.bias))

    def forward(self, z: Tensor) -> Tensor:
        """Map (b, latent) to standardized images (b, C, H, W)."""
        with torch.autocast(z.device.type, enabled=False):
            first = self.linear(z).reshape(-1, *self.image_shape)
        embedding = self.embed(z)
        image = _through(self.blocks[0], self.entry(z).reshape(-1, *self.grid.lowest), embedding)
        for up, blocks in zip(self.up, list(self.blocks)[1:], strict=True):
            image = _through(blocks, F.pixel_shuffle(up(image), 2), embedding)
        pixels = F.pixel_shuffle(self.exit(F.silu(self.norm(image))), self.grid.patch)
        result: Tensor = first + pixels[..., : self.grid.height, : self.grid.width].float()
        return result


def begin(encoder: Encoder, decoder: Decoder, prior: GaussianPrior) -> None:
    """Set both linear parts to the principal components of ``prior``, whose rank is at most the number of latent numbers.

    Then the decoder's image plus noise of deviation ``prior.floor`` has the distribution of ``prior``, and the encoder gives
    its exact posterior. Latent numbers without a direction keep the standard normal one.
    """
    rank, floor = len(prior.deviations), prior.floor.square()
    variance = prior.deviations.square()
    root = (variance - floor).clamp_min(0).sqrt()
    with torch.no_grad():
        for weight in (encoder.linear.weight, decoder.linear.weight, encoder.log_variance):
            weight.zero_()
        encoder.linear.weight[:rank] = (root / variance)[:, None] * prior.directions
        decoder.linear.weight[:, :rank] = prior.directions.T * root
        encoder.log_variance[:rank] = (floor / (root.square() + floor)).log()


def _blocks(side: int, embedding: int, depth: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(side, embedding) for _ in range(depth))


def _through(blocks: nn.Module, image: Tensor, embedding: Tensor) -> Tensor:
    for block in cast(Iterable[nn.Module], blocks):
        image = block(image, embedding)
    return image
