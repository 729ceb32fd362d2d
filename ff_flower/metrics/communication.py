"""The ledger: every payload that crossed the wire, and what it was for."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import RunError
from ..machine import whole_file

Direction = Literal["up", "down", "read"]


@dataclass(frozen=True)
class Transfer:
    """One payload between the server and one node.

    Attributes
    ----------
    direction : str
        ``up`` from node to server, ``down`` from server to node, ``read`` from the store that both share.
    what : str
        ``modules``, ``signatures``, ``weights``, ``logits`` or ``classifiers``; what is read is ``modules-up`` or
        ``modules-down``.
    num_bytes : int
        Size of the payload's arrays, without Flower's framing.
    partition : int
        The node; -1 where the server does not know it.
    server_round : int
        Flower's round.
    """

    direction: Direction
    what: str
    num_bytes: int
    partition: int = -1
    server_round: int = 1


@dataclass
class Ledger:
    """All transfers of a run, in a canonical order that does not depend on the replies' order."""

    transfers: list[Transfer] = field(default_factory=list)

    def add(self, direction: Direction, what: str, num_bytes: int, partition: int = -1, server_round: int = 1) -> None:
        """Note one transfer."""
        self.transfers.append(Transfer(direction, what, num_bytes, partition, server_round))

    def total(self, direction: Direction, kinds: Iterable[str] | None = None, partition: int | None = None) -> int:
        """Return the bytes sent in ``direction``, of all or of the named ``kinds``, by all nodes or by that of ``partition``."""
        wanted = None if kinds is None else set(kinds)
        moved = [t for t in self.transfers if t.direction == direction and partition in (None, t.partition)]
        return sum(t.num_bytes for t in moved if wanted is None or t.what in wanted)

    def totals(self) -> dict[str, int]:
        """Return ``up`` and ``down``, and each kind's share as ``modules-up``, ``modules-up-read`` and so on."""
        totals = {"up": self.total("up"), "down": self.total("down")}
        for direction, what in sorted({(t.direction, t.what) for t in self.transfers}):
            totals[f"{what}-{direction}"] = self.total(direction, [what])
        return totals

    def write(self, path: Path) -> None:
        """Write one JSON object per line, whole or not at all."""
        order = sorted(self.transfers, key=lambda t: (t.server_round, t.direction, t.what, t.partition, t.num_bytes))
        with whole_file(path) as unfinished:
            unfinished.write_text("".join(json.dumps(asdict(t), sort_keys=True) + "\n" for t in order))

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """Return the ledger written at ``path``, an empty one where there is none.

        Raises
        ------
        RunError
            Where it is not as it was written.
        """
        lines = path.read_bytes().splitlines() if path.exists() else []
        try:
            return cls([Transfer(**json.loads(line)) for line in lines])
        except (RecursionError, TypeError, ValueError) as error:
            raise RunError(
                f"{path}: not as it was written ({error}); remove it, and transfers are counted from here on"
            ) from error
