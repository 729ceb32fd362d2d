"""Networks of which everything is known, and normal numbers, for the tests of the network kinds."""

import torch
from torch import Tensor, nn

LEVELS = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=torch.float64)
TIMES = torch.tensor([0.01, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)


class Silent(nn.Module):
    """A raw network F that says zero, with as many channels as an image."""

    def forward(self, x: Tensor, level: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map (b, 2 C, H, W) to zeros (b, C, H, W)."""
        return torch.zeros_like(x[:, : x.shape[1] // 2])


class Loud(nn.Module):
    """A raw network F that depends on all it is given."""

    def forward(self, x: Tensor, level: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map (b, 2 C, H, W) and (b,) to (b, C, H, W)."""
        noisy, first = x.chunk(2, dim=1)
        return torch.tanh(noisy - 2 * first + level[:, None, None, None])


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers of this shape in double precision."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rms(values: Tensor) -> float:
    """Return the root of the mean square."""
    return float(values.square().mean().sqrt())
