"""Files that are whole or not there."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from ff_flower.machine import UNFINISHED, whole_file


def names(folder):
    """Return the names of all files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_has_its_name_once_it_is_whole(tmp_path, durable):
    """While a file is written the old one stands, and the new one has another name in the same folder."""
    path = tmp_path / "a" / "file.txt"
    for text in ("first", "second"):
        before = path.read_text() if path.exists() else None
        with whole_file(path, durable=durable) as unfinished:
            unfinished.write_text(text)
            assert unfinished.parent == path.parent and unfinished.suffix == UNFINISHED
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == text and names(tmp_path) == {"a/file.txt"}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_what_fails_leaves_what_was_there(tmp_path, there, error):
    """Whatever interrupts a file that is written, of the new one nothing stays, and of the old one everything."""
    path = tmp_path / "file.txt"
    if there:
        path.write_text("old")
    with pytest.raises(error), whole_file(path) as unfinished:
        unfinished.write_text("half of the n")
        raise error
    assert names(tmp_path) == ({"file.txt"} if there else set())
    assert not there or path.read_text() == "old"


def test_bytes_that_do_not_reach_the_disk_are_no_file(tmp_path, monkeypatch, full_disk):
    """Where a durable file's bytes cannot be brought to the disk, it does not take its name."""
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"), whole_file(tmp_path / "file.txt", durable=True) as unfinished:
        unfinished.write_text("new")
    assert names(tmp_path) == set()


def test_writers_at_once_do_not_mix(tmp_path):
    """Of many who write one file at once each writes its own, and one of them stands whole."""
    path, texts = tmp_path / "file.txt", [str(number) * 1000 for number in range(8)]

    def write(text):
        with whole_file(path) as unfinished:
            for letter in text:
                with unfinished.open("a") as file:
                    file.write(letter)

    with ThreadPoolExecutor(len(texts)) as pool:
        list(pool.map(write, texts))
    assert path.read_text() in texts and names(tmp_path) == {"file.txt"}


def test_the_last_step_names_both_files(tmp_path):
    """An error that a name cannot be given tells the name, by which it differs from those of the writing."""
    path = tmp_path / "file.txt"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(OSError) as raised, whole_file(path) as unfinished:
        unfinished.write_text("new")
    assert raised.value.filename2 == str(path) and names(tmp_path) == set()
