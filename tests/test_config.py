"""The specs and Flower's flat run configuration."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ff_flower.config import RunSpec, Scalar, Spec, from_run_config
from ff_flower.errors import ConfigError


def _fields(spec: Spec, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key of a spec with its field."""
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        key = prefix + name.replace("_", "-")
        if isinstance(value, Spec):
            yield from _fields(value, f"{key}.")
        else:
            yield key, field


FIELDS = dict(_fields(RunSpec()))
DEFAULTS = RunSpec().flat()
ASIDE = {"out", "timeout", "connect-timeout", "transport", "data.root", "data.download", "module.checkpoint-seconds"}
ASIDE |= {"trust.public-keys", "min-nodes", "min-modules", "min-classes"}
SITES: dict[str, Scalar] = {"data.name": "sites", "num-clients": 1}
BESIDE: dict[str, dict[str, Scalar]] = {  # what a key cannot be set without
    "min-nodes": SITES,
    "data.sites": SITES,
    "data.classes": SITES,
    "data.server-test": SITES,
    "trust.require-signature": {"trust.public-keys": "keys"},
}


def _other(key: str) -> Scalar:
    """Return a value of ``key`` that is allowed and not its default."""
    default = DEFAULTS[key]
    if get_origin(FIELDS[key].annotation) is Literal:
        return next(value for value in get_args(FIELDS[key].annotation) if value != default)
    if isinstance(default, bool):
        return not default
    if key == "data.sites":
        return "north=folder:/images"
    if key == "data.server-test":
        return "folder:/images"
    if isinstance(default, str):
        return default + "x"
    step = next((rule.multiple_of for rule in FIELDS[key].metadata if hasattr(rule, "multiple_of")), 1)
    return default + (step if isinstance(default, int) else 0.01)


def _refusal(key: str, value: Scalar) -> str:
    with pytest.raises(ConfigError) as caught:
        from_run_config({key: value})
    return str(caught.value)


@pytest.mark.parametrize("key", DEFAULTS)
def test_every_key_goes_round(key: str) -> None:
    """A value set by its flat key is found under that key again, of the same type, and no other key has changed."""
    value, beside = _other(key), BESIDE.get(key, {})
    flat = from_run_config({key: value, **beside}).flat()
    assert flat == DEFAULTS | {key: value, **beside}
    assert type(flat[key]) is type(DEFAULTS[key])
    assert from_run_config(flat).flat() == flat


def test_nothing_set_is_the_default() -> None:
    """An empty configuration and the written-out defaults are one spec."""
    assert from_run_config({}) == from_run_config(DEFAULTS) == RunSpec()


@pytest.mark.parametrize("key", DEFAULTS)
def test_the_wrong_type_is_refused(key: str) -> None:
    """A text for a number, a number for a text or anything but a boolean for a switch gives one line with key and value."""
    value = 7.5 if isinstance(DEFAULTS[key], str) else "many"
    said, default = _refusal(key, value), DEFAULTS[key]
    assert said.startswith(f"{key} = {value!r}: must be ") and len(said.splitlines()) == 1
    assert said.endswith(f"the default is {str(default).lower() if isinstance(default, bool) else repr(default)}")
    assert not isinstance(default, bool) or "must be true or false" in said


@pytest.mark.parametrize("key", [key for key, value in DEFAULTS.items() if type(value) in (int, float)])
def test_numbers_out_of_range_are_refused(key: str) -> None:
    """No number is unbounded: far below its range, and as nan or infinity, it is refused in one line naming the rule."""
    numbers = [-(10**12)] if isinstance(DEFAULTS[key], int) else [-1e12, float("nan"), float("inf"), float("-inf")]
    for number in numbers:
        said = _refusal(key, number)
        assert said.startswith(f"{key} = {number!r}: must be ") and len(said.splitlines()) == 1


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if get_origin(field.annotation) is Literal])
def test_unknown_choices_are_refused(key: str) -> None:
    """A value that is not among a key's choices is refused with all of them listed."""
    said = _refusal(key, 99 if isinstance(DEFAULTS[key], int) else "magic")
    assert all(repr(choice) in said for choice in get_args(FIELDS[key].annotation))


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**63, "less than 9223372036854775808"),
        ("seed", True, "a valid integer"),
        ("num-clients", 0, "greater than or equal to 1"),
        ("data.val-fraction", 1.0, "less than 1"),
        ("data.test-fraction", 0.0, "greater than 0"),
        ("synthesis.own-class", 1.5, "less than or equal to 1"),
        ("module.edm.channels", 12, "a multiple of 8"),
        ("module.edm.rank", -2, "greater than or equal to -1"),
        ("module.edm.sampler", "euler", "'heun' or 'dpmpp-2m'"),
        ("module.flow.sampler", "heun", "'midpoint' or 'euler'"),
        ("module.flow.evaluations", 1001, "less than or equal to 1000"),
        ("module.flow.augmentation", 1.0, "less than 1"),
        ("module.edm.size", "huge", "'tiny', 'small', 'base' or 'large'"),
        ("module.kind", "gan", "'edm', 'flow', 'vae' or 'gaussian_mixture'"),
        ("module.holdout", 0.6, "less than or equal to 0.5"),
        ("module.max-seconds", -1, "greater than or equal to 0"),
        ("module.edm.sigma-min", 20.0, "a schedule that falls: sigma-min 20.0 below sigma-max 10.0"),
        ("module.edm.learning-rate", 0, "greater than 0"),
        ("data.name", "", "at least 1 character"),
    ],
)
def test_the_rule_is_named(key: str, value: Scalar, rule: str) -> None:
    """The refusal of a value says what it should have been."""
    assert rule in _refusal(key, value)


def test_unknown_keys_are_refused_with_the_nearest() -> None:
    """A key that no spec has is refused with the key that was meant; underscores and whole tables are no keys."""
    assert "unknown key 'clasifier.steps' (did you mean 'classifier.steps'?)" in _refusal("clasifier.steps", 3)
    assert "unknown key 'num_clients' (did you mean 'num-clients'?)" in _refusal("num_clients", 3)
    assert "unknown key 'module'" in _refusal("module", "edm")


def test_every_problem_has_its_line() -> None:
    """All mistakes of a configuration are told at once, one line each."""
    with pytest.raises(ConfigError) as caught:
        from_run_config({"sed": 1, "method": "magic", "module.edm.steps": 0})
    lines = str(caught.value).splitlines()
    assert [line.split(" =")[0].split(" (")[0] for line in lines] == ["unknown key 'sed'", "method", "module.edm.steps"]


def test_integers_pass_for_floats() -> None:
    """A whole number is accepted where a float is asked for, and becomes one."""
    spec = from_run_config({"partition.alpha": 1})
    assert spec == from_run_config({"partition.alpha": 1.0}) and type(spec.partition.alpha) is float


@pytest.mark.parametrize("key", DEFAULTS)
def test_the_digest_sees_what_can_change_a_result(key: str) -> None:
    """The digest changes with every key but those that say where data lie, how long to wait or to save, and what is enough."""
    beside = BESIDE.get(key, {})
    changed = from_run_config({key: _other(key), **beside}).digest() != from_run_config(beside).digest()
    assert changed == (key not in ASIDE)


def test_the_digest_is_that_of_the_values() -> None:
    """Equal specs have equal digests, however they were written."""
    backwards = dict(reversed(DEFAULTS.items()))
    assert from_run_config(backwards).digest() == RunSpec().digest()
    assert len(RunSpec().digest()) == 64


@pytest.mark.parametrize("name", [name for name, value in RunSpec() if isinstance(value, Spec)])
def test_specs_are_frozen(name: str) -> None:
    """No attribute of a spec, nor of a spec in it, can be set."""
    spec = RunSpec()
    inner = getattr(spec, name)
    for owner, attribute in ((spec, name), (inner, next(iter(type(inner).model_fields)))):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(owner, attribute, getattr(owner, attribute))


def test_a_module_gives_the_settings_of_its_kind() -> None:
    """The chosen kind's settings, and those of any other kind, are the table of that name."""
    for kind in get_args(FIELDS["module.kind"].annotation):
        module: Any = from_run_config({"module.kind": kind}).module
        assert module.of_kind() is getattr(module, kind)
        assert RunSpec().module.of_kind(kind) == getattr(RunSpec().module, kind)


@pytest.mark.parametrize(("transport", "out"), [("inline", ""), ("reference", "/shared/runs")])
def test_sites_are_told_the_folder_that_they_share_and_no_other(transport, out):
    """Nodes of a deployment learn where the server's runs lie just where they read modules there; paths to images never."""
    spec = RunSpec(
        transport=transport, out="/shared/runs", data={"name": "sites", "root": "/srv", "server_test": "npz:/srv/a.npz"}
    )
    sent = spec.for_nodes()
    assert (sent.out, sent.data.root, sent.data.server_test) == (out, "", "")
