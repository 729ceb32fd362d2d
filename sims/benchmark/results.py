"""Rows of measurements: shown as a table, kept as JSON."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ff_flower.config import Scalar, unknown_name
from ff_flower.environment import describe_environment
from ff_flower.errors import ConfigError, DataError
from ff_flower.machine import whole_file

from ..report import ABSENT, TextTable

Row = dict[str, Scalar | None]
MACHINE = "environment"  # the column, never shown, that names where a row was measured
_ASIDE = {"source_digest"}


@dataclass(frozen=True)
class Results:
    """The rows of one command; each column's name is its heading.

    Attributes
    ----------
    name : str
        The command, and the stem of its files.
    title : str
        What stands above the table.
    keys : tuple of str
        Columns that say what was measured: two rows that agree in them are one measurement made twice.
    rows : tuple of Row
        In the order of measuring.
    """

    name: str
    title: str
    keys: tuple[str, ...]
    rows: tuple[Row, ...] = ()

    def joined(self, rows: Iterable[Row]) -> "Results":
        """Return these results with ``rows`` in the place of those that they repeat, the others at the end."""
        table = {self._key(row): row for row in self.rows}
        table |= {self._key(row): row for row in rows}
        return Results(self.name, self.title, self.keys, tuple(table.values()))

    def find(self, **key: Scalar) -> Row | None:
        """Return the row whose columns have these values (``_`` standing for a space), or None."""
        wanted = {name.replace("_", " "): value for name, value in key.items()}
        return next((row for row in self.rows if wanted.items() <= row.items()), None)

    def table(self) -> TextTable:
        """Return the rows as text, under all columns that any of them has."""
        header = tuple(dict.fromkeys(column for row in self.rows for column in row if column != MACHINE))
        return TextTable(self.title, header, tuple(tuple(as_text(row.get(column)) for column in header) for row in self.rows))

    def keep(self, folder: Path) -> "Results":
        """Join the rows to those in ``<folder>/<name>.json``, and return them all; two processes may do so at once.

        Rows that were measured here and now are kept with what `describe_environment` says of this machine.
        """
        folder.mkdir(parents=True, exist_ok=True)
        here = {name: value for name, value in describe_environment().items() if name not in _ASIDE}
        name = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:8]
        path = folder / f"{self.name}.json"
        with FileLock(folder / f".{self.name}.lock"):
            found = self.joined({MACHINE: name, **row} for row in self.rows).read(folder)
            known = {name: here} | self._kept(folder)["environments"]
            used = {str(row[MACHINE]) for row in found.rows}
            values = {"environments": {one: known[one] for one in known if one in used}, "rows": found.rows}
            with whole_file(path) as unfinished:
                unfinished.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return found

    def read(self, folder: Path) -> "Results":
        """Return these results joined to those that `keep` left in ``folder``, if any.

        Raises
        ------
        DataError
            Where the file is not what `keep` writes.
        """
        kept = Results(self.name, self.title, self.keys).joined(self._kept(folder)["rows"])
        return kept.joined(self.rows)

    def _kept(self, folder: Path) -> dict[str, Any]:
        path = folder / f"{self.name}.json"
        if not path.exists():
            return {"environments": {}, "rows": []}
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            rows, known = [dict(row) for row in values["rows"]], dict(values["environments"])
            if lost := {row[MACHINE] for row in rows} - known.keys():
                raise ValueError(f"unknown environments {sorted(lost)}")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: must hold environments and rows ({error!r}); remove it and measure again") from error
        return {"environments": known, "rows": rows}

    def _key(self, row: Row) -> tuple[Scalar | None, ...]:
        return tuple(row.get(name) for name in self.keys)


def as_text(value: Scalar | None) -> str:
    """Return a cell: whole numbers with separators, others with three significant digits or two decimals."""
    if value is None:
        return ABSENT
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{round(value):,}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def percent(share: float) -> float:
    """Return a share as a percentage with two decimals."""
    return round(100 * share, 2)


def significant(value: float, digits: int = 4) -> float:
    """Return ``value`` rounded to significant digits, as measurements are kept."""
    return float(f"{value:.{digits}g}")


def whole_numbers(text: str, what: str) -> list[int]:
    """Split comma-separated numbers, and refuse what is none, or below 1 (ConfigError)."""
    numbers = [number.strip() for number in text.split(",")]
    for number in numbers:
        if not number.isdecimal() or not int(number):
            raise ConfigError(f"{what} = {text!r}: must be whole numbers from 1, separated by commas; {number!r} is none")
    return [int(number) for number in numbers]


def shares(text: str, what: str) -> list[float]:
    """Split comma-separated numbers from 0 to below 1, and refuse what is none (ConfigError)."""
    found = []
    for number in text.split(","):
        try:
            found.append(float(number))
        except ValueError:
            found.append(math.nan)
        if not 0 <= found[-1] < 1:
            raise ConfigError(f"{what} = {text!r}: must be numbers from 0 to below 1, separated by commas; {number!r} is none")
    return found


def one_of(text: str, known: Sequence[str], what: str) -> list[str]:
    """Split a comma-separated choice, and refuse names that do not exist (ConfigError)."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(unknown_name(what, name, list(known)))
    return names
