"""Pictures of a run: sample grids, and who holds what."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .machine import whole_file


def sample_grid(images: Tensor, path: Path, columns: int = 8, shortest: int = 32) -> None:
    """Write images as one PNG, ``columns`` abreast, small ones enlarged to at least ``shortest`` pixels.

    Parameters
    ----------
    images : Tensor
        (n, C, H, W) uint8 in [0, 255], C being 1 or 3.
    path : Path
        The PNG file.
    columns : int
        Images in a row.
    shortest : int
        Fewest pixels of an image's side.
    """
    from PIL import Image

    factor = -(-shortest // min(images.shape[-2:]))
    enlarged = images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    padded = F.pad(enlarged, (1, 1, 1, 1), value=255)
    missing = -len(padded) % columns
    padded = torch.cat([padded, padded.new_full((missing, *padded.shape[1:]), 255)])
    rows = [torch.cat(list(row), dim=2) for row in torch.split(padded, columns)]
    pixels = torch.cat(rows, dim=1).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    with whole_file(path) as unfinished:
        picture.save(unfinished, format="PNG")


def label_distribution_figure(counts: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Write a heat map of images per node (rows) and class (columns) as PNG."""
    from matplotlib.figure import Figure

    nodes, num_classes = counts.shape
    size = 2 + min(40.0, 0.5 * num_classes), 1.5 + min(12.0, 0.3 * nodes)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(np.where(counts > 0, counts, np.nan), aspect="auto", cmap="viridis", vmin=0)
    axes.set_xticks(range(num_classes), labels=[name[:16] for name in classes], rotation=60, ha="right", parse_math=False)
    axes.set_xlabel("class")
    axes.set_ylabel("node")
    figure.colorbar(image, ax=axes, label="training images")
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=100, format="png")
