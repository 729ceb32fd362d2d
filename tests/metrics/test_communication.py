"""The ledger of what crossed the wire."""

from itertools import permutations
from pathlib import Path

import pytest

from ff_flower.errors import RunError
from ff_flower.metrics import Ledger, Transfer

TRANSFERS = (
    Transfer("up", "modules", 100, partition=0),
    Transfer("up", "modules", 50, partition=1),
    Transfer("down", "modules", 150, partition=1),
    Transfer("up", "logits", 7, partition=0, server_round=2),
)


def _ledger(*transfers: Transfer) -> Ledger:
    ledger = Ledger()
    for one in transfers:
        ledger.add(one.direction, one.what, one.num_bytes, one.partition, one.server_round)
    return ledger


def test_totals_by_hand() -> None:
    """Bytes add up by direction, and by what was sent in it."""
    ledger = _ledger(*TRANSFERS)
    assert (ledger.total("up"), ledger.total("down")) == (157, 150)
    assert ledger.total("up", ["modules"]) == 150
    assert sum(ledger.total("up", partition=partition) for partition in range(-1, 10)) == 157
    assert ledger.total("up", ("modules", "logits")) == 157
    assert ledger.total("down", ["weights"]) == ledger.total("up", []) == 0
    assert ledger.totals() == {"up": 157, "down": 150, "modules-up": 150, "logits-up": 7, "modules-down": 150}


def test_an_empty_ledger_has_sent_nothing() -> None:
    """Without transfers both directions carried 0 bytes."""
    assert Ledger().totals() == {"up": 0, "down": 0}


def test_the_file_does_not_show_the_order_of_arrival(tmp_path: Path) -> None:
    """The same transfers in any order are the same bytes on disk, one line each."""
    written = set()
    for number, order in enumerate(permutations(TRANSFERS)):
        path = tmp_path / f"{number}.jsonl"
        _ledger(*order).write(path)
        written.add(path.read_bytes())
    assert len(written) == 1
    assert written.pop().count(b"\n") == len(TRANSFERS)


@pytest.mark.parametrize("text", [b"{", b'{"of": "another kind"}', b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_ledger_is_named_with_its_remedy(text: bytes, tmp_path: Path) -> None:
    """A line that is no transfer ends the reading with the file's name and the way out."""
    (tmp_path / "ledger.jsonl").write_bytes(text)
    with pytest.raises(RunError, match=r"ledger\.jsonl: not as it was written .*; remove it"):
        Ledger.read(tmp_path / "ledger.jsonl")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Reading brings every transfer back, and writing those again changes nothing; a file that is missing is an empty ledger."""
    path = tmp_path / "ledger.jsonl"
    _ledger(*TRANSFERS).write(path)
    before = path.read_bytes()
    back = Ledger.read(path)
    assert sorted(map(repr, back.transfers)) == sorted(map(repr, TRANSFERS))
    back.write(path)
    assert path.read_bytes() == before
    assert Ledger.read(tmp_path / "none.jsonl") == Ledger()
