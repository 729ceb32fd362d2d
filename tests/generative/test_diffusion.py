"""What is true of ``edm`` and ``flow`` alike: training, symmetry, augmentation, resumption, compilation."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import normal
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from ff_flower.config import EDMSpec, FlowSpec, UNetSpec
from ff_flower.data import to_uint8, to_unit
from ff_flower.errors import ModuleError
from ff_flower.generative import EDMModule, FitOptions, FlowModule, diffusion
from ff_flower.generative.augmentation import augment_and_tell
from ff_flower.generative.diffusion import DiffusionModule, StandardizedModel, shuffled_copies, symmetric_copies
from ff_flower.generative.gaussian_prior import GaussianPrior
from ff_flower.generative.training import HELD_IMAGES

KINDS: dict[str, tuple[type[DiffusionModule[Any]], type[UNetSpec]]] = {
    "edm": (EDMModule, EDMSpec),
    "flow": (FlowModule, FlowSpec),
}
PLAIN = FitOptions()


def _build(kind: str, shape: tuple[int, ...], **settings: Any) -> DiffusionModule[Any]:
    module, spec = KINDS[kind]
    tiny = {"channels": 8, "steps": 6, "batch_size": 32, "evaluations": 3}
    return module(spec.model_validate(tiny | settings), shape)


def _fit(kind: str, images: Tensor, seed: int = 0, options: FitOptions = PLAIN, **settings: Any) -> DiffusionModule[Any]:
    return _build(kind, tuple(images.shape[1:]), **settings).fit(images, seed, options)


def _bytes(module: DiffusionModule[Any]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in module.state().items()}


def _blocks(count: int = 64) -> Tensor:
    """Return 8 x 8 images of sixteen bright or dark squares: far from Gaussian."""
    bright = torch.randint(0, 2, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    return (bright.repeat_interleave(2, 2).repeat_interleave(2, 3) * 200 + 20).to(torch.uint8)


def _network(module: DiffusionModule[Any]) -> StandardizedModel:
    assert module._network is not None
    return module._network


def _silenced(module: DiffusionModule[Any]) -> DiffusionModule[Any]:
    """Return the module with a network of zeros: its Gaussian alone."""
    state = {name: value * (not name.startswith("model.network")) for name, value in module.state().items()}
    return type(module).restore(module.spec, module.image_shape, state)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Return each kind's name."""
    return str(request.param)


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest) -> DiffusionModule[Any]:
    """Return a module of each kind, fitted to blocks for 50 steps."""
    return _fit(request.param, _blocks(), steps=50, learning_rate=1e-2, rank=4)


def _loss(module: DiffusionModule[Any], images: Tensor) -> float:
    network = _network(module)
    with torch.no_grad():
        return float(network(*network.draw(to_unit(images), torch.Generator().manual_seed(5))))


def test_training_improves_on_the_gaussian(trained: DiffusionModule[Any]) -> None:
    """Training brings the loss below that of the silent network, with which it begins."""
    assert _loss(trained, _blocks()) < 0.9 * _loss(_silenced(trained), _blocks())


@pytest.mark.parametrize("settings", [{"symmetry": "mirror"}, {"symmetry": "dihedral"}, {"augmentation": 0.15}])
def test_a_fit_improves_on_its_gaussian_whatever_is_augmented(kind: str, settings: dict[str, Any]) -> None:
    """On images as they are, the network is better than its Gaussian where it was trained on turned or moved ones."""
    module = _fit(kind, _blocks(), steps=50, learning_rate=1e-2, rank=4, **settings)
    network = _network(module)
    clean = (to_unit(_blocks()) - network.centre) / network.scale
    level, noise = torch.full((64,), 0.5), normal(64, 1, 8, 8).float()
    with torch.no_grad():
        losses = [float(_network(one).model.loss(clean, level, noise)) for one in (module, _silenced(module))]
    assert losses[0] < 0.9 * losses[1]


def test_a_trained_network_looks_at_the_noise_level(trained: DiffusionModule[Any]) -> None:
    """After training the same input at another level gives another output."""
    x = normal(2, 2, 8, 8).float()
    with torch.no_grad():
        low, high = (_network(trained).model.network(x, torch.full((2,), level)) for level in (-1.0, 1.0))
    assert (low - high).abs().max() > 1e-3


def test_another_seed_gives_other_weights(kind: str, zeros: Tensor) -> None:
    """Fits from two seeds end in different weights."""
    first, second = (_bytes(_fit(kind, zeros, seed, steps=2)) for seed in (0, 1))
    assert first != second


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_images_are_learned(kind: str, count: int) -> None:
    """A class of one image or of a few has a finite module, whose prior has at most half as many directions as images."""
    images = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    module = _fit(kind, images, steps=2)
    assert len(module.state()["model.prior.deviations"]) == count // 2
    assert torch.allclose(module.state()["centre"], to_unit(images).mean(0), atol=1e-3)
    assert module.sample(2, torch.Generator().manual_seed(0)).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(("symmetry", "square", "oblong"), [("none", 1, 1), ("mirror", 2, 2), ("dihedral", 8, 4)])
def test_symmetric_copies_are_a_group(symmetry: str, square: int, oblong: int) -> None:
    """An image without symmetry has 1, 2 or 8 different copies, 4 where the sides differ; copies of a copy are the same set."""
    for sides, count in (((3, 3), square), ((2, 3), oblong)):
        image = torch.arange(math.prod(sides)).reshape(1, 1, *sides)
        copies = {tuple(copy.flatten().tolist()): copy for copy in symmetric_copies(image, symmetry)}
        assert len(copies) == count and {copy.shape for copy in copies.values()} == {image.shape}
        for copy in copies.values():
            assert {tuple(again.flatten().tolist()) for again in symmetric_copies(copy, symmetry)} == set(copies)


@pytest.mark.parametrize("symmetry", ["none", "dihedral"])
def test_shuffled_copies_are_all_copies(symmetry: str) -> None:
    """Without a limit every copy of every image is there once, in another order; fewer are the first of these."""
    images = torch.rand((5, 1, 3, 3), generator=torch.Generator().manual_seed(0))
    rows = shuffled_copies(images, symmetry, seed=1)
    expected = [copy.tobytes() for copy in torch.cat(list(symmetric_copies(images, symmetry))).numpy()]
    found = [row.tobytes() for row in rows.numpy()]
    assert sorted(found) == sorted(expected) and found != expected
    assert torch.equal(shuffled_copies(images, symmetry, seed=1, most=3), rows[:3])


def test_large_images_are_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Gaussian is fitted to so many images that all their pixels together stay in bounds, whatever an image's size."""
    monkeypatch.setattr(diffusion, "NUMBERS", 4 * 9)
    images = torch.rand((5, 1, 3, 3), generator=torch.Generator().manual_seed(0))
    assert len(shuffled_copies(images, "dihedral", seed=1)) == 4 and len(shuffled_copies(images[:3], "none", seed=1)) == 3


@pytest.mark.parametrize("symmetry", ["mirror", "dihedral"])
def test_a_symmetric_class_is_learned(kind: str, symmetry: str) -> None:
    """Images of unequal sides are learned under any symmetry, which the centre has, and under told augmentation beside it."""
    images = torch.randint(0, 256, (5, 1, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    centre = _fit(kind, images, steps=1, symmetry=symmetry).state()["centre"]
    assert _fit(kind, images, steps=1, symmetry=symmetry, augmentation=0.5).state()["centre"].shape == centre.shape
    assert torch.equal(centre, centre.flip(-1))
    assert symmetry == "mirror" or torch.equal(centre, centre.flip(-2))


def test_images_shown_counts_repetitions(kind: str, zeros: Tensor) -> None:
    """Every step shows one batch, whatever the number of images."""
    assert _fit(kind, zeros[:3], steps=2, batch_size=5).images_shown == 10


def test_divergence_is_refused(kind: str, zeros: Tensor) -> None:
    """Training that ends in weights that are not finite raises an error with a remedy, so that no such module is sent."""
    with pytest.raises(ModuleError, match="not finite after fitting: lower the learning rate"):
        _fit(kind, zeros, steps=4, learning_rate=1e38)


def test_noise_levels_fill_their_strata(kind: str) -> None:
    """A batch of b images gets one noise level from each of the b equally probable parts of their distribution."""
    network = _build(kind, (1, 4, 4))._build(GaussianPrior.isotropic(16))
    _, levels, noise = network.draw(torch.zeros(16, 1, 4, 4), torch.Generator().manual_seed(0))
    edges = network.levels(torch.linspace(0, 1, 17).clamp(1e-4, 1 - 1e-4))
    assert (levels >= edges[:-1]).all() and (levels <= edges[1:]).all()
    assert noise.shape == (16, 1, 4, 4)


def test_being_told_of_nothing_is_the_same_as_not_being_told(kind: str) -> None:
    """The loss of an augmentable network is the same for conditions of zeros and for none."""
    module = _fit(kind, _blocks(), augmentation=0.3, learning_rate=0.05)
    clean, level, noise = normal(4, 1, 8, 8).float(), torch.full((4,), 0.5), normal(4, 1, 8, 8, seed=1).float()
    loss = _network(module).model.loss
    told = _network(module).train().draw(clean, torch.Generator().manual_seed(1))[3]
    _network(module).eval()
    assert told.shape == (4, 8) and torch.equal(loss(clean, level, noise, torch.zeros(4, 8)), loss(clean, level, noise))
    assert not torch.equal(loss(clean, level, noise, torch.ones(4, 8)), loss(clean, level, noise))


def test_the_gaussian_expects_what_it_is_shown(kind: str) -> None:
    """With told augmentation the Gaussian is that of augmented images, and held-out ones are watched as they are."""
    plain, told = (_network(_fit(kind, _blocks(), augmentation=chance)) for chance in (0.0, 0.5))
    clean = to_unit(_blocks())
    augmented, _ = augment_and_tell(clean, 0.5, torch.Generator().manual_seed(3))

    def unexpected(network: StandardizedModel) -> float:
        """Return how far augmented images lie from the Gaussian, in its own units: 1 where it expects them."""
        prior, rows = network.model.prior, ((augmented - network.centre) / network.scale).flatten(1)
        along = rows @ prior.directions.T
        rest = rows.square().sum(1) - along.square().sum(1)
        terms = (along / prior.deviations).square().sum(1) + rest / prior.floor.square()
        return float(terms.mean()) / rows.shape[1]

    assert unexpected(told) < 4 < 0.1 * unexpected(plain), (unexpected(told), unexpected(plain))
    assert len(told.eval().draw(clean, torch.Generator().manual_seed(1))) == 3


def test_told_augmentation_does_not_show_in_samples(kind: str) -> None:
    """A module that was shown mirrored, turned and shifted images and told so draws images as they were before all that."""
    bright = torch.randint(120, 256, (256, 1, 8, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = torch.cat([bright, torch.zeros_like(bright)], 3)  # bright on the left, black on the right

    def strays(rows: Tensor) -> float:
        """Return the share of images whose right half is as bright as a quarter of the left, or brighter."""
        left, right = rows.float().split(4, 3)
        return float((right.mean((1, 2, 3)) > 0.25 * left.mean((1, 2, 3))).float().mean())

    shown, _ = augment_and_tell(to_unit(images), 0.3, torch.Generator().manual_seed(1))
    module = _fit(kind, images, augmentation=0.3, steps=300, channels=16, evaluations=12)
    assert strays(to_uint8(shown)) > 0.4 and strays(module.sample(256, torch.Generator().manual_seed(2))) < 0.05


def test_held_out_images_are_never_drawn(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither steps nor Gaussian see the held-out images, and every image is either trained on or held out."""
    images = torch.arange(40, dtype=torch.uint8).reshape(40, 1, 1, 1) * torch.ones((1, 1, 4, 4), dtype=torch.uint8)
    drawn: list[set[int]] = []
    draw = StandardizedModel.draw

    def recorded(self: StandardizedModel, batch: Tensor, random: torch.Generator) -> tuple[Tensor, ...]:
        drawn.append({round((float(value) + 1) * 127.5) for value in batch[:, 0, 0, 0]})
        assert len(drawn) > 1 or len(batch) == HELD_IMAGES
        return draw(self, batch, random)

    monkeypatch.setattr(StandardizedModel, "draw", recorded)
    module = _fit(kind, images, options=FitOptions(holdout=0.25), steps=20)
    held, shown = drawn[0], set().union(*drawn[1:])
    assert len(held) == 10 and not held & shown and held | shown == set(range(40))
    assert torch.allclose(module.state()["centre"], to_unit(images[sorted(shown)]).mean(0), atol=1e-3)


@pytest.mark.parametrize("at", [1, 3, 4])
def test_an_interrupted_fit_continues_to_the_same_bytes(kind: str, at: int, tmp_path: Path, zeros: Tensor) -> None:
    """A fit that is interrupted and resumed ends in the bytes of an unbroken one, and leaves no checkpoint."""
    settings = {"steps": 12, "batch_size": 8, "symmetry": "mirror", "augmentation": 0.2}
    reports = iter(range(1, 5))

    def progress(*report: float) -> None:
        if next(reports) == at:
            raise KeyboardInterrupt

    path = tmp_path / "fit"
    broken = FitOptions(progress=progress, holdout=0.2, checkpoint=path, checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        _fit(kind, zeros, 3, broken, **settings)
    assert path.is_file()
    resumed = _fit(kind, zeros, 3, FitOptions(holdout=0.2, checkpoint=path), **settings)
    unbroken = _fit(kind, zeros, 3, FitOptions(holdout=0.2), **settings)
    assert _bytes(resumed) == _bytes(unbroken) and resumed.images_shown == unbroken.images_shown == 96
    assert not path.exists()


@pytest.fixture
def compile_whole() -> Iterator[Callable[[Any], Any]]:
    """Return the compiler that captures a module whole, or fails, and computes with torch's own operations."""
    torch._dynamo.reset()
    yield lambda module: torch.compile(module, backend="eager", fullgraph=True, dynamic=False)
    torch._dynamo.reset()


def test_modules_of_one_architecture_share_a_compilation(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images they are fitted to, modules are compiled once for training and once for sampling, not once each."""
    graphs = {name: CompileCounter() for name in ("training", "diffusion")}  # type: ignore[no-untyped-call]
    for name, counter in graphs.items():
        compiled = partial(torch.compile, backend=counter, dynamic=False)
        monkeypatch.setattr(f"ff_flower.generative.{name}.accelerate", lambda network, *_, compiled=compiled: compiled(network))
    torch._dynamo.reset()
    for number in (70, 9, 12):  # the prior's directions are fewer than half of the images
        options = FitOptions(compile_on_cpu=True)
        _fit(kind, _blocks(number), number, options).sample(3, torch.Generator().manual_seed(0))
    assert {name: counter.frame_count for name, counter in graphs.items()} == {"training": 1, "diffusion": 1}
    torch._dynamo.reset()


def test_model_and_loss_are_captured_whole(kind: str, compile_whole: Callable[[Any], Any]) -> None:
    """A compiler finds no break in estimate and loss, and the graphs compute the same."""
    module = _fit(kind, torch.cat([_blocks(), 255 - _blocks()], 1), levels=3, augmentation=0.3, learning_rate=0.05)
    network = _network(module)
    x, level = normal(4, 2, 8, 8).float(), torch.linspace(0.1, 0.9, 4)
    inputs = network.draw(x, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(compile_whole(network.model)(x, level), network.model(x, level), atol=1e-6)
    for one in network.parameters():
        one.requires_grad_(True)
    assert torch.allclose(compile_whole(network)(*inputs), network(*inputs), atol=1e-6)
