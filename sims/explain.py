"""What the keys of a run mean: the specs' own docstrings, ranges and defaults as a table."""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ff_flower.config import RunSpec, Scalar, Spec, unknown_name
from ff_flower.errors import ConfigError

from .report import TextTable, show
from .run import refusing

_SECTION = "Attributes\n----------\n"
_UNBOUNDED = 1_000_000_000  # what a count may not exceed is no limit that anybody meets


@dataclass(frozen=True)
class Explanation:
    """What there is to know of a key.

    Attributes
    ----------
    key : str
        Dotted and hyphenated, as ``--set`` and presets take it.
    default : str
        In TOML.
    values : str
        Names, or the range.
    meaning : str
        The words of the docstring.
    """

    key: str
    default: str
    values: str
    meaning: str


def explanations() -> tuple[Explanation, ...]:
    """Return all keys of a run, in the order of `RunSpec`."""
    schema = RunSpec.model_json_schema()
    return tuple(_explained(RunSpec, schema, schema["$defs"]))


def chosen(names: Sequence[str]) -> list[Explanation]:
    """Return the keys that are named: in full, by the table they stand in, or by their last part.

    Raises
    ------
    ConfigError
        For a name that is none of these.
    """
    every = explanations()
    found: list[Explanation] = []
    for name in names:
        same = [one for one in every if one.key == name or one.key.startswith(f"{name}.") or one.key.endswith(f".{name}")]
        if not same:
            raise ConfigError(unknown_name("key", name, [one.key for one in every], "ff-flower explain"))
        found += [one for one in same if one not in found]
    return found


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Keys, tables like module.edm, or last parts like steps; all without any.")
    ] = None,
    markdown: Annotated[bool, typer.Option(help="Print Markdown.")] = False,
) -> None:
    """Explain the keys of a run: what they mean, which values they take, and their defaults."""
    with refusing():
        found = chosen(names) if names else explanations()
    rows = tuple((one.key, one.default, one.values, one.meaning) for one in found)
    show([TextTable("Keys", ("key", "default", "values", "what it is"), rows, prose=True)], markdown=markdown)


def _explained(spec: type[Spec], table: Mapping[str, Any], tables: Mapping[str, Any], prefix: str = "") -> Iterator[Explanation]:
    meanings = _meanings(spec)
    for name, field in spec.model_fields.items():
        key, inner = f"{prefix}{field.alias}", field.annotation
        if inspect.isclass(inner) and issubclass(inner, Spec):
            yield from _explained(inner, tables[inner.__name__], tables, f"{key}.")
        else:
            yield Explanation(key, json.dumps(field.default), _values(table["properties"][field.alias]), meanings.get(name, ""))


def _meanings(spec: type[Spec]) -> dict[str, str]:
    """Return the words of each attribute in the docstrings of ``spec`` and what it inherits from."""
    found: dict[str, str] = {}
    for one in reversed(spec.__mro__):
        names: list[str] = []
        section = inspect.cleandoc(one.__doc__ or "").partition(_SECTION)[2] if issubclass(one, Spec) else ""
        for line in filter(None, section.splitlines()):
            if not line[0].isspace():
                names = line.partition(" : ")[0].split(", ")
                found |= dict.fromkeys(names, "")
            else:
                found |= {name: f"{found[name]} {line.strip()}".strip().replace("``", "`") for name in names}
    return found


def _values(entry: Mapping[str, Scalar | list[Scalar]]) -> str:
    """Return in words what a JSON schema says of one value."""
    if isinstance(names := entry.get("enum"), list):
        return ", ".join(str(name) for name in names)
    if entry["type"] in ("boolean", "string"):
        return "true, false" if entry["type"] == "boolean" else "text"
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    bounds = {word: float(str(entry[rule])) for rule, word in words.items() if rule in entry}
    said = [f"{word} {bound:,g}" for word, bound in bounds.items() if bound < _UNBOUNDED]
    said += [f"a multiple of {entry['multipleOf']}"] if "multipleOf" in entry else []
    return " ".join(["whole," if entry["type"] == "integer" else "", *said]).strip()
