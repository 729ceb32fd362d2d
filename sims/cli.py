"""The console script ``ff-flower``: what is not ``flwr run``."""

from pathlib import Path
from typing import Annotated

import typer

from ff_flower.config import RunSpec

from .compare import main as compare
from .defaults import render_config, write_config
from .deploy_demo import main as deploy_demo
from .forget import main as forget
from .inspect import main as inspect
from .processes.certificates import make_certificates, make_node_keys
from .report import TextTable, load_metrics, run_tables, show, summarize
from .run import APP, main, presets, refusing
from .status import main as status
from .validate import main as validate
from .verify import main as verify

app = typer.Typer(no_args_is_help=True, add_completion=False, help="FederatedFactory on Flower: runs, reports, settings.")
app.command("run")(main)
app.command("compare")(compare)
app.command("validate")(validate)
app.command("forget")(forget)
app.command("inspect")(inspect)
app.command("verify")(verify)
app.command("status")(status)
app.command("deploy-demo")(deploy_demo)

Markdown = Annotated[bool, typer.Option(help="Print Markdown.")]


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories or metrics.json files.")], markdown: Markdown = False
) -> None:
    """Print the tables of one run, or the means over several."""
    with refusing():
        found = [load_metrics(run) for run in runs]
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
    days: Annotated[int, typer.Option(min=1, help="How long the certificates hold.")] = 365,
) -> None:
    """Make a certificate authority and the SuperLink's certificate, or, with --site alone, keys of SuperNodes."""
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
