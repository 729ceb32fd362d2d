"""Two run directories side by side: the proof that forgetting made what a run from scratch makes."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..reports import Answer, FitReport
from ..run_directory import RunDirectory, combined_digest, file_digest

_TIMED = ("work", "peak_memory", "training", "synthesis")


@dataclass(frozen=True)
class Compared:
    """One artefact in two runs; the digest is None where a run does not have it."""

    name: str
    forgotten: str | None
    scratch: str | None

    @property
    def equal(self) -> bool:
        """Whether both have it, and have the same."""
        return self.forgotten is not None and self.forgotten == self.scratch


def compare_runs(forgotten: RunDirectory, scratch: RunDirectory) -> list[Compared]:
    """Compare everything that two runs made, but for their seconds and bytes.

    Parameters
    ----------
    forgotten : RunDirectory
        A run that has forgotten somebody.
    scratch : RunDirectory
        The run from scratch that excludes the same.

    Returns
    -------
    list of Compared
        Module files, nodes' logits, classifiers and reports, server and student, the label distribution, the synthetic set and
        all scores, sorted by name.
    """
    sides = [_artefacts(one) for one in (forgotten, scratch)]
    return [Compared(name, sides[0].get(name), sides[1].get(name)) for name in sorted(sides[0].keys() | sides[1].keys())]


def _artefacts(directory: RunDirectory) -> dict[str, str]:
    """Return a digest by name; files by their bytes, reports without what the clock says."""
    run = directory.path
    files = [*_tensors(run / "modules", "*"), *_tensors(run / "nodes", "*/*"), *_tensors(run / "classifiers", "*")]
    found = {path.relative_to(run).as_posix(): file_digest(path) or "" for path in files}
    for path in sorted((run / "nodes").glob("*/*.json")):
        report = (FitReport if path.name == "fit.json" else Answer).from_json(path.read_text(encoding="utf-8"))
        found[path.relative_to(run).as_posix()] = _digest({k: v for k, v in asdict(report).items() if k not in _TIMED})
    metrics = directory.metrics()
    for name, result in metrics["results"].items():
        found[f"scores of {name}"] = _digest({key: value for key, value in result.items() if key != "bytes"})
    for key in ("synthetic_digest", "excluded", "label_table", "spec_digest"):
        found[key.replace("_", " ")] = _digest(metrics.get(key))
    distribution = file_digest(run / "label_distribution.json")
    return found | ({"label_distribution.json": distribution} if distribution else {})


def _tensors(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(f"{pattern}.safetensors"))


def _digest(value: Any) -> str:
    return combined_digest(repr(value))
