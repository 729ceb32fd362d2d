"""Ways to damage a module file, from single bits to a well-formed lie."""

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

STRANGE: tuple[Any, ...] = (
    *(0, 1, -1, 2, 255, 1024, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400),
    *(0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"), True, None, [], {}, [[]], [0, 0], [2**62, 4], {"a": {}}),
    *("", "0", "F16", "F32", "BF16", "F64", "I64", "U8", "BOOL", "edm", "vae", "gaussian_mixture", "large", "heun", "euler"),
    *("x" * 300, "../../etc/passwd", "three", "thre\u0435", "\u202eeerht", "\x00", "\ud800", "e\u0301", "__class__", "manifest"),
)
NUMBERS = tuple(struct.pack("<Q", value) for value in (0, 1, 7, 2**20, 2**20 + 1, 2**31, 2**32, 2**63, 2**64 - 1))
PATTERNS = (b"", b"\0", b"\xff" * 8, b"PK\x03\x04", b"\x80\x04\x95", b"{}", b'"', b"\\u0000", *NUMBERS)


def mutate(files: Sequence[bytes], chance: random.Random) -> tuple[int, bytes]:
    """Return which of ``files`` was taken, and its bytes after one to three mutations."""
    number = chance.randrange(len(files))
    data = files[number]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        data = splice(data, chance.choice(files), chance) if chance.random() < 0.05 else chance.choice(MUTATIONS)(data, chance)
    return number, data


def flip_bits(data: bytes, chance: random.Random) -> bytes:
    """Flip one to eight bits anywhere."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8) if changed else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def flip_header_bits(data: bytes, chance: random.Random) -> bytes:
    """Flip one to four bits of the header or its length."""
    end = min(len(data), 8 + _length(data))
    return flip_bits(data[:end], chance) + data[end:]


def truncate(data: bytes, chance: random.Random) -> bytes:
    """Cut off the end."""
    return data[: chance.randrange(len(data) + 1)]


def insert(data: bytes, chance: random.Random) -> bytes:
    """Insert a pattern or random bytes."""
    place = chance.randrange(len(data) + 1)
    return data[:place] + _pattern(chance) + data[place:]


def overwrite(data: bytes, chance: random.Random) -> bytes:
    """Write a pattern or random bytes over what is there."""
    place, pattern = chance.randrange(len(data) + 1), _pattern(chance)
    return data[:place] + pattern + data[place + len(pattern) :]


def remove(data: bytes, chance: random.Random) -> bytes:
    """Remove a range of bytes."""
    first, last = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    return data[:first] + data[last:]


def repeat(data: bytes, chance: random.Random) -> bytes:
    """Put a range of bytes twice."""
    first, last = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    return data[:last] + data[first:last] + data[last:]


def lie_about_length(data: bytes, chance: random.Random) -> bytes:
    """Announce another length of the header."""
    near = struct.pack("<Q", max(0, _length(data) + chance.randint(-16, 16)))
    return chance.choice((*NUMBERS, near, near, near)) + data[8:]


def edit_header_text(data: bytes, chance: random.Random) -> bytes:
    """Change some characters of the header, its length kept true."""
    end = 8 + _length(data)
    text = bytearray(data[8:end])
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(text) + 1)
        text[place : place + chance.randint(0, 2)] = bytes(
            chance.choices(b'{}[]",:\\ 019-+.eEtnua\xc3\xa9\xff\n', k=chance.randint(0, 3))
        )
    return _joined(bytes(text), data[end:], chance)


def edit_tensor(data: bytes, chance: random.Random) -> bytes:
    """Give a tensor another type, shape or place."""

    def edit(header: dict[str, Any]) -> None:
        entry = header[chance.choice([name for name in header if name != "__metadata__"])]
        key = chance.choice(("dtype", "dtype", "shape", "shape", "shape", "data_offsets", "data_offsets", "strides"))
        if isinstance(entry.get(key), list) and entry[key] and chance.random() < 0.7:
            place = chance.randrange(len(entry[key]))
            entry[key][place] = _other(entry[key][place], chance)
        else:
            entry[key] = _other(entry.get(key), chance)

    return _edited(data, chance, edit)


def edit_table(data: bytes, chance: random.Random) -> bytes:
    """Drop, add, rename or reorder tensors, or touch the metadata."""

    def edit(header: dict[str, Any]) -> None:
        names = list(header)
        name = chance.choice(names)
        action = chance.randrange(5)
        if action == 0:
            del header[name]
        elif action == 1:
            header[str(chance.choice(STRANGE))] = chance.choice((header[name], *STRANGE))
        elif action == 2:
            chance.shuffle(names)
            entries = {one: header[one] for one in names}
            header.clear()
            header.update(entries)
        elif action == 3:
            header.setdefault("__metadata__", {})[str(chance.choice(STRANGE))] = chance.choice(STRANGE)
        else:
            header[name] = chance.choice((header[chance.choice(names)], *STRANGE))

    return _edited(data, chance, edit)


def edit_manifest(data: bytes, chance: random.Random) -> bytes:
    """Let the manifest say something else, in canonical form most of the time."""

    def edit(header: dict[str, Any]) -> None:
        manifest = json.loads(header["__metadata__"]["manifest"])
        table = manifest["spec"] if chance.random() < 0.5 else manifest
        key = chance.choice(list(table))
        action = chance.randrange(8)
        if action == 0:
            del table[key]
        elif action == 1:
            table[str(chance.choice(STRANGE))] = chance.choice(STRANGE)
        else:
            table[key] = _other(table[key], chance)
        spaces = (",", ":") if chance.random() < 0.9 else (", ", ": ")
        header["__metadata__"]["manifest"] = json.dumps(manifest, sort_keys=chance.random() < 0.95, separators=spaces)

    return _edited(data, chance, edit)


def poison_weights(data: bytes, chance: random.Random) -> bytes:
    """Put NaN, infinity, or huge numbers among the weights."""
    start = min(len(data), 8 + _length(data))
    place = start + chance.randrange(max(1, len(data) - start)) // 2 * 2
    poison = chance.choice((b"\x00\x7e", b"\x00\x7c", b"\xff\x7b", b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f"))
    count = chance.choice((1, 1, 64, 4096))
    return (data[:place] + poison * count + data[place + len(poison) * count :])[: len(data)]


def splice(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Put the header of one file before the tensors of another, or join them anywhere."""
    if chance.random() < 0.5:
        return data[: 8 + _length(data)] + other[8 + _length(other) :]
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]


MUTATIONS: tuple[Mutation, ...] = (
    *(flip_bits, flip_header_bits, truncate, insert, overwrite, remove, repeat, lie_about_length, edit_header_text, edit_tensor),
    *(edit_tensor, edit_tensor, edit_table, edit_table, *[edit_manifest] * 5, poison_weights, poison_weights),
)


def _length(data: bytes) -> int:
    return min(int(struct.unpack_from("<Q", data)[0]), len(data)) if len(data) >= 8 else 0


def _pattern(chance: random.Random) -> bytes:
    return chance.choice((*PATTERNS, chance.randbytes(chance.randint(1, 64))))


def _other(value: Any, chance: random.Random) -> Any:
    """Return a near number, or something strange."""
    if isinstance(value, int) and chance.random() < 0.5:
        return value + chance.choice((-8, -1, 1, 2, 8, 64))
    return chance.choice(STRANGE)


def _edited(data: bytes, chance: random.Random, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """Apply ``edit`` to the header's JSON; where there is none any more, flip bits."""
    end = 8 + _length(data)
    try:
        header = json.loads(data[8:end])
        edit(header)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return flip_bits(data, chance)
    return _joined(json.dumps(header, separators=(",", ":")).encode("utf-8", "surrogatepass"), data[end:], chance)


def _joined(text: bytes, body: bytes, chance: random.Random) -> bytes:
    """Return a file of this header, filled up with spaces most of the time."""
    text = text.rstrip(b" ") if chance.random() < 0.9 else text
    text += b" " * (-len(text) % 8 if chance.random() < 0.95 else chance.randrange(8))
    return struct.pack("<Q", len(text)) + text + body
