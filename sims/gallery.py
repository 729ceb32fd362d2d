"""Real images beside samples of a run's modules, as one picture."""

from pathlib import Path

import torch
from torch import Tensor

from ff_flower.config import from_run_config
from ff_flower.errors import ConfigError, DataError
from ff_flower.figures import sample_grid
from ff_flower.registry import ModuleRegistry
from ff_flower.run_directory import read_spec
from ff_flower.seeding import generator
from ff_flower.synthesis import load_module

from .images import images_of


def draw_gallery(run: Path, picture: Path, columns: int = 16) -> None:
    """Write a PNG with two rows per module: training images of its class, then its samples.

    Parameters
    ----------
    run : Path
        A run directory.
    picture : Path
        The PNG file.
    columns : int
        Images in a row.

    Raises
    ------
    DataError
        Where ``run`` holds no modules, its images are at the sites, or they are not those that are here.
    ConfigError
        Where the file cannot be written.
    """
    spec = from_run_config(read_spec(run))
    splits = images_of(run, spec, f"see its modules' samples in {run / 'modules' / '*.png'}")
    registry = ModuleRegistry.of_run(run, spec)
    rows = []
    for module in registry:
        real = splits.train.of_label(module.manifest.label).images[:columns]
        stream = generator(spec.seed, "sample", module.module_id)
        made = load_module(registry, module.module_id).sample(columns, stream)
        blank = real.new_full((columns - len(real), *real.shape[1:]), 255)
        rows += [real, blank, made]
    if not rows:
        raise DataError(f"{run}: holds no modules; name the run directory of a federated-factory run")
    draw_grid(torch.cat(rows), picture, columns)


def draw_grid(images: Tensor, picture: Path, columns: int = 8) -> None:
    """Write images as one PNG, see `sample_grid`.

    Raises
    ------
    ConfigError
        Where the file cannot be written.
    """
    try:
        picture.parent.stat()  # a folder that is not there is a mistake, and not made
        sample_grid(images, picture, columns)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{picture}: cannot be written ({reason}); name a file in a folder that is there") from error
