"""Samples on disk, so that no sample is drawn twice on one machine.

::

    FOLDER/<module_id>/<code>/<root seed>/<k>.npy   samples k CHUNK to (k + 1) CHUNK - 1 or fewer, uint8 (n, C, H, W)
    FOLDER/<module_id>/<code>/<root seed>/.<k>.lock held by the process that draws the chunk
    FOLDER/<module_id>/<code>/<root seed>-cuda/     the same, drawn on a GPU; -2: on two threads of a CPU

``<code>`` begins the digest of the source code that draws: no other code uses these samples, and once it has drawn its own they
are deleted. A chunk is written whole or not at all, and one that is not what it must be is drawn again.
"""

import logging
import shutil
import tokenize
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import ImageShape
from ..environment import source_digest
from ..errors import RunError
from ..generative import BLOCK
from ..machine import NO_LOCKS, whole_file
from .allocation import Share

logger = logging.getLogger("flwr")

CHUNK = 8 * BLOCK  # what a GPU samples in one batch
CODE_DIGITS = 16  # of the source code's digest

Draw = Callable[[str, int, int], Tensor]


@dataclass(frozen=True)
class _Chunk:
    """The part of a request that lies in one file: samples ``start`` to ``stop - 1`` of a module."""

    module_id: str
    start: int
    stop: int
    path: Path

    def __len__(self) -> int:
        return self.stop - self.start


class SampleCache:
    """Samples on disk, by module, code and root seed, shared by all processes of a machine.

    A chunk of samples is drawn by whoever comes first, under a lock, and mapped into memory by the others. So processes share
    the work even of one module, an interrupted synthesis continues with the chunk where it stood, and a request for more than
    is stored draws only what is missing.

    Parameters
    ----------
    folder : Path
        Where samples are kept; made where it does not exist.
    device : torch.device, optional
        Where they are drawn: a GPU rounds otherwise than a CPU, so that each finds its own.
    threads : int
        Torch threads that draw them on a CPU: other numbers may round otherwise.
    """

    def __init__(self, folder: Path, device: torch.device | None = None, threads: int = 1) -> None:
        self.folder = folder
        if device is not None and device.type != "cpu":
            self.suffix = f"-{device.type}"
        else:
            self.suffix = f"-{threads}" if threads != 1 else ""

    def path(self, module_id: str, root_seed: int, chunk: int = 0) -> Path:
        """Return the file of a module's samples ``chunk * CHUNK`` to ``(chunk + 1) * CHUNK - 1``."""
        return self.folder / module_id / source_digest()[:CODE_DIGITS] / f"{root_seed}{self.suffix}" / f"{chunk}.npy"

    def fill(self, requests: Sequence[Share], root_seed: int, image_shape: ImageShape, draw: Draw, first: int = 0) -> None:
        """See that every request can be read, drawing what is missing.

        Parameters
        ----------
        requests : sequence of Share
            What will be read.
        root_seed : int
            Root seed of the run.
        image_shape : tuple of int
            (C, H, W) of a sample.
        draw : callable
            ``draw(module_id, start, stop)`` returns samples ``start`` to ``stop - 1`` as uint8 (stop - start, C, H, W).
        first : int
            Index of the request to begin with; processes that begin at different places share the work.

        Raises
        ------
        RunError
            When a chunk cannot be written, for example to a full disk; no part of it stays.
        """
        from filelock import Timeout

        begin = first % len(requests) if requests else 0
        chunks = [chunk for share in (*requests[begin:], *requests[:begin]) for chunk in self._chunks(share, root_seed)]
        for patience in (0.0, -1.0):
            busy = []
            for chunk in (chunk for chunk in chunks if len(_stored(chunk.path, image_shape)) < len(chunk)):
                try:
                    with _locked(chunk.path, patience):
                        _complete(chunk, image_shape, draw)
                except Timeout:
                    busy.append(chunk)
            chunks = busy

    def read(self, share: Share, root_seed: int, out: Tensor | None = None) -> Tensor:
        """Return the first ``share.count`` samples, uint8 (count, C, H, W), in ``out`` where it is given.

        Raises
        ------
        RunError
            When they are not stored; `fill` must have been called.
        """
        for chunk in self._chunks(share, root_seed):
            samples = _mapped(chunk.path)
            if samples is None or len(samples) < len(chunk):
                raise RunError(f"{chunk.path}: samples {chunk.start} to {chunk.stop - 1} are not there; start the run again")
            out = torch.empty((share.count, *samples.shape[1:]), dtype=torch.uint8) if out is None else out
            out.numpy()[chunk.start : chunk.stop] = samples[: len(chunk)]
        return torch.empty(0, dtype=torch.uint8) if out is None else out

    def remove(self, module_id: str) -> None:
        """Delete every sample of a module, of all root seeds and whatever code drew it; where there is none, nothing happens.

        No process may be drawing from the module: what it draws would be there again.
        """
        for folder in self.folder.iterdir() if self.folder.exists() else ():
            if folder.name == module_id:
                while folder.exists():
                    with suppress(FileNotFoundError):  # another process deletes the same
                        shutil.rmtree(folder)

    def _chunks(self, share: Share, root_seed: int) -> Iterator[_Chunk]:
        for start in range(0, share.count, CHUNK):
            stop = min(start + CHUNK, share.count)
            yield _Chunk(share.module_id, start, stop, self.path(share.module_id, root_seed, start // CHUNK))


def _locked(path: Path, patience: float) -> AbstractContextManager[object]:
    """Hold the lock of a chunk, after waiting for it so many seconds, or without limit where they are negative."""
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_name(f".{path.stem}.lock")).acquire(timeout=patience)
    except Timeout:
        raise
    except NotImplementedError:
        return nullcontext()
    except OSError as error:
        if error.errno in NO_LOCKS:
            return nullcontext()  # two processes may draw the same chunk then; each writes it whole
        raise _unwritable(path, error) from error


def _complete(chunk: _Chunk, image_shape: ImageShape, draw: Draw) -> None:
    """Draw what is missing of a chunk, and write it whole or not at all."""
    stored = _stored(chunk.path, image_shape)
    if len(stored) >= len(chunk):
        return
    if not len(stored) and chunk.path.exists():
        logger.warning("the samples in %s are damaged: they are drawn again", chunk.path)
    drawn = draw(chunk.module_id, chunk.start + len(stored), chunk.stop).numpy()
    try:
        with whole_file(chunk.path) as unfinished, unfinished.open("wb") as file:
            np.save(file, np.concatenate([stored, drawn]), allow_pickle=False)
    except OSError as error:
        raise _unwritable(chunk.path, error) from error
    _drop_other_code(chunk.path.parents[1])


def _drop_other_code(folder: Path) -> None:
    """Delete what other code than that of ``folder`` drew from the same module, as far as it can be deleted."""
    for other in folder.parent.iterdir():
        if other.name != folder.name:
            shutil.rmtree(other, ignore_errors=True)


def _stored(path: Path, image_shape: ImageShape) -> np.ndarray:
    """Return what is stored of a chunk; nothing where the file is absent, damaged, or of other images."""
    samples = _mapped(path)
    whole = samples is not None and samples.shape[1:] == image_shape
    return samples if samples is not None and whole else np.empty((0, *image_shape), dtype=np.uint8)


def _mapped(path: Path) -> np.ndarray | None:
    """Map the samples of a file into memory, (n, C, H, W) with n at most CHUNK; None where it does not hold exactly that."""
    try:
        samples = np.lib.format.open_memmap(path, mode="r")
        size = path.stat().st_size
    except (OSError, ValueError, SyntaxError, tokenize.TokenError):
        return None
    plain = samples.dtype == np.uint8 and samples.ndim == 4 and len(samples) <= CHUNK and samples.flags.c_contiguous
    return samples if plain and samples.offset + samples.nbytes == size else None


def _unwritable(path: Path, error: OSError) -> RunError:
    reason = error.strerror or error
    return RunError(f"{path}: cannot be written ({reason}); free some space, or set out or FF_RUNS to another folder")
