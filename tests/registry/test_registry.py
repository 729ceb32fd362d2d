"""The registry: what it keeps was verified, what it refuses is on record, and arrival leaves no trace."""

import dataclasses
import hashlib
import itertools
import json
import resource

import pytest
import torch

from ff_flower.config import RunSpec
from ff_flower.errors import RunError, VerificationError
from ff_flower.registry import ModuleLimits, ModuleRegistry, encode_module, module_id


@pytest.fixture
def registry(tmp_path):
    """Return an empty registry."""
    return ModuleRegistry(tmp_path / "modules")


@pytest.fixture(scope="session")
def make_file(make_manifest):
    """Return a function that writes a module file with these changes to the manifest."""
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    def make(value=0.5, **changes):
        if "label" in changes and "label_name" not in changes:
            changes["label_name"] = names[changes["label"]]
        return encode_module({"w": torch.full((3,), value)}, make_manifest(**changes))

    return make


def refused(registry, data, expectation):
    """Return the rule by which the registry refuses ``data``, having kept nothing."""
    before = list(registry)
    with pytest.raises(VerificationError) as caught:
        registry.add(data, expectation)
    assert list(registry) == before
    assert not list(registry.folder.glob(".*"))
    return caught.value.rule


def test_added_module_is_found_by_its_content(registry, digits_run, tiny_file, tiny_state):
    """The id is the SHA-256 of the bytes; under it stand the manifest, the bytes and the tensors."""
    module = registry.add(tiny_file, digits_run)
    assert module.module_id == hashlib.sha256(tiny_file).hexdigest() == module_id(tiny_file)
    assert module.path == registry.folder / f"{module.module_id}.safetensors"
    assert module.path.read_bytes() == module.read() == tiny_file
    assert module.num_bytes == len(tiny_file)
    assert registry.get(module.module_id) == module and list(registry) == [module]
    manifest, state = registry.load(module.module_id)
    assert manifest == module.manifest
    assert all(torch.equal(state[name], tiny_state[name]) for name in tiny_state)


def test_adding_again_changes_nothing(registry, digits_run, tiny_file):
    """The same bytes from their owner are one module, however often they come."""
    first = registry.add(tiny_file, digits_run)
    written = first.path.stat().st_mtime_ns
    assert registry.add(tiny_file, dataclasses.replace(digits_run, owner="3")) == first
    assert len(registry) == 1 and first.path.stat().st_mtime_ns == written


def test_order_is_label_owner_id_for_every_arrival(tmp_path, digits_run, make_file):
    """Every order of arrival gives the same sequence: labels ascend, then owners as people count, then ids."""
    keys = [(1, "10"), (1, "2"), (0, "10"), (1, "site-10"), (1, "site-9")]
    files = {key: make_file(label=key[0], owner=key[1]) for key in keys}
    expected = [(0, "10"), (1, "2"), (1, "10"), (1, "site-9"), (1, "site-10")]
    for number, arrival in enumerate(itertools.islice(itertools.permutations(keys), 0, None, 11)):
        registry = ModuleRegistry(tmp_path / str(number))
        for key in arrival:
            registry.add(files[key], digits_run)
        assert [(module.manifest.label, module.manifest.owner) for module in registry] == expected
        assert registry.labels() == (0, 1) and len(registry) == 5


def test_modules_of_one_owner_and_label_are_ordered_by_id(tmp_path, digits_run, make_file):
    """Where label and owner agree, the id decides."""
    files = [make_file(value) for value in (0.1, 0.2, 0.3)]
    orders = []
    for number, arrival in enumerate(itertools.permutations(files)):
        registry = ModuleRegistry(tmp_path / str(number))
        for data in arrival:
            registry.add(data, digits_run)
        orders.append([module.module_id for module in registry])
    assert all(order == sorted(map(module_id, files)) for order in orders)


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("other-run", {"dataset": "mnist"}),
        ("other-run", {"root_seed": 1}),
        ("image-shape", {"image_shape": (3, 8, 8)}),
        ("label", {"label": 10, "label_name": "ten"}),
        ("label", {"label": 2**62, "label_name": "three"}),
        ("label", {"label": 4, "label_name": "three"}),
        ("owner", {"owner": "4"}),
        ("spec", {"kind": "vae"}),
        ("spec", {"spec": {"channels": 32, "evaluations": 10**9}}),
        ("spec", {"spec": {"channels": 32}}),
    ],
)
def test_modules_of_another_run_are_refused(registry, digits_run, make_manifest, make_file, rule, changes):
    """A valid module that does not belong to this run is refused by the rule that it breaks."""
    own = dataclasses.replace(digits_run, owner="3", specs={"edm": make_manifest().spec})
    registry.add(make_file(), own)
    assert refused(registry, make_file(**changes), own) == rule


def test_label_names_are_compared_normalised(registry, digits_run, make_file):
    """A table that writes an umlaut as two characters accepts a manifest that writes one."""
    expectation = dataclasses.replace(digits_run, label_names=("fu\u0308nf",))
    assert registry.add(make_file(label=0, label_name="f\u00fcnf"), expectation).manifest.label == 0


def test_a_file_has_one_owner(registry, digits_run, tiny_file):
    """The exact file of one owner, sent by another, is refused by one rule, before its owner sent it and after."""
    thief = dataclasses.replace(digits_run, owner="4")
    assert refused(registry, tiny_file, thief) == "owner"
    registry.add(tiny_file, dataclasses.replace(digits_run, owner="3"))
    assert refused(registry, tiny_file, thief) == "owner"


def test_broken_bytes_are_refused(registry, digits_run, tiny_file):
    """Truncated bytes and bytes beyond the registry's limits are not kept."""
    assert refused(registry, tiny_file[:-1], digits_run) == "offsets"
    small = ModuleRegistry(registry.folder, ModuleLimits(max_bytes=len(tiny_file) - 1))
    assert refused(small, tiny_file, digits_run) == "size"


def test_every_bit_flip_on_disk_is_noticed(registry, digits_run, tiny_file):
    """A file that changed after verification, by any one bit of its body, is not handed out."""
    module = registry.add(tiny_file, digits_run)
    for bit in range(8 * (len(tiny_file) - 40), 8 * len(tiny_file)):
        flipped = bytearray(tiny_file)
        flipped[bit // 8] ^= 1 << bit % 8
        module.path.write_bytes(flipped)
        with pytest.raises(VerificationError) as caught:
            registry.load(module.module_id)
        assert caught.value.rule == "digest"


@pytest.mark.parametrize("name", ["0" * 64, "", "../secret", "quarantine"])
def test_unknown_id(registry, name):
    """An id that is not registered is an error that names it; it is never tried as a path."""
    with pytest.raises(RunError, match="not among the 0 in"):
        registry.get(name)


def test_reopening_gives_the_same_registry(registry, digits_run, make_file):
    """A registry opened on an existing folder holds what the first one held, in the same order, and goes on."""
    for label in (3, 1, 2):
        registry.add(make_file(label=label), digits_run)
    again = ModuleRegistry(registry.folder)
    assert list(again) == list(registry) and len(again) == 3 and again.labels() == (1, 2, 3)
    assert again.add(make_file(label=1), digits_run) in list(registry)
    again.add(make_file(label=0), digits_run)
    assert ModuleRegistry(registry.folder).labels() == (0, 1, 2, 3)


def test_reopened_registry_knows_owners(registry, digits_run, tiny_file):
    """A file that another session registered still has one owner, before anything is read from it."""
    registry.add(tiny_file, digits_run)
    assert refused(ModuleRegistry(registry.folder), tiny_file, dataclasses.replace(digits_run, owner="4")) == "owner"


def test_reopening_sets_changed_files_aside(registry, digits_run, make_file):
    """A file that does not hash to its name goes to quarantine with its bytes; the others stay."""
    kept, changed = (registry.add(make_file(label=label), digits_run) for label in (1, 2))
    changed.path.write_bytes(b"something else")
    again = ModuleRegistry(registry.folder)
    assert list(again) == [kept] and not changed.path.exists()
    (refusal,) = again.quarantined()
    assert (refusal.rule, refusal.source, refusal.num_bytes) == ("digest", changed.path.name, 14)
    assert (again.folder / "quarantine" / f"{refusal.sha256}.refused").read_bytes() == b"something else"
    assert again.add(make_file(label=2), digits_run).read() == make_file(label=2)


def test_reopening_believes_no_content(registry, digits_run, tiny_file):
    """A file that hashes to its name but is no module leaves the registry at first use, with the rule that it breaks."""
    kept = registry.add(tiny_file, digits_run)
    planted = b"no module at all, yet well named"
    (registry.folder / f"{module_id(planted)}.safetensors").write_bytes(planted)
    again = ModuleRegistry(registry.folder)
    assert len(again) == 1 and list(again) == [kept]
    assert [refusal.rule for refusal in again.quarantined()] == ["header-length"]


def test_what_is_set_aside_keeps_its_bytes(registry, digits_run, tiny_file):
    """A kept file beyond the limits of who opens the folder leaves with all its bytes; its signature and its picture go."""
    kept = registry.add(tiny_file, digits_run)
    for suffix in (".png", ".sig"):
        kept.path.with_suffix(suffix).write_bytes(b"x")
    small = ModuleRegistry(registry.folder, ModuleLimits(max_bytes=len(tiny_file) - 1))
    assert list(small) == []
    (refusal,) = small.quarantined()
    assert refusal.rule == "size" and (small.folder / "quarantine" / f"{refusal.sha256}.refused").read_bytes() == tiny_file
    assert [path.name for path in small.folder.iterdir()] == ["quarantine"]


def test_the_registry_of_a_run_has_its_limits(tmp_path):
    """What a run's own limit allows is read wherever its modules are, not what the default allows."""
    spec = RunSpec.model_validate({"trust": {"max_module_mb": 100}})
    assert ModuleRegistry.of_run(tmp_path, spec).limits == ModuleLimits.of_bytes(100 * 2**20)
    assert ModuleRegistry.of_run(tmp_path, spec).folder == tmp_path / "modules"


def test_quarantine_reports(registry):
    """A report names rule, detail, source and size; the bytes lie beside it."""
    error = VerificationError("finite-weights", "tensor 'w' holds NaN")
    report = registry.quarantine(b"bad", error, source="node 7")
    digest = hashlib.sha256(b"bad").hexdigest()
    assert report == registry.folder / "quarantine" / f"{digest}.json"
    expected = {"sha256": digest, "rule": "finite-weights", "detail": "tensor 'w' holds NaN", "source": "node 7", "num_bytes": 3}
    assert json.loads(report.read_text()) == [expected]
    assert report.with_suffix(".refused").read_bytes() == b"bad"
    assert len(registry) == 0


def test_quarantine_forgets_no_sender(registry):
    """The same bytes from two senders are two refusals; the same refusal again is none; the order is not that of arrival."""
    error = VerificationError("size", "0 bytes")
    for source in ("node b", "node a", "node b"):
        registry.quarantine(b"", error, source)
    assert [refusal.source for refusal in ModuleRegistry(registry.folder).quarantined()] == ["node a", "node b"]


def test_quarantine_keeps_no_oversized_bytes(tmp_path):
    """Bytes beyond the limit are reported with their size but not kept."""
    registry = ModuleRegistry(tmp_path, ModuleLimits(max_bytes=10))
    report = registry.quarantine(bytes(11), VerificationError("size", "11 bytes"), "node 1")
    assert [refusal.num_bytes for refusal in registry.quarantined()] == [11]
    assert not report.with_suffix(".refused").exists()


def test_removing_equals_never_having_received(tmp_path, digits_run, make_file):
    """After a removal the registry, its folder and its reopening are those that never saw the module."""
    with_it, without = ModuleRegistry(tmp_path / "a"), ModuleRegistry(tmp_path / "b")
    for label in (1, 2, 3):
        with_it.add(make_file(label=label), digits_run)
    for label in (3, 1):
        without.add(make_file(label=label), digits_run)
    with_it.remove(module_id(make_file(label=2)))
    for registry in (with_it, ModuleRegistry(with_it.folder)):
        assert [module.module_id for module in registry] == [module.module_id for module in without]
    assert sorted(path.name for path in with_it.folder.iterdir()) == sorted(path.name for path in without.folder.iterdir())
    with pytest.raises(RunError, match="not among the 2"):
        with_it.remove(module_id(make_file(label=2)))
    assert with_it.add(make_file(label=2), digits_run).read() == make_file(label=2)


def test_an_empty_registry(registry):
    """Nothing is registered, nothing refused."""
    assert (len(registry), list(registry), registry.labels(), registry.quarantined()) == (0, [], (), [])


def test_a_full_disk_leaves_no_half_file(registry, digits_run, tiny_file):
    """A write that the system cuts short raises, and leaves neither the file, nor a part of it, nor an entry."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(RunError, match="cannot be written"):
            registry.add(tiny_file, digits_run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(registry.folder.iterdir()) == [] and len(registry) == 0
    registry.add(tiny_file, digits_run)
    assert len(registry) == 1
