"""Files of finished fits, which a node keeps until the server has them: it fits no class twice."""

import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ff_flower.config import RunSpec
from ff_flower.errors import VerificationError
from ff_flower.machine import whole_file
from ff_flower.registry import ModuleLimits, decode_module
from ff_flower.run_directory import drop_finished_fits, file_digest, finished_fits

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


def drop_received(spec: RunSpec, owner: str, broadcast: Collection[str]) -> None:
    """Delete what is kept of an owner's fits of a run, once the server has all of it.

    While it lacks one, for example where it refused a signature, it asks the node for all of them again.

    Parameters
    ----------
    spec : RunSpec
        The run.
    owner : str
        Whose fits.
    broadcast : collection of str
        Ids of the modules that the server has.
    """
    with suppress(OSError):
        if all(file_digest(path) in broadcast for path in finished_fits(spec, owner)):
            drop_finished_fits(spec, owner)


def drop_others(spec: RunSpec, owner: str, modules: Collection[str]) -> None:
    """Delete what is kept of an owner's fits of a run but the modules with these ids: of classes or images that it holds no more.

    The server will never have them.
    """
    for path in finished_fits(spec, owner):
        with suppress(OSError):
            if file_digest(path) not in modules:
                path.unlink(missing_ok=True)


def keep(place: Path, fit: Fit) -> None:
    """Write the file of a fit to ``place``, whole or not at all; where it cannot be written the log says so."""
    path = place.with_name(f"{place.name}-{fit.seconds:.1f}.module")
    try:
        with whole_file(path) as unfinished:
            unfinished.write_bytes(fit.data)
    except OSError as error:
        logger.warning("a finished fit is not kept: %s", error)
