"""What the server says of a run while it runs: lines in its log, and ``progress.json`` for whoever asks meanwhile."""

import errno
import logging
import os
import platform
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict

from ff_flower.errors import FederatedFactoryError, RunError
from ff_flower.run_directory import RunDirectory

from .nodes import Failure

logger = logging.getLogger("flwr")

KEPT = "progress.json"
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Progress:
    """The stage that a run has reached, kept in its run directory.

    Parameters
    ----------
    directory : RunDirectory
        The run's.
    names : sequence of str
        Names of the sites by partition, where they have any.
    """

    def __init__(self, directory: RunDirectory, names: Sequence[str] = ()) -> None:
        self.directory, self.names = directory, names
        self.stage, self.error = "start", ""
        self.failures: list[Failure] = []
        self._began = time.monotonic()
        self._sizes: Mapping[int, int] = {}
        self._spent: dict[int, float] = {}
        self._wanted: set[int] = set()
        self._at_once = False

    def called(self, partition: int) -> str:
        """Return what the log calls a node."""
        named = 0 <= partition < len(self.names) and self.names[partition]
        return f"node {partition} ({self.names[partition]})" if named else f"node {partition}"

    def enter(self, stage: str) -> None:
        """Begin a stage: ``introductions``, ``fit``, ``vetting``, ``answers``, ``results``, ``rounds`` or ``done``."""
        self.stage, self._began, self._spent, self._wanted = stage, time.monotonic(), {}, set()
        self._write()

    def expect(self, wanted: Collection[int], sizes: Mapping[int, int], at_once: bool) -> None:
        """Say who is waited for in this stage.

        Parameters
        ----------
        wanted : collection of int
            Partitions that have something to do.
        sizes : mapping from int to int
            How much each has to do, in any unit; 1 where it is not known.
        at_once : bool
            Whether all nodes work at the same time, each on a machine of its own.
        """
        self._wanted, self._sizes, self._at_once = set(wanted), sizes, at_once

    def arrived(self, partition: int, text: str, seconds: float) -> None:
        """Log what a node has sent, after ``seconds`` of work, and how many are here."""
        self._spent[partition] = seconds
        left = seconds_left(self._spent, self._waiting(), self._sizes, time.monotonic() - self._began, self._at_once)
        rest = f", about {left:.0f} s left" if left >= 1 else ""
        here = f"{len(self._spent)} of {len(self._wanted)} nodes here{rest}"
        logger.info("%s: %s: %s in %.1f s; %s", self.stage, self.called(partition), text, seconds, here)

    def failed(self, failure: Failure) -> None:
        """Keep what arrived in the place of a usable reply; the stage's end says it of all nodes."""
        self.failures.append(failure)
        self._wanted.discard(failure.partition)
        self._write()

    def missing(self, failures: Sequence[Failure]) -> None:
        """Log the nodes that a stage ends without, and keep why."""
        for failure in failures:
            logger.warning("%s: %s is missing: %s", self.stage, self.called(failure.partition), failure.reason)
        own = {failure.partition for failure in failures}
        self.failures = [*(one for one in self.failures if one.partition not in {*own, -1}), *failures]
        self._write()

    def waiting_for(self, nodes: int) -> None:
        """Log that nothing has come for a while, with ``nodes`` silent."""
        names = ", ".join(self.called(partition) for partition in sorted(self._waiting())[:10])
        text = "%s: no news after %.0f s, %d of the asked nodes have not replied; wanted are %s"
        logger.info(text, self.stage, time.monotonic() - self._began, nodes, names or "none of them")

    def _waiting(self) -> set[int]:
        return self._wanted - set(self._spent)

    def _write(self) -> None:
        values = {
            "stage": self.stage,
            "since": round(time.time(), 1),
            "host": platform.node(),
            "process": os.getpid(),
            "failures": [asdict(failure) for failure in self.failures],
            "error": self.error,
        }
        self.directory.write_json(KEPT, values)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Keep in ``progress.json`` how the run ends.

        Raises
        ------
        RunError
            In the place of an error of the system that says the disk is full.
        """
        self.enter("start")
        try:
            yield
        except FederatedFactoryError as error:
            self._end("failed", str(error))
            raise
        except OSError as error:
            if error.errno not in DISK_FULL:
                self._end("failed", f"{type(error).__name__}: {error}")
                raise
            place = error.filename or self.directory.path
            text = f"{place}: cannot be written ({error.strerror}); free some space and start the run again: what arrived is kept"
            self._end("failed", text)
            raise RunError(text) from error
        self._end("done")

    def _end(self, stage: str, error: str = "") -> None:
        self.error = error
        with suppress(OSError):  # a full disk is told of by the log
            self.enter(stage)


def seconds_left(
    spent: Mapping[int, float], waiting: Collection[int], sizes: Mapping[int, int], elapsed: float, at_once: bool
) -> float:
    """Return about how long the nodes that wait will take.

    Parameters
    ----------
    spent : mapping from int to float
        Seconds of work of each node that has arrived.
    waiting : collection of int
        The others.
    sizes : mapping from int to int
        How much each has to do, in any unit; 1 where it is not known.
    elapsed : float
        Seconds since all were asked.
    at_once : bool
        Whether all work at the same time; else as many as did so far.
    """
    done = sum(sizes.get(node, 1) for node in spent)
    rest = [sizes.get(node, 1) for node in waiting]
    if not done or not rest:
        return 0.0
    if at_once:
        return max(0.0, sum(spent.values()) / done * max(rest) - elapsed)
    return elapsed / done * sum(rest)
