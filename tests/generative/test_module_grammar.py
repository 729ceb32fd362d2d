"""What is true of every kind of generative module."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from ff_flower.config import ModuleSpec
from ff_flower.data import Splits
from ff_flower.errors import ConfigError, ModuleError, NotFittedError
from ff_flower.generative import BLOCK, KINDS, FitOptions, GenerativeModule, build_module, restore_module
from ff_flower.generative.training import split_holdout
from ff_flower.registry import ModuleManifest, decode_module, encode_module
from ff_flower.seeding import generator

SHAPE = (1, 8, 8)
TINY: dict[str, dict[str, Any]] = {
    "edm": {"channels": 8, "steps": 8, "batch_size": 16, "evaluations": 5},
    "flow": {"channels": 8, "steps": 8, "batch_size": 16, "evaluations": 4},
    "vae": {"channels": 8, "steps": 8, "batch_size": 16, "latent": 4, "texture": 0.5},
    "gaussian_mixture": {"components": 5, "mixtures": 2, "residual_noise": True},
}
COUNTED: dict[str, dict[str, Any]] = {  # settings that leave the number of directions, components and Gaussians to the images
    "edm": {"rank": 64},
    "flow": {"rank": 64},
    "vae": {"rank": 64, "images_per_mixture": 5},
    "gaussian_mixture": {"components": 64, "mixtures": 8, "images_per_mixture": 5},
}


def _build(kind: str, shape: tuple[int, int, int] = SHAPE) -> GenerativeModule[Any]:
    return build_module(ModuleSpec.model_validate({"kind": kind, kind: TINY.get(kind, {})}), shape)


def _restore(module: GenerativeModule[Any], state: dict[str, Tensor]) -> GenerativeModule[Any]:
    return restore_module(module.kind, module.spec.flat(), module.image_shape, state)


def _stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def threes(digits: Splits) -> Tensor:
    """Return forty scans of the digit three."""
    return digits.train.of_label(3).images[:40]


@pytest.fixture(scope="module", params=KINDS)
def fitted(request: pytest.FixtureRequest, threes: Tensor) -> GenerativeModule[Any]:
    """Return a module of each kind, fitted to the threes."""
    return _build(request.param).fit(threes, seed=1)


def test_the_kinds_are_those_of_the_settings() -> None:
    """Every kind that can be set can be built, under its own name."""
    assert set(KINDS) == set(get_args(ModuleSpec.model_fields["kind"].annotation))
    assert all(_build(kind).kind == kind for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_unfitted_modules_refuse(kind: str) -> None:
    """Before fit there is nothing to sample and no state, and the error says what to call."""
    for ask in (lambda module: module.sample(1, _stream()), lambda module: module.state()):
        with pytest.raises(NotFittedError, match=f"{kind} module holds no weights: call fit or restore first"):
            ask(_build(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "images",
    [
        torch.zeros((4, *SHAPE)),
        torch.zeros(SHAPE, dtype=torch.uint8),
        torch.zeros((4, 1, 8, 9), dtype=torch.uint8),
        torch.zeros((4, 3, 8, 8), dtype=torch.uint8),
        torch.zeros((0, *SHAPE), dtype=torch.uint8),
    ],
)
def test_other_images_are_refused(kind: str, images: Tensor) -> None:
    """Only uint8 images of the module's shape, and at least one of them, can be learned; the error names what came."""
    with pytest.raises(ModuleError) as caught:
        _build(kind).fit(images, seed=0)
    assert f"images of shape {tuple(images.shape)} and type {images.dtype}" in str(caught.value)


def test_samples_are_images(fitted: GenerativeModule[Any]) -> None:
    """Samples are uint8 images of the module's shape on the CPU; none is a valid number of them."""
    samples = fitted.sample(3, _stream())
    assert (samples.dtype, samples.device.type, tuple(samples.shape)) == (torch.uint8, "cpu", (3, *SHAPE))
    assert fitted.sample(0, _stream()).shape == (0, *SHAPE)
    assert len(torch.unique(samples.flatten(1), dim=0)) == 3


@pytest.mark.parametrize(
    ("n", "start"),
    [(1, 0), (BLOCK, 0), (BLOCK + 1, 0), (10, BLOCK - 4), (BLOCK, BLOCK), (22, 2 * BLOCK), (1, 149), (0, 70)],
)
def test_a_sample_does_not_depend_on_what_else_is_asked(fitted: GenerativeModule[Any], n: int, start: int) -> None:
    """Sample k is the same bit for bit, however many samples are drawn and wherever the drawing begins."""
    whole = fitted.sample(150, _stream())
    assert torch.equal(fitted.sample(n, _stream(), start), whole[start : start + n])


def test_a_sample_keeps_its_place_in_its_batch(fitted: GenerativeModule[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where four blocks are sampled at once, samples of a later block come from the same batch as in a longer request."""
    monkeypatch.setattr(fitted, "batch_blocks", 4)
    whole = fitted.sample(5 * BLOCK, generator(3))
    for start in (0, 1, BLOCK, 3 * BLOCK + 5, 4 * BLOCK + 1):
        assert torch.equal(fitted.sample(7, generator(3), start), whole[start : start + 7])


def test_the_size_of_a_batch_changes_samples_by_rounding_alone(
    fitted: GenerativeModule[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled one block or four at once, the samples are the same but for what the order of sums rounds."""
    samples = []
    for blocks in (1, 4):
        monkeypatch.setattr(fitted, "batch_blocks", blocks)
        samples.append(fitted.sample(2 * BLOCK + 3, generator(3)).int())
    apart = (samples[0] - samples[1]).abs()
    assert apart.max() <= 2 and apart.float().mean() < 0.05, (int(apart.max()), float(apart.float().mean()))


def test_only_samples_that_were_asked_for_are_checked(fitted: GenerativeModule[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a batch of four blocks is filled up for the sake of its shape, the check sees the blocks that were drawn."""
    monkeypatch.setattr(fitted, "batch_blocks", 4)
    seen: list[int] = []
    fitted.sample(4 * BLOCK + 3, generator(3), check=lambda batch: seen.append(len(batch)))
    assert seen == [4 * BLOCK, BLOCK]


def test_another_stream_gives_other_samples(fitted: GenerativeModule[Any]) -> None:
    """Samples follow from the stream's seed: equal for equal ones, different for different ones."""
    assert torch.equal(fitted.sample(5, _stream(1)), fitted.sample(5, _stream(1)))
    assert not torch.equal(fitted.sample(5, _stream(1)), fitted.sample(5, _stream(2)))


def test_equal_seeds_give_equal_states(fitted: GenerativeModule[Any], threes: Tensor) -> None:
    """A second fit to the same images from the same seed ends in the same bytes, whatever the global generators hold."""
    torch.manual_seed(99)
    again = _build(fitted.kind).fit(threes, seed=1)
    assert list(again.state()) == list(fitted.state())
    for name, tensor in fitted.state().items():
        assert tensor.cpu().numpy().tobytes() == again.state()[name].cpu().numpy().tobytes(), name
    assert again.images_shown == fitted.images_shown > 0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_is_touched(kind: str, threes: Tensor) -> None:
    """Fitting and sampling draw nothing from the global generators and leave the images as they were; fit returns the module."""
    before, torch_state, numpy_state = threes.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    module = _build(kind)
    assert module.fit(threes, seed=0) is module
    module.sample(2, _stream())
    assert torch.equal(threes, before)
    assert torch.equal(torch.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_images_are_refused(kind: str) -> None:
    """Images that are all equal are no distribution to learn, and the error counts them."""
    with pytest.raises(ModuleError, match="7 equal images: a module learns nothing from one image; check the class's files"):
        _build(kind).fit(torch.full((7, *SHAPE), 200, dtype=torch.uint8), seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_coarse_counts_hide_the_number_of_images(kind: str, threes: Tensor) -> None:
    """With coarse counts 24 and 31 images make states of the same shapes, otherwise of different ones; both can be restored."""
    spec = ModuleSpec.model_validate({"kind": kind, kind: TINY[kind] | COUNTED[kind]})
    for coarse in (True, False):
        modules = [build_module(spec, SHAPE).fit(threes[:n], 0, FitOptions(coarse_counts=coarse)) for n in (24, 31)]
        few, more = ({name: tensor.shape for name, tensor in module.state().items()} for module in modules)
        assert (few == more) is coarse
        assert all(len(_restore(module, module.state()).sample(1, _stream())) == 1 for module in modules)


@pytest.mark.parametrize("kind", KINDS)
def test_coarse_counts_stand_in_no_error(kind: str) -> None:
    """With coarse counts the error of equal images, and that of images of another shape, are the same for any number of them."""
    options = FitOptions(coarse_counts=True)
    for images in (torch.full((9, *SHAPE), 200, dtype=torch.uint8), torch.zeros((9, 3, 8, 8), dtype=torch.uint8)):
        said = []
        for n in (2, 9):
            with pytest.raises(ModuleError) as caught:
                _build(kind).fit(images[:n], 0, options)
            said.append(str(caught.value))
        assert said[0] == said[1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Number of distinct clusters")
@pytest.mark.parametrize("side", ["kept", "held out"])
@pytest.mark.parametrize("kind", KINDS)
def test_almost_equal_images_are_learned(kind: str, side: str) -> None:
    """Where one pixel of one image differs, be it held out or not, the module is finite and samples are near the image."""
    split = dict(zip(("kept", "held out"), split_holdout(torch.arange(30), 0.2, seed=0), strict=True))
    images = torch.full((30, *SHAPE), 200, dtype=torch.uint8)
    images[split[side][0], 0, 4, 4] = 10
    module = _build(kind).fit(images, 0, FitOptions(holdout=0.2))
    assert (module.sample(3, _stream()).float() - 200).abs().median() < 20


@pytest.mark.parametrize("kind", KINDS)
def test_progress_ends_with_the_whole_budget(kind: str, threes: Tensor) -> None:
    """Progress is told in rising numbers of images shown and shares of the budget, up to all of it, with a finite loss."""
    told: list[tuple[int, float, float]] = []
    module = _build(kind).fit(threes, 0, FitOptions(progress=lambda *report: told.append(report)))
    images, shares, losses = (list(column) for column in zip(*told, strict=True))
    assert images == sorted(images) and shares == sorted(shares)
    assert (images[-1], shares[-1]) == (module.images_shown, 1.0) and np.isfinite(losses).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_may_be_held_out(kind: str, threes: Tensor) -> None:
    """A fit with held-out images repeats bit for bit like any other."""
    first, second = (_build(kind).fit(threes, 0, FitOptions(holdout=0.2)).state() for _ in range(2))
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_resolved_spec_describes_the_module_whole(kind: str) -> None:
    """A module's spec has no placeholder left: a module built from it has the same one."""
    module = _build(kind)
    assert type(module)(module.spec, SHAPE).spec == module.spec


def test_a_restored_module_samples_the_same(fitted: GenerativeModule[Any]) -> None:
    """The state is all that sampling needs: a module restored from it draws the same bytes."""
    restored = _restore(fitted, fitted.state())
    assert torch.equal(restored.sample(70, _stream()), fitted.sample(70, _stream()))


def test_a_file_of_full_precision_changes_nothing(fitted: GenerativeModule[Any], describe: Callable[..., ModuleManifest]) -> None:
    """A module that went through a float32 file draws the same bytes as the one that was fitted."""
    _, state = decode_module(encode_module(fitted.state(), describe(fitted)))
    assert torch.equal(_restore(fitted, state).sample(70, _stream()), fitted.sample(70, _stream()))


def test_a_file_of_half_precision_changes_it_once(fitted: GenerativeModule[Any], describe: Callable[..., ModuleManifest]) -> None:
    """Rounding to float16 moves the samples by little, and a module restored from such a file writes the same file again."""
    manifest = describe(fitted, wire_dtype="float16")
    data = encode_module(fitted.state(), manifest)
    received, again = (_restore(fitted, decode_module(data)[1]) for _ in range(2))
    assert encode_module(received.state(), manifest) == data
    drawn = received.sample(70, _stream())
    assert torch.equal(drawn, again.sample(70, _stream()))
    assert (drawn.float() - fitted.sample(70, _stream()).float()).abs().mean() < 3.0


def test_other_tensors_are_refused_by_name(fitted: GenerativeModule[Any]) -> None:
    """A state that lacks a tensor, has one too many or one of another shape is refused, and the error names the tensor."""
    state = fitted.state()
    for name, tensor in state.items():
        for changed in (
            {key: value for key, value in state.items() if key != name},
            state | {name: torch.cat([tensor.reshape(-1), tensor.new_zeros(1)])},
            state | {name: tensor.new_zeros(()) if tensor.ndim else tensor[None]},
        ):
            with pytest.raises(ModuleError, match="tensor '"):
                _restore(fitted, changed)
    with pytest.raises(ModuleError, match="tensor 'stowaway'"):
        _restore(fitted, state | {"stowaway": torch.zeros(1)})
    with pytest.raises(ModuleError, match="tensor '"):
        _restore(fitted, {})


def test_a_state_belongs_to_one_image_shape(fitted: GenerativeModule[Any]) -> None:
    """The tensors of a grey module are refused where colour images are expected."""
    with pytest.raises(ModuleError, match="has shape"):
        restore_module(fitted.kind, fitted.spec.flat(), (3, 8, 8), fitted.state())


def test_unknown_kinds_and_settings_are_refused() -> None:
    """A manifest's kind must exist, and its settings must be those of that kind."""
    with pytest.raises(ModuleError, match="unknown module kind 'gan'; there are: edm, flow, gaussian_mixture, vae"):
        restore_module("gan", {}, SHAPE, {})
    for kind in KINDS:
        with pytest.raises(ConfigError, match=r"unknown key 'module\..*magic'"):
            restore_module(kind, {"magic": 1}, SHAPE, {})
