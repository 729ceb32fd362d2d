"""The measurements of federations: what they send, what they see of memory, and what they call a leak."""

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from local_grid import LocalGrid

from clients.client_app import app
from ff_flower.errors import ConfigError
from sims.benchmark.memory import MemoryWatch, own_memory, session_processes
from sims.benchmark.pipeline import changed
from sims.benchmark.scale import federation, module_shape
from sims.benchmark.soak import GROWTH, WARM_UP, leaks
from strategies.server_app import run

LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


@pytest.mark.parametrize("megabytes", [0.03, 1.0, 10.0])
def test_modules_have_the_size_that_was_asked_for(megabytes):
    """The tensors of the fitted mixture, in float16, come within a tenth of the megabytes."""
    (channels, height, width), components = module_shape(megabytes)
    pixels = channels * height * width
    numbers = 2 * pixels + components * pixels + 1 + components + components**2
    assert 2 * numbers == pytest.approx(megabytes * 1e6, rel=0.1)


@pytest.mark.parametrize("megabytes", [0.001, 100.0])
def test_sizes_that_no_module_has_are_refused(megabytes):
    """Modules of a kilobyte or of 100 MB are refused with the range."""
    with pytest.raises(ConfigError, match=r"megabytes = .*: must be from 0.02 to 60"):
        module_shape(megabytes)


@pytest.mark.parametrize("nodes", [3, 12])
def test_a_federation_has_one_module_per_node(tmp_path, nodes):
    """Fewer nodes than classes or more, every node sends one module of about that size, and both steps are timed."""
    spec = changed(federation(tmp_path, nodes, *module_shape(0.03)), {"out": str(tmp_path / "runs"), "server-threads": 1})
    directory = run(LocalGrid(app, nodes), spec)
    sizes = [path.stat().st_size for path in directory.path.glob("modules/*.safetensors")]
    assert len(sizes) == nodes and all(size == pytest.approx(0.03e6, rel=0.15) for size in sizes)
    metrics = directory.read_json("metrics.json")
    assert metrics["missing"] == metrics["quarantined"] == []
    assert set(metrics["steps"]) == {"collect", "broadcast"} and all(seconds > 0 for seconds in metrics["steps"].values())


@LINUX
def test_memory_is_told_by_role(tmp_path):
    """A process of the session that holds 60 MB is seen with at least these; another's is not counted, and it ends with it."""
    program = "import sys, time; held = bytearray(60_000_000); print('ready', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", program, "flwr-simulation"]
    environment = {**os.environ, "FLWR_HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True) as process:
        process.stdout.readline()
        with MemoryWatch(tmp_path) as watch:
            time.sleep(0.5)
        [seen] = session_processes(tmp_path)
        process.kill()
    assert (seen.process_id, seen.role) == (process.pid, "server")
    assert 60 <= watch.megabytes()["server"] < 200 and watch.megabytes()["actor"] == 0
    assert session_processes(tmp_path) == [] and session_processes(tmp_path / "another") == []


@LINUX
def test_own_memory_grows_with_what_is_held():
    """50 MB more, of pages that nobody had before, are seen as 50 MB more."""
    before = own_memory()
    with mmap.mmap(-1, 50_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(b"1" * len(held))
        assert own_memory() - before >= 0.9 * len(held)


def row(number, **changes):
    """Return a row of the soak after some run, at rest."""
    rest = {"processes": 2, "ports": 1, "folders": 3, "superlink MB": 100.0, "this process MB": 50.0}
    return {"after run": number, **rest, **changes}


def test_what_does_not_grow_is_no_leak():
    """Counts that fall or stay, and memory that wavers or rises during the warm-up alone, are no leak."""
    waver = [row(n, **{"superlink MB": 100.0 + n % 2}) for n in range(10)]
    rise = [row(n, **{"superlink MB": 100.0 + 5 * min(n, WARM_UP)}) for n in range(10)]
    assert leaks(waver) == leaks(rise) == leaks([row(n, folders=9 - n) for n in range(9)]) == []


@pytest.mark.parametrize("name", ["processes", "ports", "folders"])
def test_one_more_at_the_end_is_a_leak(name):
    """A single process, port or folder that is left is named."""
    rows = [*[row(n) for n in range(8)], row(8, **{name: 4})]
    [sentence] = leaks(rows)
    assert sentence.startswith(f"{name}: ") and sentence.endswith("4 after run 8")


def test_memory_that_grows_with_every_run_is_a_leak():
    """Twice the growth that is tolerated is named with its rate."""
    rows = [row(n, **{"this process MB": 50.0 + 2 * GROWTH * n}) for n in range(8)]
    assert leaks(rows) == [f"this process MB: grows by {2 * GROWTH:.2f} per run"]
