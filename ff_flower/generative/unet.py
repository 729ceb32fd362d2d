"""A compact U-Net that looks at an image and a noise level."""

from collections.abc import Iterable
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import HEADS


class NoiseEmbedding(nn.Module):
    """Sinusoids of a scalar per image, followed by a two-layer perceptron."""

    frequencies: Tensor

    def __init__(self, width: int, frequencies: int = 16) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-0.3, 1.7, frequencies), persistent=False)
        self.perceptron = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, level: Tensor) -> Tensor:
        """Map (b,) levels to (b, width) features."""
        angles = level[:, None] * self.frequencies
        features: Tensor = self.perceptron(torch.cat([angles.cos(), angles.sin()], dim=1))
        return features


class Attention(nn.Module):
    """Self-attention over all positions; begins as the identity plus a bias."""

    def __init__(self, channels: int, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.queries_keys_values = nn.Conv2d(channels, 3 * channels, 1)
        self.projection = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.projection.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, channels, h, w) to the same shape."""
        b, c, h, w = x.shape
        packed = self.queries_keys_values(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w)
        result: Tensor = x + self.projection(_attended(*packed.unbind(1)).reshape(b, c, h, w))
        return result


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shift and scale by the noise level, perhaps attention; begins as the identity plus a bias."""

    def __init__(self, channels: int, embedding: int, attention: bool = False) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(8, channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels)
        self.norm_out = nn.GroupNorm(8, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = Attention(channels) if attention else nn.Identity()
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.modulation.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map (b, channels, h, w) and (b, embedding) to (b, channels, h, w)."""
        hidden = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm_out(hidden) * (scale + 1) + shift
        result: Tensor = self.attention(x + self.conv_out(F.silu(hidden)))
        return result


class UNet(nn.Module):
    """One to four resolutions, attention at the lower ones, pixels folded ``patch`` by ``patch`` into channels on the way in.

    Parameters
    ----------
    inputs, outputs : int
        Channels of the images that come in and go out.
    channels : int
        Width at the upper resolution, a multiple of 8; see `widths` for the others.
    depth : int
        Residual blocks at each resolution on the way down; twice as many at the lowest, and on the way up.
    patch : int
        Side of the folded blocks: 2 does the work at half the image's resolution, at about a quarter of the cost.
    levels : int
        Number of resolutions, each half of the one above.
    conditions : int
        Numbers per image that the network may be told beside the noise level; all zero is the same as none.
    """

    def __init__(
        self, inputs: int, outputs: int, channels: int, depth: int = 1, patch: int = 1, levels: int = 2, conditions: int = 0
    ) -> None:
        super().__init__()
        self.patch, self.multiple = patch, patch * 2 ** (levels - 1)
        sides, embedding = widths(channels, levels), 4 * channels

        def blocks(count: int, level: int) -> nn.ModuleList:
            attention = level > 0 and level >= levels - 2
            return nn.ModuleList(ResidualBlock(sides[level], embedding, attention) for _ in range(count))

        self.embed = NoiseEmbedding(embedding)
        self.condition = nn.Linear(conditions, embedding, bias=False) if conditions else None
        self.entry = nn.Conv2d(inputs * patch**2, channels, 3, padding=1)
        self.before = nn.ModuleList(blocks(depth, level) for level in range(levels - 1))
        self.down = nn.ModuleList(nn.Conv2d(wide, wider, 2, stride=2) for wide, wider in pairwise(sides))
        self.lowest = blocks(2 * depth, levels - 1)
        self.up = nn.ModuleList(nn.Conv2d(wider, 4 * wide, 1) for wide, wider in pairwise(sides))
        self.after = nn.ModuleList(blocks(2 * depth, level) for level in range(levels - 1))
        self.norm = nn.GroupNorm(8, channels)
        self.exit = nn.Conv2d(channels, outputs * patch**2, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(cast(Tensor, self.exit.bias))

    def forward(self, x: Tensor, level: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map images (b, inputs, H, W), of any height and width, and noise levels (b,) to (b, outputs, H, W)."""
        height, width = x.shape[-2:]
        embedding = self.embed(level)
        if self.condition is not None and condition is not None:
            embedding = embedding + self.condition(condition)
        padded = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        image = self.entry(F.pixel_unshuffle(padded, self.patch))
        upper: list[Tensor] = []
        for blocks, down in zip(self.before, self.down, strict=True):
            image = _through(cast(nn.ModuleList, blocks), image, embedding)
            upper.append(image)
            image = down(image)
        image = _through(self.lowest, image, embedding)
        for blocks, up in zip(reversed(self.after), reversed(self.up), strict=True):
            image = _through(cast(nn.ModuleList, blocks), upper.pop() + F.pixel_shuffle(up(image), 2), embedding)
        pixels = F.pixel_shuffle(self.exit(F.silu(self.norm(image))), self.patch)
        return pixels[..., :height, :width]


def widths(channels: int, levels: int) -> tuple[int, ...]:
    """Return the channels at each resolution: one and three times ``channels`` of two, else one, two, three, four times."""
    return (channels, 3 * channels) if levels == 2 else tuple(channels * level for level in range(1, levels + 1))


def _attended(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return the values (..., d, n) at n positions, mixed by how well queries (..., d, n) and keys (..., d, n) agree."""
    if queries.is_cuda:
        turned = [one.transpose(-1, -2) for one in (queries, keys, values)]
        return F.scaled_dot_product_attention(turned[0], turned[1], turned[2]).transpose(-1, -2)
    # PyTorch's function also looks for positions that may see none, which on a CPU takes longer than all the rest.
    weights = torch.softmax((queries * queries.shape[-2] ** -0.5).transpose(-1, -2) @ keys, dim=-1)
    return (values @ weights.transpose(-1, -2)).to(values.dtype)  # under vmap autocast reaches products, but not convolutions


def _through(blocks: Iterable[nn.Module], image: Tensor, embedding: Tensor) -> Tensor:
    for block in blocks:
        image = block(image, embedding)
    return image
