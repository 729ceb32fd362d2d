"""Folders of image files, and ISIC 2019's official folder."""

import csv
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from ff_flower.config import DataSpec
from ff_flower.data import Splits, load_splits
from ff_flower.data.image_files import ISIC_CODES, read_isic
from ff_flower.errors import DataError


def _picture(path: Path, value: int, size: tuple[int, int] = (10, 10), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode != "RGB" else (value, 0, 0)).save(path)


def _class_folders(root: Path, mode: str = "RGB", images: int = 5) -> None:
    for label, name in enumerate(("cat", "ant")):
        for number in range(images):
            _picture(root / name / f"{number}.png", 100 * label + number, mode=mode)


def _load(root: Path, size: int = 0) -> Splits:
    return load_splits(DataSpec(name=f"folder:{root}", size=size), seed=0)


def _isic(root: Path, rows: int = 32, lesions: int = 12) -> None:
    folder = root / "ISIC_2019_Training_Input"
    truth, metadata = [], []
    for number in range(rows):
        name = f"ISIC_{number:07d}" + "_downsampled" * (number % 2)
        _picture(folder / f"{name}.jpg", 8 * number, size=(90, 60))
        truth.append([name] + ["1.0" if code == ISIC_CODES[number % 4] else "0.0" for code in ISIC_CODES] + ["0.0"])
        metadata.append([name, "55.0", "torso", "" if number > 28 else f"HAM_{number % lesions:07d}", "female"])
    for what, header, table in (
        ("GroundTruth", ["image", *ISIC_CODES, "UNK"], truth),
        ("Metadata", ["image", "age_approx", "anatom_site_general", "lesion_id", "sex"], metadata),
    ):
        with (root / f"ISIC_2019_Training_{what}.csv").open("w", newline="") as lines:
            csv.writer(lines).writerows([header, *table])


def _reds(images: torch.Tensor) -> list[int]:
    """Return the numbers that `_isic` painted into the images."""
    return [round(float(image[0].float().mean()) / 8) for image in images]


def test_photographs_stand_upright(tmp_path: Path) -> None:
    """An image whose camera noted that it was turned is read as people see it, and its size is that of what they see."""
    _class_folders(tmp_path)
    picture = Image.new("RGB", (20, 10))
    picture.paste((255, 255, 255), (0, 0, 10, 10))  # white at the left; turned clockwise by EXIF, white at the top
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("ant", "cat"):
        for file in (tmp_path / name).iterdir():
            picture.save(file, exif=exif)
    images = _load(tmp_path).train.images
    assert images.shape[2:] == (20, 10)
    assert (images[:, :, :10] == 255).all() and (images[:, :, 10:] == 0).all()


def test_class_folders_give_sorted_classes(tmp_path: Path) -> None:
    """Classes are the folders' names in order, images keep their pixels, and a test set is held out."""
    _class_folders(tmp_path)
    (tmp_path / "ant" / ".hidden").write_text("left alone")
    splits = _load(tmp_path)
    assert splits.info.classes == ("ant", "cat") and splits.info.shape == (3, 10, 10) and splits.info.source == "folder"
    assert (len(splits.train), len(splits.val), len(splits.test)) == (6, 2, 2)
    for part in (splits.train, splits.val, splits.test):
        assert ((part.images[:, 0, 0, 0] >= 100) == (part.labels == 0)).all()


def test_split_folders_are_official(tmp_path: Path) -> None:
    """Folders train and test are the official splits; without val a validation set is carved from train."""
    _class_folders(tmp_path / "train")
    _class_folders(tmp_path / "test", images=1)
    splits = _load(tmp_path)
    assert splits.test.images[:, 0, 0, 0].tolist() == [100, 0] and splits.test.labels.tolist() == [0, 1]
    assert (len(splits.train), len(splits.val)) == (8, 2)


def test_grey_files_stay_grey(tmp_path: Path) -> None:
    """One channel if all files are greyscale, three as soon as one is not."""
    grey, mixed = tmp_path / "grey", tmp_path / "mixed"
    for root in (grey, mixed):
        _class_folders(root, mode="L")
    _picture(mixed / "ant" / "colour.png", 50)
    assert _load(grey).info.shape == (1, 10, 10)
    assert _load(mixed).info.shape == (3, 10, 10)


def test_size_unites_images_of_two_sizes(tmp_path: Path) -> None:
    """Images of two sizes are refused as they are, naming one of them, and read with data.size."""
    _class_folders(tmp_path)
    _picture(tmp_path / "cat" / "wide.png", 9, size=(20, 10))
    with pytest.raises(DataError, match=r"wide\.png measures 20x10 .*data\.size"):
        _load(tmp_path)
    assert _load(tmp_path, size=6).info.shape == (3, 6, 6)


def test_other_files_are_refused(tmp_path: Path) -> None:
    """Texts, damaged images, 16-bit images, stray files and empty folders are refused by name."""
    broken = b"\x89PNG\r\n\x1a\n" + bytes(40)
    for name, path, content in (
        ("text", "cat/notes.txt", b"no image"),
        ("damaged", "cat/cut.png", broken),
        ("stray", "readme.txt", b"beside the folders"),
    ):
        root = tmp_path / name
        _class_folders(root)
        (root / path).write_bytes(content)
        with pytest.raises(DataError, match=Path(path).name):
            _load(root)
    deep = tmp_path / "deep"
    _class_folders(deep)
    Image.fromarray(np.full((10, 10), 60_000, dtype=np.uint16)).save(deep / "cat" / "sixteen.png")
    with pytest.raises(DataError, match=r"sixteen\.png .*8 bits"):
        _load(deep)
    empty = tmp_path / "empty"
    _class_folders(empty)
    (empty / "dog").mkdir()
    with pytest.raises(DataError, match="dog is empty"):
        _load(empty)
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        _load(tmp_path / "bare")


def test_truncated_image_is_refused(tmp_path: Path) -> None:
    """An image whose header is whole and whose pixels are not is refused by name."""
    _class_folders(tmp_path)
    path = tmp_path / "cat" / "0.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 10, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"0\.jpg cannot be read"):
        _load(tmp_path)


@pytest.mark.parametrize("size", [0, 6])
@pytest.mark.parametrize("damage", [b"Exif\0\0no tags at all", b"Exif\0\0II*\0", None], ids=["exif", "half an exif", "huge"])
def test_what_pillow_refuses_is_named(tmp_path: Path, damage: bytes | None, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged EXIF block and an image of absurd size are refused by name, as an image that cannot be read."""
    _class_folders(tmp_path)
    if damage:
        Image.new("RGB", (10, 10)).save(tmp_path / "cat" / "bad.png", exif=damage)
    else:
        Image.new("RGB", (100, 100)).save(tmp_path / "cat" / "bad.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(DataError, match=r"bad\.png (is no image|cannot be read)"):
        _load(tmp_path, size)


def test_colours_of_16_bits_are_refused(tmp_path: Path) -> None:
    """A PNG file of 16 bits per colour, of which Pillow would take the upper eight, is refused by name."""
    _class_folders(tmp_path)
    header, rows = struct.pack(">IIBBBBB", 10, 10, 16, 2, 0, 0, 0), zlib.compress(bytes(10 * (1 + 10 * 6)))
    chunks = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    )
    (tmp_path / "cat" / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with Image.open(tmp_path / "cat" / "deep.png") as image:
        assert (image.mode, image.size, image.convert("RGB").getpixel((0, 0))) == ("RGB", (10, 10), (0, 0, 0))
    with pytest.raises(DataError, match=r"deep\.png has pixels of mode RGB with 16 bits; .*8 bits"):
        _load(tmp_path)


@pytest.mark.parametrize("size", [0, 6])
def test_headers_are_read_before_any_pixel(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What headers tell is known before the first image is decoded, also of PNG files; each is then decoded once."""
    from PIL import PngImagePlugin

    _class_folders(tmp_path)
    decoded: list[str] = []
    end = PngImagePlugin.PngImageFile.load_end

    def counted(image: PngImagePlugin.PngImageFile) -> None:
        decoded.append(str(image.filename))
        end(image)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_end", counted)
    _load(tmp_path, size)
    assert len(decoded) == len(set(decoded)) == 10
    decoded.clear()
    (tmp_path / "cat" / "9.png").write_text("no image")
    with pytest.raises(DataError, match=r"9\.png is no image"):
        _load(tmp_path, size + 1)
    assert not decoded


@pytest.mark.parametrize("place", ["cat/patient", "train/cat"])
def test_folders_in_class_folders_are_refused(tmp_path: Path, place: str) -> None:
    """Folders of patients in a class, and splits of other names, are named as what they are."""
    _class_folders(tmp_path)
    if place == "train/cat":
        (tmp_path / "cat").rename(tmp_path / "valid")
    _picture(tmp_path / place / "0.png", 1)
    with pytest.raises(DataError, match=rf"{place} is a folder within the class .*move them there"):
        _load(tmp_path)


def test_files_that_may_not_be_read_are_told_from_damaged_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the right to read is missing the error says so, and does not advise to remove the file."""
    _class_folders(tmp_path)

    def locked(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", locked)
    with pytest.raises(DataError, match=r"\.png cannot be read or written \(Permission denied\); give the user of this process"):
        _load(tmp_path)


def test_names_and_sizes_that_no_manifest_can_tell_are_refused(tmp_path: Path) -> None:
    """A class or a folder whose name cannot be printed or is too long, and sides beyond 1,024 pixels, are refused on reading."""
    for name in ("a\u00a0b", "c" * 129):
        _class_folders(tmp_path / "odd class" / name[:1])
        _picture(tmp_path / "odd class" / name[:1] / name / "0.png", 1)
        with pytest.raises(DataError, match=r"class .*; a name has 1 to 128 printable characters; rename it"):
            _load(tmp_path / "odd class" / name[:1])
    _class_folders(tmp_path / ("d" * 128))
    with pytest.raises(DataError, match=r"image set 'folder:d+'; a name has"):
        _load(tmp_path / ("d" * 128))
    _picture(tmp_path / "wide" / "cat" / "0.png", 1, size=(1025, 2))
    _picture(tmp_path / "wide" / "cat" / "1.png", 1, size=(1025, 2))
    with pytest.raises(DataError, match=r"1025 x 2 pixels; images have at most 1024 a side; set data\.size"):
        _load(tmp_path / "wide")
    assert _load(tmp_path / "wide", size=8).info.shape == (3, 8, 8)


def test_isic_is_cropped_resized_and_labelled(tmp_path: Path) -> None:
    """Every row of the CSV gives its image, cropped and resized to 64 pixels, with its class; all eight classes are named."""
    _isic(tmp_path)
    splits = load_splits(DataSpec(name="isic2019", root=str(tmp_path)), seed=0)
    assert splits.num_classes == 8 and splits.info.shape == (3, 64, 64)
    numbers: list[int] = []
    for part in (splits.train, splits.val, splits.test):
        assert part.labels.tolist() == [number % 4 for number in _reds(part.images)]
        numbers += _reds(part.images)
    assert sorted(numbers) == list(range(32))


def test_isic_lesions_stay_together(tmp_path: Path) -> None:
    """No lesion has images in two of training, validation and test; images without a lesion stand for themselves."""
    _isic(tmp_path)
    splits = load_splits(DataSpec(name="isic2019", root=str(tmp_path), val_fraction=0.2), seed=1)
    lesions = [{n % 12 if n <= 28 else -n for n in _reds(part.images)} for part in (splits.train, splits.val, splits.test)]
    assert all(lesions)
    assert not (lesions[0] & lesions[1] or lesions[0] & lesions[2] or lesions[1] & lesions[2])


def test_isic_is_resized_once(tmp_path: Path) -> None:
    """The resized images are kept in one file: the second reading needs no JPEG, and a damaged file is made anew."""
    _isic(tmp_path)
    first = read_isic(tmp_path, tmp_path, size=16).train
    (kept,) = tmp_path.glob("isic2019_16_*.npz")
    hidden = (tmp_path / "ISIC_2019_Training_Input").rename(tmp_path / "aside")
    assert torch.equal(read_isic(tmp_path, tmp_path, size=16).train.images, first.images)
    hidden.rename(tmp_path / "ISIC_2019_Training_Input")
    kept.write_bytes(b"damaged")
    assert torch.equal(read_isic(tmp_path, tmp_path, size=16).train.images, first.images)


def test_isic_is_read_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, full_disk: Callable[..., NoReturn]
) -> None:
    """On a full disk the images are the same, resized by every run, and the log says so."""
    _isic(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", full_disk)
        first = read_isic(tmp_path, tmp_path, size=16).train
    assert not list(tmp_path.glob("isic2019_16_*")) and "No space left on device" in caplog.text
    assert torch.equal(read_isic(tmp_path, tmp_path, size=16).train.images, first.images)


def test_isic_crops_the_middle(tmp_path: Path) -> None:
    """A wide image loses its left and right margins, not its proportions."""
    _isic(tmp_path)
    wide = Image.new("RGB", (180, 60), (0, 0, 0))
    wide.paste((200, 200, 200), (60, 0, 120, 60))
    wide.save(tmp_path / "ISIC_2019_Training_Input" / "ISIC_0000000.jpg", quality=100)
    middle = read_isic(tmp_path, tmp_path, size=20).train.images[0]
    assert middle[:, :, 1:-1].min() > 190


def test_isic_without_an_image_is_refused(tmp_path: Path) -> None:
    """A missing JPEG, and a row with no class or two, are named."""
    _isic(tmp_path)
    truth = tmp_path / "ISIC_2019_Training_GroundTruth.csv"
    (tmp_path / "ISIC_2019_Training_Input" / "ISIC_0000004.jpg").unlink()
    with pytest.raises(DataError, match=r"ISIC_0000004\.jpg and 0 more"):
        read_isic(tmp_path, tmp_path, size=8)
    whole = truth.read_text()
    truth.write_text(whole.replace("ISIC_0000002,0.0,0.0,1.0", "ISIC_0000002,1.0,0.0,1.0"))
    with pytest.raises(DataError, match=r"ISIC_0000002.*MEL.*BCC.*exactly one"):
        read_isic(tmp_path, tmp_path, size=8)
    truth.write_text(whole.splitlines()[0])
    with pytest.raises(DataError, match="has no rows"):
        read_isic(tmp_path, tmp_path, size=8)
