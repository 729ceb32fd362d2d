"""Allocation, and synthetic sets that do not depend on who draws them, in what order, or on who has left."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ff_flower.config import GaussianMixtureSpec
from ff_flower.data import ImageSet, Splits
from ff_flower.errors import ModuleError, RunError
from ff_flower.generative import BLOCK, GaussianMixtureModule
from ff_flower.registry import Expectation, ModuleManifest, ModuleRegistry, RegisteredModule, decode_module, encode_module
from ff_flower.seeding import generator
from ff_flower.synthesis import (
    CHUNK,
    SampleCache,
    Share,
    SyntheticDataset,
    allocate,
    load_module,
    sample_stream,
    synthesize,
)
from ff_flower.synthesis.synthetic_set import _Samples

CPU = torch.device("cpu")
OWNERS = ((0, "0", 60), (0, "1", 30), (1, "1", 40), (2, "2", 25))  # label, owner, images
RUN = Expectation("digits", 0, (1, 8, 8), tuple("0123456789"))

images_of_owners = st.lists(st.integers(1, 3000), min_size=2, max_size=6)


@pytest.fixture(scope="module")
def files(digits: Splits, describe: Callable[..., ModuleManifest]) -> list[bytes]:
    """Return four module files: two owners of class 0, one each of 1 and 2."""
    encoded = []
    for label, owner, count in OWNERS:
        images = digits.train.of_label(label).images
        module = GaussianMixtureModule(GaussianMixtureSpec(components=4, mixtures=1), (1, 8, 8))
        module.fit(images[-count:] if owner == "1" else images[:count], seed=0)
        fields = {"label": label, "label_name": str(label), "owner": owner, "num_examples": count}
        encoded.append(encode_module(module.state(), describe(module, **fields)))
    return encoded


@pytest.fixture
def registry(files: list[bytes], tmp_path: Path) -> ModuleRegistry:
    """Return a registry of all four modules."""
    return _registry(tmp_path / "modules", files)


def _registry(folder: Path, files: list[bytes]) -> ModuleRegistry:
    registry = ModuleRegistry(folder)
    for data in files:
        registry.add(data, RUN)
    return registry


def _synthetic(registry: ModuleRegistry, folder: Path, samples: int = 70, seed: int = 5, first: int = 0) -> SyntheticDataset:
    return synthesize(registry, allocate(list(registry), samples), seed, SampleCache(folder), CPU, first)


def _modules(describe: Callable[..., ModuleManifest], *counts: int, label: int = 0) -> list[RegisteredModule]:
    """Return one module of ``label`` per owner, with so many images each; no file lies behind them."""
    unfitted = GaussianMixtureModule(GaussianMixtureSpec(), (1, 8, 8))
    manifests = [describe(unfitted, label=label, num_examples=count) for count in counts]
    return [RegisteredModule(f"{label}-{i}", manifest, Path("none"), 0) for i, manifest in enumerate(manifests)]


def _counts(modules: list[RegisteredModule], quota: int) -> list[int]:
    """Return the allocation of each module, 0 where it has no share."""
    found = {share.module_id: share.count for share in allocate(modules, quota)}
    return [found.get(module.module_id, 0) for module in modules]


def test_allocation_by_hand(describe: Callable[..., ModuleManifest]) -> None:
    """53, 24 and 23 images take samples at odd multiples of 1/53, 1/24, 1/23: the first seven are 3, 2 and 2, the eighth 53's."""
    modules = _modules(describe, 53, 24, 23)
    assert _counts(modules, 7) == [3, 2, 2] and _counts(modules, 8) == [4, 2, 2]
    assert _counts(modules, 100) == [53, 24, 23] and _counts(modules, 1) == [1, 0, 0]


def test_ties_go_to_the_first(describe: Callable[..., ModuleManifest]) -> None:
    """Among equal owners the first in registry order takes what cannot be divided."""
    assert _counts(_modules(describe, 9, 9, 9), 5) == [2, 2, 1]


def test_shares_of_nothing_are_left_out(describe: Callable[..., ModuleManifest]) -> None:
    """An owner whose part rounds to nothing has no share; the others stand in the order of the modules."""
    assert [share.module_id for share in allocate(_modules(describe, 1, 500, 400), 9)] == ["0-1", "0-2"]
    assert allocate([], 9) == ()


def test_every_class_has_its_quota(describe: Callable[..., ModuleManifest]) -> None:
    """The quota of a class does not depend on its number of images or owners."""
    shares = allocate([*_modules(describe, 7, 90), *_modules(describe, 3, label=4)], 10)
    assert shares == (Share("0-0", 0, 1), Share("0-1", 0, 9), Share("4-0", 4, 10))


@settings(deadline=None)
@given(counts=images_of_owners, quota=st.integers(1, 300))
def test_shares_are_proportional(describe: Callable[..., ModuleManifest], counts: list[int], quota: int) -> None:
    """Counts sum to the quota; with two or three owners each is less than 1 from its exact part."""
    found = _counts(_modules(describe, *counts), quota)
    assert sum(found) == quota
    for owners in (2, 3):
        few = counts[:owners]
        for count, share in zip(few, _counts(_modules(describe, *few), quota), strict=False):
            assert abs(share - quota * count / sum(few)) < 1


@settings(deadline=None)
@example(counts=[13, 60, 155, 62], quota=10, gone=3, more=1)  # here largest remainders take the first owner's one sample
@example(counts=[6, 6, 2], quota=10, gone=0, more=1)  # here they give the last owner 2 of 10, but 1 of 11
@given(counts=images_of_owners, quota=st.integers(1, 300), gone=st.integers(0, 5), more=st.integers(1, 50))
def test_no_count_falls(describe: Callable[..., ModuleManifest], counts: list[int], quota: int, gone: int, more: int) -> None:
    """When an owner leaves, or the quota grows, no other owner's count falls: the samples that were there stay."""
    modules = _modules(describe, *counts)
    before = _counts(modules, quota)
    others = [position for position in range(len(counts)) if position != gone % len(counts)]
    after = _counts([modules[position] for position in others], quota)
    assert all(later >= before[position] for position, later in zip(others, after, strict=True))
    assert all(later >= earlier for earlier, later in zip(before, _counts(modules, quota + more), strict=True))


def test_the_set_is_balanced_and_knows_its_origin(registry: ModuleRegistry, tmp_path: Path) -> None:
    """There are as many images of every class, sorted by label, and each names the share it came from."""
    made = _synthetic(registry, tmp_path / "cache")
    assert len(made) == 210 and torch.bincount(made.data.labels).tolist() == [70, 70, 70]
    assert [(share.label, share.count) for share in made.shares] == [(0, 47), (0, 23), (1, 70), (2, 70)]
    assert torch.equal(torch.bincount(made.provenance), torch.tensor([share.count for share in made.shares]))
    labels = torch.tensor([share.label for share in made.shares])
    assert torch.equal(labels[made.provenance], made.data.labels)
    assert torch.equal(made.data.labels, made.data.labels.sort().values)


def test_images_come_from_the_modules_stream(registry: ModuleRegistry, tmp_path: Path) -> None:
    """A share's images are the first of its module's samples, on the stream of root seed and module id."""
    made = _synthetic(registry, tmp_path / "cache", seed=9)
    for position, share in enumerate(made.shares):
        stream = generator(9, "sample", share.module_id)
        expected = load_module(registry, share.module_id).sample(share.count, stream)
        assert torch.equal(made.data.images[made.provenance == position], expected)


def test_the_set_does_not_depend_on_the_way_to_it(files: list[bytes], tmp_path: Path) -> None:
    """Any order of arrival, any module to begin with, cold cache or warm: one digest; another root seed: another."""
    digests = set()
    for first in range(6):
        registry = _registry(tmp_path / f"modules-{first}", files[first % 4 :] + files[: first % 4])
        for _ in range(2):
            digests.add(_synthetic(registry, tmp_path / f"cache-{first}", first=first).digest())
    assert len(digests) == 1
    assert _synthetic(registry, tmp_path / "cache-0", seed=6).digest() not in digests


@pytest.mark.parametrize("gone", range(len(OWNERS)))
def test_without_one_owner_all_else_stays(registry: ModuleRegistry, tmp_path: Path, gone: int) -> None:
    """Deleting a module removes its images and no other; a co-owner's samples go on where they ended, up to the quota."""
    before = _synthetic(registry, tmp_path / "cache")
    registry.remove(before.shares[gone].module_id)
    after = _synthetic(registry, tmp_path / "other-cache")
    images = {share.module_id: after.data.images[after.provenance == i] for i, share in enumerate(after.shares)}
    assert before.shares[gone].module_id not in images and len(images) == 3
    for position, share in enumerate(before.shares):
        if position != gone:
            kept = before.data.images[before.provenance == position]
            assert torch.equal(images[share.module_id][: len(kept)], kept)
    left = torch.bincount(after.data.labels, minlength=3).tolist()
    assert left == [70, 70, 70] if gone < 2 else sorted(left) == [0, 70, 70]


def test_a_larger_set_extends_a_smaller(registry: ModuleRegistry, tmp_path: Path) -> None:
    """With a larger quota every module's samples begin with those of the smaller one."""
    small, large = (_synthetic(registry, tmp_path / "cache", samples) for samples in (20, 2 * CHUNK + 9))
    for position, share in enumerate(small.shares):
        longer = large.data.images[large.provenance == position]
        assert torch.equal(longer[: share.count], small.data.images[small.provenance == position])


def test_the_digest_sees_every_image_and_label(registry: ModuleRegistry, tmp_path: Path) -> None:
    """One pixel, one label or the order of two images changes the digest; provenance does not."""
    made = _synthetic(registry, tmp_path / "cache")
    images, labels = made.data.images, made.data.labels
    pixel, label = images.clone(), labels.clone()
    pixel[7, 0, 0, 0] ^= 1
    label[7] = 2
    changed = [ImageSet(pixel, labels), ImageSet(images, label), made.data.subset([1, 0, *range(2, len(labels))])]
    digests = {replace(made, data=data).digest() for data in changed}
    assert len(digests) == 3 and made.digest() not in digests
    assert replace(made, provenance=made.provenance.flip(0)).digest() == made.digest()


def test_nothing_to_sample_is_refused(registry: ModuleRegistry, tmp_path: Path) -> None:
    """Without a share, and with one whose module is not registered, there is an error that says so."""
    with pytest.raises(ModuleError, match="no module to sample: at least one must be registered"):
        synthesize(registry, (), 0, SampleCache(tmp_path / "cache"), CPU)
    with pytest.raises(RunError, match="'unheard-of'"):
        synthesize(registry, (Share("unheard-of", 0, 3),), 0, SampleCache(tmp_path / "cache"), CPU)


def test_a_module_is_built_once_and_only_to_draw(
    registry: ModuleRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several chunks of one module need its network once, and samples that are stored do not need it at all."""
    loaded: list[str] = []

    def load(self: ModuleRegistry, module_id: str) -> tuple[ModuleManifest, dict[str, Tensor]]:
        loaded.append(module_id)
        return decode_module(self.get(module_id).read())

    monkeypatch.setattr(ModuleRegistry, "load", load)
    for _ in range(2):
        made = _synthetic(registry, tmp_path / "cache", samples=2 * CHUNK + 3)
        assert loaded == [share.module_id for share in made.shares]


@pytest.mark.parametrize("blocks", [1, 8])
def test_the_noise_of_a_module_is_drawn_once(
    blocks: int, registry: ModuleRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many chunks a module's samples fill, each block of noise is drawn once, and they are those of one request."""
    monkeypatch.setattr(GaussianMixtureModule, "batch_blocks", blocks)
    share = Share(next(iter(registry)).module_id, 0, 3 * CHUNK + 5)
    expected = load_module(registry, share.module_id).sample(share.count, sample_stream(5, share.module_id))
    drawn, noise = [], GaussianMixtureModule._noise

    def counted(self: GaussianMixtureModule, stream: torch.Generator) -> Tensor:
        drawn.append(noise(self, stream))
        return drawn[-1]

    monkeypatch.setattr(GaussianMixtureModule, "_noise", counted)
    made = synthesize(registry, [share], 5, SampleCache(tmp_path / "cache"), CPU)
    assert torch.equal(made.data.images, expected) and len(drawn) == 3 * CHUNK // BLOCK + 1


@pytest.mark.parametrize("blocks", [1, 4])
def test_pieces_in_any_order_are_those_of_one_request(
    blocks: int, registry: ModuleRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces that other processes drew may be left out and asked for later, and a piece may begin within a block."""
    monkeypatch.setattr(GaussianMixtureModule, "batch_blocks", blocks)
    module_id = next(iter(registry)).module_id
    whole = load_module(registry, module_id).sample(3 * CHUNK, sample_stream(5, module_id))
    samples = _Samples(load_module(registry, module_id), lambda: sample_stream(5, module_id))
    ends = [(0, CHUNK), (2 * CHUNK, 3 * CHUNK), (CHUNK, CHUNK + 7), (CHUNK + 7, 2 * CHUNK), (2 * CHUNK + BLOCK, 3 * CHUNK - 1)]
    for start, stop in ends:
        assert torch.equal(samples.draw(start, stop), whole[start:stop])
