"""What the name of a size stands for, and what its modules weigh."""

import math
from typing import Any

import pytest
import torch

from ff_flower.config import SIZES, EDMSpec, FlowSpec, ImageShape, UNetSpec, VAESpec
from ff_flower.errors import ConfigError
from ff_flower.generative import EDMModule, FlowModule
from ff_flower.generative.base import blocks_at_once
from ff_flower.generative.gaussian_prior import GaussianPrior

SPECS = [EDMSpec, FlowSpec]
PLACEHOLDERS = {"channels": 0, "depth": 0, "levels": 0, "patch": 0, "rank": -1}


def _spec(kind: type[UNetSpec], size: str, **settings: Any) -> UNetSpec:
    return kind.model_validate({"size": size} | settings)


def _state(kind: type[UNetSpec], size: str, shape: ImageShape) -> dict[str, torch.Tensor]:
    """Return the tensors of a module of this size, without their numbers."""
    module: Any = (EDMModule if kind is EDMSpec else FlowModule)(_spec(kind, size), shape)
    with torch.device("meta"):
        return module._build(GaussianPrior.isotropic(math.prod(shape), module.spec.rank)).state_dict()


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("size", SIZES)
def test_placeholders_are_filled_once(kind: type[UNetSpec], size: str) -> None:
    """A size fills every placeholder and nothing else, and filling again, for any image that fits, changes nothing."""
    spec = _spec(kind, size)
    assert {name: getattr(spec, name) for name in PLACEHOLDERS} == PLACEHOLDERS
    filled = spec.resolved((3, SIZES[size].largest, SIZES[size].largest))
    for name in ("channels", "depth", "levels", "rank"):
        assert getattr(filled, name) == getattr(SIZES[size], name)
    assert filled.patch > 0 and filled.model_dump(exclude=set(PLACEHOLDERS)) == spec.model_dump(exclude=set(PLACEHOLDERS))
    assert filled.resolved((3, 8, 8)) == filled == type(filled).model_validate(filled.model_dump())


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("size", SIZES)
def test_explicit_numbers_win(kind: type[UNetSpec], size: str) -> None:
    """A number that is given stands, whatever the size says; no directions is such a number."""
    given = {"channels": 24, "depth": 3, "levels": 1, "patch": 4, "rank": 0}
    filled = _spec(kind, size, **given).resolved((1, 8, 8))
    assert {name: getattr(filled, name) for name in given} == given


@pytest.mark.parametrize(("size", "larger"), [("tiny", "small"), ("small", "base"), ("base", "large")])
def test_too_large_images_are_refused(size: str, larger: str) -> None:
    """One pixel more than a size takes is refused with the image's sides, the size's limit, and the next size as a remedy."""
    largest = SIZES[size].largest
    with pytest.raises(ConfigError) as caught:
        _spec(EDMSpec, size).resolved((3, 8, largest + 1))
    assert f"images of 8 x {largest + 1} pixels: a network of size {size!r} takes up to {largest}" in str(caught.value)
    assert f"set its size to 'auto' or {larger!r}, or data.size to {largest} or less" in str(caught.value)


@pytest.mark.parametrize("size", ["auto", "large"])
def test_no_size_takes_more_than_the_largest(size: str) -> None:
    """Images that no size can take are refused with smaller images as the remedy, when a module is built."""
    with pytest.raises(ConfigError, match=r"images of 129 x 129 pixels: .* takes up to 128; set data\.size to 128 or less"):
        FlowModule(FlowSpec.model_validate({"size": size}), (3, 129, 129))


@pytest.mark.parametrize("kind", [*SPECS, VAESpec])
def test_auto_is_the_smallest_size_that_takes_the_image(kind: type[EDMSpec | FlowSpec | VAESpec]) -> None:
    """``auto``, the default, is resolved to what the smallest fitting size is resolved to: the same module, the same bytes."""
    assert kind().size == "auto"
    for side in range(1, 129):
        shape = (3, 8, side)
        smallest = next(name for name, size in SIZES.items() if max(8, side) <= size.largest)
        assert kind().resolved(shape) == kind.model_validate({"size": smallest}).resolved(shape)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_folded_until_the_grid_is_reached(size: str) -> None:
    """The patch is the smallest of 1, 2, 4, 8 that brings the longer side to the size's grid or below."""
    for side in range(1, SIZES[size].largest + 1):
        patch = _spec(EDMSpec, size).resolved((1, 1, side)).patch
        assert side <= patch * SIZES[size].grid
        assert patch == 1 or side > patch // 2 * SIZES[size].grid


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_takes_its_largest_image(kind: type[UNetSpec], size: str) -> None:
    """A network of each size maps its largest colour images and their Gaussian's estimate to an image."""
    largest = SIZES[size].largest
    module: Any = (EDMModule if kind is EDMSpec else FlowModule)(_spec(kind, size), (3, largest, largest))
    with torch.device("meta"):
        network = module._build(GaussianPrior.isotropic(3 * largest**2, module.spec.rank)).model.network
        assert network(torch.zeros(2, 6, largest, largest), torch.ones(2)).shape == (2, 3, largest, largest)


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize(("size", "side", "megabytes"), [("tiny", 16, 0.5), ("small", 28, 2.0), ("base", 28, 10.0)])
def test_modules_are_small(kind: type[UNetSpec], size: str, side: int, megabytes: float) -> None:
    """In half precision a module of colour images is at most 0.5 MB in size tiny, 2 MB in small, and 10 MB in base."""
    weight = sum(2 * tensor.numel() for tensor in _state(kind, size, (3, side, side)).values())
    assert 0.1 * megabytes * 1e6 < weight < megabytes * 1e6


@pytest.mark.parametrize(
    ("size", "channels", "side", "patch", "blocks"), [("base", 0, 28, 0, 8), ("large", 0, 128, 0, 4), ("base", 512, 64, 1, 1)]
)
def test_a_gpu_samples_as_many_blocks_as_its_memory_takes(size: str, channels: int, side: int, patch: int, blocks: int) -> None:
    """Small networks sample 8 blocks at once on a GPU; what holds too many numbers for that takes fewer, a CPU always one."""
    shape = (3, side, side)
    spec = EDMSpec(size=size, channels=channels, patch=patch).resolved(shape)
    assert blocks_at_once(spec, shape, torch.device("cuda")) == blocks
    assert blocks_at_once(spec, shape, torch.device("cpu")) == 1
