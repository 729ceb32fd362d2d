"""The manifest: one content, one text, and nothing else is accepted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ff_flower.config import EDMSpec, GaussianMixtureSpec
from ff_flower.errors import VerificationError
from ff_flower.registry import ModuleManifest

SETTINGS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)


def refused(text: str) -> str:
    """Return the rule by which ``text`` is refused as a manifest."""
    with pytest.raises(VerificationError) as caught:
        ModuleManifest.from_json(text)
    return caught.value.rule


def test_canonical_text_is_sorted_ascii_without_spaces(make_manifest):
    """The text holds its keys in order, no spaces outside strings, and only ASCII."""
    text = make_manifest(label_name="fünf", licence="CC0").canonical_json()
    assert text.isascii() and " " not in text
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert r'"label_name":"f\u00fcnf"' in text


@given(spec=st.dictionaries(st.from_regex(r"\A[a-z.-]{1,20}\Z"), SETTINGS, max_size=4))
def test_reading_inverts_writing(make_manifest, spec):
    """Any settings survive the way through the text with their types, and give the same text again."""
    try:
        manifest = make_manifest(spec=spec)
    except ValidationError:
        assert any(isinstance(value, str) and any(0xD800 <= ord(char) < 0xE000 for char in value) for value in spec.values())
        return
    again = ModuleManifest.from_json(manifest.canonical_json())
    assert again == manifest and again.canonical_json() == manifest.canonical_json()
    assert {key: type(value) for key, value in again.spec.items()} == {key: type(value) for key, value in spec.items()}


@pytest.mark.parametrize("settings", [EDMSpec(), GaussianMixtureSpec()])
def test_settings_of_the_kinds_fit(make_manifest, settings):
    """The flat settings of every kind are a manifest's spec as they are."""
    manifest = make_manifest(spec=settings.flat())
    assert ModuleManifest.from_json(manifest.canonical_json()).spec == settings.flat()


def test_names_are_normalised(make_manifest):
    """The two ways to write an umlaut in Unicode give one manifest."""
    assert make_manifest(label_name="fu\u0308nf") == make_manifest(label_name="f\u00fcnf")


@pytest.mark.parametrize(
    "respell",
    [
        lambda text: text.replace(",", ", ", 1),
        lambda text: " " + text,
        lambda text: text + "\n",
        lambda text: json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":")),
        lambda text: text.replace('"label":3', '"label":3,"label":3'),
        lambda text: text.replace('"label":3', '"label":4,"label":3'),
        lambda text: text.replace("0.002", "2e-3"),
        lambda text: text.replace("three", r"\u0074hree"),
        lambda text: text.replace("three", "fünf"),
        lambda text: text.replace("three", r"fu\u0308nf"),
        lambda text: text.replace(',"note":""', ""),
        lambda text: text.replace('"label":3', '"label":-0'),
    ],
)
def test_other_spellings_are_refused(make_manifest, respell):
    """A text that says something valid in other than the canonical way is refused."""
    text = make_manifest().canonical_json()
    assert respell(text) != text
    assert refused(respell(text)) == "canonical-manifest"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{", ""),
        ('"label":3', '"label":3,"made_at":"noon"'),
        ('"label":3', '"label":-1'),
        ('"label":3', '"label":true'),
        ('"label":3', '"label":3.0'),
        ('"label":3', '"label":"3"'),
        ('"label":3', f'"label":{"9" * 5000}'),
        ('"label":3', f'"label":{"[" * 5000}'),
        ('"label":3,', ""),
        ("0.002", "NaN"),
        ("0.002", "1e999"),
        ("0.002", "-Infinity"),
        ("0.002", "null"),
        ("0.002", "[0.002]"),
        ("three", r"\ud800"),
        ("three", ""),
        ("[1,8,8]", "[2,8,8]"),
        ("[1,8,8]", "[1,8]"),
        ("[1,8,8]", "[1,0,8]"),
        ("[1,8,8]", "[1,8,1025]"),
        ("[0,255]", "[0,1]"),
        ('"format_version":1', '"format_version":2'),
        ('"float32"', '"float64"'),
        ('"num_examples":147', '"num_examples":0'),
    ],
)
def test_wrong_content_is_refused(make_manifest, old, new):
    """A text that is no manifest is refused, whatever its spelling."""
    text = make_manifest().canonical_json()
    assert old in text
    assert refused(text.replace(old, new, 1)) == "manifest"


@pytest.mark.parametrize("owner", ["", ".", "..", ".hidden", "../3", "a/b", "a\\b", "a b", "a\n", "a\0", "é", "x" * 65])
def test_owner_is_no_path(make_manifest, owner):
    """A name that could lead out of a folder, hide in it or break a line is no owner."""
    with pytest.raises(ValidationError, match="owner"):
        make_manifest(owner=owner)


@pytest.mark.parametrize("owner", ["0", "12", "clinic-a", "Site_7.b", "x" * 64])
def test_owner_names(make_manifest, owner):
    """Partition ids and plain names are owners."""
    assert make_manifest(owner=owner).owner == owner


@pytest.mark.parametrize("name", ["a\u202eb", "a\u2066b", "a\tb", "a\x1b[2J", "a\u2028b", "\ud800", "x" * 129, "\ufb2c" * 64])
def test_label_name_is_printable_and_short(make_manifest, name):
    """A label name without a plain, short, printable form (once normalised) is refused."""
    with pytest.raises(ValidationError, match="label_name"):
        make_manifest(label_name=name)


def test_manifest_is_frozen(make_manifest):
    """No field of a manifest can be changed."""
    with pytest.raises(ValidationError, match="frozen"):
        make_manifest().label = 4
