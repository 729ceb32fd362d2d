"""Module files that nodes and server share through a disk, each named by the SHA-256 of its bytes.

::

    FOLDER/<module_id>.safetensors

With ``transport = "reference"`` messages carry ids, and the files lie here: in simulation, and on machines whose nodes share a
disk. Whoever can write to that disk can put anything here, so nothing is believed but a file that hashes to its name.
"""

import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .errors import RunError, VerificationError
from .registry import module_id

REMEDY = 'send the files in the messages: transport = "inline"'
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_module_id(text: str) -> bool:
    """Tell whether ``text`` can be a module_id, 64 lower-case hexadecimal digits, and so no path."""
    return _DIGEST.fullmatch(text) is not None


class ModuleStore:
    """A content-addressed folder of module files.

    When a module is forgotten its file here must go too: call `remove` beside ``ModuleRegistry.remove`` and
    ``SampleCache.remove``.

    Parameters
    ----------
    folder : Path
        Made at the first `put`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, data: bytes) -> str:
        """Keep a file, whole or not at all, in the place of a damaged one of its name; return its module_id.

        Raises
        ------
        RunError
            When it cannot be written, for example to a full disk.
        """
        name = module_id(data)
        if self.holds(name, len(data)):
            return name
        unfinished = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished = self.folder / f".{name}.{secrets.token_hex(4)}.part"
            unfinished.write_bytes(data)  # readable for whom the folder's umask says: sites may be other users
            unfinished.replace(self._path(name))
        except OSError as error:
            if unfinished is not None:
                unfinished.unlink(missing_ok=True)
            reason = error.strerror or error
            raise RunError(f"{self._path(name)}: cannot be written ({reason}); free some space, or {REMEDY}") from error
        return name

    def get(self, name: str, max_bytes: int) -> bytes:
        """Return the file of a module_id.

        Parameters
        ----------
        name : str
            The module_id, as it was received.
        max_bytes : int
            Size beyond which a file is not read.

        Raises
        ------
        VerificationError
            Rule ``store`` where ``name`` is no module_id or there is no such plain file; ``size``; ``digest`` where the bytes do
            not hash to ``name``.
        """
        if not is_module_id(name):
            raise VerificationError("store", f"{name[:80]!r} is no module id: 64 hexadecimal digits; {REMEDY}")
        try:
            data = _read_plain(self._path(name), max_bytes + 1)
        except OSError as error:
            raise VerificationError(
                "store", f"module {name[:12]} is not in the shared store ({error.strerror}); {REMEDY}"
            ) from error
        if len(data) > max_bytes:
            raise VerificationError("size", f"module {name[:12]} in the store has over {max_bytes} bytes, which are not read")
        if (found := module_id(data)) != name:
            raise VerificationError("digest", f"module {name[:12]} in the store hashes to {found[:12]}; {REMEDY}")
        return data

    def holds(self, name: str, max_bytes: int) -> bool:
        """Tell whether `get` would return the file."""
        with suppress(VerificationError):
            self.get(name, max_bytes)
            return True
        return False

    def remove(self, name: str) -> bool:
        """Delete the file of a module_id; return whether there was one. What is no module_id names none."""
        if not is_module_id(name):
            return False
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            return False
        return True

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


class StoredFiles(Mapping[str, bytes]):
    """Module files by module_id, each read from the store and verified when it is asked for.

    Parameters
    ----------
    store : ModuleStore
        Where they lie.
    names : sequence of str
        Their ids.
    max_bytes : int
        Size beyond which a file is not read.
    """

    def __init__(self, store: ModuleStore, names: Sequence[str], max_bytes: int) -> None:
        self.store, self.names, self.max_bytes = store, tuple(dict.fromkeys(names)), max_bytes

    def __getitem__(self, name: str) -> bytes:
        if name not in self.names:
            raise KeyError(name)
        return self.store.get(name, self.max_bytes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _read_plain(path: Path, limit: int) -> bytes:
    """Read at most ``limit`` bytes of a plain file: neither a link, which leads elsewhere, nor a pipe, which would not end."""
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "not a plain file")
        return file.read(limit)
