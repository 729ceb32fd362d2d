"""Whether a run directory is whole: one line per finding, a summary, and an exit code."""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ff_flower.errors import ConfigError
from ff_flower.machine import path_of
from ff_flower.registry import SignaturePolicy
from ff_flower.reports import plain_text
from ff_flower.verification import Finding, RunContents, is_plain, verify_run

from .run import FAILED, refusing


def main(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    public_keys: Annotated[str, typer.Option(help="Folder of OWNER.pub files; the run's own where it is not given.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recheck every hash and every cross reference of a run directory; exit code 0 where it is whole, 1 where it is not."""
    with refusing():
        findings, contents = verify_run(run, signature_policy(run, public_keys))
    broken = [finding for finding in findings if finding.broken]
    told = summary(findings, contents)
    if as_json:
        print(json.dumps({"whole": not broken, "summary": told, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        for finding in findings:
            place, detail = one_line(finding.place), one_line(finding.detail)
            print(f"{'BROKEN' if finding.broken else 'remark'}  {place}: {finding.rule}: {detail}")
        print(told)
    raise typer.Exit(FAILED if broken else 0)


def one_line(text: str) -> str:
    """Return a text as a terminal bears it: a file's name may hold any bytes, control characters and line ends among them."""
    return plain_text(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def signature_policy(run: Path, public_keys: str) -> SignaturePolicy:
    """Return whose signatures are believed: the keys of a folder that was named, else of the run's where it can be seen.

    Raises
    ------
    ConfigError
        When a key cannot be read.
    """
    spec = run / "spec.json"
    try:
        stored = json.loads(spec.read_text(encoding="utf-8")) if is_plain(spec, run) else {}
        required, own = stored.get("trust.require-signature") is True, str(stored.get("trust.public-keys", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        required, own = False, ""
    if public_keys:
        return SignaturePolicy.read(public_keys, required)
    folder = _seen(own) if own else None
    try:
        return SignaturePolicy.read(folder, required) if folder else SignaturePolicy()
    except ConfigError as error:
        raise ConfigError(f"{error}; or name another folder by --public-keys") from error


def summary(findings: list[Finding], run: RunContents | None) -> str:
    """Return one sentence about what was looked at and what came of it."""
    broken = sum(finding.broken for finding in findings)
    verdict = f"{broken} broken, {len(findings) - broken} remarks" if broken else f"whole, {len(findings)} remarks"
    if run is None:
        return verdict
    files = sum(1 for _ in run.files())
    signed = sum(run.signature(module) is not None for module in run.modules.values())
    return f"{verdict}: {files} files, {len(run.modules)} modules ({signed} signed), {len(run.reports)} reports of owners"


def _seen(folder: str) -> Path | None:
    """Return the folder that a run names, where it is on this machine; a home may be of somebody who is not."""
    with suppress(OSError, ValueError):
        return path if (path := path_of(folder)).is_dir() else None
    return None
