"""The table, the splits, and the readers of arrays."""

import gzip
import struct
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from ff_flower.config import DataSpec
from ff_flower.data import AUGMENTATIONS, DATASETS, ImageSet, load_splits, own_info
from ff_flower.errors import ConfigError, DataError

Arrays = dict[str, np.ndarray]


def _arrays(counts: tuple[int, int, int] = (12, 4, 5), classes: int = 3, shape: tuple[int, ...] = (6, 6)) -> Arrays:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    return arrays


def _saved(folder: Path, arrays: Arrays, name: str = "own.npz") -> Path:
    np.savez(folder / name, **arrays)
    return folder / name


def _spec(name: str | Path, **settings: object) -> DataSpec:
    return DataSpec(name=f"npz:{name}" if isinstance(name, Path) else name, **settings)


def _rows(images: ImageSet) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.images}


def _same(first: ImageSet, second: ImageSet) -> bool:
    return torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)


def test_table_repeats_medmnist() -> None:
    """All twelve 2D sets of MedMNIST stand in the table with their own classes, channels, task and licence."""
    import medmnist

    flat = {name: info for name, info in medmnist.INFO.items() if not name.endswith("3d")}
    assert {name for name, info in DATASETS.items() if info.source == "medmnist"} == set(flat)
    for name, info in flat.items():
        ours, names = DATASETS[name], tuple(info["label"].values())
        single = name != "chestmnist"
        assert ours.classes == (names if single else ("no finding", *names))
        assert ours.shape == (info["n_channels"], 28, 28)
        assert ours.task == (info["task"] if single else "multi-class")
        assert ours.licence == info["license"]


def test_table_is_keyed_by_name_and_complete() -> None:
    """Every entry stands under its own name, with distinct class names, a licence and a citation."""
    for name, info in DATASETS.items():
        assert info.name == name and info.title and info.licence and info.citation
        assert len(set(info.classes)) == len(info.classes) >= 2


def test_digits_are_scikit_learns() -> None:
    """The digits are scikit-learn's 1,797 scans of ten classes, with 0..16 spread over 0..255."""
    from sklearn.datasets import load_digits

    splits = load_splits(_spec("digits"), seed=0)
    images = torch.cat([part.images for part in (splits.train, splits.val, splits.test)])
    assert images.shape == (1797, 1, 8, 8) and splits.num_classes == 10 and splits.info.title == "Optical digits"
    scale = {round(value * 255 / 16) for value in range(17)}
    assert set(images.unique().tolist()) == scale
    pixels = np.rint(load_digits().data.sum(axis=1) * 255 / 16)
    assert abs(float(images.sum()) - pixels.sum()) < 1e-3 * pixels.sum()


def test_splits_are_disjoint_and_stratified() -> None:
    """The digits' three splits hold every image once, and every class in the asked shares."""
    splits = load_splits(_spec("digits", test_fraction=0.2, val_fraction=0.1), seed=3)
    sizes = [len(splits.train), len(splits.val), len(splits.test)]
    assert sum(sizes) == 1797
    counts = [torch.bincount(part.labels, minlength=10) for part in (splits.train, splits.val, splits.test)]
    total = sum(counts)
    assert ((counts[2] - 0.2 * total).abs() <= 0.5).all() and ((counts[1] - 0.1 * 0.8 * total).abs() <= 0.6).all()
    assert not _rows(splits.train) & _rows(splits.test)


def test_seed_moves_validation_but_not_test() -> None:
    """Equal seeds give equal splits; another seed gives other validation images and the same test images."""
    one, again, other = (load_splits(_spec("digits"), seed) for seed in (1, 1, 2))
    assert _same(one.train, again.train) and _same(one.val, again.val)
    assert not _same(one.val, other.val)
    assert _same(one.test, other.test)


def test_no_share_gives_no_validation_images() -> None:
    """A validation share of zero gives an empty set of the same image shape."""
    splits = load_splits(_spec("digits", val_fraction=0.0), seed=0)
    assert splits.val.images.shape == (0, 1, 8, 8)


def test_official_splits_are_kept(tmp_path: Path) -> None:
    """Official splits come back as they are, whatever the seed, with channels first."""
    arrays = _arrays(shape=(6, 5, 3))
    splits = load_splits(_spec(_saved(tmp_path, arrays)), seed=9)
    for split, part in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        np.testing.assert_array_equal(part.images.numpy().transpose(0, 2, 3, 1), arrays[f"{split}_images"])
        assert part.labels.tolist() == arrays[f"{split}_labels"][:, 0].tolist()
    assert splits.info.shape == (3, 6, 5) and splits.info.classes == ("0", "1", "2")


def test_file_names_itself_without_its_folder(tmp_path: Path) -> None:
    """A set read from a path is known by its file's name; the folders above it stay private."""
    info = load_splits(_spec(_saved(tmp_path, _arrays())), seed=0).info
    assert (info.name, info.title, info.source, info.augmentation) == ("npz:own.npz", "own.npz", "npz", "none")


def test_relative_path_starts_at_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is looked up under data.root, or under FF_DATA when that is empty."""
    _saved(tmp_path, _arrays())
    assert len(load_splits(_spec("npz:own.npz", root=str(tmp_path)), seed=0).train) == 12
    monkeypatch.setenv("FF_DATA", str(tmp_path))
    assert len(load_splits(_spec("npz:own.npz"), seed=0).test) == 5


def test_label_names_are_read(tmp_path: Path) -> None:
    """The optional key label_names names the classes, those without images too."""
    arrays = {**_arrays(), "label_names": np.array(["ant", "bee", "cat", "dog"])}
    splits = load_splits(_spec(_saved(tmp_path, arrays)), seed=0)
    assert splits.info.classes == ("ant", "bee", "cat", "dog") and splits.num_classes == 4


def test_size_resizes_every_split(tmp_path: Path) -> None:
    """With data.size all splits have that many pixels a side, and the info says so."""
    splits = load_splits(_spec(_saved(tmp_path, _arrays(counts=(12, 0, 5))), size=4), seed=0)
    assert [tuple(part.images.shape[1:]) for part in (splits.train, splits.val, splits.test)] == [(1, 4, 4)] * 3
    assert splits.info.shape == (1, 4, 4)


@pytest.mark.parametrize("name", ["breastmnist", "pneumoniamnist", "retinamnist", "bloodmnist"])
def test_real_medmnist_sets_match_their_table(name: str, real_data: Path) -> None:
    """The real files have the table's classes and shape, and the numbers of images that MedMNIST states."""
    import medmnist

    splits = load_splits(_spec(name, root=str(real_data), download=False), seed=0)
    assert splits.info == DATASETS[name]
    assert {"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)} == medmnist.INFO[name]["n_samples"]
    assert set(splits.train.labels.tolist()) == set(range(splits.num_classes))


def test_real_mnist_gets_validation_images(real_data: Path) -> None:
    """MNIST has no official validation split: a tenth of each class of its 60,000 training images becomes one."""
    splits = load_splits(_spec("mnist", root=str(real_data), download=False), seed=0)
    assert len(splits.train) + len(splits.val) == 60_000 and len(splits.test) == 10_000
    assert abs(len(splits.val) - 6000) <= 5


def test_larger_medmnist_file_is_preferred(tmp_path: Path) -> None:
    """Size 64 reads <name>_64.npz when it is there; without it and without download the small images are resized."""
    blood = _arrays(classes=8, counts=(16, 8, 8), shape=(28, 28, 3))
    _saved(tmp_path, blood, "bloodmnist.npz")
    spec = _spec("bloodmnist", root=str(tmp_path), size=64, download=False)
    assert load_splits(spec, seed=0).info.shape == (3, 64, 64)
    larger = tmp_path / "larger"
    larger.mkdir()
    plus = _arrays(classes=8, counts=(24, 8, 8), shape=(64, 64, 3))
    _saved(larger, plus, "bloodmnist_64.npz")
    splits = load_splits(_spec("bloodmnist", root=str(larger), size=64), seed=0)
    np.testing.assert_array_equal(splits.train.images.numpy().transpose(0, 2, 3, 1), plus["train_images"])


def test_chest_images_with_several_findings_are_left_out(tmp_path: Path) -> None:
    """Of many findings per image those with at most one are taken: class 0 without, class 1 + i with finding i."""
    arrays = _arrays(shape=(28, 28))
    for split, count in (("train", 12), ("val", 4), ("test", 5)):
        findings = np.zeros((count, 14), dtype=np.uint8)
        findings[1, 0] = findings[2, 13] = 1
        findings[3, :2] = 1
        arrays[f"{split}_labels"] = findings
    splits = load_splits(_spec("chestmnist", root=str(_saved(tmp_path, arrays, "chestmnist.npz").parent)), seed=0)
    assert splits.val.labels.tolist() == [0, 1, 14]
    np.testing.assert_array_equal(splits.val.images.numpy()[:, 0], arrays["val_images"][:3])


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_local_npz_replaces_torchvision(name: str, tmp_path: Path) -> None:
    """A local npz under the set's name is read in place of torchvision's files."""
    channels, *sides = DATASETS[name].shape
    arrays = _arrays(counts=(20, 0, 10), classes=10, shape=(*sides, channels))
    splits = load_splits(_spec(name, root=str(_saved(tmp_path, arrays, f"{name}.npz").parent)), seed=0)
    assert splits.info == DATASETS[name] and (len(splits.train), len(splits.val), len(splits.test)) == (10, 10, 10)


def test_torchvision_files_are_read(tmp_path: Path) -> None:
    """Fashion-MNIST's own files, as torchvision lays them out, are read without any download."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    labels = bytes(range(10)) * 2
    for part in ("train", "t10k"):
        for suffix, content in (
            ("images-idx3-ubyte", struct.pack(">iiii", 2051, 20, 28, 28) + bytes(20 * 28 * 28)),
            ("labels-idx1-ubyte", struct.pack(">ii", 2049, 20) + labels),
        ):
            (raw / f"{part}-{suffix}").write_bytes(content)
            (raw / f"{part}-{suffix}.gz").write_bytes(gzip.compress(content))
    splits = load_splits(_spec("fashion-mnist", root=str(tmp_path), download=False), seed=0)
    assert splits.test.labels.tolist() == list(labels) and splits.test.images.shape == (20, 1, 28, 28)
    assert len(splits.train) == len(splits.val) == 10


@pytest.mark.parametrize("name", ["digit", "csv:/x", "npz:", "folder:", "bloodmnist:/x"])
def test_unknown_name_is_answered_with_the_list(name: str) -> None:
    """A name that no set has is refused with the list of those that exist, paths included."""
    with pytest.raises(ConfigError, match=r"unknown data set .*bloodmnist.*digits.*folder:/path.*npz:/path"):
        load_splits(_spec(name), seed=0)


def test_missing_root_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A root that does not exist is refused, naming the setting that names it."""
    with pytest.raises(DataError, match=r"gone does not exist; data\.root"):
        load_splits(_spec("digits", root=str(tmp_path / "gone")), seed=0)
    monkeypatch.setenv("FF_DATA", str(tmp_path / "lost"))
    with pytest.raises(DataError, match="lost does not exist; FF_DATA"):
        load_splits(_spec("bloodmnist"), seed=0)


def test_a_default_root_that_cannot_be_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the home cannot be written to the error names the folder and the two ways around."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.delenv("FF_DATA", raising=False)
    with pytest.raises(DataError, match=r"file/.* cannot be made .*data\.root or FF_DATA"):
        load_splits(_spec("digits"), seed=0)


@pytest.mark.parametrize("name", ["bloodmnist", "mnist", "cifar10", "isic2019", "npz:gone.npz", "folder:gone"])
def test_missing_files_are_refused_with_a_remedy(name: str, tmp_path: Path) -> None:
    """A set that is neither local nor may be downloaded is refused, naming where it was looked for."""
    with pytest.raises(DataError, match=str(tmp_path)):
        load_splits(_spec(name, root=str(tmp_path), download=False), seed=0)


def _with(key: str, value: np.ndarray) -> Arrays:
    return {**_arrays(), key: value}


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({key: value for key, value in _arrays().items() if "val" not in key}, "no val_images, val_labels"),
        (_with("train_images", np.zeros((12, 6, 6), dtype=np.float32)), r"float32.*images are uint8 in \[0, 255\].*convert them"),
        (_with("train_images", np.full((12, 6, 6), np.nan)), r"float64.*images are uint8 in \[0, 255\].*convert them"),
        (_with("test_images", np.zeros((5, 6, 6), dtype=np.uint16)), r"uint16.*images are uint8 in \[0, 255\].*convert them"),
        (_with("val_images", np.zeros((4, 6, 6), dtype=np.int8)), r"int8.*images are uint8 in \[0, 255\].*convert them"),
        (_with("train_images", np.eye(6, dtype=np.uint8)[None].repeat(12, 0)), "nothing above 1.*multiply them by 255"),
        (_with("train_images", np.zeros((12, 6), dtype=np.uint8)), r"\(12, 6\)"),
        (_with("train_images", np.zeros((12, 6, 6, 4), dtype=np.uint8)), r"\(12, 6, 6, 4\)"),
        (_with("train_images", np.array([np.zeros((6, 6)), np.zeros((5, 5))], dtype=object)), "two sizes"),
        (_with("val_images", np.zeros((4, 7, 7), dtype=np.uint8)), r"val_images are \(1, 7, 7\)"),
        (_with("train_labels", np.arange(12)[:, None] - 1), "train_labels holds -1"),
        (_with("train_labels", np.zeros(12)), "float64"),
        (_with("train_labels", np.zeros((12, 2), dtype=np.int64)), r"\(12, 2\)"),
        (_with("test_labels", np.zeros(3, dtype=np.int64)), "5 images need"),
        (_with("label_names", np.array(["ant", "bee"])), "label 2; its 2 classes"),
        (_with("label_names", np.array(["ant", "ant", "bee"])), "label_names"),
        (_with("label_names", np.array([1, 2, 3])), "label_names"),
        (_arrays(counts=(0, 4, 5)), "train_images has no rows"),
        (_arrays(counts=(3, 0, 0)), "no class has two images"),
    ],
)
def test_bad_arrays_are_refused(arrays: Arrays, says: str, tmp_path: Path) -> None:
    """An npz whose keys, images, labels or names break a rule is refused, naming what was found."""
    with pytest.raises(DataError, match=says):
        load_splits(_spec(_saved(tmp_path, arrays)), seed=0)


def test_labels_beyond_the_table_are_refused(tmp_path: Path) -> None:
    """A file under a known name must keep to that set's classes."""
    _saved(tmp_path, _arrays(classes=3, shape=(28, 28)), "breastmnist.npz")
    with pytest.raises(DataError, match="breastmnist: label 2; its 2 classes"):
        load_splits(_spec("breastmnist", root=str(tmp_path)), seed=0)


def test_bytes_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    """A truncated or damaged archive, a plain text and a bare npy array are refused as files that cannot be read."""
    whole = _saved(tmp_path, _arrays()).read_bytes()
    np.savez_compressed(tmp_path / "packed.npz", **_arrays())
    packed = bytearray((tmp_path / "packed.npz").read_bytes())
    packed[200:208] = bytes(8)
    np.save(tmp_path / "bare.npy", np.zeros(3))
    for name, content in (
        ("cut", whole[: len(whole) // 2]),
        ("text", b"not an archive"),
        ("damaged", bytes(packed)),
        ("bare", (tmp_path / "bare.npy").read_bytes()),
    ):
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}\.npz: cannot be read"):
            load_splits(_spec(path), seed=0)


def test_augmentation_may_be_chosen() -> None:
    """``data.augmentation`` names any policy there is, in the place of the set's own; for one's own images too."""
    choices = set(get_args(DataSpec.model_fields["augmentation"].annotation))
    assert choices == {"auto", *AUGMENTATIONS}
    assert load_splits(_spec("digits"), seed=0).info.augmentation == "digits"
    assert load_splits(_spec("digits", augmentation="none"), seed=0).info.augmentation == "none"
    own = [
        own_info(DataSpec(name="sites", augmentation=name), ("a", "b"), (3, 8, 8)).augmentation for name in ("auto", "dihedral")
    ]
    assert own == ["none", "dihedral"]


def test_the_digest_is_of_images_labels_and_their_split(tmp_path: Path) -> None:
    """The digest of a set's splits changes with any pixel, any label and the split, and with nothing else."""
    path = _saved(tmp_path, arrays := _arrays())
    first = load_splits(_spec(path), seed=0)
    assert first.digest() == load_splits(_spec(path), seed=1).digest()
    digests = {first.digest()}
    for name, place in (("train_images", (0, 0, 0)), ("val_labels", (0, 0)), ("test_images", (4, 5, 5))):
        changed = {key: value.copy() for key, value in arrays.items()}
        changed[name][place] ^= 1
        digests.add(load_splits(_spec(_saved(tmp_path, changed, f"{name}.npz")), seed=0).digest())
    digests.add(load_splits(_spec(_saved(tmp_path, _arrays((13, 3, 5)), "other.npz")), seed=0).digest())
    assert len(digests) == 5
