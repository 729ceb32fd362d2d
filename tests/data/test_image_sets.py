"""Labelled images as value objects, resizing and holding out."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ff_flower.data import ImageSet, concatenate
from ff_flower.data.image_sets import held_out, resize
from ff_flower.errors import DataError


def _set(labels: list[int], side: int = 2) -> ImageSet:
    images = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, side, side)
    return ImageSet(images, torch.tensor(labels, dtype=torch.int64))


def test_subsets_keep_images_with_their_labels() -> None:
    """Indices, masks and labels choose images together with their labels, in the order asked for."""
    images = _set([2, 0, 1, 0])
    chosen = images.subset([3, 0])
    assert len(images) == 4
    assert (chosen.images[:, 0, 0, 0].tolist(), chosen.labels.tolist()) == ([3, 0], [0, 2])
    assert images.subset(np.array([True, False, False, True])).labels.tolist() == [2, 0]
    assert images.of_label(0).images[:, 0, 0, 0].tolist() == [1, 3]
    assert len(images.subset([])) == len(images.of_label(7)) == 0
    assert images.to("cpu").labels.tolist() == [2, 0, 1, 0]


def test_a_digest_is_of_shape_pixels_and_labels() -> None:
    """The digest is the SHA-256 of the shape's text and the bytes of images and labels, also of a view and of nothing."""
    for images in (_set([2, 0, 1]), _set([])):
        parts = (repr(tuple(images.images.shape)).encode(), images.images.numpy().tobytes(), images.labels.numpy().tobytes())
        assert images.digest() == hashlib.sha256(b"".join(parts)).hexdigest()


def test_concatenation_keeps_the_order() -> None:
    """Joined sets stand one behind the other."""
    assert concatenate([_set([1, 2]), _set([]), _set([0])]).labels.tolist() == [1, 2, 0]


def test_concatenation_refuses_two_shapes() -> None:
    """Sets of two image sizes, or no sets at all, cannot be joined."""
    with pytest.raises(DataError, match=r"data\.size"):
        concatenate([_set([1]), _set([1], side=3)])
    with pytest.raises(DataError, match="share one shape"):
        concatenate([])


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (torch.zeros((2, 1, 4, 4)), torch.zeros(2, dtype=torch.int64), "float32"),
        (torch.zeros((2, 4, 4), dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"\(2, 4, 4\)"),
        (torch.zeros((2, 2, 4, 4), dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "C = 1 or 3"),
        (torch.zeros((2, 1, 4, 4), dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "2 images need"),
        (torch.zeros((2, 1, 4, 4), dtype=torch.uint8), torch.zeros((2, 1), dtype=torch.int64), "2 images need"),
        (torch.zeros((2, 1, 4, 4), dtype=torch.uint8), torch.zeros(2), "int64"),
        (torch.zeros((2, 1, 4, 4), dtype=torch.uint8), torch.tensor([0, -1]), "label -1"),
    ],
)
def test_other_tensors_are_refused(images: torch.Tensor, labels: torch.Tensor, says: str) -> None:
    """Anything but uint8 (n, C, H, W) with n int64 labels from 0 is refused, naming what was found."""
    with pytest.raises(DataError, match=says):
        ImageSet(images, labels)


def test_resizing_averages() -> None:
    """Halving a checkerboard gives grey, not one of its two colours: the resizing is antialiased."""
    board = (torch.arange(16)[:, None] + torch.arange(16)[None]) % 2 * 255
    halved = resize(board.to(torch.uint8)[None, None], 8)
    assert halved.shape == (1, 1, 8, 8) and halved.dtype == torch.uint8
    assert ((halved[..., 1:-1, 1:-1].int() - 127).abs() <= 1).all()


def test_resizing_is_independent_of_the_chunk() -> None:
    """Every image of a long set is resized as it is alone, and its own size changes nothing."""
    images = torch.randint(0, 256, (1100, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize(images, 6), images)
    assert torch.equal(resize(images, 4)[1050:], resize(images[1050:], 4))


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_each_class_is_held_out_in_proportion(counts: list[int], fraction: float, seed: int) -> None:
    """Of n >= 2 images of a class round(fraction n) are held out, but at least 1 and at most n - 1; of a single one none."""
    labels = np.repeat(np.arange(len(counts)), counts)
    held = held_out(labels, None, fraction, np.random.default_rng(seed))
    expected = [min(max(round(fraction * count), 1), count - 1) for count in counts]
    assert np.bincount(labels[held], minlength=len(counts)).tolist() == expected


@settings(deadline=None, max_examples=60)
@given(groups=st.lists(st.integers(0, 12), min_size=2, max_size=60), seed=st.integers(0, 2**32))
def test_groups_are_never_divided(groups: list[int], seed: int) -> None:
    """No group has images on both sides, even one whose images bear different labels."""
    grouped = np.array(groups)
    held = held_out(np.arange(len(groups)) % 3, grouped, 0.3, np.random.default_rng(seed))
    assert not set(grouped[held]) & set(grouped[~held])


def test_nothing_is_held_out_for_a_share_of_zero() -> None:
    """A share of zero holds out nothing."""
    assert not held_out(np.zeros(9, dtype=np.int64), None, 0.0, np.random.default_rng(0)).any()
