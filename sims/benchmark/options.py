"""What the commands of ``python -m sims.benchmark`` share: options, and what is done with rows that were measured."""

from pathlib import Path
from typing import Annotated

import typer

from ff_flower.errors import ConfigError

from ..report import show
from .results import Results

HOME = Path(__file__).resolve().parents[1] / "results"

Preset = Annotated[str, typer.Option(help="Name of a preset, or a path to a TOML file.")]
Repeats = Annotated[int, typer.Option(help="Repetitions: medians of times, means of accuracies.")]
Quick = Annotated[bool, typer.Option("--quick", help="Toy sizes in one process: shows that it works, measures nothing.")]
Write = Annotated[bool, typer.Option("--write", help="Keep the rows in OUT/<command>.json.")]
Out = Annotated[Path, typer.Option(help="Folder of kept rows and pictures.")]
Markdown = Annotated[bool, typer.Option(help="Print Markdown.")]


def refuse_toys(quick: bool, write: bool, out: Path) -> None:
    """Refuse to keep toy rows among the measured ones (ConfigError)."""
    if quick and write and out == HOME:
        raise ConfigError("--quick --write: toy rows would take the place of measured ones; add --out FOLDER")


def finish(found: Results, write: bool, out: Path, markdown: bool) -> None:
    """Show the table, and keep its rows where that was asked for."""
    show([found.table()], markdown=markdown)
    if write:
        found.keep(out)
        tell(f"kept in {found.name}.json")


def keep(row: Results, write: bool, out: Path) -> None:
    """Tell of a row, and keep it, before the next one is measured."""
    tell(", ".join(f"{name} {value}" for name, value in row.rows[0].items()))
    if write:
        row.keep(out)


def tell(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)
