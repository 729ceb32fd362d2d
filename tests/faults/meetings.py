"""How a test holds processes at chosen places, to kill them there: the product's app behind the held one, and a folder."""

import shutil
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

from sims.run import APP

HELD_APP = Path(__file__).parent / "held_app"
SITES = {"hanging": (5, 6), "killed": (1, 2), "steady": (3, 4), "unmounted": (7, 8)}  # the deployment's partitions 0 to 3
TIMEOUT = 25.0
SECRETS = ("secret-place", "patient-")  # parts of the names of the sites' folders and of their files


def held_app(folder):
    """Return the folder of the product's app with the held apps in the place of its own."""
    for package in ("ff_flower", "strategies", "clients", "sims"):
        shutil.copytree(APP / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in HELD_APP.glob("*.py"):
        shutil.copy(file, folder)
    text = (APP / "pyproject.toml").read_text(encoding="utf-8")
    for old, new in (
        ("strategies.server_app:app", "held_server:app"),
        ("clients.client_app:app", "held_client:app"),
        ('fab-include = ["', 'fab-include = ["held*.py", "'),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    for name in ("README.md", "LICENSE"):
        shutil.copy(APP / name, folder)
    return folder


@dataclass
class Meetings:
    """The folder in which processes and the test meet."""

    folder: Path
    running: Future | None = None
    lines: list[str] = field(default_factory=list)

    def hold(self, name):
        """Let the next process of that name wait."""
        (self.folder / f"{name}.here").unlink(missing_ok=True)
        (self.folder / f"{name}.hold").touch()

    def release(self, name):
        """Let it go on."""
        (self.folder / f"{name}.hold").unlink()

    def await_process(self, name, seconds=120.0):
        """Return the id of the process that waits."""
        here, end = self.folder / f"{name}.here", time.monotonic() + seconds
        while not (here.exists() and here.read_text()):
            ended = self.running is not None and self.running.done() and self.running.result()
            assert not ended and time.monotonic() < end, "\n".join([f"nobody came to {name}; the log:", *self.lines])
            time.sleep(0.05)
        return int(here.read_text())

    def while_running(self, running, lines):
        """Return the meetings of a run, which may end before they come about, and its log."""
        return replace(self, running=running, lines=lines)
