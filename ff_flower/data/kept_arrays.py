"""Arrays that take long to make, kept as a file for equal calls."""

import logging
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ..machine import whole_file

logger = logging.getLogger("flwr")


def kept_arrays(path: Path, *names: str) -> tuple[np.ndarray, ...] | None:
    """Return the arrays of these names in the file ``path``, or None where there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return tuple(archive[name] for name in names)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def keep_arrays(path: Path, consequence: str, **arrays: np.ndarray) -> None:
    """Write arrays to the file ``path``; where that cannot be, the log says why, and of what ``consequence``."""
    try:
        with whole_file(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        logger.warning("%s: %s: %s", consequence, path, error.strerror or error)
