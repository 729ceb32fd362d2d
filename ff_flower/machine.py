"""What this machine has to give: cores, GPUs, homes, locks on files, and files that are whole."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import ConfigError

QUOTA = Path("/sys/fs/cgroup/cpu.max")
UNFINISHED = ".part"  # how the name of a file ends that is still being written
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # what file systems without locks say


def usable_cores() -> int:
    """Return how many cores this process may use: of the machine's, what affinity and a quota leave, at least 1.

    Ray counts them likewise, and starts no client that wants more.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = QUOTA.read_text().split()
        cores = min(cores, int(float(quota) / float(period)))  # without a quota the first word is "max", which is no number
    return max(1, cores)


def path_of(text: str | Path) -> Path:
    """Return the path that a person wrote, with homes for ``~`` and ``~name``.

    Raises
    ------
    ConfigError
        Where there is no such home.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{str(text)!r}: must begin with ~/ for your own home, or with that of a user who is there") from error


def is_visible(path: Path) -> bool:
    """Tell whether there is something at ``path`` that this process may see: nothing is, in somebody else's private folder."""
    try:
        return path.exists()
    except OSError:
        return False


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give the name under which a file is written until it is whole, and then give it the name ``path``.

    The file takes the place of one that is there; where writing it fails, that one stays and of the new one nothing does.
    Processes may write the same file at once: each writes its own, and the last to finish stands.

    Parameters
    ----------
    path : Path
        The file; its folder is made where it does not exist.
    durable : bool
        Wait until a loss of power cannot undo it.

    Yields
    ------
    Path
        A name in the same folder, which ends in `UNFINISHED`.

    Raises
    ------
    OSError
        When it cannot be written, for example to a full disk; of the last step, which gives the name, ``filename2`` is ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        yield unfinished
        if durable:
            _sync(unfinished)
        unfinished.replace(path)
        if durable:
            with suppress(OSError):  # not every file system keeps its folders so
                _sync(path.parent)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def visible_gpus() -> int:
    """Return how many GPUs torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
