"""The run that is attacked: what honest nodes send, and a server to which one of them sends something else."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from local_grid import LocalGrid, tiny
from tampering import LIAR
from torch import Tensor

from clients.client_app import app
from ff_flower.config import RunSpec
from ff_flower.data import Splits, load_splits
from ff_flower.errors import VerificationError
from ff_flower.generative import build_module
from ff_flower.messages import fit_reply
from ff_flower.metrics import Ledger
from ff_flower.registry import ModuleManifest, decode_module, encode_module, module_id
from ff_flower.reports import FitReport
from ff_flower.run_directory import RunDirectory
from strategies.collection import Collection
from strategies.server_app import run

OTHER = 1  # an honest node

State = dict[str, Tensor]


@dataclass(frozen=True)
class Sent:
    """A file that a node sends, and what its report says of it: label, number of images, and module id."""

    data: bytes
    label: int
    count: int
    name: str = ""

    @property
    def claimed(self) -> str:
        """The module id that the report gives."""
        return self.name or module_id(self.data)


@dataclass(frozen=True)
class Victim:
    """A federation of five nodes with two classes of digits each, and Gaussian mixtures for modules.

    Attributes
    ----------
    spec : RunSpec
        The run.
    splits : Splits
        Its images.
    reports : dict of FitReport
        What the nodes truthfully say, by partition.
    honest : dict of list
        What they send, by partition, labels ascending.
    """

    spec: RunSpec
    splits: Splits
    reports: dict[int, FitReport]
    honest: dict[int, list[Sent]]

    @classmethod
    def in_folder(cls, folder: Path) -> "Victim":
        """Let honest nodes fit, and keep what they send."""
        spec = tiny(folder, synthesis__site="server")
        directory = run(LocalGrid(app, spec.num_clients), spec)
        texts = [(directory.path / f"nodes/{partition}/fit.json").read_text() for partition in range(spec.num_clients)]
        reports = {partition: FitReport.from_json(text) for partition, text in enumerate(texts)}
        files = directory.path / "modules"
        honest = {
            partition: [
                Sent((files / f"{name}.safetensors").read_bytes(), int(label), report.label_counts[label])
                for label, name in sorted(report.modules.items(), key=lambda item: int(item[0]))
            ]
            for partition, report in reports.items()
        }
        return cls(spec, load_splits(spec.data, spec.seed), reports, honest)

    @property
    def own(self) -> Sent:
        """The module in whose place the liar sends something else."""
        return self.honest[LIAR][0]

    def opened(self, partition: int = LIAR) -> tuple[ModuleManifest, State]:
        """Return manifest and tensors of a node's first honest module."""
        return decode_module(self.honest[partition][0].data)

    def fitted(self, images: Tensor) -> bytes:
        """Return the file of a module fitted to ``images`` (n, 1, 8, 8) uint8, said to be of the liar's label."""
        module = build_module(self.spec.module, self.splits.info.shape).fit(images, 0)
        return encode_module(module.state(), self.opened()[0])

    def receive(self, sent: Iterable[Sent], **trust: object) -> tuple[list[tuple[int, str]], int]:
        """Let the liar send these files, and all others their own.

        Returns
        -------
        tuple of list and int
            The (partition, rule) of every refused module, and how many modules are left.
        """
        sent = list(sent)
        claims = {"label_counts": {str(one.label): one.count for one in sent}, "modules": {str(s.label): s.claimed for s in sent}}
        spec = self.spec.model_copy(update={"trust": self.spec.trust.model_copy(update=trust)})
        with tempfile.TemporaryDirectory() as folder:
            collection = Collection(spec, self.splits.info, RunDirectory(Path(folder)), Ledger())
            for partition, report in self.reports.items():
                files = sent if partition == LIAR else self.honest[partition]
                report = dataclasses.replace(report, **claims) if partition == LIAR else report
                content = fit_reply(report, {one.claimed: one.data for one in files})
                assert collection.receive(partition, content) == []
            collection.withdraw_unreported()
            collection.vet(torch.device("cpu"))
            return [(int(str(one["partition"])), str(one["rule"])) for one in collection.refused], len(collection.registry)


def broken_rule(act: Callable[[], object]) -> list[str]:
    """Return the rule that ``act`` is refused by, in a list that is empty where it is not."""
    try:
        act()
    except VerificationError as error:
        return [error.rule]
    return []
