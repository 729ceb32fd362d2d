"""Pixels to unit scale and back, and the augmentation policies: one of each for all methods.

``to_unit`` and ``to_uint8`` are the only pair that converts between [0, 255] and [-1, 1]. An `AugmentationPolicy` says
what may happen to an image without changing its label; `AUGMENTATIONS` names the policies that the data sets refer to.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

_GEOMETRY, _COLOUR = 8, 7  # uniform numbers drawn per image


def to_unit(images: Tensor) -> Tensor:
    """Map uint8 images (n, C, H, W) in [0, 255] to float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Map float images (n, C, H, W) to uint8, clamping to [-1, 1]; exactly undoes `to_unit`."""
    return images.to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0.0, 255.0).to(torch.uint8)


@dataclass(frozen=True)
class AugmentationPolicy:
    """What may happen to an image of [-1, 1] without changing its label; the default changes nothing.

    Attributes
    ----------
    max_shift : float
        Largest shift along each axis, as a share of the side.
    horizontal_flip : bool
        Whether left and right may be exchanged.
    dihedral : bool
        Whether all eight symmetries of the square may occur (four for images that are not square).
    rotation : float
        Largest angle of rotation in degrees, either way.
    scale : tuple of float
        Range of the magnification.
    padding : str
        What enters at the border: the ``reflect``-ed image or ``black``.
    brightness : float
        Largest value added to or taken from all pixels.
    contrast : float
        Largest relative change of the distances from the image's mean.
    colour : float
        Largest value added to or taken from each channel on its own (images of one channel are left alone).
    noise : tuple of float
        Range of the standard deviation of additive Gaussian noise.
    blur : float
        Probability of a 3 x 3 binomial blur.
    """

    max_shift: float = 0.0
    horizontal_flip: bool = False
    dihedral: bool = False
    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    padding: Literal["reflect", "black"] = "reflect"
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0
    noise: tuple[float, float] = (0.0, 0.0)
    blur: float = 0.0

    @property
    def resamples(self) -> bool:
        """Whether pixels are interpolated, since an image may be rotated or magnified."""
        return self.rotation > 0 or self.scale != (1.0, 1.0)


AUGMENTATIONS: dict[str, AugmentationPolicy] = {
    "none": AugmentationPolicy(),
    "digits": AugmentationPolicy(max_shift=0.08, rotation=10.0, scale=(0.9, 1.1), padding="black"),
    "natural": AugmentationPolicy(max_shift=0.125, horizontal_flip=True),
    "dihedral": AugmentationPolicy(max_shift=0.08, dihedral=True, brightness=0.1, contrast=0.1, colour=0.05),
    "scan": AugmentationPolicy(max_shift=0.08, brightness=0.1, contrast=0.1),
    "mirrored-scan": AugmentationPolicy(max_shift=0.08, horizontal_flip=True, brightness=0.1, contrast=0.1),
}


def augment(images: Tensor, policy: AugmentationPolicy, generator: torch.Generator) -> Tensor:
    """Return a randomly changed copy of a batch, every image with its own parameters.

    Parameters
    ----------
    images : Tensor
        float32 (n, C, H, W) in [-1, 1], on any device; never written to.
    policy : AugmentationPolicy
        What may happen; a policy that changes nothing returns ``images`` itself.
    generator : torch.Generator
        Source of all chance, on any device; equal generators give equal results.

    Returns
    -------
    Tensor
        float32 (n, C, H, W) in [-1, 1], on the device of ``images``.
    """
    if len(images) == 0 or policy == AugmentationPolicy():
        return images
    draws = torch.rand((len(images), _GEOMETRY + _COLOUR), generator=generator, device=generator.device).to(images.device)
    geometry, colour = draws[:, :_GEOMETRY], draws[:, _GEOMETRY:]
    images = _place(images, policy, geometry)
    if policy.resamples:
        images = _rotate_and_scale(images, policy, geometry)
    return _recolour(images, policy, colour, generator)


def _place(images: Tensor, policy: AugmentationPolicy, draws: Tensor) -> Tensor:
    """Flip, transpose and, unless the pixels are interpolated later, shift by whole pixels: one gather."""
    n, channels, height, width = images.shape
    vertical, horizontal, transposed = (draws[:, :3] < 0.5).unbind(1)
    shift = 0.0 if policy.resamples else policy.max_shift
    rows = _coordinates(height, shift, draws[:, 3], vertical if policy.dihedral else None)
    columns = _coordinates(width, shift, draws[:, 4], horizontal if policy.dihedral or policy.horizontal_flip else None)
    outside = (_beyond(rows, height)[:, :, None] | _beyond(columns, width)[:, None, :])[:, None]  # (n, 1, H, W)
    rows, columns = _reflected(rows, height), _reflected(columns, width)
    source = rows[:, :, None] * width + columns[:, None, :]  # (n, H, W): the pixel of the input that each output pixel takes
    if policy.dihedral and height == width:
        source = torch.where(transposed[:, None, None], columns[:, None, :] * width + rows[:, :, None], source)
    index = source.reshape(n, 1, height * width).expand(-1, channels, -1)
    placed = images.reshape(n, channels, height * width).gather(2, index).reshape(images.shape)
    return placed.masked_fill(outside, -1.0) if policy.padding == "black" else placed


def _coordinates(side: int, max_shift: float, draw: Tensor, flipped: Tensor | None) -> Tensor:
    """Return (n, side) input coordinates along one axis: perhaps flipped, then shifted by up to ``max_shift`` of the side."""
    most = round(max_shift * side)
    shift = (draw * (2 * most + 1)).floor().long() - most
    along = torch.arange(side, device=draw.device)[None] - shift[:, None]
    return along if flipped is None else torch.where(flipped[:, None], side - 1 - along, along)


def _beyond(coordinates: Tensor, side: int) -> Tensor:
    return (coordinates < 0) | (coordinates >= side)


def _reflected(coordinates: Tensor, side: int) -> Tensor:
    """Fold coordinates of [-side, 2 side) back into the image, repeating the pixels at the border."""
    folded = torch.where(coordinates < 0, -1 - coordinates, coordinates)
    return torch.where(folded >= side, 2 * side - 1 - folded, folded)


def _rotate_and_scale(images: Tensor, policy: AugmentationPolicy, draws: Tensor) -> Tensor:
    """Rotate, magnify and shift with bilinear interpolation."""
    height, width = images.shape[-2:]
    down, right, angle, magnified = draws[:, 3:7].unbind(1)
    angle = (2 * angle - 1) * math.radians(policy.rotation)
    factor = policy.scale[0] + magnified * (policy.scale[1] - policy.scale[0])
    cosine, sine = angle.cos() / factor, angle.sin() / factor
    across, along = (2 * right - 1) * 2 * policy.max_shift, (2 * down - 1) * 2 * policy.max_shift  # the side measures 2 here
    first = torch.stack([cosine, -sine * height / width, across], dim=1)
    second = torch.stack([sine * width / height, cosine, along], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    if policy.padding == "black":
        return F.grid_sample(images + 1.0, grid, padding_mode="zeros", align_corners=False) - 1.0
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _recolour(images: Tensor, policy: AugmentationPolicy, draws: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, change contrast, brightness and channels, add noise; clamp to [-1, 1]."""
    channels = images.shape[1]
    signed = (2 * draws - 1)[:, :, None, None]  # (n, 7, 1, 1) in [-1, 1)
    if policy.blur > 0:
        images = torch.where(draws[:, 6, None, None, None] < policy.blur, _blurred(images), images)
    if policy.contrast > 0:
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = torch.lerp(mean, images, 1.0 + policy.contrast * signed[:, 0:1])
    offset = policy.brightness * signed[:, 1:2]
    if policy.colour > 0 and channels == 3:
        offset = offset + policy.colour * signed[:, 2:5]
    images = images + offset
    if policy.noise != (0.0, 0.0):
        deviation = policy.noise[0] + draws[:, 5, None, None, None] * (policy.noise[1] - policy.noise[0])
        noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images.device)
        images = images + deviation * noise
    return images.clamp(-1.0, 1.0)


def _blurred(images: Tensor) -> Tensor:
    channels = images.shape[1]
    row = torch.tensor([0.25, 0.5, 0.25], device=images.device)
    kernel = torch.outer(row, row).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=channels)
