"""The tombstone: what a run has forgotten, written before anything is removed."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from ..config import Exclusion, RunSpec
from ..errors import ConfigError, RunError
from ..run_directory import RunDirectory

FILE = "forgotten.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One request to forget.

    Attributes
    ----------
    exclude : str
        What is forgotten, as `RunSpec.exclude` has it.
    modules : mapping from str to mapping
        The module ids that fell under it, each with ``owner``, ``label`` and ``label_name``.
    reason : str
        What the request gave as its reason; may be empty.
    before : mapping
        The account of the run before, for the certificate; see `request.account`.
    removed : mapping from str to str
        SHA-256 of every file that was to be removed, by its name.
    purged : bool
        Whether all that is gone.
    """

    exclude: str
    modules: Mapping[str, Mapping[str, Any]]
    reason: str = ""
    before: Mapping[str, Any] = field(default_factory=dict)
    removed: Mapping[str, str] = field(default_factory=dict)
    purged: bool = False

    @property
    def exclusion(self) -> Exclusion:
        """What ``exclude`` says."""
        return Exclusion.parse(self.exclude)


@dataclass(frozen=True)
class Tombstone:
    """All that a run has forgotten, in the order of the requests."""

    entries: tuple[Entry, ...] = ()

    @classmethod
    def read(cls, run: Path) -> Self:
        """Return the tombstone of a run directory, an empty one where there is none.

        Raises
        ------
        RunError
            Where it cannot be read: going on would bring back what was forgotten.
        """
        path = run / FILE
        if not path.exists():
            return cls()
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format version {values['format_version']}, not {FORMAT_VERSION}")
            entries = tuple(Entry(**entry) for entry in values["entries"])
            if wrong := [name for entry in entries for name in entry.modules if not re.fullmatch("[0-9a-f]{64}", name)]:
                raise ValueError(f"{wrong[0]!r} is no module id")
            _ = [entry.exclusion for entry in entries]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError, RecursionError) as error:
            raise RunError(
                f"{path}: cannot be read ({error}); it says what this run has forgotten, so restore it from a copy, or remove "
                "the whole run directory"
            ) from error
        return cls(entries)

    @property
    def exclusion(self) -> Exclusion:
        """Everything that is forgotten."""
        total = Exclusion()
        for entry in self.entries:
            total |= entry.exclusion
        return total

    @property
    def module_ids(self) -> tuple[str, ...]:
        """The ids of all forgotten modules, sorted."""
        return tuple(sorted({module_id for entry in self.entries for module_id in entry.modules}))

    @property
    def purged(self) -> bool:
        """Whether nothing is left to be removed."""
        return all(entry.purged for entry in self.entries)

    def effective(self, spec: RunSpec) -> RunSpec:
        """Return the spec that a run directory with this tombstone has: ``spec`` without what is forgotten."""
        return spec.excluding(self.exclusion) if self.entries else spec

    def with_entry(self, entry: Entry) -> "Tombstone":
        """Return a tombstone with one request more."""
        return Tombstone((*self.entries, entry))

    def as_purged(self) -> "Tombstone":
        """Return a tombstone of which everything is removed."""
        return Tombstone(tuple(replace(entry, purged=True) for entry in self.entries))

    def write(self, directory: RunDirectory) -> None:
        """Write it into a run directory, whole or not at all.

        Raises
        ------
        RunError
            Where the directory cannot be written.
        """
        try:
            values = {"format_version": FORMAT_VERSION, "entries": [asdict(entry) for entry in self.entries]}
            directory.write_json(FILE, values, durable=True)
        except OSError as error:
            raise RunError(
                f"{directory.path / FILE}: cannot be written ({error.strerror}), so nothing was forgotten and nothing changed; "
                "make the run directory writable"
            ) from error
