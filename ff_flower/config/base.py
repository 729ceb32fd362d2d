"""What every spec is made of: the base class, the number types, and the sentence that refuses a name."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Scalar = str | int | float | bool

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Spec(BaseModel):
    """Base of all specs: immutable, strictly typed, no unknown keys; keys are written with hyphens outside."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, populate_by_name=True, alias_generator=lambda name: name.replace("_", "-")
    )

    def flat(self) -> dict[str, Scalar]:
        """Return the spec as Flower's flat mapping from dotted, hyphenated keys to scalars."""
        return dict(_flatten(self.model_dump(by_alias=True)))


def unknown_name(what: str, name: str, known: list[str], command: str = "") -> str:
    """Return the sentence that refuses ``name`` and lists what exists, or names the command that does."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    remedy = f"`{command}` lists all" if command else f"there are: {', '.join(sorted(known))}"
    return f"unknown {what} {name!r}{hint}; {remedy}"


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
