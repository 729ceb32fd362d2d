"""The defaults of `RunSpec` as the table ``[tool.flwr.app.config]``, which Flower demands in ``pyproject.toml``."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ff_flower.config import RunSpec, Scalar
from ff_flower.errors import ConfigError

TABLE = "tool.flwr.app.config"


def toml_line(key: str, value: Scalar) -> str:
    """Return ``key = value`` in TOML; a dotted ``key`` is a path of tables."""
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return Flower's flat mapping, ``{"module.edm.steps": 300}``, of nested TOML tables."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_keys(app: Path, keys: Iterable[str]) -> None:
    """Refuse keys that the app's ``pyproject.toml`` does not have; Flower refuses them too, without naming them.

    Raises
    ------
    ConfigError
        Naming the keys; also where ``app`` has no ``pyproject.toml`` that can be read.
    """
    path = app / "pyproject.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: must be an app's pyproject.toml ({error}); name the app's folder") from error
    for part in TABLE.split("."):
        table = table.get(part, {})
    if unknown := sorted(set(keys) - set(flatten(table))):
        remedy = "add them there, in this project by `ff-flower config --write`"
        raise ConfigError(f"{', '.join(unknown)}: must stand in [{TABLE}] of {path}; {remedy}")


def render_config(spec: RunSpec) -> str:
    """Return the TOML tables that repeat ``spec``, one per nested spec, ending in a newline."""
    tables: dict[str, list[str]] = {"": []}
    for key, value in spec.flat().items():
        table, _, name = key.rpartition(".")
        tables.setdefault(table, []).append(toml_line(name, value))
    blocks = [
        "\n".join([f"[{TABLE}.{table}]" if table else f"[{TABLE}]", *lines, ""]) for table, lines in tables.items() if lines
    ]
    return "\n".join(blocks)


def write_config(pyproject: Path) -> bool:
    """Make the table in ``pyproject`` equal to `RunSpec`'s defaults; nothing else in the file changes.

    Returns
    -------
    bool
        Whether the file had to change.

    Raises
    ------
    ConfigError
        Where the file has no such table.
    """
    lines = pyproject.read_text(encoding="utf-8").splitlines(keepends=True)
    start = next((number for number, line in enumerate(lines) if line.startswith(f"[{TABLE}]")), None)
    if start is None:
        raise ConfigError(f"{pyproject}: must have a table [{TABLE}]; add that line where the defaults shall stand")
    beyond = (n for n in range(start, len(lines)) if lines[n].startswith("[") and not lines[n].startswith(f"[{TABLE}"))
    end = next(beyond, len(lines))
    block = [*render_config(RunSpec()).splitlines(keepends=True), *(["\n"] if end < len(lines) else [])]
    if lines[start:end] == block:
        return False
    pyproject.write_text("".join([*lines[:start], *block, *lines[end:]]), encoding="utf-8")
    return True
