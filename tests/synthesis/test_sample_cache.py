"""Samples on disk: drawn once, in chunks, by whoever comes first, and never taken for what they are not."""

import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier
from typing import IO, Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor

from ff_flower.errors import RunError
from ff_flower.generative import BLOCK
from ff_flower.synthesis import CHUNK, SampleCache, Share, sample_cache


def _numbered(module_id: str, start: int, stop: int, log: Path | None = None) -> Tensor:
    """Return samples (n, 3, 1, 1) that spell their module and index; leave a note of the drawing in ``log``."""
    if log is not None:
        with (log / f"{module_id}.txt").open("a") as file:
            file.write(f"{start}-{stop}\n")
    index = torch.arange(start, stop)
    return torch.stack([torch.full_like(index, int(module_id)), index // 256, index % 256], dim=1).byte()[..., None, None]


NUMBERED = (3, 1, 1)
LONG = Share("1", 0, 2 * CHUNK + 7)


def _expected(share: Share) -> Tensor:
    return _numbered(share.module_id, 0, share.count)


def test_a_cache_draws_only_what_is_missing(tmp_path: Path) -> None:
    """An equal or shorter request draws nothing, a longer one completes the last chunk and goes on; what was read stays so."""
    drawn: list[tuple[int, int]] = []

    def draw(module_id: str, start: int, stop: int) -> Tensor:
        drawn.append((start, stop))
        return _numbered(module_id, start, stop)

    cache = SampleCache(tmp_path)
    for count in (5, 5, 3, 8, CHUNK + 2, CHUNK, LONG.count):
        cache.fill([Share("1", 0, count)], 0, NUMBERED, draw)
        assert torch.equal(cache.read(Share("1", 0, count), 0), _expected(Share("1", 0, count)))
    assert drawn == [(0, 5), (5, 8), (8, CHUNK), (CHUNK, CHUNK + 2), (CHUNK + 2, 2 * CHUNK), (2 * CHUNK, LONG.count)]
    cache.fill([Share("1", 0, 5)], 1, NUMBERED, draw)
    assert drawn[6:] == [(0, 5)] and cache.path("1", 0) != cache.path("1", 1)


def test_an_interrupted_synthesis_continues_where_it_stood(tmp_path: Path) -> None:
    """A drawing that fails stores nothing of its chunk; the next one draws that chunk and what follows, not what stands."""
    cache, drawn = SampleCache(tmp_path), []

    def draw(module_id: str, start: int, stop: int) -> Tensor:
        drawn.append(start)
        if len(drawn) == 2:
            cache.path("1", 0, 1).with_suffix(".part").write_bytes(b"half a fi")
            raise KeyboardInterrupt
        return _numbered(module_id, start, stop)

    with pytest.raises(KeyboardInterrupt):
        cache.fill([LONG], 0, NUMBERED, draw)
    with pytest.raises(RunError, match=f"samples {CHUNK} to {2 * CHUNK - 1} are not there; start the run again"):
        cache.read(LONG, 0)
    cache.fill([LONG], 0, NUMBERED, draw)
    assert drawn == [0, CHUNK, CHUNK, 2 * CHUNK] and torch.equal(cache.read(LONG, 0), _expected(LONG))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-1],
    "lengthened": lambda data: data + b"0",
    "no header": lambda data: data[16:],
    "an open bracket": lambda data: data.replace(b"(512,", b"((12,", 1),
    "other bytes": lambda data: b"\0" * len(data),
    "other type": lambda data: data.replace(b"|u1", b"|i1", 1),
    "fewer dimensions": lambda data: data.replace(b"(512, 3, 1, 1), ", b"(512, 3),       ", 1),
    "other shape": lambda data: data.replace(b"(512, 3, 1, 1)", b"(512, 1, 1, 3)", 1),
    "too many": lambda data: data.replace(b"(512,", b"(513,", 1) + b"one",
    "an archive": lambda data: b"PK\3\4" + data[4:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_is_drawn_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that does not hold the samples of its chunk is replaced, with one line of log, and no other chunk is drawn."""
    cache, drawn = SampleCache(tmp_path), []

    def draw(module_id: str, start: int, stop: int) -> Tensor:
        drawn.append((start, stop))
        return _numbered(module_id, start, stop)

    cache.fill([LONG], 0, NUMBERED, _numbered)
    path = cache.path("1", 0, 1)
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    assert path.read_bytes() != whole
    cache.fill([LONG], 0, NUMBERED, draw)
    assert drawn == [(CHUNK, 2 * CHUNK)] and path.read_bytes() == whole
    assert [record.getMessage() for record in caplog.records] == [f"the samples in {path} are damaged: they are drawn again"]


def test_a_full_disk_is_an_error_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a chunk cannot be written the error names the file and the remedy, and no part of it stays."""
    cache = SampleCache(tmp_path)

    def fill_up(file: IO[bytes], array: np.ndarray, **options: bool) -> None:
        file.write(array.tobytes()[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(RunError, match=r"0\.npy: .*No space left on device.*free some space"):
        patched.setattr(np, "save", fill_up)
        cache.fill([LONG], 0, NUMBERED, _numbered)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    (tmp_path / "in-the-way").write_text("")
    with pytest.raises(RunError, match="set out or FF_RUNS to another folder"):
        SampleCache(tmp_path / "in-the-way").fill([LONG], 0, NUMBERED, _numbered)


def test_a_modules_samples_can_be_removed(tmp_path: Path) -> None:
    """``remove`` deletes a module's samples of every root seed, lock files included, and leaves all others as they are."""
    cache, others = SampleCache(tmp_path), [Share("11", 0, 4), Share("2", 0, 4)]
    cache.remove("1")
    for seed in (0, 1):
        cache.fill([LONG, *others], seed, NUMBERED, _numbered)
    for module_id in ("1", "1", "..", ".", ""):
        cache.remove(module_id)
    assert {path.name for path in tmp_path.iterdir()} == {"11", "2"}
    assert all(torch.equal(cache.read(share, seed), _expected(share)) for share in others for seed in (0, 1))
    with pytest.raises(RunError):
        cache.read(LONG, 0)


def test_other_code_draws_its_own_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of other code are not used, and go once a module's are drawn again; what is removed goes whatever code drew it."""
    cache, other, drawn = SampleCache(tmp_path), Share("2", 0, 4), []

    def draw(module_id: str, start: int, stop: int) -> Tensor:
        drawn.append(start)
        return _numbered(module_id, start, stop)

    cache.fill([LONG, other], 0, NUMBERED, _numbered)
    former = cache.path("1", 0)
    monkeypatch.setattr(sample_cache, "source_digest", lambda: "f" * 64)
    with pytest.raises(RunError, match="are not there"):
        cache.read(LONG, 0)
    for _ in range(2):
        cache.fill([LONG], 0, NUMBERED, draw)
    assert drawn == [0, CHUNK, 2 * CHUNK] and torch.equal(cache.read(LONG, 0), _expected(LONG))
    assert not former.exists() and [folder.name for folder in (tmp_path / "1").iterdir()] == ["f" * 16]
    assert list((tmp_path / "2").rglob("*.npy"))
    cache.remove("2")
    assert [folder.name for folder in tmp_path.iterdir()] == ["1"]


def test_read_samples_can_be_written_to(tmp_path: Path) -> None:
    """What is read is a copy: writing to it does not reach the file."""
    cache = SampleCache(tmp_path)
    cache.fill([LONG], 0, NUMBERED, _numbered)
    cache.read(LONG, 0).zero_()
    assert torch.equal(cache.read(LONG, 0), _expected(LONG))


def test_a_chunk_is_a_whole_number_of_blocks() -> None:
    """Chunks begin where blocks of the noise stream begin, so that no block is evaluated for two chunks."""
    assert CHUNK % BLOCK == 0


def _fill_elsewhere(folder: Path, requests: list[Share], log: Path, first: int) -> list[Any]:
    """Fill a cache in a process of its own, and return what it reads there."""
    cache = SampleCache(folder)
    cache.fill(requests, 0, NUMBERED, partial(_numbered, log=log), first)
    return [cache.read(share, 0).numpy() for share in requests]


def test_processes_share_the_drawing(tmp_path: Path) -> None:
    """Two processes at once draw every chunk once between them, and hold the files that one alone writes."""
    requests = [Share(str(number), 0, 12) for number in range(2, 8)] + [LONG]
    log = tmp_path / "log"
    log.mkdir()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        fill = partial(_fill_elsewhere, tmp_path / "both", requests, log)
        read = [future.result(timeout=120) for future in [pool.submit(fill, first) for first in (0, 4)]]
    alone = SampleCache(tmp_path / "alone")
    alone.fill(requests, 0, NUMBERED, _numbered)
    for position, share in enumerate(requests):
        notes = (log / f"{share.module_id}.txt").read_text().split()
        starts = range(0, share.count, CHUNK)
        assert sorted(notes) == sorted(f"{start}-{min(start + CHUNK, share.count)}" for start in starts)
        for path in (alone.path(share.module_id, 0, chunk) for chunk in range(len(starts))):
            assert (tmp_path / "both" / path.relative_to(tmp_path / "alone")).read_bytes() == path.read_bytes()
        assert all(np.array_equal(one[position], _expected(share).numpy()) for one in read)


def test_a_chunk_that_another_process_draws_is_waited_for_last(tmp_path: Path) -> None:
    """While one chunk is locked the others are drawn; then it is waited for, and not drawn a second time."""
    cache, drawn = SampleCache(tmp_path), []
    path = cache.path("1", 0)
    path.parent.mkdir(parents=True)
    lock = FileLock(path.with_name(".0.lock"))
    lock.acquire()

    def draw(module_id: str, start: int, stop: int) -> Tensor:
        drawn.append(start)
        if start == 2 * CHUNK:
            np.save(path, _numbered("1", 0, CHUNK).numpy())
            lock.release()
        return _numbered(module_id, start, stop)

    cache.fill([LONG], 0, NUMBERED, draw)
    assert drawn == [CHUNK, 2 * CHUNK] and torch.equal(cache.read(LONG, 0), _expected(LONG))


def test_each_kind_of_device_finds_its_own_samples(tmp_path: Path) -> None:
    """What a GPU drew is not what a CPU draws, to the last bit; removing a module removes both."""
    on_cpu, on_gpu = SampleCache(tmp_path, torch.device("cpu")), SampleCache(tmp_path, torch.device("cuda", 1))
    on_cpu.fill([LONG], 0, NUMBERED, _numbered)
    drawn: list[tuple[int, int]] = []

    def draw(module_id: str, start: int, stop: int) -> Tensor:
        drawn.append((start, stop))
        return _numbered(module_id, start, stop)

    on_gpu.fill([LONG], 0, NUMBERED, draw)
    assert drawn and on_cpu.path(LONG.module_id, 0) == SampleCache(tmp_path).path(LONG.module_id, 0)
    SampleCache(tmp_path).remove(LONG.module_id)
    assert not list(tmp_path.rglob("*.npy"))


def test_each_number_of_threads_finds_its_own_samples(tmp_path: Path) -> None:
    """What two threads draw is kept beside what one draws, since sums may round otherwise; removing a module removes both."""
    one, two = SampleCache(tmp_path), SampleCache(tmp_path, torch.device("cpu"), threads=2)
    one.fill([LONG], 0, NUMBERED, _numbered)
    with pytest.raises(RunError, match="are not there"):
        two.read(LONG, 0)
    two.fill([LONG], 0, NUMBERED, _numbered)
    assert torch.equal(one.read(LONG, 0), two.read(LONG, 0))
    one.remove(LONG.module_id)
    assert not list(tmp_path.rglob("*.npy"))


def test_two_processes_may_remove_the_same_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another process deletes the files meanwhile, they are gone all the same."""
    cache, remove = SampleCache(tmp_path), shutil.rmtree
    cache.fill([LONG], 0, NUMBERED, _numbered)

    def raced(folder: Path) -> None:
        remove(folder)
        raise FileNotFoundError(folder)

    monkeypatch.setattr(shutil, "rmtree", raced)
    cache.remove(LONG.module_id)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError()], ids=repr)
def test_a_disk_without_locks_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Where the file system has no locks samples are drawn without one."""
    monkeypatch.setattr(FileLock, "acquire", _raising(error))
    cache = SampleCache(tmp_path)
    cache.fill([LONG], 0, NUMBERED, _numbered)
    assert len(cache.read(LONG, 0)) == LONG.count


def test_a_lock_that_cannot_be_made_for_another_reason_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a lock cannot be made since the disk is full, nothing is drawn, and the error names the file and the way out."""
    monkeypatch.setattr(FileLock, "acquire", _raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(RunError, match=r"0\.npy: cannot be written \(No space left on device\); free some space"):
        SampleCache(tmp_path).fill([LONG], 0, NUMBERED, _numbered)


def _raising(error: Exception) -> Callable[..., None]:
    def acquire(self: object, *args: object, **kwargs: object) -> None:
        raise error

    return acquire


def test_without_locks_processes_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three that draw the same samples at once on a disk without locks each write them whole, and nothing else stays."""
    monkeypatch.setattr(FileLock, "acquire", _raising(OSError(errno.ENOLCK, "No locks available")))
    together = Barrier(3)

    def draw(module_id: str, start: int, stop: int) -> Tensor:
        together.wait(30)
        return _numbered(module_id, start, stop)

    request = Share(LONG.module_id, 0, 8)
    with ThreadPoolExecutor(3) as pool:
        for one in [pool.submit(SampleCache(tmp_path).fill, [request], 0, NUMBERED, draw) for _ in range(3)]:
            one.result(60)
    assert torch.equal(SampleCache(tmp_path).read(request, 0), _expected(request))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["0.npy"]
