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
from .machine import whole_file
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
        """Keep a file, in the place of whatever else has its name; return its module_id.

        Raises
        ------
        RunError
            When it cannot be written, for example to a full disk.
        VerificationError
            Rule ``store``: what stands in its place cannot be replaced, for example another user's file in a folder where each
            may delete only what is his own.
        """
        name = module_id(data)
        if self.holds(name, len(data)):
            return name
        path = self._path(name)
        try:
            with whole_file(path) as unfinished:
                unfinished.write_bytes(data)  # readable for whom the folder's umask says: sites may be other users
                if path.is_dir() and not path.is_symlink():
                    path.rename(path.with_name(f".{path.stem}.{secrets.token_hex(4)}.aside"))
        except OSError as error:
            if error.filename2 is not None and os.path.lexists(path):  # a name was to be given or taken
                found = f"what stands in the place of module {name[:12]} in the shared store cannot be replaced"
                raise VerificationError("store", f"{found} ({error.strerror}); {REMEDY}") from error
            reason = error.strerror or error
            raise RunError(f"{path}: cannot be written ({reason}); free some space, or {REMEDY}") from error
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
            data = _read_plain(self._path(name), max_bytes)
        except OSError as error:
            raise VerificationError(
                "store", f"module {name[:12]} is not in the shared store ({error.strerror}); {REMEDY}"
            ) from error
        if data is None:
            raise VerificationError("size", f"module {name[:12]} in the store has over {max_bytes} bytes; {REMEDY}")
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
        """Delete the file of a module_id; return whether there was one. What is no module_id names none, and a folder is none.

        Raises
        ------
        OSError
            When it cannot be deleted, for example where it is another user's.
        """
        if not is_module_id(name):
            return False
        path = self._path(name)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError:
            if path.is_dir():
                return False
            raise
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
        self.store, self.names, self.max_bytes = store, dict.fromkeys(names), max_bytes

    def __getitem__(self, name: str) -> bytes:
        if name not in self.names:
            raise KeyError(name)
        return self.store.get(name, self.max_bytes)

    def __contains__(self, name: object) -> bool:
        return name in self.names  # which a mapping else asks by reading the file

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _read_plain(path: Path, limit: int) -> bytes | None:
    """Read a plain file: neither a link, which leads elsewhere, nor a pipe, which would not end; None beyond ``limit`` bytes."""
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "not a plain file")
        if found.st_size > limit:
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(descriptor)
    return data if len(data) <= limit else None  # it may have grown meanwhile
