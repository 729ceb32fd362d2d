"""Whose contribution takes no part in a run: whole owners, or one class of an owner."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from ..errors import ConfigError

_PART = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9._-]{0,63})(?:/([0-9]{1,9}))?")


@dataclass(frozen=True)
class Exclusion:
    """Owners, and single classes of other owners, that take no part.

    Attributes
    ----------
    owners : frozenset of str
        Owners who neither fit nor answer.
    classes : frozenset of (str, int)
        Owner and label of each class that its owner keeps out; the owner takes part with the rest.
    """

    owners: frozenset[str] = frozenset()
    classes: frozenset[tuple[str, int]] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``3, 5/7``: owner 3, and owner 5's class with label 7.

        Raises
        ------
        ConfigError
            For a part that is neither an owner nor an owner and a label.
        """
        owners, classes = set(), set()
        for part in (part.strip() for part in text.split(",")) if text.strip() else ():
            found = _PART.fullmatch(part)
            if found is None:
                raise ConfigError(f"{part!r}: must be an owner like 3, or an owner and a label like 3/7, separated by commas")
            if found[2] is None:
                owners.add(found[1])
            else:
                classes.add((found[1], int(found[2])))
        return cls(frozenset(owners), frozenset(one for one in classes if one[0] not in owners))

    def __str__(self) -> str:
        """Return the one text of this exclusion: "2" before "10", owners before classes, nothing twice."""
        owners = sorted(self.owners, key=_natural)
        classes = sorted(self.classes, key=lambda one: (_natural(one[0]), one[1]))
        return ",".join([*owners, *(f"{owner}/{label}" for owner, label in classes)])

    def __bool__(self) -> bool:
        return bool(self.owners or self.classes)

    def __or__(self, other: "Exclusion") -> "Exclusion":
        return Exclusion.parse(",".join(text for text in (str(self), str(other)) if text))

    def covers(self, owner: str, label: int) -> bool:
        """Tell whether the owner's class with this label takes no part."""
        return owner in self.owners or (owner, label) in self.classes

    def labels(self, owner: str) -> frozenset[int]:
        """Return the labels that an owner who takes part keeps out."""
        return frozenset(label for one, label in self.classes if one == owner)

    def unknown(self, owners: Iterable[str]) -> list[str]:
        """Return the owners named here that are none of ``owners``, sorted."""
        return sorted((self.owners | {owner for owner, _ in self.classes}) - set(owners), key=_natural)


def _natural(owner: str) -> list[tuple[int, int, str]]:
    runs = re.findall(r"[0-9]+|[^0-9]+", owner)
    return [(0, int(run), run) if run[0].isdigit() else (1, 0, run) for run in runs]
