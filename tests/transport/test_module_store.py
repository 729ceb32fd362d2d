"""The shared store: what is put in comes out, and nothing else does."""

import errno
import hashlib
import os
import stat
import tracemalloc
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, RecordDict

from ff_flower.errors import RunError, VerificationError
from ff_flower.messages import module_records, read_forget
from ff_flower.module_store import ModuleStore, StoredFiles

DATA = b"a module file"
NAME = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path):
    """Return a store whose folder does not exist yet."""
    return ModuleStore(tmp_path / "modules")


def test_a_file_comes_back_under_its_hash(store):
    """What is put is returned under its SHA-256, putting it again changes nothing, and what is removed is gone."""
    assert store.put(DATA) == store.put(DATA) == NAME
    assert [path.name for path in store.folder.iterdir()] == [f"{NAME}.safetensors"]
    assert store.get(NAME, len(DATA)) == DATA
    assert (store.remove(NAME), store.remove(NAME), store.holds(NAME, 100)) == (True, False, False)


def test_a_damaged_file_is_refused_and_then_replaced(store):
    """Bytes that do not hash to their name break the rule digest, and give way to the right ones."""
    store.put(DATA)
    (store.folder / f"{NAME}.safetensors").write_bytes(DATA[::-1])
    with pytest.raises(VerificationError, match=r'^digest: .* hashes to .*; send the files .* transport = "inline"'):
        store.get(NAME, 100)
    store.put(DATA)
    assert store.get(NAME, 100) == DATA


def test_a_file_beyond_the_limit_is_not_read(store):
    """A file of one byte more than may be read breaks the rule size."""
    store.put(DATA)
    with pytest.raises(VerificationError, match=r"^size: "):
        store.get(NAME, len(DATA) - 1)


def test_of_a_file_beyond_the_limit_no_byte_is_read(store):
    """What a file claims to have is looked at first, so that one of many megabytes takes no memory."""
    store.folder.mkdir()
    with (store.folder / f"{NAME}.safetensors").open("wb") as file:
        file.truncate(2**25)
    tracemalloc.start()
    with pytest.raises(VerificationError, match=r"^size: "):
        store.get(NAME, 2**24)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("name", ["../secret", "a" * 63, NAME.upper(), NAME + "/..", ""])
def test_a_name_that_is_no_hash_opens_nothing(store, name):
    """Only 64 hexadecimal digits name a file."""
    with pytest.raises(VerificationError, match=r"^store: .* is no module id"):
        store.get(name, 100)


def test_a_name_that_is_no_hash_removes_nothing(store, tmp_path):
    """Outside the store nothing is deleted, whatever name a message brings; and the message itself is refused."""
    outside = tmp_path / "weights.safetensors"
    outside.write_bytes(b"kept")
    assert not store.remove(f"../{outside.stem}") and outside.exists()
    content = RecordDict({"forget": ConfigRecord({"modules": f"../{outside.stem}"})})
    with pytest.raises(RunError, match="no module id"):
        read_forget(content)


def test_neither_links_nor_pipes_are_followed(store, tmp_path):
    """A link to the right bytes, a pipe, a folder and an absent file all break the rule store, at once."""
    (tmp_path / "elsewhere").write_bytes(DATA)
    store.folder.mkdir()
    path = store.folder / f"{NAME}.safetensors"
    for make, undo in [
        (lambda: path.symlink_to(tmp_path / "elsewhere"), path.unlink),
        (lambda: os.mkfifo(path), path.unlink),
        (path.mkdir, path.rmdir),
        (lambda: None, lambda: None),
    ]:
        make()
        with pytest.raises(VerificationError, match=r'^store: .* is not in the shared store .* transport = "inline"'):
            store.get(NAME, 100)
        undo()


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    """Where the folder cannot be made the error names it, and no part of the file stays."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written .*; free some space, or .* transport"):
        ModuleStore(tmp_path / "file").put(DATA)


def test_stored_files_are_a_mapping_of_what_is_named(store):
    """Names come once, in order; each is read when it is asked for, and others are absent even if the store holds them."""
    other = store.put(b"another")
    files = StoredFiles(store, [NAME, other, NAME], 100)
    assert (list(files), len(files), files[other]) == ([NAME, other], 2, b"another")
    with pytest.raises(VerificationError, match=r"^store: "):
        files[NAME]
    with pytest.raises(KeyError):
        StoredFiles(store, [NAME], 100)[other]


def test_asking_for_a_name_reads_no_file(store):
    """Which names there are is known without their files, which may be damaged or gone."""
    files = StoredFiles(store, [NAME], 100)
    assert NAME in files and "b" * 64 not in files


def test_a_folder_in_a_files_place_is_moved_aside(store):
    """Where somebody made a folder of a file's name the file takes its place, and the folder stays under another name."""
    (store.folder / f"{NAME}.safetensors" / "inside").mkdir(parents=True)
    assert store.put(DATA) == NAME and store.get(NAME, 100) == DATA
    (aside,) = [path for path in store.folder.iterdir() if path.is_dir()]
    assert aside.name.startswith(f".{NAME}.") and (aside / "inside").is_dir()


def forbidden(path, target=None, **kwargs):
    """Raise what a folder of several users says of another one's file."""
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path), None, target and str(target))


def test_what_cannot_be_replaced_ends_no_run(store, monkeypatch, caplog):
    """Another user's damaged file breaks the rule store, with a true remedy, and messages name the file all the same."""
    store.folder.mkdir()
    (store.folder / f"{NAME}.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(Path, "replace", forbidden)
    with pytest.raises(VerificationError, match=r"^store: .* cannot be replaced \(Operation not permitted\); send the files"):
        store.put(DATA)
    assert [path.name for path in store.folder.iterdir()] == [f"{NAME}.safetensors"]
    assert module_records({NAME: DATA}, store) == {"references": ConfigRecord({"modules": NAME})}
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["store"]


def test_what_cannot_be_deleted_is_not_taken_for_gone(store, monkeypatch):
    """Another user's file that stays is an error, which forgetting must not overlook; a folder in its place is no file."""
    store.put(DATA)
    (store.folder / f"{'b' * 64}.safetensors").mkdir()
    monkeypatch.setattr(Path, "unlink", forbidden)
    with pytest.raises(PermissionError):
        store.remove(NAME)
    assert not store.remove("b" * 64)


def test_a_shared_file_may_be_read_by_whom_the_umask_says(store):
    """A module file has the rights of any file that is written there, so that sites of other users can read it."""
    before = os.umask(0o027)
    try:
        name = store.put(b"some module")
    finally:
        os.umask(before)
    (path,) = store.folder.glob("*")
    assert path.stem == name and stat.S_IMODE(path.stat().st_mode) == 0o640
