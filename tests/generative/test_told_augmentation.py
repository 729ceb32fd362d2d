"""Augmentation of which the network is told."""

import math

import pytest
import torch
from closed_forms import normal
from torch import Tensor

from ff_flower.generative.augmentation import CONDITIONS, augment_and_tell


def _augmented(images: Tensor, chance: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    return augment_and_tell(images, chance, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=[(9, 9), (6, 10)])
def images(request: pytest.FixtureRequest) -> Tensor:
    """Return square and oblong images without symmetry."""
    return normal(400, 2, *request.param).float()


def test_no_chance_changes_nothing(images: Tensor) -> None:
    """With a chance of 0 the images are as they were, and zeros are told."""
    moved, told = _augmented(images, 0.0)
    assert torch.equal(moved, images) and told.shape == (400, CONDITIONS) and not told.any()


def test_zeros_mean_untouched(images: Tensor) -> None:
    """An image is left as it is exactly where zeros are told of it, and so with probability (1 - chance)^7."""
    moved, told = _augmented(images, 0.1)
    untouched = (moved == images).flatten(1).all(1)
    assert torch.equal(untouched, ~told.any(1))
    expected = 0.9**7
    assert abs(untouched.float().mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / 400)


@pytest.mark.parametrize(("number", "dims"), [(0, (-1,)), (1, (-2,))])
def test_mirrored_images_are_mirror_images(images: Tensor, number: int, dims: tuple[int]) -> None:
    """An image that was mirrored alone is itself from right to left, or upside down."""
    moved, told = _augmented(images, 0.1)
    alone = (told[:, number] == 1) & (told.count_nonzero(1) == 1)
    assert alone.sum() > 3
    assert torch.allclose(moved[alone], images[alone].flip(dims), atol=1e-4)


@pytest.mark.parametrize("sides", [(16, 16), (16, 24)])
def test_what_is_told_is_what_was_done(sides: tuple[int, int]) -> None:
    """Around the middle, the pixels come from where the told numbers say: mirrored, magnified, stretched, turned, shifted."""
    height, width = sides
    rows, columns = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    moved, told = _augmented(torch.stack([columns, rows])[None].repeat(300, 1, 1, 1), 0.5)
    near = (told[:, 6:].abs() < 2).all(1) & (told[:, 2:4].abs() < 2.5).all(1)
    moved, told = moved[near], told[near]
    assert len(told) > 200
    mirror, flip, magnified, stretched, cosine, sine, down, right = told.unbind(1)
    turn = torch.stack([torch.stack([cosine + 1, -sine], 1), torch.stack([sine, cosine + 1], 1)], 1)
    along = torch.exp2((-magnified - stretched) / 5) * (1 - 2 * mirror)
    across = torch.exp2((-magnified + stretched) / 5) * (1 - 2 * flip)
    source = torch.stack([along, across], 1)[:, :, None] * turn  # (n, 2, 2): by how much x and y change per pixel
    low, left = height // 2, width // 2
    middle = moved[:, :, low - 1 : low + 1, left - 1 : left + 1]
    shift = torch.stack([right * width / 8, down * height / 8], 1) + torch.tensor([width - 1, height - 1]) / 2
    assert torch.allclose(middle.mean((2, 3)), shift, atol=1e-3)
    per_column, per_row = middle[..., 0, 1] - middle[..., 0, 0], middle[..., 1, 0] - middle[..., 0, 0]
    assert torch.allclose(torch.stack([per_column, per_row], 2), source, atol=1e-3)


def test_the_numbers_are_of_unit_scale() -> None:
    """Where they are not zero, the told magnifications, stretches and shifts are standard normal, and angles uniform."""
    told = _augmented(torch.zeros(20_000, 1, 2, 2), 0.5)[1]
    for number in (2, 3, 6, 7):
        drawn = told[:, number][told[:, number] != 0]
        assert abs(drawn.mean()) < 0.05 and abs(drawn.std() - 1) < 0.05 and abs(len(drawn) / 20_000 - 0.5) < 0.02
    turned = told[:, 5] != 0
    assert torch.allclose((told[turned, 4] + 1).square() + told[turned, 5].square(), torch.ones(()), atol=1e-5)
    assert abs((told[turned, 4] + 1).mean()) < 0.05 and abs(told[turned, 5].mean()) < 0.05


def test_chance_follows_from_the_generator(images: Tensor) -> None:
    """Equal generators change images equally, others otherwise; the images that are given are not written to."""
    before = images.clone()
    first, second, other = _augmented(images, 0.3), _augmented(images, 0.3), _augmented(images, 0.3, seed=1)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[1], other[1]) and torch.equal(images, before)


def test_pixels_stay_within_their_range(images: Tensor) -> None:
    """Interpolation and reflection bring in no brightness that was not there."""
    moved, _ = _augmented(images, 0.5)
    assert (moved.amax((1, 2, 3)) <= images.amax((1, 2, 3)) + 1e-5).all()
    assert (moved.amin((1, 2, 3)) >= images.amin((1, 2, 3)) - 1e-5).all()
