"""The file format without this project: the README's reader, and bytes that do not move."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ff_flower.registry import decode_module, encode_module, module_id, sign_module
from ff_flower.registry.serialization import DTYPES, ORDER, WIDTHS

GOLDEN_MODULE = "31a86c7a0f7888ca41e3c8ff901fedbd47c1ff389f543c645d37632a657029fb"
GOLDEN_SIGNATURE = (
    "06636b1e040faed68f1610218dd1b53abf79180c7f07ec2579469906afd154ad"
    "f405fba201e91f13eff398c0eeb5aab17af0177c42e3d31a715637f1bbf0c806"
)


def read_module(path):
    """Return id, manifest and tensors of a module file, as the README's reader does."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    manifest = json.loads(header.pop("__metadata__")["manifest"])
    types = {"I64": "<i8", "F32": "<f4", "I32": "<i4", "BF16": "<u2", "F16": "<f2", "U8": "u1"}
    tensors = {}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(body[first:end], types[entry["dtype"]]).reshape(entry["shape"])
    return hashlib.sha256(data).hexdigest(), manifest, tensors


def test_a_reader_of_ten_lines_reads_every_file(tmp_path, make_manifest, tiny_state):
    """NumPy alone reads what this project reads: the same id, manifest and numbers, in the three types of weights."""
    for wire_dtype in ("float16", "float32", "bfloat16"):
        data = encode_module(tiny_state, make_manifest(wire_dtype=wire_dtype))
        (tmp_path / "module.safetensors").write_bytes(data)
        digest, manifest, tensors = read_module(tmp_path / "module.safetensors")
        expected, state = decode_module(data)
        assert digest == module_id(data) and manifest == json.loads(expected.canonical_json())
        for name, tensor in state.items():
            plain = tensors[name]
            if plain.dtype == np.uint16:
                plain = (plain.astype(np.uint32) << 16).view(np.float32)
            assert np.array_equal(plain.astype(tensor.numpy().dtype), tensor.numpy())


def test_golden_bytes_of_every_type(make_manifest):
    """A file with every type of tensor, floats at 16 bits, has this identity for ever."""
    state = {
        "weights": torch.tensor([[0.5, -2.0], [0.1, 65504.0]]),
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "count": torch.tensor(-1),
        "places": torch.tensor([7], dtype=torch.int32),
        "empty": torch.zeros(0, 3),
    }
    data = encode_module(state, make_manifest(wire_dtype="float16", owner="site-1", note="\u00e9\u2713"))
    assert module_id(data) == GOLDEN_MODULE
    assert list(WIDTHS) == list(ORDER) == list(DTYPES)


def test_golden_signature():
    """The signature of a module by a key is one sequence of bytes for ever: Ed25519 needs no chance."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    digest = "d3796519772963499e579edef724615b8bd6288648f4b2a915d3302f326d868a"
    assert sign_module(key, digest).hex() == GOLDEN_SIGNATURE
