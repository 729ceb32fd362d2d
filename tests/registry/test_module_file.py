"""The module file: one content has one file, and every known attack is refused by name."""

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from tampering import join_file, split_file

from ff_flower.errors import ModuleError, VerificationError
from ff_flower.registry import ModuleLimits, decode_module, encode_module, module_id, serialization

GOLDEN = "d3796519772963499e579edef724615b8bd6288648f4b2a915d3302f326d868a"


def refused(data, limits=None):
    """Return the rule by which ``data`` is refused as a module file."""
    with pytest.raises(VerificationError) as caught:
        decode_module(data, limits or ModuleLimits())
    assert len(str(caught.value)) < 2000
    return caught.value.rule


def equal_bits(left, right):
    """Tell whether two states have the same names, types, shapes and bits."""
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].numpy().tobytes() == right[name].numpy().tobytes()
        for name in left
    )


def test_float32_round_trip_is_exact(make_manifest, tiny_state, tiny_file):
    """What float32 carries comes back bit for bit, signed zeros, integers and empty tensors included."""
    manifest, state = decode_module(tiny_file)
    assert manifest == make_manifest()
    assert equal_bits(state, dict(sorted(tiny_state.items())))


@pytest.mark.parametrize("wire_dtype", ["float16", "bfloat16"])
def test_half_round_trip_is_the_rounded_state(make_manifest, tiny_state, wire_dtype):
    """What 16 bits carry comes back as float32, rounded once; integers are untouched."""
    _, state = decode_module(encode_module(tiny_state, make_manifest(wire_dtype=wire_dtype)))
    half = getattr(torch, wire_dtype)
    rounded = {name: one.to(half).float() if one.is_floating_point() else one for name, one in sorted(tiny_state.items())}
    assert equal_bits(state, rounded)


@pytest.mark.parametrize("wire_dtype", ["float16", "float32", "bfloat16"])
def test_encoding_what_was_decoded_gives_the_file(make_manifest, tiny_state, wire_dtype):
    """Decoding loses nothing of the file."""
    data = encode_module(tiny_state, make_manifest(wire_dtype=wire_dtype))
    manifest, state = decode_module(data)
    assert encode_module(state, manifest) == data


def test_golden_bytes(tiny_file):
    """The format of version 1 does not move: this content has this identity."""
    assert module_id(tiny_file) == GOLDEN


def test_layout_by_hand(make_manifest):
    """The file is the documented layout: length, padded JSON header, then wider types first, then by name."""
    manifest = make_manifest(wire_dtype="float16")
    state = {"b": torch.tensor([1.5]), "a": torch.tensor([-2.0]), "n": torch.tensor([7])}
    header = {
        "__metadata__": {"manifest": manifest.canonical_json()},
        "n": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
        "a": {"dtype": "F16", "shape": [1], "data_offsets": [8, 10]},
        "b": {"dtype": "F16", "shape": [1], "data_offsets": [10, 12]},
    }
    assert encode_module(state, manifest) == join_file(header, struct.pack("<qee", 7, -2.0, 1.5))


@pytest.mark.parametrize("wire_dtype", ["float16", "float32", "bfloat16"])
def test_safetensors_reads_and_writes_the_same(make_manifest, wire_dtype):
    """Of every type that a file may hold, safetensors itself writes these bytes and reads these tensors."""
    state = {
        "u8": torch.arange(5, dtype=torch.uint8),
        "i32": torch.tensor([[-7], [2**31 - 1]], dtype=torch.int32),
        "i64": torch.tensor(2**62),
        "half": torch.linspace(-3, 3, 7),
        "a.empty": torch.zeros(3, 0),
        "A": torch.tensor(0.1),
    }
    data = encode_module(state, make_manifest(wire_dtype=wire_dtype))
    plain = {name: one.to(getattr(torch, wire_dtype)) if one.is_floating_point() else one for name, one in state.items()}
    assert data == save(plain, metadata={"manifest": make_manifest(wire_dtype=wire_dtype).canonical_json()})
    read = {name: one.float() if one.is_floating_point() else one for name, one in sorted(load(data).items())}
    assert equal_bits(decode_module(data)[1], read)


def test_tensors_are_read_piece_by_piece(make_manifest, monkeypatch):
    """A tensor longer than a piece is the same as one that is not, and a NaN in any piece is found."""
    state = {"w": torch.arange(11.0).reshape(1, 11)}
    data = encode_module(state, make_manifest(wire_dtype="float16"))
    monkeypatch.setattr(serialization, "PIECE", 4)
    assert equal_bits(decode_module(data)[1], state)
    for place in range(11):
        broken = bytearray(data)
        broken[len(data) - 22 + 2 * place : len(data) - 20 + 2 * place] = struct.pack("<e", float("nan"))
        assert refused(bytes(broken)) == "finite-weights"


def test_bytes_do_not_depend_on_order_layout_or_sharing(make_manifest):
    """Key order, strides, tied weights, gradients and float64 leave no trace in the file."""
    plain = {"a": torch.ones(2, 3, 4, 4), "b": torch.ones(2, 3, 4, 4), "c": torch.full((3, 2), 0.5), "d": torch.arange(4)}
    one = torch.ones(2, 3, 4, 4, requires_grad=True)
    other = {
        "d": torch.arange(8)[:4],
        "c": torch.full((2, 1), 0.5, dtype=torch.float64).expand(2, 3).T,
        "b": one.to(memory_format=torch.channels_last),
        "a": one,
    }
    tied = {"d": torch.arange(4), "c": plain["c"], "b": one, "a": one}
    expected = encode_module(plain, make_manifest())
    assert encode_module(other, make_manifest()) == expected
    assert encode_module(tied, make_manifest()) == expected


def test_two_processes_write_the_same_bytes(make_manifest):
    """A process with another hash seed writes the same file."""
    program = (
        "import sys, torch\n"
        "from ff_flower.registry import ModuleManifest, encode_module, module_id\n"
        "manifest = ModuleManifest.from_json(sys.argv[1])\n"
        "state = {name: torch.arange(3.0) for name in {'x', 'y', 'z', 'net.w'}}\n"
        "print(module_id(encode_module(state, manifest)))\n"
    )
    state = {name: torch.arange(3.0) for name in ("x", "y", "z", "net.w")}
    here = module_id(encode_module(state, make_manifest()))
    command = [sys.executable, "-c", program, make_manifest().canonical_json()]
    there = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert there.stdout.strip() == here


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_encoding_refuses_non_finite_weights(make_manifest, value):
    """A module with a NaN or an infinity is not sent."""
    with pytest.raises(ModuleError, match="'w' holds NaN or infinity: never a NaN module on the wire"):
        encode_module({"w": torch.tensor([0.0, value])}, make_manifest())


def test_encoding_refuses_overflow(make_manifest):
    """A finite weight that float16 cannot hold is refused, while float32 and bfloat16 take it."""
    state = {"w": torch.tensor([-7e4])}
    with pytest.raises(ModuleError, match=r"'w' reaches 7e\+04: float16 ends at 6.55e\+04; use wire-dtype float32"):
        encode_module(state, make_manifest(wire_dtype="float16"))
    assert decode_module(encode_module(state, make_manifest()))[1]["w"].item() == -7e4
    encode_module(state, make_manifest(wire_dtype="bfloat16"))


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"w": torch.ones(2, dtype=torch.bool)},
        {"w": torch.ones(2, dtype=torch.complex64)},
        {"w": torch.ones(2, dtype=torch.int16)},
        {"a b": torch.ones(2)},
        {"": torch.ones(2)},
        {"w": torch.zeros([1] * 9)},
    ],
)
def test_encoding_refuses_what_decoding_refuses(make_manifest, state):
    """A file that no receiver would accept is not written."""
    with pytest.raises(ModuleError):
        encode_module(state, make_manifest())


def zip_bytes():
    """Return what ``torch.save`` and ``numpy.savez`` write: a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps([1]))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "size"),
        (b"1234567", "size"),
        (bytes(8), "header-json"),
        (pickle.dumps({"w": list(range(100))}), "header-length"),
        (zip_bytes(), "header-length"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "header-length"),
        (struct.pack("<Q", 3) + b"{}", "header-length"),
        (join_file("[]", b""), "header-json"),
        (join_file("null", b""), "header-json"),
        (join_file('{"a":NaN}', b""), "header-json"),
        (join_file('{"a":{},"a":{}}', b""), "header-json"),
        (join_file('{"a":' + "[" * 100_000, b""), "header-json"),
        (join_file('{"a":' + "9" * 5000 + "}", b""), "header-json"),
        (struct.pack("<Q", 8) + b'{"\xff":1} ', "header-json"),
        (join_file("{}", b""), "metadata"),
        (join_file('{"__metadata__":[]}', b""), "metadata"),
        (join_file('{"__metadata__":{}}', b""), "metadata"),
        (join_file('{"__metadata__":{"manifest":1}}', b""), "metadata"),
        (join_file('{"__metadata__":{"manifest":"{}"}}', b""), "manifest"),
        (join_file('{"__metadata__":{"manifest":"\\ud800"}}', b""), "manifest"),
    ],
)
def test_strange_bytes_are_refused(data, rule):
    """Bytes that are no module file are refused by the first rule they break."""
    assert refused(data) == rule


def edit_entry(name, **changes):
    """Return an attack that changes the entry of one tensor."""
    return lambda header: header[name].update(changes)


def rename(old, new):
    """Return an attack that gives a tensor another name in its place."""

    def attack(header):
        entries = [(new if name == old else name, entry) for name, entry in header.items()]
        header.clear()
        header.update(entries)

    return attack


def shift_all(header):
    """Leave a hole of four bytes before the first tensor."""
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [offset + 4 for offset in entry["data_offsets"]]


def swap_order(header):
    """List the last tensor first, its offsets unchanged."""
    name = list(header)[-1]
    rest = {key: header.pop(key) for key in list(header) if key != name}
    header.update(rest)


ATTACKS = [
    ("metadata", lambda header: header["__metadata__"].update(second="x")),
    ("metadata", lambda header: header["__metadata__"].pop("manifest")),
    ("metadata", lambda header: header.pop("__metadata__")),
    ("manifest", lambda header: header["__metadata__"].update(manifest='{"label":3}')),
    ("canonical-manifest", lambda header: header["__metadata__"].update(manifest=header["__metadata__"]["manifest"] + " ")),
    ("tensor-names", rename("steps", "a\nb")),
    ("tensor-names", rename("steps", "")),
    ("tensor-names", rename("steps", "x" * 257)),
    ("tensor-entry", lambda header: header.update(steps=None)),
    ("tensor-entry", lambda header: header["steps"].pop("shape")),
    ("tensor-entry", edit_entry("steps", strides=[1])),
    ("dtypes", edit_entry("steps", dtype="F64")),
    ("dtypes", edit_entry("steps", dtype=["I64"])),
    ("dtypes", edit_entry("net.bias", dtype="F16", shape=[4])),
    ("shapes", edit_entry("steps", shape=8)),
    ("shapes", edit_entry("steps", shape=[True])),
    ("shapes", edit_entry("steps", shape=[1.0])),
    ("shapes", edit_entry("steps", shape=[-1, -1])),
    ("shapes", edit_entry("steps", shape=[1] * 9)),
    ("shapes", edit_entry("steps", shape=[2**62, 4])),
    ("shapes", edit_entry("pca.components", shape=[0, 2**62, 2**62])),
    ("offsets", edit_entry("net.bias", shape=[3])),
    ("offsets", edit_entry("net.bias", data_offsets=[8, 16.0])),
    ("offsets", edit_entry("net.bias", data_offsets=[-8, 0])),
    ("offsets", edit_entry("net.bias", data_offsets=[0, 8])),
    ("offsets", edit_entry("net.bias", data_offsets=[16, 8])),
    ("offsets", edit_entry("net.bias", data_offsets=None)),
    ("offsets", shift_all),
    ("offsets", swap_order),
    ("offsets", lambda header: header.pop("net.weight")),
    ("canonical-bytes", rename("net.bias", "zzz")),
]


@pytest.mark.parametrize(("rule", "attack"), ATTACKS)
def test_attacks_on_the_header_are_refused(tiny_file, rule, attack):
    """A header that lies about its tensors is refused by name, before anything is allocated."""
    header, body = split_file(tiny_file)
    assert join_file(header, body) == tiny_file
    attack(header)
    assert refused(join_file(header, body)) == rule


def test_a_file_without_tensors_is_refused(tiny_file):
    """A manifest alone is no module."""
    header, _ = split_file(tiny_file)
    assert refused(join_file({"__metadata__": header["__metadata__"]}, b"")) == "tensor-count"


def test_doubled_tensor_name_is_refused(tiny_file):
    """A name that occurs twice in the header is refused, though JSON readers keep one silently."""
    header, body = split_file(tiny_file)
    text = json.dumps(header, separators=(",", ":"))
    entry = text[text.index('"steps"') : text.index("}", text.index('"steps"')) + 1]
    assert refused(join_file(text.replace(entry, entry + "," + entry), body)) == "header-json"


def test_other_spellings_of_the_header_are_refused(tiny_file):
    """The same content with other spaces, escapes, padding or tensor order is refused: one content has one identity."""
    header, body = split_file(tiny_file)
    text = json.dumps(header, separators=(",", ":"))
    assert refused(join_file(json.dumps(header), body)) == "canonical-bytes"
    assert refused(join_file(text.replace('"steps"', r'"\u0073teps"'), body)) == "canonical-bytes"
    assert refused(join_file(text + " " * 64, body)) == "canonical-bytes"
    assert refused(join_file(" " + text, body)) == "canonical-bytes"


def test_truncated_and_extended_files_are_refused(tiny_file):
    """No proper prefix of a file and no longer file is accepted."""
    for length in range(len(tiny_file)):
        assert refused(tiny_file[:length]) in {"size", "header-length", "offsets"}
    assert refused(tiny_file + b"\0") == "offsets"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_received_non_finite_weights_are_refused(make_manifest, value):
    """A well-formed file with a NaN or an infinity is refused."""
    data = save({"w": torch.tensor([0.0, value])}, metadata={"manifest": make_manifest().canonical_json()})
    assert refused(data) == "finite-weights"


@pytest.mark.parametrize(
    ("limits", "rule"),
    [
        (ModuleLimits(max_bytes=100), "size"),
        (ModuleLimits(max_header_bytes=100), "header-length"),
        (ModuleLimits(max_tensors=3), "tensor-count"),
        (ModuleLimits(max_elements=8), "shapes"),
    ],
)
def test_limits_bind(tiny_file, limits, rule):
    """Each limit refuses a file beyond it."""
    assert refused(tiny_file, limits) == rule


def test_limits_are_inclusive(make_manifest):
    """A file exactly at every limit is accepted."""
    data = encode_module({"w": torch.ones(2, 3), "n": torch.tensor(1)}, make_manifest())
    (header,) = struct.unpack_from("<Q", data)
    decode_module(data, ModuleLimits(max_bytes=len(data), max_header_bytes=header, max_tensors=2, max_elements=7))


@settings(max_examples=400, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=0, max_size=3), st.integers(0, 3)), min_size=1, max_size=4)
)
def test_mutations_are_refused_or_another_valid_module(tiny_file, edits):
    """Whatever replaces bytes of a file, it is refused by rule, or is the one canonical file of another valid content."""
    data = tiny_file
    for place, new, skip in edits:
        start = place % (len(data) + 1)
        data = data[:start] + new + data[start + skip :]
    try:
        manifest, state = decode_module(data)
    except VerificationError as error:
        assert error.rule and error.detail
        return
    assert encode_module(state, manifest) == data
    assert (module_id(data) == module_id(tiny_file)) == (data == tiny_file)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), claim=st.integers(0, 220))
def test_random_bytes_are_refused(data, claim):
    """Random bytes behind any header length are refused by rule, never by another error."""
    refused(struct.pack("<Q", claim) + data)
