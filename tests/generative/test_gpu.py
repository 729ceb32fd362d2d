"""On a GPU: equal seeds give equal bytes, samples are a prefix, a fit may be interrupted, and a CPU reads what a GPU wrote."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ff_flower.accelerator import compiles, prepare
from ff_flower.classifiers import build_classifier, cross_entropy, schedule_of, train
from ff_flower.config import ModuleSpec, RunSpec
from ff_flower.generative import FitOptions, GenerativeModule, build_module
from ff_flower.seeding import generator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this process sees no GPU")

SHAPE = (3, 16, 16)
KINDS = ("edm", "flow", "vae")


def _images(count: int = 96) -> torch.Tensor:
    return torch.randint(0, 256, (count, *SHAPE), generator=generator(7, "images"), dtype=torch.uint8)


def _module(kind: str, device: torch.device) -> GenerativeModule:
    settings = {kind: {"steps": 24, "batch_size": 32, **({} if kind == "vae" else {"channels": 16})}}
    return build_module(ModuleSpec.model_validate(settings), SHAPE, device, kind)


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """Return the first GPU, as a deterministic run uses it, with a compiler that works."""
    yield prepare(RunSpec(device="cuda", deterministic=True), 1)
    prepare(RunSpec(device="cuda", deterministic=False), 1)
    assert compiles()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_bytes(kind: str, cuda: torch.device) -> None:
    """Two fits of one seed have the same weights, and the samples of a restored one are those of the fitted one."""
    first, second = (_module(kind, cuda).fit(_images(), 3) for _ in range(2))
    state, other = first.state(), second.state()
    assert state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)
    restored = type(first).restore(first.spec, SHAPE, state, cuda)
    assert torch.equal(restored.sample(64, generator(5)), first.sample(64, generator(5)))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_a_prefix_of_more_samples(kind: str, cuda: torch.device) -> None:
    """The first samples of many are those of few, to the last bit."""
    module = _module(kind, cuda).fit(_images(), 3)
    many = module.sample(700, generator(5))
    assert torch.equal(many[:64], module.sample(64, generator(5)))
    assert torch.equal(many[64:70], module.sample(6, generator(5), 64))


def test_an_interrupted_fit_ends_like_an_unbroken_one(cuda: torch.device, tmp_path: Path) -> None:
    """A fit that continues from its checkpoint on the GPU has the weights of one that was never interrupted."""

    class Power(Exception):
        """The end of the process."""

    def cut(shown: int, share: float, loss: float) -> None:
        raise Power

    path = tmp_path / "fit.safetensors"
    with pytest.raises(Power):
        _module("edm", cuda).fit(_images(), 3, FitOptions(cut, checkpoint=path, checkpoint_seconds=1e-9))
    assert path.exists()
    resumed = _module("edm", cuda).fit(_images(), 3, FitOptions(checkpoint=path)).state()
    whole = _module("edm", cuda).fit(_images(), 3).state()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cpu_samples_what_a_gpu_fitted(kind: str, cuda: torch.device) -> None:
    """From the same noise a CPU draws the GPU's samples but for a few grey levels of rounding."""
    fitted = _module(kind, cuda).fit(_images(), 3)
    on_cpu = type(fitted).restore(fitted.spec, SHAPE, fitted.state())
    far = (on_cpu.sample(64, generator(5)).int() - fitted.sample(64, generator(5)).int()).abs().float()
    assert float(far.mean()) < 4


@pytest.mark.parametrize("network", ["cnn", "resnet18"])
def test_a_classifier_is_the_same_twice(network: str, cuda: torch.device) -> None:
    """Two trainings of one seed have the same weights."""
    images, labels, spec = _images(), torch.arange(96) % 3, RunSpec().classifier.model_copy(update={"network": network})
    trained = [
        train(
            build_classifier(spec, SHAPE[0], 3, seed=0), images, cross_entropy(labels.to(cuda), 0.0), spec, schedule_of(spec, 6),
            policy="natural", seed=1, device=cuda,
        ).state_dict()
        for _ in range(2)
    ]  # fmt: skip
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
