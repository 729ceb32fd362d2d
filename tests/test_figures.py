"""The pictures of a run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ff_flower.figures import label_distribution_figure, sample_grid


@pytest.mark.parametrize(
    ("shape", "columns", "size"),
    [
        ((16, 1, 8, 8), 8, (8 * (32 + 2), 2 * (32 + 2))),
        ((5, 3, 28, 28), 4, (4 * (56 + 2), 2 * (56 + 2))),
        ((3, 3, 64, 40), 2, (2 * (40 + 2), 2 * (64 + 2))),
        ((1, 1, 8, 16), 3, (3 * (64 + 2), 32 + 2)),
    ],
)
def test_a_grid_has_the_size_of_its_images(tmp_path: Path, shape: tuple[int, ...], columns: int, size: tuple[int, int]) -> None:
    """Images are enlarged by a whole number to at least 32 pixels, framed by one pixel, and stand in rows of the given length."""
    path = tmp_path / "grid.png"
    sample_grid(torch.zeros(shape, dtype=torch.uint8), path, columns)
    with Image.open(path) as picture:
        assert (picture.format, picture.size, picture.mode) == ("PNG", size, "L" if shape[1] == 1 else "RGB")


def test_a_grid_shows_the_images_in_order(tmp_path: Path) -> None:
    """Image k stands in row k // columns and column k % columns, every pixel a block of its own value, on white."""
    images = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 1, 4, 4).clone()
    images[2, 0, 0, 1] = 99
    path = tmp_path / "grid.png"
    sample_grid(images, path, columns=2, shortest=8)
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (20, 20)
    assert (pixels[1:9, 1:9] == 10).all() and (pixels[1:9, 11:19] == 20).all()
    assert (pixels[11:13, 3:5] == 99).all() and (pixels[13:19, 1:9] == 30).all()
    assert (pixels[10:, 10:] == 255).all() and (pixels[0] == 255).all()


def test_a_class_may_be_called_anything(tmp_path: Path) -> None:
    """Names are drawn as they are: signs that mean something to the drawing library mean nothing in them."""
    label_distribution_figure(np.eye(4, dtype=np.int64), [r"$\q$", "$", "a_b^c", "{"], tmp_path / "labels.png")
    assert (tmp_path / "labels.png").stat().st_size > 0


def test_many_classes_are_no_endless_picture(tmp_path: Path) -> None:
    """However many classes there are, the picture is at most 42 inches wide."""
    label_distribution_figure(np.ones((1, 500), dtype=np.int64), [str(label) for label in range(500)], tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as picture:
        assert picture.width == 4200


@pytest.mark.parametrize(("nodes", "num_classes"), [(1, 2), (10, 10), (200, 3)])
def test_a_label_distribution_is_a_picture(tmp_path: Path, nodes: int, num_classes: int) -> None:
    """The heat map is a PNG whose width grows with the classes and whose height grows with the nodes, up to a bound."""
    counts = np.eye(nodes, num_classes, dtype=np.int64) * 100
    path = tmp_path / "labels.png"
    label_distribution_figure(counts, [f"a class with quite a long name {label}" for label in range(num_classes)], path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size == (200 + 50 * num_classes, 150 + round(min(1200, 30 * nodes)))
        assert len(picture.convert("L").getcolors(256) or []) > 10
