"""Images of sites and of the server: what does not fit the run's table is refused with what helps."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ff_flower.config import DataSpec
from ff_flower.data import class_counts, in_table, load_own, own_info
from ff_flower.data.own_images import server_splits
from ff_flower.errors import DataError

GREY, COLOUR = (1, 8, 8), (3, 8, 8)


def _folder(root: Path, *classes: str, side: int = 8, mode: str = "L", images: int = 4) -> str:
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(images):
            Image.new(mode, (side, side)).save(root / name / f"{number}.png")
    return f"folder:{root}"


@pytest.mark.parametrize(
    ("held", "shape", "said"),
    [
        ({"side": 10}, GREY, r"are \(1, 10, 10\), the run's \(1, 8, 8\) .*; set data\.size"),
        ({"mode": "RGB"}, GREY, r"are \(3, 8, 8\), .*; convert them to greyscale"),
        ({}, COLOUR, r"are \(1, 8, 8\), .*; convert them to RGB"),
    ],
)
def test_images_of_another_shape_are_refused_with_what_helps(held: dict, shape: tuple, said: str, tmp_path: Path) -> None:
    """A site's images and the server's test images of another size or number of channels are refused; only a size is resized."""
    location, info = _folder(tmp_path / "set", "cat", "ant", **held), own_info(DataSpec(), ("ant", "cat"), shape)
    with pytest.raises(DataError, match=f"^images {said}"):
        in_table(load_own(location, DataSpec(), seed=0), info)
    with pytest.raises(DataError, match=f"^data.server-test: images {said}"):
        server_splits(DataSpec(name="sites", server_test=location), info)


def test_classes_without_a_place_in_the_table_are_refused(tmp_path: Path) -> None:
    """A site's class that the run does not know is named; of a test set it is left out, and refused where none is known."""
    location, info = _folder(tmp_path / "set", "cat", "dog"), own_info(DataSpec(), ("cat",), GREY)
    with pytest.raises(DataError, match="classes dog have no place among the run's"):
        in_table(load_own(location, DataSpec(), seed=0), info)
    splits, left_out = server_splits(DataSpec(name="sites", server_test=location), info)
    assert left_out == ["dog"] and splits.test.labels.tolist() == [0] * 4
    with pytest.raises(DataError, match="its classes are cat, dog; the sites have none of them"):
        server_splits(DataSpec(name="sites", server_test=location), own_info(DataSpec(), ("ant",), GREY))


def test_a_test_set_whose_labels_have_no_name_is_refused(tmp_path: Path) -> None:
    """Labels beyond the names that a file brings are refused with both numbers."""
    images, labels = np.zeros((3, 8, 8), np.uint8), np.array([0, 1, 2])
    arrays = {f"{split}_images": images for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": labels for split in ("train", "val", "test")}
    np.savez(tmp_path / "set.npz", **arrays, label_names=np.array(["cat", "ant"]))
    with pytest.raises(DataError, match="label 2; its 2 classes count from 0"):
        server_splits(DataSpec(name="sites", server_test=f"npz:{tmp_path / 'set.npz'}"), own_info(DataSpec(), ("cat",), GREY))


def test_two_spellings_of_one_class_are_refused(tmp_path: Path) -> None:
    """Names that differ in how Unicode composes them are one class in every manifest, so that a site cannot have both."""
    location = _folder(tmp_path / "set", "caf\u00e9", "cafe\u0301")
    with pytest.raises(DataError, match="two classes have names that Unicode holds equal"):
        class_counts(load_own(location, DataSpec(), seed=0))
