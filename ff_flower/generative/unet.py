"""A compact U-Net that looks at an image and a noise level."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDENING = 3


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

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.queries_keys_values = nn.Conv2d(channels, 3 * channels, 1)
        self.projection = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.projection.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, channels, h, w) to the same shape."""
        b, c, h, w = x.shape
        packed = self.queries_keys_values(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2)
        mixed = F.scaled_dot_product_attention(packed[:, 0], packed[:, 1], packed[:, 2])
        result: Tensor = x + self.projection(mixed.transpose(-1, -2).reshape(b, c, h, w))
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
        hidden = torch.addcmul(shift, self.norm_out(hidden), scale + 1)
        result: Tensor = self.attention(x + self.conv_out(F.silu(hidden)))
        return result


class UNet(nn.Module):
    """Two resolutions, attention at the lower, pixels folded ``patch`` by ``patch`` into channels on the way in.

    Parameters
    ----------
    inputs, outputs : int
        Channels of the images that come in and go out.
    channels : int
        Width at the upper resolution, three times that at the lower; a multiple of 8.
    depth : int
        Residual blocks before the lower resolution; twice as many in it, and after it.
    patch : int
        Side of the folded blocks: 2 does the work at half the image's resolution, at about a quarter of the cost.
    """

    def __init__(self, inputs: int, outputs: int, channels: int, depth: int = 1, patch: int = 1) -> None:
        super().__init__()
        self.patch = patch
        wide, embedding = WIDENING * channels, 4 * channels
        self.embed = NoiseEmbedding(embedding)
        self.entry = nn.Conv2d(inputs * patch**2, channels, 3, padding=1)
        self.before = nn.ModuleList(ResidualBlock(channels, embedding) for _ in range(depth))
        self.down = nn.Conv2d(channels, wide, 2, stride=2)
        self.lower = nn.ModuleList(ResidualBlock(wide, embedding, attention=True) for _ in range(2 * depth))
        self.up = nn.Conv2d(wide, 4 * channels, 1)
        self.after = nn.ModuleList(ResidualBlock(channels, embedding) for _ in range(2 * depth))
        self.norm = nn.GroupNorm(8, channels)
        self.exit = nn.Conv2d(channels, outputs * patch**2, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(cast(Tensor, self.exit.bias))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Map images (b, inputs, H, W), of any height and width, and noise levels (b,) to (b, outputs, H, W)."""
        height, width = x.shape[-2:]
        multiple = 2 * self.patch
        embedding = self.embed(level)
        padded = F.pad(x, (0, -width % multiple, 0, -height % multiple))
        upper = self.entry(F.pixel_unshuffle(padded, self.patch))
        for block in self.before:
            upper = block(upper, embedding)
        lower = self.down(upper)
        for block in self.lower:
            lower = block(lower, embedding)
        upper = upper + F.pixel_shuffle(self.up(lower), 2)
        for block in self.after:
            upper = block(upper, embedding)
        pixels = F.pixel_shuffle(self.exit(F.silu(self.norm(upper))), self.patch)
        return pixels[..., :height, :width]
