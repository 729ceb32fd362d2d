"""Scales and augmentation."""

from dataclasses import replace

import pytest
import torch

from ff_flower.data import AUGMENTATIONS, DATASETS, AugmentationPolicy, augment, to_uint8, to_unit
from ff_flower.seeding import generator


def _images(n: int = 64, channels: int = 3, side: int = 12) -> torch.Tensor:
    return torch.rand((n, channels, side, side), generator=generator(0, "test")) * 2 - 1


def _symmetries(image: torch.Tensor) -> list[torch.Tensor]:
    turned = [torch.rot90(image, k, (-2, -1)) for k in range(4)]
    return turned + [picture.flip(-1) for picture in turned]


def test_scales_round_trip() -> None:
    """All 256 grey values survive the way to [-1, 1] and back, and the ends are -1 and 1."""
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    unit = to_unit(values)
    assert (unit.dtype, unit.min().item(), unit.max().item()) == (torch.float32, -1.0, 1.0)
    assert torch.equal(to_uint8(unit), values)


def test_scale_back_clamps_and_rounds() -> None:
    """Values outside [-1, 1] become 0 and 255, others the nearest grey value; neither function writes to its argument."""
    unit = torch.tensor([-7.0, -1.0, 0.0, 0.999, 7.0])
    assert to_uint8(unit).tolist() == [0, 0, 128, 255, 255]
    assert unit.tolist() == pytest.approx([-7.0, -1.0, 0.0, 0.999, 7.0])


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_repeat_and_stay_in_range(name: str, channels: int) -> None:
    """Equal generators give equal images, other ones others; shape, dtype and range stay; the argument is not written to."""
    images = _images(channels=channels)
    before = images.clone()
    first, again, other = (augment(images, AUGMENTATIONS[name], generator(seed, "augment")) for seed in (1, 1, 2))
    assert torch.equal(images, before) and torch.equal(first, again)
    assert torch.equal(first, other) == (name == "none")
    assert first.shape == images.shape and first.dtype == torch.float32 and first.min() >= -1 and first.max() <= 1


def test_data_sets_name_existing_policies() -> None:
    """Every policy that the table of data sets names exists, and digits, organs and chests are never flipped."""
    assert {info.augmentation for info in DATASETS.values()} <= set(AUGMENTATIONS)
    for name in ("digits", "mnist", "organamnist", "organcmnist", "organsmnist", "chestmnist", "pneumoniamnist"):
        policy = AUGMENTATIONS[DATASETS[name].augmentation]
        assert not policy.horizontal_flip and not policy.dihedral


def test_digits_are_never_mirrored() -> None:
    """An L-shaped stroke stays nearer to itself than to any mirror image of itself under the policy for digits."""
    stroke = torch.full((1, 1, 16, 16), -1.0)
    stroke[..., 3:13, 4:6] = 1.0
    stroke[..., 11:13, 4:11] = 1.0
    seen = augment(stroke.expand(500, -1, -1, -1), AUGMENTATIONS["digits"], generator(0, "digits"))
    upright = (seen - stroke).square().mean(dim=(1, 2, 3))
    for mirrored in (stroke.flip(-1), stroke.flip(-2), stroke.transpose(-2, -1)):
        assert (upright < (seen - mirrored).square().mean(dim=(1, 2, 3))).all()


def test_dihedral_gives_all_eight_symmetries() -> None:
    """The dihedral policy without its shifts and colours gives each of the square's eight symmetries, about equally often."""
    image = _images(1)
    seen = augment(image.expand(800, -1, -1, -1), AugmentationPolicy(dihedral=True), generator(0, "dihedral"))
    counts = [int((seen == symmetry).flatten(1).all(1).sum()) for symmetry in _symmetries(image)]
    assert sum(counts) == 800 and min(counts) > 60


def test_dihedral_keeps_the_sides_of_oblong_images() -> None:
    """Images that are not square are flipped but not transposed: four symmetries."""
    image = _images(1, side=6)[..., :4]
    seen = augment(image.expand(200, -1, -1, -1), AugmentationPolicy(dihedral=True), generator(0, "oblong"))
    flips = [image, image.flip(-1), image.flip(-2), image.flip((-2, -1))]
    assert [bool((seen == flip).flatten(1).all(1).any()) for flip in flips] == [True] * 4
    assert all(any(torch.equal(one, flip[0]) for flip in flips) for one in seen)


def test_horizontal_flip_gives_two_images() -> None:
    """A horizontal flip gives the image or its mirror image and nothing else."""
    image = _images(1)
    seen = augment(image.expand(100, -1, -1, -1), AugmentationPolicy(horizontal_flip=True), generator(0, "flip"))
    kept, mirrored = ((seen == other).flatten(1).all(1) for other in (image, image.flip(-1)))
    assert (kept ^ mirrored).all() and 25 < int(kept.sum()) < 75


@pytest.mark.parametrize("padding", ["reflect", "black"])
def test_shift_equals_padding_and_cropping(padding: str) -> None:
    """Every shifted image is one of the crops of the padded image, and every shift within bounds occurs."""
    image = _images(1, side=8)
    policy = replace(AugmentationPolicy(max_shift=0.125), padding=padding)
    seen = augment(image.expand(300, -1, -1, -1), policy, generator(0, "shift"))
    mirrored = torch.cat([image[..., :1], image, image[..., -1:]], dim=-1)
    padded = torch.cat([mirrored[..., :1, :], mirrored, mirrored[..., -1:, :]], dim=-2)
    if padding == "black":
        padded = torch.nn.functional.pad(image, (1, 1, 1, 1), value=-1.0)
    crops = [padded[..., down : down + 8, right : right + 8] for down in range(3) for right in range(3)]
    counts = [int((seen == crop).flatten(1).all(1).sum()) for crop in crops]
    assert sum(counts) == 300 and min(counts) > 0


@pytest.mark.parametrize("padding", ["reflect", "black"])
def test_vanishing_rotation_changes_nothing(padding: str) -> None:
    """A rotation by next to nothing returns the image, on oblong images too."""
    images = _images(8)[..., :9]
    policy = replace(AugmentationPolicy(rotation=1e-6), padding=padding)
    torch.testing.assert_close(augment(images, policy, generator(0, "rotation")), images, atol=1e-4, rtol=0)


def test_rotation_keeps_proportions() -> None:
    """A disc in the middle of an oblong image stays where it is under any rotation: pixels stay square."""
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(16.0), indexing="ij")
    disc = torch.tanh(5 - torch.hypot(rows - 11.5, columns - 7.5))[None, None]
    seen = augment(disc.expand(50, 1, -1, -1), AugmentationPolicy(rotation=180.0, padding="black"), generator(0, "disc"))
    assert (seen - disc).abs().max() < 0.2


def test_scale_magnifies() -> None:
    """Magnification by two shows the middle of a linear ramp at half its slope."""
    ramp = torch.linspace(-0.9, 0.9, 16).expand(1, 1, 16, 16)
    seen = augment(ramp, AugmentationPolicy(scale=(2.0, 2.0)), generator(0, "scale"))
    torch.testing.assert_close(seen, ramp / 2, atol=1e-5, rtol=0)


def test_noise_has_the_asked_deviation() -> None:
    """Noise of standard deviation 0.1 on grey has mean 0 and that deviation."""
    seen = augment(torch.zeros((200, 3, 8, 8)), AugmentationPolicy(noise=(0.1, 0.1)), generator(0, "noise"))
    assert seen.mean().abs() < 0.003 and seen.std() == pytest.approx(0.1, rel=0.03)


def test_blur_occurs_with_its_probability() -> None:
    """A blurred point becomes the binomial kernel; it does so in about the asked share of images."""
    point = torch.full((1, 1, 5, 5), -1.0)
    point[..., 2, 2] = 1.0
    seen = augment(point.expand(400, -1, -1, -1), AugmentationPolicy(blur=0.25), generator(0, "blur"))
    blurred = seen[:, 0, 2, 2] < 0.9
    assert 70 < int(blurred.sum()) < 130
    row = torch.tensor([0.0, 0.25, 0.5, 0.25, 0.0])
    torch.testing.assert_close(seen[blurred][0, 0], torch.outer(row, row) * 2 - 1)


def test_colour_leaves_grey_images_alone() -> None:
    """Channels are changed on their own in colour images and not at all in images of one channel."""
    policy = AugmentationPolicy(colour=0.2)
    grey, coloured = (torch.zeros((50, channels, 4, 4)) for channels in (1, 3))
    assert torch.equal(augment(grey, policy, generator(0, "colour")), grey)
    offsets = augment(coloured, policy, generator(0, "colour"))[:, :, 0, 0]
    assert offsets.abs().max() <= 0.2 and (offsets[:, 0] != offsets[:, 1]).any()


def test_contrast_keeps_the_mean_and_brightness_the_contrast() -> None:
    """Contrast keeps each image's mean; brightness adds one number to all its pixels."""
    images = _images() / 3
    contrasted = augment(images, AugmentationPolicy(contrast=0.5), generator(0, "contrast"))
    torch.testing.assert_close(contrasted.mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3)))
    offsets = augment(images, AugmentationPolicy(brightness=0.3), generator(0, "brightness")) - images
    torch.testing.assert_close(offsets, offsets[:, :1, :1, :1].expand_as(offsets))
    assert 0.2 < offsets.max() <= 0.3 and -0.3 <= offsets.min() < -0.2


def test_no_images_stay_no_images() -> None:
    """An empty batch comes back empty."""
    assert augment(_images(0), AUGMENTATIONS["dihedral"], generator(0, "empty")).shape == (0, 3, 12, 12)
