"""The images that a run was made of, where this machine has them."""

from pathlib import Path

from ff_flower.config import RunSpec
from ff_flower.data import Splits, load_splits
from ff_flower.errors import DataError
from ff_flower.run_directory import made_of


def images_of(run: Path, spec: RunSpec, remedy: str) -> Splits:
    """Return the images of a simulated run.

    Parameters
    ----------
    run : Path
        The run directory.
    spec : RunSpec
        Its spec.
    remedy : str
        What to do where only the sites have the images, for the error.

    Raises
    ------
    DataError
        Where the images are at the sites, cannot be read, or are not those that the run was made of.
    """
    if spec.data.own:
        raise DataError(f"{run}: its images are at the sites; {remedy}")
    splits = load_splits(spec.data, spec.seed)
    if not made_of(run, splits.digest()):
        raise DataError(f"{run}: was made of other images than {spec.data.name} has here; put them back, or set FF_DATA")
    return splits
