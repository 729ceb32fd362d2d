"""The module card: what a module file says of itself, what was verified, and what its samples look like."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from ff_flower.config import TrustSpec
from ff_flower.errors import ConfigError, VerificationError
from ff_flower.registry import SignaturePolicy
from ff_flower.seeding import generator
from ff_flower.verification import OpenedModule, open_file
from ff_flower.vetting import check_batch, check_samples

from .gallery import draw_grid
from .report import TextTable, show
from .run import FAILED, refusing

PROBE = 8  # samples with which something can be said of a module


def card(opened: OpenedModule, signature: str, probe: str) -> dict[str, Any]:
    """Return everything that is known of a verified module, ready for JSON."""
    state = opened.module.state()
    return {
        "module_id": opened.module_id,
        "bytes": opened.num_bytes,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "tensors": len(state),
        **opened.manifest.model_dump(mode="json"),
        "signature": signature,
        "verification": "every rule of the format holds; the tensors are those of the settings",
        "samples": probe,
    }


def check_signature(path: Path, opened: OpenedModule, policy: SignaturePolicy) -> str:
    """Check the signature beside a module file; return in words what came of it.

    Raises
    ------
    VerificationError
        Rule ``signature`` or ``signature-owner``.
    """
    beside, owner = path.with_suffix(".sig"), opened.manifest.owner
    if not beside.is_file():
        return "none"
    with beside.open("rb") as file:
        verified = policy.check(owner, opened.module_id, file.read(65))
    return f"verified: {owner!r} signed it" if verified else f"not checked: no public key of {owner!r} (--public-keys)"


def draw(opened: OpenedModule, count: int) -> Tensor:
    """Return the first samples of a module, and refuse those of which the rules of vetting say that no class looks like them.

    Raises
    ------
    VerificationError
        Rule ``finite-samples``, ``sample-range``, ``constant``, ``collapsed`` or ``noise``.
    """
    stream = generator(opened.manifest.root_seed, "sample", opened.module_id)
    images = opened.module.sample(count, stream, check=check_batch)
    if count >= PROBE:
        check_samples(images, TrustSpec())
    return images


def main(
    file: Annotated[Path, typer.Argument(help="A module file.")],
    grid: Annotated[Path | None, typer.Option(help="Draw the samples into this PNG file.")] = None,
    samples: Annotated[int, typer.Option(min=0, max=4096, help="Samples to draw and look at; 0 for none.")] = 64,
    public_keys: Annotated[str, typer.Option(help="Folder of OWNER.pub files, to check the signature FILE.sig.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Verify a module file and show its card; exit code 1 where it is refused, 2 where the options are wrong."""
    with refusing():
        if grid is not None and not samples:
            raise ConfigError("--samples 0: must be at least 1 for a picture of them; leave it out, or leave out --grid")
        policy = SignaturePolicy.read(public_keys, required=False)
    try:
        opened = open_file(file)
        signature = check_signature(file, opened, policy)
        images = draw(opened, samples)
    except (VerificationError, OSError) as error:
        rule, detail = (error.rule, error.detail) if isinstance(error, VerificationError) else ("file", str(error))
        if as_json:
            print(json.dumps({"refused": rule, "detail": detail}, indent=1))
        else:
            print(f"{file}: refused: {rule}: {detail}", file=sys.stderr)
        raise typer.Exit(FAILED) from error
    probe = f"{samples} drawn" + (": finite, in range, neither constant nor collapsed nor noise" if samples >= PROBE else "")
    shown = card(opened, signature, probe)
    with refusing():
        try:
            if grid is not None:
                draw_grid(images, grid)
                shown["grid"] = str(grid)
        finally:
            _print(shown, as_json)


def _print(shown: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(shown, indent=1))
        return
    rows = tuple((name.replace("_", " "), _text(value)) for name, value in shown.items() if value != "")
    show([TextTable(f"Module {shown['module_id'][:12]}", ("what", "value"), rows, prose=True)], markdown=False)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(str(one) for one in value)
    return f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)
