"""What an error tells the server: everything in a simulation; from a site with its own images no path and no file's name."""

from pathlib import Path

import pytest

from clients.disclosure import ASIDE, reason_of
from ff_flower.config import DataSpec
from ff_flower.data import load_own
from ff_flower.errors import ConfigError, DataError, ModuleError, RunError, VerificationError

SITE = {"name": "north", "data": "folder:/srv/private images/trial-7"}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            DataError("/srv/private images/trial-7/cat/a b.png is no image (x); hold images only; hide it"),
            "hold images only; hide it",
        ),
        (DataError("no paths here"), "DataError"),
        (ModuleError("7 images: a module needs at least 10"), "7 images: a module needs at least 10"),
        (
            VerificationError("owner", "'a' in a module from 'b'; a node sends its own only"),
            "owner: 'a' in a module from 'b'; a node sends its own only",
        ),
        (
            RunError("/home/me/runs/cache/x: cannot be written (full); free some space"),
            "(a path): cannot be written (full); free some space",
        ),
        (ConfigError("~/keys/north: cannot be read; C:\\keys too"), "(a path): cannot be read; (a path) too"),
        (RunError("trial-7 is not good"), "RunError"),
        (PermissionError(13, "denied", "/srv/private images/trial-7/cat/a b.png"), "PermissionError: "),
        (ValueError("Mueller, Anna.png"), "ValueError: "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_site_tells_the_rule_and_the_remedy_alone(error, told):
    """Paths are blanked, sentences that begin with a file lose their beginning, and errors of others tell their type."""
    separator = "" if told.endswith(": ") else "; "
    assert reason_of(error, SITE) == f"{told}{separator}{ASIDE}"


def test_a_simulated_node_tells_all():
    """In a simulation, where the images are the researcher's own, the sentence arrives whole."""
    assert reason_of(DataError("/data/a.png is no image"), {"partition-id": 0}) == "/data/a.png is no image"
    assert reason_of(ValueError("/data"), {}) == "ValueError: /data"


def test_a_file_name_in_any_sentence_silences_it(tmp_path):
    """A sentence that holds the name of one of the site's files is not told at all."""
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "anna-m.png").touch()
    assert reason_of(ModuleError("anna-m.png; odd"), {"data": f"folder:{tmp_path}"}) == f"ModuleError; {ASIDE}"


def test_a_folder_that_may_be_listed_only_leaks_nothing(tmp_path, monkeypatch):
    """Where files may not even be looked at, the search for their names raises nothing that names one."""
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "anna-m.png").touch()

    def locked(path, **how):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", locked)
    error = DataError(f"{tmp_path}/cat/anna-m.png cannot be read (Permission denied); give the user of this process the right to")
    told = reason_of(error, {"data": f"folder:{tmp_path}"})
    assert told == f"give the user of this process the right to; {ASIDE}"
    assert reason_of(ModuleError("anna-m.png; odd"), {"data": f"folder:{tmp_path}"}) == f"ModuleError; {ASIDE}"


@pytest.mark.parametrize("name", ["images", "data", "share", "class", "class folders", "channel"])
@pytest.mark.parametrize("spoilt", ["no folder", "no classes", "an empty class", "a stray file", "no image"])
def test_a_remedy_arrives_whatever_plain_word_the_folder_is_called_by(name, spoilt, tmp_path):
    """From images, data or share comes every remedy of the folder reader; from a name of the site's own none that holds it."""
    folder = tmp_path / "north" / name
    if spoilt != "no folder":
        folder.mkdir(parents=True)
    if spoilt in ("an empty class", "no image"):
        (folder / "cat").mkdir()
    if spoilt in ("a stray file", "no image"):
        (folder / ("cat/anna-m.png" if spoilt == "no image" else "anna-m.png")).write_bytes(b"no image")
    with pytest.raises(DataError) as raised:
        load_own(f"folder:{folder}", DataSpec(), seed=0)
    remedy = str(raised.value).partition("; ")[2]
    own = name in ("class folders", "channel") and name in remedy
    told = reason_of(raised.value, {"name": "north", "data": f"folder:{folder}"})
    assert told == f"{'DataError' if own else remedy}; {ASIDE}"
    assert remedy and str(tmp_path) not in told and "anna-m" not in told


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (DataError("/srv/channel/x.png has mode F; images have 8 bits per channel; convert it"), "/srv/channel"),
        (DataError("/srv/a; b/images/cat is empty; every class needs at least one image; add images"), "/srv/a; b/images"),
        (RunError("/etc/my images/north/key: cannot be read; correct it"), "/srv/images"),
        (DataError("/srv/images is odd; /srv/images is to be read; correct it"), "/srv/images/north/read"),
    ],
)
def test_a_plain_word_opens_no_way_for_a_path(error, place):
    """A name of the site's own, a path that holds the mark of a sentence's end, and other errors are silenced as ever."""
    assert reason_of(error, {"name": "north", "data": f"folder:{place}"}) == f"{type(error).__name__}; {ASIDE}"


def test_half_a_file_name_is_not_told(tmp_path):
    """A file's name in which a sentence seems to end silences what follows it there."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "Mueller; Anna.png").touch()
    error = DataError(f"{tmp_path}/images/Mueller; Anna.png is no image; class folders hold images only; remove it")
    assert reason_of(error, {"data": f"folder:{tmp_path}/images"}) == f"DataError; {ASIDE}"


KEY = "/etc/clinic keys/north.key"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            ConfigError(f"{KEY}: is no file; name a key file, which ff-flower keygen makes"),
            "(a path): is no file; name a key file, which ff-flower keygen makes",
        ),
        (
            RunError("/srv/Klinik Nord/runs/cache/samples/ab/0.npy: cannot be written (full); free some space"),
            "(a path): cannot be written (full); free some space",
        ),
        (RunError("no module in /srv/Klinik Nord/runs; add it first"), "no module in (a path); add it first"),
        (
            RunError("/srv/runs: cannot be written ([Errno 13] denied: '/mnt/Jane Doe'); set out or FF_RUNS"),
            "(a path): cannot be written ([Errno 13] denied: '(a path)'); set out or FF_RUNS",
        ),
        (
            ConfigError("'~jane doe': must begin with ~/ for your own home, or with that of a user who is there"),
            "'(a path)': must begin with ~/ for your own home, or with that of a user who is there",
        ),
        (ConfigError("/etc/other keys/north.key: is no file; name a key file"), "ConfigError"),
        (ConfigError("/etc/north site.key: is no file; name a key file"), "ConfigError"),
        (ConfigError("C:\\Users\\Jane Doe\\north.key: is no file; name a key file"), "ConfigError"),
        (ConfigError("keys/north.key: is no file; name a key file"), "ConfigError"),
        (RunError("no module in /mnt/Jane Doe/runs; add it first"), "RunError"),
    ],
)
def test_of_a_path_with_spaces_nothing_is_left(error, told, monkeypatch):
    """Places that are known, or stand in quotes, are blanked whole; where a part of another may be left the type is told."""
    monkeypatch.setenv("FF_RUNS", "/srv/Klinik Nord/runs")
    assert reason_of(error, {**SITE, "signing-key": KEY}) == f"{told}; {ASIDE}"


def test_a_home_that_is_not_there_is_no_way_out():
    """Where the place of the images itself cannot be read as a path, errors are told by the same rules."""
    config = {"name": "north", "data": "folder:~nobody-of-this-name/my images"}
    assert reason_of(RunError("~nobody-of-this-name/my images is odd"), config) == f"RunError; {ASIDE}"
    assert reason_of(ModuleError("7 of them: too few"), config) == f"7 of them: too few; {ASIDE}"
