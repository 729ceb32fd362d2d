"""Which processes belong to a private SuperLink: its children, their children, and Ray's, who leave their parents."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def process_groups(home: Path) -> set[int]:
    """Return the process groups of the living processes whose ``FLWR_HOME`` is ``home`` or under it, the mark of a session.

    Groups, since some of Ray's processes overwrite their environment. All descend from processes that lead groups of their
    own, so that nobody else's process is among them; the caller's own group never is.
    """
    mark = f"FLWR_HOME={home}".encode()
    groups = set()
    for process_id, environment in _environments():
        if any(entry == mark or entry.startswith(mark + b"/") for entry in environment):
            with suppress(ProcessLookupError):
                groups.add(os.getpgid(process_id))
    return groups - {os.getpgrp()}


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    """Yield the id and the environment's entries of every process that may be read, by /proc, else by BSD's ps."""
    if not Path("/proc/self/environ").exists():
        listing = subprocess.run(["ps", "-A", "-E", "-ww", "-o", "pid=,command="], capture_output=True, check=True)
        yield from ((int(line.split()[0]), line.split()[1:]) for line in listing.stdout.splitlines())
        return
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield int(folder.name), (folder / "environ").read_bytes().split(b"\0")
