"""The house rules that a machine can check: who imports whom, what may not be there, and what Flower will find."""

import ast
import importlib
import io
import tomllib
import zipfile
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from ff_flower.config import RunSpec
from sims.defaults import flatten
from sims.processes.packing import copy_of_app

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ff_flower", "strategies", "clients", "sims")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
STATIONS = [  # upstream first; a station imports only what stands above it, stations of one line do not know each other
    {"errors"},
    {"seeding", "machine"},
    {"config"},
    {"accelerator", "environment"},
    {"data"},
    {"generative"},
    {"registry"},
    {"module_store", "synthesis"},
    {"vetting"},
    {"classifiers"},
    {"metrics"},
    {"audit"},
    {"reports", "run_directory", "figures", "federation"},
    {"unlearning"},
    {"verification"},
    {"messages"},
]
RANK = {name: rank for rank, names in enumerate(STATIONS) for name in names}
HEAVY = {"torchvision", "sklearn", "medmnist", "datasets", "flwr_datasets", "matplotlib", "PIL"}
UNSAFE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    """Return the dotted name of a file of ours."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def tree(path: Path) -> ast.Module:
    """Return the parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path, nodes: Iterator[ast.AST]) -> set[str]:
    """Return the absolute names that the import statements among ``nodes`` name, modules where they are ours."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{origin}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else origin for name in names}
    return found


def all_imports(path: Path) -> set[str]:
    """Return what a file imports anywhere, in functions too."""
    return imported(path, ast.walk(tree(path)))


def top(name: str) -> str:
    """Return the first part of a dotted name."""
    return name.partition(".")[0]


def station(name: str) -> str:
    """Return the station of a module of ``ff_flower``."""
    return name.split(".")[1]


each_file = pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])


@each_file
def test_packages_import_only_downstream(path):
    """Strategies and clients know the library but not each other, the library knows neither, and nothing knows sims."""
    allowed = {
        "ff_flower": {"ff_flower"},
        "strategies": {"ff_flower", "strategies"},
        "clients": {"ff_flower", "clients"},
        "sims": {"ff_flower", "strategies", "sims"},
    }
    ours = {name for name in all_imports(path) if top(name) in PACKAGES}
    assert {name for name in ours if top(name) not in allowed[top(module_name(path))]} == set()


@each_file
def test_stations_import_only_upstream(path):
    """Inside ff_flower a file imports its own station and those upstream of it, never the package as a whole."""
    name = module_name(path)
    if top(name) != "ff_flower" or name == "ff_flower":
        return
    ours = {one for one in all_imports(path) if top(one) == "ff_flower"}
    assert "ff_flower" not in ours
    others = {station(one) for one in ours} - {station(name)}
    assert {other for other in others if RANK[other] >= RANK[station(name)]} == set()


def test_every_station_has_a_place():
    """Each file and folder of ff_flower stands in the river."""
    assert {station(name) for name in MODULES if top(name) == "ff_flower" and name != "ff_flower"} <= set(RANK)


def test_no_import_circles():
    """The graph of our modules' imports, those inside functions included, has no circle."""
    graph = {name: (all_imports(path) & set(MODULES)) - {name} for name, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


@each_file
def test_flower_is_imported_only_where_messages_are(path):
    """Only the wire, the strategies, the clients and the laboratory import flwr; only the partitioners import flwr_datasets."""
    tops = {top(name) for name in all_imports(path)}
    knows_flower = top(module_name(path)) != "ff_flower" or path.name == "messages.py"
    assert knows_flower or "flwr" not in tops
    assert path.name == "partitioners.py" or "flwr_datasets" not in tops


@each_file
def test_heavy_packages_are_imported_late(path):
    """Packages that cost seconds are imported inside the functions that need them."""
    assert {top(name) for name in imported(path, iter(tree(path).body))} & HEAVY == set()


@each_file
def test_nothing_is_unpickled(path):
    """No file imports a pickling package, calls torch.load, or allows NumPy to unpickle."""
    assert {top(name) for name in all_imports(path)} & UNSAFE == set()
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    assert [ast.unparse(call.func) for call in calls if ast.unparse(call.func) == "torch.load"] == []
    allowing = [keyword.value for call in calls for keyword in call.keywords if keyword.arg == "allow_pickle"]
    assert [ast.unparse(value) for value in allowing if ast.unparse(value) != "False"] == []


@each_file
def test_no_broad_except(path):
    """Every except clause names what it expects, more narrowly than Exception."""
    handlers = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler)]
    caught = {ast.unparse(name) for handler in handlers if handler.type for name in _names(handler.type)}
    assert all(handler.type for handler in handlers)
    assert caught & {"Exception", "BaseException"} == set()


def test_defaults_of_the_app_are_those_of_the_spec():
    """The table [tool.flwr.app.config] equals RunSpec's defaults, types included (``ff-flower config --write``)."""
    repeated = flatten(PYPROJECT["tool"]["flwr"]["app"]["config"])
    assert {key: (type(value), value) for key, value in repeated.items()} == {
        key: (type(value), value) for key, value in RunSpec().flat().items()
    }


def test_no_federations_table():
    """The table that makes ``flwr run`` rewrite pyproject.toml is not there."""
    assert "federations" not in PYPROJECT["tool"]["flwr"]


@pytest.mark.parametrize("component", ["serverapp", "clientapp"])
def test_flower_components_exist(component):
    """Each component names a module of ours that assigns the app at its top level, as a plain name."""
    module, _, attribute = PYPROJECT["tool"]["flwr"]["app"]["components"][component].partition(":")
    assigned = [node for node in tree(MODULES[module]).body if isinstance(node, ast.Assign)]
    assert attribute in {ast.unparse(target) for node in assigned for target in node.targets}


def test_console_script_exists():
    """The console script points to something that can be called."""
    module, _, attribute = PYPROJECT["project"]["scripts"]["ff-flower"].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_app_bundle_holds_all_runtime_files(tmp_path):
    """The bundle that flwr run builds holds every module and preset of the four packages, and so does a session's."""
    from flwr.cli.build import build_fab_from_disk

    built = build_fab_from_disk(ROOT)
    copy = copy_of_app(ROOT, tmp_path / "app")
    assert copy != ROOT and build_fab_from_disk(copy) == built
    with zipfile.ZipFile(io.BytesIO(built)) as bundle:
        held = set(bundle.namelist())
    needed = {path.relative_to(ROOT).as_posix() for path in [*FILES, *(ROOT / "sims" / "presets").glob("*.toml")]}
    assert needed <= held


def _names(expression: ast.expr) -> list[ast.expr]:
    return expression.elts if isinstance(expression, ast.Tuple) else [expression]
