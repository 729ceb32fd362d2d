"""How much memory the processes of a session hold, by what they are; read from /proc, so on Linux only."""

import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ff_flower.errors import RunError

from ..processes.process_groups import process_groups

SHARED = Path("/dev/shm")  # where Ray keeps what it hands from process to process
ROLES = {"ray::ClientAppActor": "actor", "flwr-simulation": "server", "flower-superlink": "superlink", "superexec": "superexec"}


@dataclass(frozen=True)
class Process:
    """One process of a session.

    Attributes
    ----------
    process_id : int
        Its id.
    role : str
        ``server`` (of a run: ServerApp and Ray's driver), ``actor``, ``superlink``, ``superexec``, or ``other`` (Ray's own).
    private : int
        Bytes of memory that it shares with no other process.
    resident : int
        Bytes that it holds in all, also of mapped files and shared memory.
    """

    process_id: int
    role: str
    private: int
    resident: int


def session_processes(home: Path) -> list[Process]:
    """Return the living processes of the session whose folder is ``home``.

    Raises
    ------
    RunError
        Where the system has no /proc.
    """
    if not Path("/proc/self/status").exists():
        raise RunError("this system has no /proc, from which memory is read; measure on Linux")
    groups = process_groups(home)
    return list(_processes(groups))


def own_memory() -> int:
    """Return the bytes of memory that this process shares with no other."""
    return _sizes(Path("/proc/self/status"))[0]


class MemoryWatch:
    """Context manager that looks at a session's memory ten times a second.

    Parameters
    ----------
    home : Path
        The session's folder.

    Attributes
    ----------
    peaks : dict from str to int
        Most private bytes that one process of each role held; ``all`` of all processes together; ``shared`` in shared memory.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.peaks: dict[str, int] = defaultdict(int)
        self._before = shutil.disk_usage(SHARED).used if SHARED.exists() else 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()

    def megabytes(self) -> Mapping[str, int]:
        """Return the peaks in megabytes of 10**6 bytes; 0 where no such process was seen."""
        return defaultdict(int, {name: round(value / 1e6) for name, value in self.peaks.items()})

    def _look(self) -> None:
        groups, looked = process_groups(self.home), time.monotonic()
        while not self._over.wait(0.1):
            if time.monotonic() > looked + 1:
                groups, looked = process_groups(self.home), time.monotonic()
            found = list(_processes(groups))
            seen = [(process.role, process.private) for process in found]
            seen.append(("all", sum(process.private for process in found)))
            if SHARED.exists():
                seen.append(("shared", shutil.disk_usage(SHARED).used - self._before))
            for role, size in seen:
                self.peaks[role] = max(self.peaks[role], size)


def _processes(groups: set[int]) -> Iterator[Process]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getpgid(int(folder.name)) in groups:
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
                private, resident = _sizes(folder / "status")
                role = next((role for mark, role in ROLES.items() if mark in command), "other")
                if resident:  # what has ended and was not waited for holds nothing
                    yield Process(int(folder.name), role, private, resident)


def _sizes(status: Path) -> tuple[int, int]:
    """Return private and resident bytes as /proc/PID/status has them."""
    lines = (line.split() for line in status.read_text().splitlines())
    sizes = {line[0]: 1024 * int(line[1]) for line in lines if line and line[0] in ("RssAnon:", "VmRSS:")}
    return sizes.get("RssAnon:", 0), sizes.get("VmRSS:", 0)
