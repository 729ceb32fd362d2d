"""A whole deployment on this machine: a SuperLink with TLS and authentication, and a SuperNode for each site."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ff_flower.config import Scalar
from ff_flower.errors import ConfigError, RunError

from ..defaults import check_keys, toml_line
from .certificates import AUTHORITY, SERVER, SERVER_KEY, make_certificates, make_node_keys
from .superlink import CONNECTION, PrivateSuperLink, RunOutcome, free_port

NODE_SECONDS = 60.0
_SETTINGS = """[superlink]
default = "{name}"

[superlink.{name}]
address = "127.0.0.1:{port}"
root-certificates = "{authority}"
"""


@dataclass(frozen=True)
class SiteNode:
    """A site's SuperNode.

    Attributes
    ----------
    name : str
        The site's name, by which its key is registered and its files are called.
    config : mapping from str to scalar
        Its node-config; ``name`` is added where it is not there.
    threads : int
        Threads of its numerical libraries; several nodes on one machine share its cores.
    """

    name: str
    config: Mapping[str, Scalar] = field(default_factory=dict)
    threads: int = 1


class Deployment(PrivateSuperLink):
    """Context manager of a SuperLink with TLS and node authentication, and of the sites' SuperNodes, all on loopback.

    Every SuperNode has a folder of its own with its log, its ``FLWR_HOME``, its cache and its temporary files.

    Parameters
    ----------
    sites : sequence of SiteNode
        The SuperNodes that are registered and started; others may be started with `start_node`.
    certificates : Path, optional
        Folder with ``ca.crt``, ``server.pem`` and ``server.key``, see `certificates.make_certificates`; without it they are made.
    port : int
        The SuperLink's port; 0 takes a free one.

    Raises
    ------
    ConfigError
        For two sites of one name, certificates that are not there, or a port that is in use.
    """

    def __init__(self, sites: Sequence[SiteNode], certificates: Path | None = None, port: int = 0) -> None:
        names = [site.name for site in sites]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"{', '.join(twice)}: must be the name of one SuperNode only; each has its own key")
        self.sites, self.certificates, self.port = tuple(sites), certificates, port
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def authority(self) -> Path:
        """Certificate of the authority that SuperNodes trust."""
        return (self.certificates or self.home / "certificates") / AUTHORITY

    def _choose_port(self) -> int:
        if not self.port:
            return free_port()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError as error:
                raise ConfigError(
                    f"port {self.port}: cannot be used ({error.strerror}); stop who listens there or take 0"
                ) from error
        return self.port

    def _prepare(self, port: int) -> list[str]:
        if self.certificates is None:
            make_certificates(self.home / "certificates")
        folder = self.authority.parent
        if absent := [name for name in (AUTHORITY, SERVER, SERVER_KEY) if not (folder / name).is_file()]:
            raise ConfigError(f"{folder}: has no {', '.join(absent)}; make them with `ff-flower certificates {folder}`")
        settings = _SETTINGS.format(name=CONNECTION, port=port, authority=self.authority)
        (self.home / "config.toml").write_text(settings, encoding="utf-8")
        files = {"ca-certfile": AUTHORITY, "certfile": SERVER, "keyfile": SERVER_KEY}
        options = [part for option, name in files.items() for part in (f"--ssl-{option}", str(folder / name))]
        return [*options, "--enable-supernode-auth"]

    def _health(self, port: int) -> tuple[str, urllib.request.BaseHandler]:
        context = ssl.create_default_context(cafile=str(self.authority))
        return f"https://127.0.0.1:{port}/health", urllib.request.HTTPSHandler(context=context)

    def _attend(self, port: int) -> None:
        self.port = port
        make_node_keys(self.home / "keys", [site.name for site in self.sites])
        for site in self.sites:
            self.register(self.home / "keys" / f"{site.name}.pub", site.name)
            self.start_node(site)

    def register(self, public_key: Path, name: str) -> None:
        """Let the SuperNode with this key in.

        Raises
        ------
        RunError
            When the SuperLink refuses it, for example a key that is registered already.
        """
        answer = self._ask(["supernode", "register", str(public_key), CONNECTION, "--name", name, "--format", "json"])
        with suppress(json.JSONDecodeError):
            if json.loads(answer.stdout).get("success"):
                return
        raise RunError(f"the SuperLink does not register {public_key.name}: {answer.stdout}{answer.stderr}".strip())

    def start_node(
        self, site: SiteNode, private_key: Path | None = None, authority: Path | None = None, label: str = ""
    ) -> subprocess.Popen[bytes]:
        """Start a SuperNode.

        Parameters
        ----------
        site : SiteNode
            Its name and node-config.
        private_key : Path, optional
            Without one it takes the key that was made for its name.
        authority : Path, optional
            The certificate that it trusts; without one that of the SuperLink.
        label : str
            Name of its folder, where it is not the site's.
        """
        label = label or site.name
        folder = self.home / "nodes" / label
        for name in ("flwr", "tmp"):
            (folder / name).mkdir(parents=True)
        threads = {f"{library}_NUM_THREADS": str(site.threads) for library in ("OMP", "MKL", "OPENBLAS")}
        own = {"FLWR_HOME": folder / "flwr", "TMPDIR": folder / "tmp", "FF_RUNS": folder / "runs"}
        config = {"name": site.name, **site.config}
        options = {
            "superlink": f"127.0.0.1:{self.port}",
            "root-certificates": authority or self.authority,
            "auth-supernode-private-key": private_key or self.home / "keys" / site.name,
            "host": "127.0.0.1",
            "port": free_port(),
            "node-config": " ".join(toml_line(key, value).replace(" = ", "=", 1) for key, value in config.items()),
        }
        command = ["flower-supernode", *(part for key, value in options.items() for part in (f"--{key}", str(value)))]
        environment = {**self.environment, **threads, **{key: str(path) for key, path in own.items()}}
        self.nodes[label] = self._spawn(command, folder, environment, self.node_log(label))
        return self.nodes[label]

    def node_log(self, label: str) -> Path:
        """Return the log of a SuperNode, with its clients' own lines and tracebacks."""
        return self.home / "nodes" / label / "supernode.log"

    def online(self) -> int:
        """Return how many SuperNodes are connected."""
        answer = self._ask(["supernode", "list", CONNECTION, "--format", "json"])
        with suppress(json.JSONDecodeError, KeyError):
            return sum(node["status"] == "online" for node in json.loads(answer.stdout)["nodes"])
        self._fail(f"the SuperLink does not list its SuperNodes: {answer.stdout}{answer.stderr}".strip())

    def await_nodes(self, seconds: float = NODE_SECONDS) -> None:
        """Wait until every site's SuperNode is connected.

        Raises
        ------
        RunError
            With the last lines of their logs, when one has ended, or not all are connected after ``seconds``.
        """
        end = time.monotonic() + seconds
        while (connected := self.online()) < len(self.sites) and time.monotonic() < end:
            for site in self.sites:
                if self.nodes[site.name].poll() is not None:
                    raise RunError("\n".join([f"the SuperNode of {site.name} has ended; its last lines:", *self._end(site)]))
            time.sleep(0.2)
        if connected < len(self.sites):
            what = f"{connected} of {len(self.sites)} SuperNodes are connected after {seconds:.0f} s; the last lines of each:"
            raise RunError("\n".join([what, *(f"{site.name}: {line}" for site in self.sites for line in self._end(site))]))

    def _end(self, site: SiteNode) -> list[str]:
        return self.node_log(site.name).read_text(encoding="utf-8", errors="replace").splitlines()[-10:]

    def run(self, app: Path, overrides: Mapping[str, Scalar], *, stream: Callable[[str], None] | None = None) -> RunOutcome:
        """Submit ``app`` to the SuperLink, stream its log and wait for the end.

        Parameters
        ----------
        app : Path
            Folder of the app's ``pyproject.toml``.
        overrides : mapping from str to scalar
            Keys of the app's configuration, dotted, that differ from its defaults; paths must be absolute.
        stream : callable from str, optional
            Receives the server's log line by line.

        Returns
        -------
        RunOutcome
            Whatever the end; a failed run does not raise.
        """
        check_keys(app, overrides)
        return self._execute(app, overrides, [], stream)

    def keep_logs(self, folder: Path) -> list[Path]:
        """Copy the logs of the SuperLink and of every SuperNode to ``folder``, before the session's folder goes."""
        folder.mkdir(parents=True, exist_ok=True)
        logs = {"superlink": self.home / "superlink.log"} | {label: self.node_log(label) for label in self.nodes}
        return [Path(shutil.copyfile(path, folder / f"{label}.log")) for label, path in logs.items()]

    def _stop(self) -> None:
        """Ask the SuperNodes to leave, then end everything."""
        for node in self.nodes.values():
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGTERM)
        super()._stop()
        for node in self.nodes.values():
            node.wait()
