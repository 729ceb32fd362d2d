"""The run directory: its name says the spec, its files are whole, and its receipts hold exactly as long as they are true."""

import errno
import hashlib
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ff_flower.config import DataSpec, RunSpec
from ff_flower.environment import library_versions, source_digest
from ff_flower.errors import RunError
from ff_flower.run_directory import RunDirectory, cache_root, combined_digest, output_root


@pytest.fixture
def directory(tmp_path):
    """Return an empty run directory."""
    return RunDirectory(tmp_path / "run")


def raising(error):
    """Return a function that raises."""

    def fail(*_, **__):
        raise error

    return fail


def test_name_is_stable_for_a_spec_and_differs_for_another(tmp_path):
    """The same spec opens the same folder; another seed, method or setting opens another one."""
    spec = RunSpec(out=str(tmp_path))
    others = [spec.model_copy(update=change) for change in ({"seed": 1}, {"method": "fedavg"}, {"num_clients": 3})]
    paths = [RunDirectory.open(one).path for one in (spec, spec, *others)]
    assert paths[0] == paths[1] and len(set(paths)) == 4
    assert paths[0].name == f"digits-federated-factory-pathological-seed0-{spec.digest()[:10]}"


def test_name_does_not_depend_on_what_changes_no_result(tmp_path):
    """Output folder, timeout, data root, permission to download and quorums leave a run's name as it is."""
    spec = RunSpec(out=str(tmp_path / "a"))
    moved = RunSpec(
        out=str(tmp_path / "b"), timeout=1.0, min_nodes=2, min_classes=3, data=DataSpec(root="/elsewhere", download=False)
    )
    assert RunDirectory.open(spec).path.name == RunDirectory.open(moved).path.name


@pytest.mark.parametrize(("name", "shown"), [("npz:/data/a b.c.npz", "a-b-c"), ("folder:/data/x_ray", "x-ray")])
def test_name_shows_a_file_by_its_stem(tmp_path, name, shown):
    """A data set given by path appears as the path's last part, with nothing a shell would trip over."""
    directory = RunDirectory.open(RunSpec(out=str(tmp_path), data=DataSpec(name=name)))
    assert directory.path.name.startswith(f"{shown}-federated-factory-")


def test_opening_writes_spec_and_environment(tmp_path):
    """``spec.json`` holds the flat spec with its digest, ``environment.json`` the code's digest and the libraries."""
    spec = RunSpec(out=str(tmp_path), seed=7)
    directory = RunDirectory.open(spec)
    written = directory.read_json("spec.json")
    assert written == {"format_version": 1, "digest": spec.digest(), **spec.flat()}
    environment = directory.read_json("environment.json")
    assert environment["source_digest"] == source_digest() and environment["libraries"] == library_versions()


def test_a_run_that_was_deployed_stays_one(tmp_path):
    """Once nodes outside a simulation took part the run says so, whoever goes on with it."""
    spec = RunSpec(out=str(tmp_path))
    directory = RunDirectory.open(spec)
    assert not directory.deployed
    for deployed in (True, False):
        directory.describe(spec, deployed=deployed)
        assert RunDirectory.open(spec).deployed
    directory.write("environment.json", b"{")
    with pytest.raises(RunError, match="restore it from a copy"):
        directory.describe(spec)


def test_latest_points_to_the_newest_run(tmp_path):
    """``latest`` is the run that was opened last, whether it is a new one or not, and moves with its folder."""
    first, second = (RunSpec(out=str(tmp_path), seed=seed) for seed in (0, 1))
    for spec in (first, second, first):
        path = RunDirectory.open(spec).path
        assert (tmp_path / "latest").resolve() == path
        assert not (tmp_path / "latest").readlink().is_absolute()


def test_out_wins_over_environment_wins_over_working_directory(tmp_path, monkeypatch):
    """Runs go to ``out``, else to ``FF_RUNS``, else to ``runs``; the cache lies beside them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FF_RUNS", raising=False)
    assert output_root(RunSpec()) == tmp_path / "runs"
    monkeypatch.setenv("FF_RUNS", str(tmp_path / "elsewhere"))
    assert output_root(RunSpec()) == tmp_path / "elsewhere"
    assert output_root(RunSpec(out=str(tmp_path / "given"))) == tmp_path / "given"
    assert cache_root(RunSpec(out=str(tmp_path / "given"))) == tmp_path / "given" / "cache"


def test_unwritable_folder_is_named_with_its_remedy(tmp_path):
    """Where the output folder cannot be made, the error names it and says which setting chooses another."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"file.*cannot be written.*set out or FF_RUNS"):
        RunDirectory.open(RunSpec(out=str(tmp_path / "file")))


def test_one_process_at_a_time_works_on_a_run(directory):
    """Whoever comes while another is at work is refused, and nobody once it is over, however it ended."""
    with suppress(ZeroDivisionError), directory.alone():
        with pytest.raises(RunError, match="another process is at work on this run; wait for its end, or stop it"):
            RunDirectory(directory.path).alone().__enter__()
        1 / 0  # noqa: B018
    with directory.alone():
        assert directory.outputs() == []


def test_a_file_system_without_locks_is_no_obstacle(directory, monkeypatch):
    """Where locks do not exist a run goes on without one; a lock that cannot be written is told."""
    monkeypatch.setattr("filelock.FileLock.acquire", raising(NotImplementedError("no flock")))
    with directory.alone():
        pass
    monkeypatch.setattr("filelock.FileLock.acquire", raising(OSError(errno.ENOLCK, "No locks available")))
    with directory.alone():
        pass
    for error, remedy in ((PermissionError(13, "No"), "rights"), (OSError(errno.ENOSPC, "No"), "free some space")):
        monkeypatch.setattr("filelock.FileLock.acquire", raising(error))
        with pytest.raises(RunError, match=rf"\.lock: cannot be written \(No\); .*{remedy}"):
            directory.alone().__enter__()


def test_who_works_alone_knows_what_was_done_before(directory):
    """Receipts that another process wrote or withdrew while this one waited are seen once the directory is its own."""
    other = RunDirectory(directory.path)
    directory.finish("before", "x", [])
    other.withdraw(["before"])
    other.finish("meanwhile", "x", [directory.write("some", b"")])
    with directory.alone():
        assert set(directory.receipts()) == {"meanwhile"}
    directory.withdraw_makers(["others"])
    assert directory.is_done("meanwhile", "x")
    directory.withdraw_makers(["others", "some"])
    assert not directory.is_done("meanwhile", "x")


@given(st.binary(max_size=1000))
def test_written_bytes_are_read_back(tmp_path_factory, data):
    """A file holds what was written, in folders made on the way, and no unfinished part of it stays."""
    directory = RunDirectory(tmp_path_factory.mktemp("run"))
    path = directory.write("nodes/3/some.bin", data)
    assert path.read_bytes() == data and path == directory.path / "nodes/3/some.bin"
    assert not list(directory.path.rglob("*.part"))


def test_a_failed_write_leaves_what_was_there(directory):
    """A write that cannot be finished raises, changes nothing, and leaves no part behind."""
    (directory.path / "taken").mkdir()
    with pytest.raises(OSError):
        directory.write("taken", b"data")
    assert (directory.path / "taken").is_dir() and not list(directory.path.rglob("*.part"))


def test_json_is_canonical_and_finite(directory):
    """Equal values give equal bytes whatever the order of keys, and a number that JSON does not know is refused."""
    first = directory.write_json("a.json", {"x": 1, "y": [0.5, None]}).read_bytes()
    assert directory.write_json("a.json", {"y": [0.5, None], "x": 1}).read_bytes() == first
    assert directory.read_json("a.json") == {"x": 1, "y": [0.5, None]}
    with pytest.raises(ValueError):
        directory.write_json("a.json", {"x": float("nan")})
    assert directory.path.joinpath("a.json").read_bytes() == first


def test_a_receipt_holds_while_inputs_and_bytes_are_unchanged(directory):
    """A stage is done for the inputs it was finished with, also in the next session, and for no others."""
    path = directory.write("classifiers/a.bin", b"weights")
    assert not directory.is_done("a", "inputs")
    directory.finish("a", "inputs", [path], 1.25)
    for opened in (directory, RunDirectory(directory.path)):
        assert opened.is_done("a", "inputs") and opened.seconds("a") == 1.25
        assert not opened.is_done("a", "others") and not opened.is_done("b", "inputs")


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"Weights"), Path.unlink, lambda p: p.write_bytes(b"")])
def test_a_receipt_ends_with_a_changed_byte_and_holds_again_when_it_is_back(directory, damage):
    """A changed, removed or emptied output undoes its stage; the same bytes put back make it done again."""
    path = directory.write("classifiers/a.bin", b"weights")
    directory.finish("a", "inputs", [path])
    damage(path)
    assert not directory.is_done("a", "inputs")
    path.write_bytes(b"weights")
    assert directory.is_done("a", "inputs")


def test_a_stage_without_its_output_is_never_done(directory):
    """A receipt written for a file that is not there does not hold, neither before nor after it appears."""
    path = directory.path / "classifiers/a.bin"
    directory.finish("a", "inputs", [path])
    assert not directory.is_done("a", "inputs")
    path.write_bytes(b"weights")
    assert not directory.is_done("a", "inputs")


def test_a_receipt_is_the_hash_of_the_output(directory):
    """``receipts.json`` names inputs, seconds and the SHA-256 of every output by its path in the run directory."""
    path = directory.write("modules/a.bin", b"module")
    directory.finish("fit-0", "inputs", [path], 0.5)
    outputs = {"modules/a.bin": hashlib.sha256(b"module").hexdigest()}
    assert directory.read_json("receipts.json") == {"fit-0": {"inputs": "inputs", "outputs": outputs, "seconds": 0.5}}


def test_outputs_are_all_files_but_those_rewritten_or_refused(tmp_path):
    """What a finished run answers for leaves out spec, environment, receipts, the quarantine, and parts of files."""
    directory = RunDirectory.open(RunSpec(out=str(tmp_path)))
    kept = {directory.write(name, b"x") for name in ("metrics.json", "modules/a.safetensors", "nodes/0/fit.json")}
    for name in ("modules/quarantine/b.refused", "modules/.c.safetensors.77.part", "classifiers/server.safetensors.part"):
        directory.write(name, b"x")
    directory.finish("run", "inputs", directory.outputs())
    assert set(directory.outputs()) == kept


RECEIPT = '{"run": {"inputs": "a", "outputs": %s, "seconds": %s}}'


@pytest.mark.parametrize("text", ["{", "", "[]", '{"run": 3}', RECEIPT % (2, 1), RECEIPT % ("{}", '"1"')])
def test_damaged_receipts_are_named_with_their_remedy(directory, text):
    """Receipts that cannot be read end the run with the file's name and the way out."""
    directory.write("receipts.json", text.encode())
    with pytest.raises(RunError, match=r"receipts\.json.*remove the file"):
        RunDirectory(directory.path)


@given(st.lists(st.text("ab", max_size=3), max_size=4), st.lists(st.text("ab", max_size=3), max_size=4))
def test_combined_digests_tell_lists_apart(first, second):
    """Lists of texts have the same digest only where they are equal: joints between texts count."""
    if first and second:
        assert (combined_digest(*first) == combined_digest(*second)) == (first == second)


def test_receipts_are_plain_json(directory):
    """Anybody can read the receipts: the file is JSON with sorted keys."""
    directory.finish("b", "inputs", [])
    directory.finish("a", "inputs", [])
    assert list(json.loads((directory.path / "receipts.json").read_text())) == ["a", "b"]
