"""A compact U-Net that looks at an image and a noise level."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoiseEmbedding(nn.Module):
    """Sinusoids of a scalar per image, followed by a two-layer perceptron."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-1, 2, width // 2), persistent=False)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width), nn.SiLU())

    def forward(self, level: Tensor) -> Tensor:
        """Map (b,) levels to (b, 2 * width) features."""
        angles = level[:, None] * self.frequencies
        features: Tensor = self.perceptron(torch.cat([angles.cos(), angles.sin()], dim=1) * math.sqrt(2))
        return features


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shift and scale by the noise level; begins as the identity (or a 1x1 projection)."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(8, inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm_out = nn.GroupNorm(8, outputs)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.modulation.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map (b, inputs, h, w) and (b, embedding) to (b, outputs, h, w)."""
        hidden = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = torch.addcmul(shift, self.norm_out(hidden), scale + 1)
        result: Tensor = self.skip(x) + self.conv_out(F.silu(hidden))
        return result


class Attention(nn.Module):
    """Self-attention over all positions; begins as the identity."""

    def __init__(self, channels: int, head_width: int = 32) -> None:
        super().__init__()
        self.heads = max(1, channels // head_width)
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


class UNet(nn.Module):
    """Two resolutions, attention at the lower, pixels folded ``patch`` by ``patch`` into channels on the way in.

    Parameters
    ----------
    image_shape : tuple of int
        ``(C, H, W)``; any height and width, zero-padded to a multiple of ``patch``.
    channels : int
        Width at the upper resolution, twice that at the lower; a multiple of 8.
    depth : int
        Residual blocks on each way through a resolution.
    patch : int
        Side of the folded blocks: 2 does the work at half the image's resolution, at about a quarter of the cost.
    """

    def __init__(self, image_shape: tuple[int, int, int], channels: int, depth: int = 1, patch: int = 1) -> None:
        super().__init__()
        self.patch = patch
        self.size = image_shape[1:]
        pixels = image_shape[0] * patch**2
        wide, embedding = 2 * channels, 2 * channels
        self.embed = NoiseEmbedding(channels)
        self.entry = nn.Conv2d(pixels, channels, 3, padding=1)
        self.upper_in = nn.ModuleList(ResidualBlock(channels, channels, embedding) for _ in range(depth))
        self.widen = nn.Conv2d(channels, wide, 1)
        self.lower = nn.ModuleList(ResidualBlock(wide, wide, embedding) for _ in range(2 * depth))
        self.attention = Attention(wide)
        self.narrow = nn.Conv2d(wide, channels, 1)
        self.upper_out = nn.ModuleList(ResidualBlock(2 * channels, channels, embedding) for _ in range(depth))
        self.norm = nn.GroupNorm(8, channels)
        self.exit = nn.Conv2d(channels, pixels, 3, padding=1)
        nn.init.zeros_(self.exit.weight)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Map images (b, C, H, W) and noise levels (b,) to (b, C, H, W)."""
        height, width = self.size
        x = F.pad(x, (0, -width % self.patch, 0, -height % self.patch))
        embedding = self.embed(level)
        upper = self.entry(F.pixel_unshuffle(x, self.patch))
        skips = []
        for block in self.upper_in:
            upper = block(upper, embedding)
            skips.append(upper)
        lower = self.widen(F.avg_pool2d(upper, 2, ceil_mode=True))
        half = len(self.lower) // 2
        for index, block in enumerate(self.lower):
            lower = self.attention(lower) if index == half else lower
            lower = block(lower, embedding)
        hidden = F.interpolate(self.narrow(lower), size=upper.shape[-2:], mode="nearest")
        for block in self.upper_out:
            hidden = block(torch.cat([hidden, skips.pop()], dim=1), embedding)
        pixels = F.pixel_shuffle(self.exit(F.silu(self.norm(hidden))), self.patch)
        return pixels[..., :height, :width]
