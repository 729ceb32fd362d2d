"""Simulations in a private SuperLink, each with its own Ray."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from ff_flower.config import Scalar

from ..defaults import check_keys
from .superlink import CONNECTION, PrivateSuperLink, RunOutcome

_SETTINGS = '[superlink]\ndefault = "{name}"\n\n[superlink.{name}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'


class FlowerSession(PrivateSuperLink):
    """Context manager of a private SuperLink for simulations; submit runs one after the other, each has its own Ray.

    Examples
    --------
    >>> with FlowerSession() as session:  # doctest: +SKIP
    ...     outcome = session.run(Path("."), {"seed": 1}, num_supernodes=10, stream=print)
    """

    def _prepare(self, port: int) -> list[str]:
        (self.home / "config.toml").write_text(_SETTINGS.format(name=CONNECTION, port=port), encoding="utf-8")
        return ["--insecure", "--simulation"]

    def run(
        self,
        app: Path,
        overrides: Mapping[str, Scalar],
        *,
        num_supernodes: int,
        num_cpus: int = 1,
        num_gpus: float = 0.0,
        stream: Callable[[str], None] | None = None,
    ) -> RunOutcome:
        """Submit ``app``, stream its log and wait for the end.

        Parameters
        ----------
        app : pathlib.Path
            Folder of the app's ``pyproject.toml``.
        overrides : mapping from str to scalar
            Keys of the app's configuration, dotted, that differ from its defaults; paths must be absolute.
        num_supernodes : int
            Nodes of the simulated federation.
        num_cpus : int
            Cores per client; as many clients work at once as the machine has such shares.
        num_gpus : float
            Share of a GPU per client. At 0 nothing is reserved, and clients still see the GPUs.
        stream : callable from str, optional
            Receives the log line by line as it comes, without line ends; see `LogFilter` for a quiet one.

        Returns
        -------
        RunOutcome
            Whatever the end; a failed run does not raise.

        Raises
        ------
        ConfigError
            For a key that the app does not have.
        RunError
            Where Flower refused the run, or the SuperLink was lost.
        """
        check_keys(app, overrides)
        for ended in (self.home / "ray").glob("session_2*"):  # Ray keeps the folder of every run that is over
            shutil.rmtree(ended, ignore_errors=True)
        federation = (
            f"num-supernodes={num_supernodes} client-resources-num-cpus={num_cpus} client-resources-num-gpus={float(num_gpus)}"
        )
        return self._execute(app, overrides, ["--federation-config", federation], stream)
