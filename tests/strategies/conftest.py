"""Whole runs that the strategies' tests share, each made once."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from local_grid import LocalGrid, tiny

from clients.client_app import app
from ff_flower.config import RunSpec
from ff_flower.run_directory import RunDirectory
from strategies.server_app import run


@dataclass(frozen=True)
class Finished:
    """A run that was made: its spec, its grid, and its directory."""

    spec: RunSpec
    grid: LocalGrid
    directory: RunDirectory

    @property
    def metrics(self):
        """What ``metrics.json`` says."""
        return self.directory.read_json("metrics.json")

    def modules(self):
        """Return the module files by name."""
        return {path.name: path.read_bytes() for path in (self.directory.path / "modules").glob("*.safetensors")}

    def files(self, *folders):
        """Return the bytes of all safetensors files in some folders of the run directory, by path."""
        paths = [path for folder in folders for path in (self.directory.path / folder).rglob("*.safetensors")]
        return {path.relative_to(self.directory.path).as_posix(): path.read_bytes() for path in paths}

    def scores(self):
        """Return the results without the bytes, to which a repair adds."""
        results = self.metrics["results"]
        return {name: {key: value for key, value in result.items() if key != "bytes"} for name, result in results.items()}

    def copy(self, folder, tamper=None):
        """Return the same run in another output folder, with a grid that has asked nobody yet."""
        shutil.copytree(Path(self.spec.out), folder / "copy", symlinks=True)
        spec = self.spec.model_copy(update={"out": str(folder / "copy")})
        grid = LocalGrid(app, spec.num_clients, shuffle=5, tamper=tamper)
        return Finished(spec, grid, RunDirectory(folder / "copy" / self.directory.path.name))

    def again(self, tamper=None):
        """Run the same spec once more in the same folder, with fresh nodes."""
        grid = LocalGrid(app, self.spec.num_clients, shuffle=9, tamper=tamper)
        return Finished(self.spec, grid, run(grid, self.spec))


def make(spec, shuffle=0, tamper=None, node_config=None):
    """Run ``spec`` on local nodes."""
    grid = LocalGrid(app, spec.num_clients, shuffle, tamper, node_config)
    return Finished(spec, grid, run(grid, spec))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Return a whole run with every consensus."""
    return make(tiny(tmp_path_factory.mktemp("finished")), shuffle=1)


@pytest.fixture(scope="session")
def upload_only(tmp_path_factory):
    """Return a run that ends with the upload of the modules."""
    return make(tiny(tmp_path_factory.mktemp("upload"), synthesis__site="server"), shuffle=2)


@pytest.fixture(scope="session")
def other_seed(tmp_path_factory):
    """Return an upload of another seed."""
    return make(tiny(tmp_path_factory.mktemp("seed"), synthesis__site="server", seed=1))


@pytest.fixture(scope="session")
def other_settings(tmp_path_factory):
    """Return an upload of modules with fewer components."""
    return make(tiny(tmp_path_factory.mktemp("settings"), synthesis__site="server", module__gaussian_mixture__components=4))


@pytest.fixture(scope="session")
def run_tiny():
    """Return a function that runs a spec on local nodes, in a shuffled order, with tampered replies."""
    return make
