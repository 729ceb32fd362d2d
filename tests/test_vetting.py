"""Vetting: the measures by hand, what honest modules pass, and that looking costs no sample twice."""

import itertools
import math

import pytest
import torch

from ff_flower.config import SIZES, ModuleSpec, TrustSpec
from ff_flower.errors import VerificationError
from ff_flower.generative import KINDS, FitOptions, build_module
from ff_flower.registry import Expectation, ModuleRegistry, encode_module
from ff_flower.synthesis import SampleCache, allocate, synthesize
from ff_flower.vetting import (
    MAX_EXCESS,
    Vetting,
    check_batch,
    check_cost,
    differences,
    near_duplicates,
    nearest_distance,
    neighbour_correlation,
    open_module,
    tensors_digest,
)

CPU = torch.device("cpu")
RUN = Expectation("digits", 0, (1, 8, 8), tuple("0123456789"))
STEPS = {"edm": 8, "flow": 8, "vae": 8}
LABELS = (0, 1, 8)


def spec_of(kind):
    """Return the module settings of a kind, with a training of seconds."""
    changes = {"steps": STEPS[kind]} if kind in STEPS else {"components": 8}
    base = ModuleSpec(kind=kind)
    return base.model_copy(update={kind: base.of_kind().model_copy(update=changes)})


@pytest.fixture(scope="module", params=sorted(KINDS))
def files(request, digits, describe):
    """Return three honest module files of a kind, one per label."""
    encoded = []
    for label in LABELS:
        module = build_module(spec_of(request.param), (1, 8, 8))
        module.fit(digits.train.of_label(label).images, label, FitOptions())
        owner = {"label": label, "label_name": str(label), "owner": str(label)}
        encoded.append(encode_module(module.state(), describe(module, **owner)))
    return encoded


@pytest.fixture
def registry(files, tmp_path):
    """Return a registry of these files."""
    registry = ModuleRegistry(tmp_path / "modules")
    for data in files:
        registry.add(data, RUN)
    return registry


def vetting(registry, folder, **trust):
    """Return the vetting of a registry, with a cache in ``folder``."""
    return Vetting(registry, TrustSpec(**trust), 0, SampleCache(folder), CPU)


def test_honest_modules_of_every_kind_pass(registry, tmp_path):
    """After eight steps of training already, modules of any kind pass, with twice the thresholds too."""
    strict = {"min_variation": 4.0, "min_correlation": 0.2, "min_difference": 0.3}
    assert vetting(registry, tmp_path / "cache", **strict).refusals() == {}


def test_no_sample_is_drawn_twice(registry, tmp_path, monkeypatch):
    """Synthesis after vetting draws only what the probe did not, and makes the set that it makes without vetting."""
    shares = allocate(list(registry), 70)
    alone = synthesize(registry, shares, 0, SampleCache(tmp_path / "alone"), CPU)
    cache = SampleCache(tmp_path / "cache")
    vetting(registry, tmp_path / "cache").refusals()
    drawn = []
    for kind in set(KINDS.values()):
        sample = kind.sample

        def counted(self, n, generator, start=0, check=None, sample=sample):
            drawn.append((start, n))
            return sample(self, n, generator, start, check)

        monkeypatch.setattr(kind, "sample", counted)
    assert synthesize(registry, shares, 0, cache, CPU).digest() == alone.digest()
    assert drawn == [(64, 6)] * len(LABELS)
    assert vetting(registry, tmp_path / "cache").refusals() == {} and len(drawn) == len(LABELS)


def test_without_a_probe_nothing_is_drawn(registry, tmp_path):
    """With trust.probe 0 only costs and weights are looked at."""
    assert vetting(registry, tmp_path / "cache", probe=0).refusals() == {}
    assert not (tmp_path / "cache").exists()


def test_a_tensors_digest_is_that_of_the_weights_alone(registry):
    """The digest changes with any weight, and with nothing else: not with the tensors' order."""
    state = registry.load(next(iter(registry)).module_id)[1]
    name = max(state, key=lambda one: state[one].numel())
    assert tensors_digest(dict(reversed(state.items()))) == tensors_digest(state)
    assert tensors_digest(state | {name: state[name] + 1}) != tensors_digest(state)


def test_every_size_that_there_is_may_be_sampled(describe):
    """The settings of every kind and size, at the largest images they take and with a hundred evaluations, cost little enough."""
    for kind, module_class in KINDS.items():
        for size, values in SIZES.items() if kind in STEPS else [("", SIZES["large"])]:
            spec = ModuleSpec().of_kind(kind).model_copy(update={"size": size} if size else {})
            unfitted = module_class(spec, (3, values.largest, values.largest))
            settings = unfitted.spec.flat() | ({"evaluations": 100} if "evaluations" in unfitted.spec.flat() else {})
            check_cost(describe(unfitted, spec=settings))


def test_what_cannot_be_built_is_refused_unbuilt(registry, monkeypatch):
    """A module whose settings are absurd is refused before its file is opened."""
    module = next(iter(registry))
    absurd = module.manifest.model_copy(
        update={"kind": "gaussian_mixture", "spec": {"components": 10**9}, "image_shape": (3, 512, 512)}
    )
    monkeypatch.setattr(registry, "get", lambda module_id: type(module)(module_id, absurd, module.path, 1))
    monkeypatch.setattr(registry, "load", lambda module_id: pytest.fail("opened"))
    with pytest.raises(VerificationError, match=r"architecture: 64 samples of .* at most"):
        open_module(registry, module.module_id)


def test_the_measures_by_hand():
    """Of two pairs of equal images the nearest distance is 0, of single ones their distance; neighbours agree or oppose."""
    images = torch.tensor([0.0, 3.0, 7.0]).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    assert nearest_distance(images) == 3.0 and nearest_distance(images.repeat(2, 1, 1, 1)) == 0.0
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).reshape(1, 1, 2, 2)
    assert neighbour_correlation(board) == -1.0 and neighbour_correlation(board.abs()) == 1.0
    assert abs(neighbour_correlation(torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(0)))) < 0.02


@pytest.mark.parametrize(
    ("value", "rule"), [(math.nan, "finite-samples"), (math.inf, "finite-samples"), (-2 - MAX_EXCESS, "sample-range")]
)
def test_what_cannot_be_quantized_is_refused(value, rule):
    """Samples that are not finite, or far outside their range, are refused; a little outside they are not."""
    check_batch(torch.full((2, 1, 2, 2), 1 + MAX_EXCESS))
    with pytest.raises(VerificationError, match=rule):
        check_batch(torch.full((2, 1, 2, 2), value))


def test_the_difference_of_two_labels_by_hand(registry):
    """Samples that differ by noise of a tenth of their spread have a ratio of a tenth over the root of two; others have one."""
    one, other, _ = registry
    random = torch.Generator().manual_seed(0)
    images = 40 * torch.randn(64, 1, 16, 16, generator=random)
    near = images + 4 * torch.randn(images.shape, generator=random)
    unrelated = 40 * torch.randn(images.shape, generator=random)
    assert near_duplicates([(one, images), (other, unrelated)], 0.95) == {}
    assert near_duplicates([(one, images), (other, near)], 0.068) == {}
    refused = near_duplicates([(one, images), (other, near)], 0.074)
    assert set(refused) == {one.module_id, other.module_id}


@pytest.mark.parametrize("probe", [1, 7])
def test_a_probe_of_too_few_samples_is_refused(probe):
    """Of fewer than eight samples nothing can be said, and the settings say so."""
    with pytest.raises(ValueError, match="at least 8 samples"):
        TrustSpec(probe=probe)


def test_differences_are_those_of_all_pairs_one_by_one():
    """The matrix of differences has at (i, j) what comparing every sample of i with every sample of j gives."""
    random = torch.Generator().manual_seed(0)
    samples = [torch.randint(0, 256, (4, 1, 3, 3), generator=random, dtype=torch.uint8) for _ in range(3)]
    for i, j in itertools.product(range(3), repeat=2):
        one, other = (samples[index].flatten(1).double() for index in (i, j))
        same = (one - other).square().sum(1).mean()
        every = torch.stack([(a - b).square().sum() for a in one for b in other]).mean()
        assert differences(samples)[i, j].item() == pytest.approx((same / every).sqrt().item(), abs=1e-6)
