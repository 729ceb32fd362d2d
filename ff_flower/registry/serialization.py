"""The module file: one safetensors file that says what it is, and a reader that believes nothing.

::

    8 bytes   length n of the header, little endian
    n bytes   JSON: {"__metadata__": {"manifest": TEXT}, NAME: {"dtype": ..., "shape": [...], "data_offsets": [a, b]}, ...}
    the rest  the tensors' bytes, little endian, one after the other

A file MUST have exactly one metadata key, ``manifest``: with several, safetensors' bytes differ from process to process. TEXT
MUST be the canonical JSON of a `ModuleManifest`. The bytes MUST be those that safetensors itself writes for this content: the
metadata first, then the tensors in the order I64, F32, I32, BF16, F16, U8 of their types and by name within one, JSON without
spaces, and spaces behind it until n is a multiple of 8. So one content has one identity: the SHA-256 of the file. Floating
tensors MUST have the manifest's ``wire_dtype`` and MUST be finite. Integer tensors MAY be I64, I32 or U8.

Reading a file takes, beside its own bytes, at most twice their limit: the tensors as float32, converted piece by piece.
"""

import hashlib
import json
import math
import re
import reprlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import ModuleError, VerificationError
from .manifest import ModuleManifest

FLOATS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
WIDTHS = {"I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1}  # bytes per element, in the order of a file's tensors
ORDER = {dtype: place for place, dtype in enumerate(WIDTHS)}
DTYPES = {
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U8": torch.uint8,
}
INTEGERS = (torch.int64, torch.int32, torch.uint8)
MAX_DIMENSIONS = 8
METADATA = "__metadata__"
ALIGNMENT = 8  # bytes to which the header is filled up with spaces
PIECE = 2**17  # elements that are converted at once
TENSOR_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")


@dataclass(frozen=True)
class ModuleLimits:
    """How large a received file may be before anything is made of it.

    Attributes
    ----------
    max_bytes : int
        Bytes of the whole file.
    max_header_bytes : int
        Bytes of the JSON header.
    max_tensors : int
        Number of tensors.
    max_elements : int
        Elements of all tensors together; each costs up to 8 bytes of memory.
    """

    max_bytes: int = 64 * 2**20
    max_header_bytes: int = 2**20
    max_tensors: int = 4096
    max_elements: int = 32 * 2**20

    @classmethod
    def of_bytes(cls, max_bytes: int) -> Self:
        """Return the limits of files of up to ``max_bytes`` bytes, with as many elements as fit at 16 bits."""
        return cls(max_bytes=max_bytes, max_elements=max_bytes // 2)


DEFAULT_LIMITS = ModuleLimits()


def module_id(data: bytes) -> str:
    """Return the identity of a module file: the SHA-256 of its bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def encode_module(state: Mapping[str, Tensor], manifest: ModuleManifest, limits: ModuleLimits = DEFAULT_LIMITS) -> bytes:
    """Write a module file; the same input gives the same bytes in every process.

    Parameters
    ----------
    state : mapping from str to Tensor
        The module's tensors, on any device, in any memory order. Floating ones are rounded to ``manifest.wire_dtype``.
    manifest : ModuleManifest
        What the file says about itself.
    limits : ModuleLimits
        Those of the receiver.

    Returns
    -------
    bytes
        A file that `decode_module` accepts under ``limits``.

    Raises
    ------
    ModuleError
        If a weight is NaN or infinite, or becomes infinite in ``wire_dtype``; or if a receiver would refuse the file.
    """
    data = save({name: _wire_tensor(name, tensor, manifest.wire_dtype) for name, tensor in state.items()}, _metadata(manifest))
    try:
        decode_module(data, limits)
    except VerificationError as error:
        raise ModuleError(f"a receiver would refuse this module: {error}") from error
    return data


def decode_module(data: bytes, limits: ModuleLimits = DEFAULT_LIMITS) -> tuple[ModuleManifest, dict[str, Tensor]]:
    """Verify a module file and read it; until the last rule holds, every byte counts as hostile.

    Parameters
    ----------
    data : bytes
        The file as it was received.
    limits : ModuleLimits
        Sizes beyond which a file is refused.

    Returns
    -------
    manifest : ModuleManifest
        What the file says about itself.
    state : dict from str to Tensor
        The tensors by name, in the names' order, on the CPU; floating ones as float32.

    Raises
    ------
    VerificationError
        Naming the first broken rule of ``size``, ``header-length``, ``header-json``, ``metadata``, ``manifest``,
        ``canonical-manifest``, ``tensor-count``, ``tensor-names``, ``tensor-entry``, ``dtypes``, ``shapes``, ``offsets``,
        ``canonical-bytes`` (all before a tensor is allocated), ``finite-weights``.
    """
    header, start = _read_header(data, limits)
    manifest = _read_manifest(header)
    _check_tensors(header, FLOATS[manifest.wire_dtype], len(data) - start, limits)
    if _canonical_header(header) != data[8:start]:
        raise VerificationError(
            "canonical-bytes", "this is not the header that safetensors writes for this content; send encode_module's file"
        )
    body = memoryview(data)[start:]
    return manifest, {name: _read_tensor(name, header[name], body) for name in sorted(header.keys() - {METADATA})}


def _metadata(manifest: ModuleManifest) -> dict[str, str]:
    return {"manifest": manifest.canonical_json()}


def _canonical_header(header: Mapping[str, Any]) -> bytes:
    """Return the one header of these checked entries, whose names and manifest are ASCII and whose offsets follow each other."""
    names = sorted(header.keys() - {METADATA}, key=lambda name: (ORDER[header[name]["dtype"]], name))
    keys = ("dtype", "shape", "data_offsets")
    entries = {name: {key: header[name][key] for key in keys} for name in names}
    text = json.dumps({METADATA: header[METADATA], **entries}, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % ALIGNMENT)


def _read_tensor(name: str, entry: Mapping[str, Any], body: memoryview) -> Tensor:
    """Return a checked entry's tensor in memory of its own, floats as float32."""
    (begin, end), wire = entry["data_offsets"], DTYPES[entry["dtype"]]
    tensor = torch.empty(entry["shape"], dtype=torch.float32 if wire.is_floating_point else wire)
    flat, step = tensor.view(-1), PIECE * wire.itemsize
    for place, first in enumerate(range(begin, end, step)):
        piece = torch.frombuffer(bytearray(body[first : min(first + step, end)]), dtype=wire)
        flat[place * PIECE : place * PIECE + len(piece)] = piece
    if tensor.numel() and tensor.is_floating_point() and not torch.stack(tensor.aminmax()).isfinite().all():
        raise VerificationError("finite-weights", f"tensor {name!r} holds NaN or infinity; every weight must be finite")
    return tensor


def _wire_tensor(name: str, tensor: Tensor, wire_dtype: str) -> Tensor:
    """Return a contiguous copy on the CPU that shares no memory with another tensor, floats rounded to ``wire_dtype``."""
    if not tensor.is_floating_point():
        if tensor.dtype not in INTEGERS:
            raise ModuleError(f"tensor {name!r} is {tensor.dtype}: a file holds floats, int64, int32 and uint8; convert it")
        return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    dtype: torch.dtype = getattr(torch, wire_dtype)
    wire = tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
    if not wire.isfinite().all():
        if not tensor.isfinite().all():
            raise ModuleError(f"tensor {name!r} holds NaN or infinity: never a NaN module on the wire; lower the learning rate")
        peak = tensor.abs().max().item()
        ends = f"{wire_dtype} ends at {torch.finfo(dtype).max:.3g}"
        raise ModuleError(f"tensor {name!r} reaches {peak:.3g}: {ends}; use wire-dtype float32")
    return wire


def _read_header(data: bytes, limits: ModuleLimits) -> tuple[dict[str, Any], int]:
    """Return the header as JSON, and the offset at which the tensors' bytes begin."""
    if not 8 <= len(data) <= limits.max_bytes:
        raise VerificationError("size", f"{len(data)} bytes; a module file has 8 to {limits.max_bytes}")
    (length,) = struct.unpack_from("<Q", data)
    largest = min(limits.max_header_bytes, len(data) - 8)
    if length > largest:
        raise VerificationError("header-length", f"{length} bytes announced; at most {largest} are allowed here")
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise VerificationError("header-json", f"{str(error)[:200]}; the header must be plain UTF-8 JSON") from None
    if not isinstance(header, dict):
        raise VerificationError("header-json", f"{reprlib.repr(header)}; the header must be a JSON object")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError(f"a key occurs twice among {reprlib.repr([key for key, _ in pairs])}")
    return table


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _read_manifest(header: dict[str, Any]) -> ModuleManifest:
    metadata = header.get(METADATA)
    if not isinstance(metadata, dict) or list(metadata) != ["manifest"] or not isinstance(metadata["manifest"], str):
        raise VerificationError("metadata", f"{reprlib.repr(metadata)}; there must be one metadata key, 'manifest', with a text")
    return ModuleManifest.from_json(metadata["manifest"])


def _check_tensors(header: dict[str, Any], float_dtype: str, num_bytes: int, limits: ModuleLimits) -> None:
    """Check that the entries describe allowed tensors which cover ``num_bytes`` bytes without hole or overlap."""
    entries = {name: entry for name, entry in header.items() if name != METADATA}
    if not 1 <= len(entries) <= limits.max_tensors:
        raise VerificationError("tensor-count", f"{len(entries)} tensors; a module file has 1 to {limits.max_tensors}")
    end = elements = 0
    for name, entry in entries.items():
        if not TENSOR_NAME.fullmatch(name):
            raise VerificationError("tensor-names", f"{reprlib.repr(name)}; a name has 1 to 256 of A-Z a-z 0-9 _ . -")
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise VerificationError("tensor-entry", f"{name!r}: {reprlib.repr(entry)}; it needs dtype, shape and data_offsets")
        _check_dtype(name, entry["dtype"], float_dtype)
        size = _check_shape(name, entry["shape"], limits)
        elements += size
        end = _check_offsets(name, entry["data_offsets"], (end, end + size * WIDTHS[entry["dtype"]]))
    if elements > limits.max_elements:
        raise VerificationError("shapes", f"{elements} elements in all; at most {limits.max_elements} are allowed")
    if end != num_bytes:
        raise VerificationError("offsets", f"the tensors end at byte {end}; they must end with the data, at {num_bytes}")


def _check_dtype(name: str, dtype: object, float_dtype: str) -> None:
    if not isinstance(dtype, str) or dtype not in (float_dtype, "I64", "I32", "U8"):
        raise VerificationError("dtypes", f"{name!r} is {reprlib.repr(dtype)}; allowed are {float_dtype}, I64, I32 and U8")


def _check_shape(name: str, shape: object, limits: ModuleLimits) -> int:
    """Return the number of elements; their product is bounded with zeros counted as ones, so that no stride overflows."""
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(type(side) is int and side >= 0 for side in shape):
        raise VerificationError("shapes", f"{name!r}: {reprlib.repr(shape)}; at most {MAX_DIMENSIONS} sides, none negative")
    if math.prod(max(side, 1) for side in shape) > limits.max_elements:
        raise VerificationError("shapes", f"{name!r}: {reprlib.repr(shape)}; at most {limits.max_elements} elements are allowed")
    return math.prod(shape)


def _check_offsets(name: str, offsets: object, expected: tuple[int, int]) -> int:
    """Return where the tensor ends, which must be where the next one begins."""
    if not isinstance(offsets, list) or [(type(offset), offset) for offset in offsets] != [(int, offset) for offset in expected]:
        raise VerificationError("offsets", f"{name!r} at {reprlib.repr(offsets)}; its place by order and shape: {list(expected)}")
    return expected[1]
