"""Runs of sites with images of their own, in this process."""

from dataclasses import dataclass
from pathlib import Path

from local_grid import LocalGrid, tiny

from clients.client_app import app
from strategies.server_app import run

CLASSES = {"north": (3, 7), "south": (1,), "west": (9, 0)}


def own(out, **changes):
    """Return the smallest run of three sites with images of their own."""
    return tiny(out, **({"data__name": "sites", "num_clients": 3, "connect_timeout": 0.3} | changes))


def deployed(folders, **changes):
    """Return the node-configs of SuperNodes, by number; a site's may be changed by its name."""
    configs = [{"name": name, "data": f"folder:{folder}"} | changes.get(name, {}) for name, folder in folders.items()]
    return dict(enumerate(configs))


@dataclass(frozen=True)
class Deployed:
    """A run of sites: its grid, and its run directory."""

    grid: LocalGrid
    path: Path
    metrics: dict

    def files(self):
        """Return every module file and classifier by its path in the run directory."""
        return {path.relative_to(self.path).as_posix(): path.read_bytes() for path in self.path.rglob("*.safetensors")}


def make(spec, node_config, shuffle=0, tamper=None, nodes=None, kind=LocalGrid):
    """Run ``spec`` on local nodes with these node-configs."""
    grid = kind(app, nodes or len(node_config) or spec.num_clients, shuffle, tamper, node_config)
    directory = run(grid, spec)
    return Deployed(grid, directory.path, directory.read_json("metrics.json"))
