"""A mixture of Gaussians with full covariances, fitted by expectation maximization."""

import warnings

import torch
from torch import Tensor, nn

from ..errors import ModuleError
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
    def fit(
        cls, rows: Tensor, mixtures: int, regularization: float, seed: int, rounds: int = 200
    ) -> tuple["GaussianMixtureDensity", int, float]:
        """Fit by expectation maximization, from a start by k-means.

        Parameters
        ----------
        rows : Tensor
            (n, k) points.
        mixtures : int
            Number of Gaussians, at most n.
        regularization : float
            Added to the covariances' diagonals.
        seed : int
            Seed of the start.
        rounds : int
            Most passes over the points.

        Returns
        -------
        tuple of GaussianMixtureDensity, int, float
            The density in single precision, the passes that were made, and the mean logarithmic likelihood.

        Raises
        ------
        ModuleError
            When the points are not finite, or too alike for their regularization.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        if not bool(torch.isfinite(rows).all()):
            raise ModuleError("points of a mixture are not finite: the training before it diverged; lower its learning rate")
        points = rows.double().numpy()
        model = GaussianMixture(mixtures, reg_covar=regularization, max_iter=rounds, random_state=library_seed(seed, "mixture"))
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the last rounds change little, and their number is a budget
            try:
                model.fit(points if len(points) > 1 else points.repeat(2, axis=0))
                factors = torch.linalg.cholesky(torch.from_numpy(model.covariances_))
            except (ValueError, RuntimeError) as error:
                raise ModuleError(f"a mixture's covariance is not positive definite ({error}); raise regularization") from error
        weights, means = torch.from_numpy(model.weights_).float(), torch.from_numpy(model.means_).float()
        return cls(weights, means, factors.float()), int(model.n_iter_), float(model.lower_bound_)

    def forward(self, noise: Tensor) -> Tensor:
        """Turn (b, 1 + k) standard normal numbers into (b, k) draws: the first chooses the Gaussian."""
        levels = self.weights.cumsum(0)
        uniform = torch.special.ndtr(noise[:, :1].double()).float() * levels[-1]
        chosen = torch.searchsorted(levels, uniform).flatten().clamp_max(len(levels) - 1)
        drawn: Tensor = self.means[chosen] + torch.einsum("bij,bj->bi", self.factors[chosen], noise[:, 1:])
        return drawn
