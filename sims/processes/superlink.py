"""A SuperLink of one's own: started, used and stopped without a trace.

Flower's shared local SuperLink keeps the environment and the directory of its first start, outlives its runs and reports
success for runs that failed. A `PrivateSuperLink` stands on a free loopback port, has its own ``FLWR_HOME`` in a temporary
folder, and removes every process and file of it at the end, also after Ctrl-C, SIGTERM and SIGHUP. POSIX only.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from ff_flower.config import Scalar
from ff_flower.errors import RunError
from ff_flower.machine import path_of

from ..defaults import toml_line
from .packing import copy_of_app
from .process_groups import process_groups

COMPLETED = "finished:completed"
CONNECTION = "private"
START_SECONDS = 60.0
STOP_SECONDS = 3.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LONGEST_ROOT = 27  # Ray appends up to 80 bytes to the session's folder, and the path of a unix socket ends at 107
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",  # at 0.2 the SuperLink takes 4 % of a core for it, as long as a run lasts
    "RAY_ADDRESS": "local",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PYTHONUNBUFFERED": "1",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended, from the SuperLink's own record.

    Attributes
    ----------
    run_id : str
        Flower's name of the run.
    status : str
        ``finished:completed``, ``finished:failed`` or ``finished:stopped``.
    details : str
        Why, where Flower knows; empty otherwise.
    seconds : float
        Wall clock from submission to the end.
    """

    run_id: str
    status: str
    details: str
    seconds: float

    @property
    def completed(self) -> bool:
        """Whether the ServerApp came to its end; says nothing of the clients."""
        return self.status == COMPLETED


class PrivateSuperLink:
    """Context manager of a private SuperLink; submit runs one after the other.

    Attributes
    ----------
    home : pathlib.Path
        The session's temporary folder; it exists between ``__enter__`` and ``__exit__``.
    environment : dict of str to str
        Of every process of the session; ``FLWR_HOME`` in or under the folder marks them as the session's.
    """

    home: Path
    environment: dict[str, str]
    _undo: ExitStack
    _superlink: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        """Start the SuperLink and wait until it answers.

        Raises
        ------
        RunError
            Where Flower is not installed beside this interpreter, or the SuperLink does not come up.
        """
        with ExitStack() as undo:
            _exit_on_signals(undo)
            root = tempfile.gettempdir()
            self.home = Path(tempfile.mkdtemp(prefix="ff-", dir=root if len(root) <= _LONGEST_ROOT else "/tmp"))
            undo.callback(shutil.rmtree, self.home, ignore_errors=True)
            self.environment = _environment(self.home)
            port = self._choose_port()
            arguments = self._prepare(port)
            self._start([*arguments, "--host", "127.0.0.1", "--port", str(port)])
            undo.callback(self._stop)
            undo.callback(_ignore_signals)
            self._await_health(port)
            self._attend(port)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Stop the SuperLink with all that it started, and remove the session's folder."""
        self._undo.close()

    def _choose_port(self) -> int:
        return free_port()

    def _prepare(self, port: int) -> list[str]:
        """Write what the SuperLink and its users need into the folder; return the options of ``flower-superlink``."""
        raise NotImplementedError

    def _attend(self, port: int) -> None:
        """Do what has to be done once the SuperLink answers."""

    def _health(self, port: int) -> tuple[str, urllib.request.BaseHandler]:
        """Return the address that says whether the SuperLink is up, and how to open it."""
        return f"http://127.0.0.1:{port}/health", urllib.request.HTTPHandler()

    def _execute(
        self, app: Path, overrides: Mapping[str, Scalar], options: list[str], stream: Callable[[str], None] | None
    ) -> RunOutcome:
        """Submit ``app``, stream its log, wait for the end, and ask the SuperLink how it was."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="submission-", dir=self.home) as folder:
            copied = copy_of_app(app.resolve(), Path(folder) / "app")
            if overrides:
                settings = Path(folder) / "run-config.toml"
                settings.write_text("".join(f"{toml_line(key, value)}\n" for key, value in overrides.items()), encoding="utf-8")
                options = [*options, "--run-config", str(settings)]
            command = ["flwr", "run", str(copied), CONNECTION, "--stream", *options]
            run_id = self._submit(command, stream or (lambda line: None))
        record = self._record(run_id)
        while not record["status"].startswith("finished"):
            time.sleep(0.2)
            record = self._record(run_id)
        details = record["status-details"].removeprefix("Simulation failed with exception: ")
        return RunOutcome(run_id, record["status"], "" if details == "N/A" else details, time.monotonic() - began)

    def _submit(self, command: list[str], stream: Callable[[str], None]) -> str:
        """Run ``flwr run --stream`` to the end of the log; return the run's name."""
        process = subprocess.Popen(
            command,
            cwd=self.home / "start",
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout is not None
        run_id, unsubmitted = "", []
        try:
            for line in process.stdout:
                started = re.search(r"Successfully started run (\d+)", line)
                run_id = run_id or (started[1] if started else "")
                unsubmitted += [] if run_id else [line]
                stream(line.rstrip("\n"))
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if not run_id:
            raise RunError("Flower refused the run:\n" + "".join(unsubmitted).strip())
        return run_id

    def _ask(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        """Run ``flwr`` with ``arguments`` and return what it said."""
        return subprocess.run(
            ["flwr", *arguments],
            cwd=self.home / "start",
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
        )

    def _record(self, run_id: str) -> dict[str, Any]:
        """Return the SuperLink's record of the run; the exit code of ``flwr`` says nothing."""
        answer = self._ask(["list", CONNECTION, "--run-id", run_id, "--format", "json"])
        with suppress(json.JSONDecodeError):
            found = json.loads(answer.stdout)
            if found.get("success") and found["runs"]:
                record: dict[str, Any] = found["runs"][0]
                return record
        self._fail(f"the SuperLink does not answer for run {run_id}: {answer.stdout}{answer.stderr}".strip())

    def _start(self, arguments: list[str]) -> None:
        """Start ``flower-superlink`` in an empty directory: simulated clients import from there first."""
        if shutil.which("flower-superlink", path=self.environment["PATH"]) is None:
            raise RunError(f"flower-superlink: must be beside {sys.executable}; install this project into that environment")
        (self.home / "start").mkdir()
        self._superlink = self._spawn(
            ["flower-superlink", *arguments], self.home / "start", self.environment, self.home / "superlink.log"
        )

    def _spawn(self, command: list[str], folder: Path, environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process that leads a group of its own."""
        with log.open("wb") as file:
            return subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _await_health(self, port: int) -> None:
        address, handler = self._health(port)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), handler)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._superlink.poll() is None:
            with suppress(OSError), opener.open(address, timeout=5):
                return
            time.sleep(0.1)
        self._fail(f"the SuperLink did not come up within {START_SECONDS:.0f} s")

    def _fail(self, what: str) -> NoReturn:
        lines = (self.home / "superlink.log").read_text(encoding="utf-8", errors="replace").splitlines()
        raise RunError("\n".join([what, "its last lines:", *lines[-10:]]))

    def _stop(self) -> None:
        """End the SuperLink, then whatever is left of its process groups: SuperExec, simulation, Ray, SuperNodes."""
        groups = process_groups(self.home)
        self._superlink.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._superlink.wait(STOP_SECONDS)
        while groups:
            for group in groups:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            time.sleep(0.05)
            groups = process_groups(self.home)
        self._superlink.wait()


def _environment(home: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    places = {"PATH": path, "FLWR_HOME": str(home), "RAY_TMPDIR": str(home), "TMPDIR": str(home)}
    lasting = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ff-flower"
    if images := os.environ.get("FF_DATA"):
        places["FF_DATA"] = str(path_of(images).resolve())  # the processes of a session start elsewhere
    # What torch.compile made would go with the session, from TMPDIR; it serves the next one too.
    return {"TORCHINDUCTOR_CACHE_DIR": str(lasting / "inductor"), **os.environ, **_ENVIRONMENT, **places}


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _exit_on_signals(undo: ExitStack) -> None:
    """Let SIGTERM and SIGHUP end the program as Ctrl-C does, by an exception; signals belong to the main thread.

    SIGHUP, which a closed terminal sends, stays ignored where it is: under ``nohup``.
    """
    if threading.current_thread() is threading.main_thread():
        answers = {number: signal.getsignal(number) for number in _ENDING}
        for number, answer in answers.items():
            undo.callback(signal.signal, number, answer)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        if answers[signal.SIGHUP] != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, lambda number, frame: sys.exit(128 + number))


def _ignore_signals() -> None:
    """Let nothing interrupt the end of a session; the former answers come back after it."""
    if threading.current_thread() is threading.main_thread():
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
