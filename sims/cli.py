"""The console script ``ff-flower``: what is not ``flwr run``."""

import ast
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from typer.core import TyperCommand, TyperGroup

from ff_flower.config import RunSpec

from .defaults import render_config, write_config
from .report import TextTable, distinct, load_metrics, run_tables, show, summarize
from .run import APP, presets, refusing

# each with a command ``main``
MODULES = ("run", "compare", "validate", "explain", "forget", "inspect", "verify", "status", "deploy_demo")


class LateCommand(TyperCommand):
    """A command whose module is imported when it is called: most of them import torch, for which no overview should wait.

    Parameters
    ----------
    module : str
        Name of the module beside this one whose function ``main`` is the command.
    """

    def __init__(self, module: str) -> None:
        source = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
        main = next(node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == "main")
        super().__init__(module.replace("_", "-"), help=ast.get_docstring(main))
        self.module = module

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context of the command itself."""
        one = typer.Typer(add_completion=False)
        one.command(self.name)(import_module(f"{__package__}.{self.module}").main)
        return typer.main.get_command(one).make_context(info_name, args, parent, **extra)


class Commands(TyperGroup):
    """The commands of `MODULES`, and those of this file after them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        late = [LateCommand(module) for module in MODULES]
        self.commands = {str(command.name): command for command in late} | dict(self.commands)


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, help="FederatedFactory on Flower: runs, reports, settings."
)

Markdown = Annotated[bool, typer.Option(help="Print Markdown.")]


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories or metrics.json files.")], markdown: Markdown = False
) -> None:
    """Print the tables of one run, or the means over several."""
    with refusing():
        found = [load_metrics(run) for run in distinct(runs)]
    show(run_tables(found[0]) if len(found) == 1 else [summarize(found)], markdown=markdown)


@app.command()
def keygen(
    name: Annotated[str, typer.Argument(help="The owner whose modules the key will sign.")],
    out: Annotated[Path, typer.Option(help="Folder of the two files.")] = Path(),
) -> None:
    """Make NAME.key, with which a node signs its modules, and NAME.pub, with which everybody else checks them."""
    from ff_flower.registry import write_key_pair

    with refusing():
        private, public = write_key_pair(name, out)
    print(f"{private}: the private key; it stays at the node (node-config: signing-key={str(private.resolve())!r})")
    print(f"{public}: the public key; it goes into the folder that trust.public-keys names")


@app.command()
def certificates(
    folder: Annotated[Path, typer.Argument(help="Folder of the files; made where it is not there.")],
    hosts: Annotated[list[str] | None, typer.Option("--host", help="Name or address of the SuperLink; may be repeated.")] = None,
    sites: Annotated[list[str] | None, typer.Option("--site", help="Make a key pair for its SuperNode; may be repeated.")] = None,
    days: Annotated[int, typer.Option(min=1, max=36_500, help="How long the certificates hold.")] = 365,
) -> None:
    """Make a certificate authority and the SuperLink's certificate, or, with --site alone, keys of SuperNodes."""
    from .processes.certificates import make_certificates, make_node_keys

    with refusing():
        if hosts or not sites:
            make_certificates(folder, hosts or (), days)
            print(f"{folder / 'ca.crt'}: every site gets it (flower-supernode --root-certificates)")
            print(f"{folder / 'server.pem'}, server.key: for flower-superlink; ca.key: keep it elsewhere")
        for private in make_node_keys(folder, sites or ()):
            print(f"{private}: for that site's SuperNode alone (--auth-supernode-private-key); register {private.name}.pub")


@app.command()
def gallery(
    run: Annotated[Path, typer.Argument(help="A run directory.")], picture: Annotated[Path, typer.Argument(help="The PNG file.")]
) -> None:
    """Draw real images beside samples of a run's modules, two rows per module."""
    from .gallery import draw_gallery

    with refusing():
        draw_gallery(run, picture)


@app.command()
def datasets(markdown: Markdown = False) -> None:
    """List the image sets that ``data.name`` may name; beside them there are npz:/path/file.npz and folder:/path."""
    from ff_flower.data import DATASETS

    header = ("name", "title", "classes", "shape", "task", "licence", "augmentation", "source")
    rows = []
    for one in DATASETS.values():
        shape = "x".join(str(side) for side in one.shape)
        rows.append((one.name, one.title, str(len(one.classes)), shape, one.task, one.licence, one.augmentation, one.source))
    show([TextTable("Image sets", header, tuple(rows), prose=True)], markdown=markdown)


@app.command("presets")
def list_presets(markdown: Markdown = False) -> None:
    """List the presets with what they are and cost: their files' first lines."""
    rows = tuple((name, _first_line(path)) for name, path in presets().items())
    show([TextTable("Presets", ("name", "what it is"), rows, prose=True)], markdown=markdown)


@app.command()
def config(
    write: Annotated[
        bool, typer.Option("--write", help="For developers: copy the defaults of RunSpec into pyproject.toml.")
    ] = False,
) -> None:
    """Print all keys with their defaults as the tables that pyproject.toml repeats for Flower."""
    if not write:
        typer.echo(render_config(RunSpec()), nl=False)
        return
    with refusing():
        changed = write_config(APP / "pyproject.toml")
    typer.echo(f"{APP / 'pyproject.toml'}: {'written' if changed else 'equal already'}")


def _first_line(preset: Path) -> str:
    return preset.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


if __name__ == "__main__":
    app()
