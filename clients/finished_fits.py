"""Files of finished fits, which a node keeps until the server has them: it fits no class twice."""

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ff_flower.errors import VerificationError
from ff_flower.registry import ModuleLimits, decode_module

logger = logging.getLogger("flwr")


@dataclass(frozen=True)
class Fit:
    """A class's module file.

    Attributes
    ----------
    data : bytes
        The file.
    seconds : float
        What its fit took, now or when it was made.
    """

    data: bytes
    seconds: float


def find(place: Path, limits: ModuleLimits) -> Fit | None:
    """Return what `keep` wrote at ``place``; None where there is nothing, or nothing that is whole."""
    for path in sorted(place.parent.glob(f"{place.name}-*.module")):
        with suppress(OSError, ValueError, VerificationError):
            fit = Fit(path.read_bytes(), float(path.stem.rpartition("-")[2]))
            decode_module(fit.data, limits)
            return fit
    return None


def keep(place: Path, fit: Fit) -> None:
    """Write the file of a fit to ``place``, whole or not at all; where it cannot be written the log says so."""
    path = place.with_name(f"{place.name}-{fit.seconds:.1f}.module")
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(fit.data)
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        logger.warning("a finished fit is not kept: %s", error)
