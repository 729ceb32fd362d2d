"""A Gaussian with its covariance written out, and the images of one class."""

import pytest
import torch
from closed_forms import normal
from torch import Tensor

from ff_flower.data import Splits
from ff_flower.generative.gaussian_prior import GaussianPrior


@pytest.fixture(scope="session")
def prior() -> GaussianPrior:
    """Return a Gaussian of nine pixels, narrow in most directions and wide in three."""
    directions = torch.linalg.qr(normal(9, 9))[0][:3]
    return GaussianPrior(directions, torch.tensor([2.0, 1.0, 0.3]).double(), torch.tensor(0.2).double())


@pytest.fixture(scope="session")
def covariance(prior: GaussianPrior) -> Tensor:
    """Return the covariance (9, 9) of that Gaussian, written out."""
    along = prior.directions.T @ prior.directions
    return prior.directions.T @ prior.deviations.square().diag() @ prior.directions + 0.04 * (torch.eye(9) - along)


@pytest.fixture(scope="session")
def zeros(digits: Splits) -> Tensor:
    """Return scans of the digit zero."""
    return digits.train.of_label(0).images
