"""What is best for a Gaussian, in closed form: the first guess that the networks of ``edm`` and ``flow`` correct."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..seeding import library_seed
from .base import allowed

ROWS, NUMBERS = 8192, 2**27  # a Gaussian is fitted to at most so many images, and to so many numbers in all: half a gigabyte
SMALLEST = 1e-2


class GaussianPrior(nn.Module):
    """A Gaussian N(0, U diag(d^2) U^T + f^2 (I - U U^T)) of standardized images, and its posterior mean under noise.

    With no directions and f = 1 the posterior mean is c_skip x and its error c_out of EDM's preconditioning
    (Karras et al. 2022, table 1, sigma_data = 1): EDM assumes that pixels are independent. A class's own covariance is a
    far better first guess, which a network can correct from the first step on, and whose failures are smooth.

    Parameters
    ----------
    directions : Tensor
        U^T, (r, D) orthonormal rows.
    deviations : Tensor
        d, (r,) standard deviations along the directions.
    floor : Tensor
        f, () standard deviation in all others.
    """

    directions: Tensor
    deviations: Tensor
    floor: Tensor

    def __init__(self, directions: Tensor, deviations: Tensor, floor: Tensor) -> None:
        super().__init__()
        self.register_buffer("directions", directions)
        self.register_buffer("deviations", deviations)
        self.register_buffer("floor", floor)

    @classmethod
    def isotropic(cls, pixels: int, rank: int = 0) -> "GaussianPrior":
        """Return the prior of independent pixels of unit variance, with room for ``rank`` directions."""
        return cls(torch.zeros(rank, pixels), torch.ones(rank), torch.ones(()))

    @classmethod
    def fit(cls, rows: Tensor, rank: int, seed: int, coarse: bool = False) -> tuple["GaussianPrior", Tensor, Tensor]:
        """Fit principal components, and one variance for all other directions.

        Where images are more than pixels these are probabilistic principal components (Tipping & Bishop 1999). Where they are
        fewer, what they leave is spread over as many directions as there are images less ``rank``, not over all pixels: other
        images leave more than those that the directions were fitted to.

        Parameters
        ----------
        rows : Tensor
            (n, D) float32 images.
        rank : int
            Largest number of directions; 0 gives the isotropic prior. There are at most half as many as images: with as many
            directions as images nothing would be left that tells how other images vary in all the others.
        seed : int
            Seed of the randomized decomposition.
        coarse : bool
            Whether the images allow a power of two of directions only, which tells their number roughly.

        Returns
        -------
        tuple of GaussianPrior, Tensor, Tensor
            The prior of (rows - centre) / scale, the centre (D,) and the scale (). All are rounded to float16, in which a
            module file holds them by default: what the network is trained on is then what will be sampled from.
        """
        from sklearn.decomposition import PCA
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        centre = _rounded(rows.mean(0))
        scale = _rounded((rows - centre).square().mean().sqrt().clamp_min(0.05))
        standard = (rows - centre) / scale
        rank = min(rank, allowed(len(standard) // 2, coarse), standard.shape[1] - 1)
        if rank < 1:
            return cls.isotropic(rows.shape[1]), centre, scale
        with threadpool_limits(1):
            pca = PCA(rank, random_state=library_seed(seed, "prior")).fit(standard.numpy())
        deviations = torch.from_numpy(pca.explained_variance_).float().sqrt().clamp_min(SMALLEST)
        # A randomized decomposition finds what is left by a difference, which rounding can take below 0.
        floor = torch.tensor(float(pca.noise_variance_)).clamp_min(0).sqrt().clamp_min(SMALLEST)
        directions = torch.from_numpy(pca.components_).float().contiguous()
        return cls(_rounded(directions), _rounded(deviations), _rounded(floor)), centre, scale

    def padded(self, rank: int) -> "GaussianPrior":
        """Return the same Gaussian with as many as ``rank`` directions: modules of one architecture have tensors of one shape."""
        more = rank - len(self.deviations)
        directions = F.pad(self.directions, (0, 0, 0, more))
        return GaussianPrior(directions, torch.cat([self.deviations, self.floor.expand(more)]), self.floor)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return E[clean | x] for (b, C, H, W) images with noise of standard deviation ``sigma`` (b,)."""
        noise = sigma.square()[:, None]
        return self._scaled(x, lambda variance: variance / (variance + noise))

    def error(self, sigma: Tensor) -> Tensor:
        """Return the root mean square error per pixel (b,) of the posterior mean, where the data are this Gaussian."""
        noise = sigma.square()[:, None]
        return self._mean(lambda variance: variance * noise / (variance + noise)).sqrt()

    def noisy(self, noise: Tensor, sigma: float) -> Tensor:
        """Turn standard normal (b, C, H, W) numbers into draws of clean images plus noise of deviation ``sigma``."""
        return self._scaled(noise, lambda variance: (variance + sigma**2).sqrt())

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Return E[noise - clean | x] for x = (1 - t) clean + t noise, (b, C, H, W), at times ``t`` (b,) in [0, 1]."""
        t = t[:, None]
        return self._scaled(x, lambda variance: (t - (1 - t) * variance) / ((1 - t).square() * variance + t.square()))

    def velocity_error(self, t: Tensor) -> Tensor:
        """Return the root mean square error per pixel (b,) of `velocity`, where the data are this Gaussian."""
        t = t[:, None]
        return self._mean(lambda variance: variance / ((1 - t).square() * variance + t.square())).sqrt()

    def _scaled(self, x: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
        """Multiply the part of ``x`` along each direction by the ``gain`` of its variance."""
        # At low noise the error is a small part of the image: half precision would drown it.
        with torch.autocast(x.device.type, enabled=False):
            flat, rest = x.flatten(1), gain(self.floor.square())
            along = gain(self.deviations.square()) - rest
            return (rest * flat + (flat @ self.directions.T * along) @ self.directions).reshape(x.shape)

    def _mean(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the mean over all directions of the ``value`` (b, 1 or r) of their variances."""
        rank, pixels = self.directions.shape
        along, rest = value(self.deviations.square()), value(self.floor.square()[None])
        return (along.sum(1) + (pixels - rank) * rest.squeeze(1)) / pixels


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.half().float()
