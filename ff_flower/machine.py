"""What this machine has to give: cores, GPUs, homes, and locks on files."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from .errors import ConfigError

QUOTA = Path("/sys/fs/cgroup/cpu.max")
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


def visible_gpus() -> int:
    """Return how many GPUs torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
