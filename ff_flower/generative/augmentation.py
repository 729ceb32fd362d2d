"""Augmentation that does not leak into samples: the network is told what was done (EDM, appendix F.2)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CONDITIONS = 8


def augment_and_tell(images: Tensor, chance: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turn, mirror, shift, stretch and magnify images, and say how; each with a ``chance`` of its own.

    Parameters
    ----------
    images : Tensor
        (b, C, H, W) float32.
    chance : float
        Probability of each change of each image, in [0, 1).
    random : torch.Generator
        Source of all chance, on the images' device.

    Returns
    -------
    tuple of Tensor
        The images, and (b, 8) numbers that are all zero for an image that was left as it is: mirrored left and right, upside
        down, magnification and stretch (binary logarithms, a fifth of it standard deviation), cosine less one and sine of the
        angle, shifts down and right in eighths of the side.
    """
    b, device = len(images), images.device
    normal = torch.randn((b, CONDITIONS), generator=random, device=device)
    done = (torch.rand((b, CONDITIONS), generator=random, device=device) < chance).float()
    mirrored, flipped = done[:, 0], done[:, 1]
    magnified, stretched = 0.2 * normal[:, 2] * done[:, 2], 0.2 * normal[:, 3] * done[:, 3]
    angle = 2 * math.pi * torch.special.ndtr(normal[:, 4]) * done[:, 4]
    down, right = normal[:, 6] * done[:, 6], normal[:, 7] * done[:, 7]
    told = torch.stack([mirrored, flipped, 5 * magnified, 5 * stretched, angle.cos() - 1, angle.sin(), down, right], dim=1)
    along, across = (
        torch.exp2(-magnified - stretched) * (1 - 2 * mirrored),
        torch.exp2(-magnified + stretched) * (1 - 2 * flipped),
    )
    height, width = images.shape[-2:]  # both measure 2 in the grid: a turn of oblong images must not shear them
    first = torch.stack([along * angle.cos(), -along * angle.sin() * height / width, right / 4], dim=1)
    second = torch.stack([across * angle.sin() * width / height, across * angle.cos(), down / 4], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    untouched = ~told.any(dim=1)[:, None, None, None]
    return torch.where(untouched, images, moved), told
