"""A disk that fills up while the server collects: the run ends with what to do, and loses nothing that was there."""

import errno
import json
import os
from pathlib import Path

import pytest
from local_grid import LocalGrid, tiny

from clients.client_app import app
from ff_flower.errors import RunError
from sims.status import read_state
from strategies.server_app import run


def full_after(monkeypatch, writes, place):
    """Let a disk be full once a number of module files (each brought to it with its folder) or of reports is written."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/disk")
    left = [2 * writes if place == "modules" else writes]

    def spend():
        left[0] -= 1
        if left[0] < 0:
            raise error

    if place == "modules":
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda descriptor: (spend(), fsync(descriptor)))
    else:
        write_bytes = Path.write_bytes

        def write(path, data):
            if path.name.startswith("fit.json.") or left[0] < 0:
                spend()
            return write_bytes(path, data)

        monkeypatch.setattr(Path, "write_bytes", write)


@pytest.mark.parametrize(("place", "writes"), [("modules", 5), ("reports", 2)])
def test_a_full_disk_loses_nothing_that_had_arrived(place, writes, tmp_path, monkeypatch):
    """The error names the file and the remedy, no half file stays, and with space again only the others are asked."""
    spec = tiny(tmp_path, synthesis__site="server")
    with monkeypatch.context() as patched:
        full_after(patched, writes, place)
        with pytest.raises(RunError, match=r"cannot be written .*No space left on device.*free some space"):
            run(LocalGrid(app, 5, shuffle=2), spec)
    (path,) = tmp_path.glob("digits-*")
    assert not [file for file in path.rglob("*") if ".part" in file.name]
    kept = [name for name in json.loads((path / "receipts.json").read_text()) if name.startswith("fit-")]
    assert len(kept) == 2 and read_state(path).exit_code == 1
    grid = LocalGrid(app, 5)
    state = read_state(run(grid, spec).path)
    assert len(grid.fitted) == 3 and state.exit_code == 0
