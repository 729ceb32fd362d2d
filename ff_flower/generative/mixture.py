"""A mixture of Gaussians with full covariances, fitted by expectation maximization."""

import torch
from torch import Tensor, nn

from ..seeding import library_seed


class GaussianMixtureDensity(nn.Module):
    """A density of k numbers from which standard normal numbers are turned into draws.

    Parameters
    ----------
    weights : Tensor
        (m,) shares of the Gaussians.
    means : Tensor
        (m, k) their means.
    factors : Tensor
        (m, k, k) lower Cholesky factors of their covariances.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, weights: Tensor, means: Tensor, factors: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.register_buffer("means", means)
        self.register_buffer("factors", factors)

    @classmethod
    def empty(cls, mixtures: int, dimensions: int) -> "GaussianMixtureDensity":
        """Return room for ``mixtures`` Gaussians of ``dimensions`` numbers."""
        shape = (mixtures, dimensions)
        return cls(torch.zeros(mixtures), torch.zeros(shape), torch.zeros((*shape, dimensions)))

    @classmethod
    def fit(cls, rows: Tensor, mixtures: int, regularization: float, seed: int) -> "GaussianMixtureDensity":
        """Fit ``mixtures`` Gaussians to ``rows`` (n, k), adding ``regularization`` to the covariances' diagonals."""
        from sklearn.mixture import GaussianMixture
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        points = rows.double().numpy()
        with threadpool_limits(1):
            found = GaussianMixture(
                mixtures, reg_covar=regularization, max_iter=50, random_state=library_seed(seed, "mixture")
            ).fit(points if len(points) > 1 else points.repeat(2, axis=0))
            factors = torch.linalg.cholesky(torch.from_numpy(found.covariances_))
        return cls(torch.from_numpy(found.weights_).float(), torch.from_numpy(found.means_).float(), factors.float())

    def forward(self, noise: Tensor) -> Tensor:
        """Turn (b, 1 + k) standard normal numbers into (b, k) draws: the first chooses the Gaussian."""
        levels = self.weights.cumsum(0)
        uniform = torch.special.ndtr(noise[:, :1].double()).float() * levels[-1]
        chosen = torch.searchsorted(levels, uniform).flatten().clamp_max(len(levels) - 1)
        return self.means[chosen] + torch.einsum("bij,bj->bi", self.factors[chosen], noise[:, 1:])
