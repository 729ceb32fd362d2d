"""What the server makes of the nodes' module files: verified, registered, or quarantined with the rule that they break."""

import logging
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, replace
from types import MappingProxyType

import torch
from flwr.app import RecordDict

from ff_flower.config import RunSpec
from ff_flower.data import DatasetInfo
from ff_flower.errors import RunError, VerificationError
from ff_flower.messages import count_modules, read_fit_reply, read_signatures, shared_store
from ff_flower.metrics import Ledger, Transfer
from ff_flower.registry import Expectation, ModuleRegistry, RegisteredModule, SignaturePolicy, module_id
from ff_flower.reports import NO_IMAGES, FitReport
from ff_flower.run_directory import RunDirectory, cache_root, drop_finished_fits, modules_inputs
from ff_flower.synthesis import SampleCache
from ff_flower.unlearning import Tombstone
from ff_flower.vetting import Vetting, open_module

from .nodes import Failure
from .sampling import sampling

logger = logging.getLogger("flwr")


class Collection:
    """The modules of a run as they arrive, with the reports of their owners.

    Parameters
    ----------
    spec : RunSpec
        The run.
    info : DatasetInfo
        The label table and image shape that modules must have.
    directory : RunDirectory
        Where files, reports and receipts are kept.
    ledger : Ledger
        Notes every upload.
    owners : sequence of str, optional
        Names of the owners by partition; without them a partition's number is its owner's name.

    Attributes
    ----------
    participants : list of int
        Partitions of the owners who take part, ascending.
    registry : ModuleRegistry
        The verified modules.
    reports : dict from int to FitReport
        The nodes' accounts, by partition.
    refused : list of dict
        ``partition``, ``rule`` and ``detail`` of every module that was quarantined.
    notes : list of str
        What a reader of the results should know.
    vetting_seconds : float
        What `vet` took.

    Raises
    ------
    ConfigError
        When the settings of the run's kind of module cannot take the images, or the owners' public keys cannot be read.
    """

    def __init__(
        self, spec: RunSpec, info: DatasetInfo, directory: RunDirectory, ledger: Ledger, owners: Sequence[str] | None = None
    ) -> None:
        self.spec, self.info, self.directory, self.ledger = spec, info, directory, ledger
        self.owners = owners or [str(partition) for partition in range(spec.num_clients)]
        self.participants = [p for p, owner in enumerate(self.owners) if owner not in spec.exclusion.owners]
        policy = SignaturePolicy.read(spec.trust.public_keys, spec.trust.require_signature)
        self.expectation = Expectation.of_run(spec, info, policy)
        self.registry = ModuleRegistry.of_run(directory.path, spec)
        directory.withdraw_makers(f"modules/{name}" for name in self.registry.check_signatures(policy))
        self.reports: dict[int, FitReport] = {}
        self.refused: list[dict[str, object]] = []
        self.notes: list[str] = []
        self.vetting_seconds = 0.0
        self._transfers: dict[int, list[Transfer]] = {}

    def resume(self, held: Mapping[int, Set[int]] = MappingProxyType({})) -> set[int]:
        """Take over what stands verified in the run directory; return the partitions whose modules are still wanted.

        Parameters
        ----------
        held : mapping from int to set of int
            The labels that sites say they hold, by partition. Who holds one that its report does not speak of is asked again,
            unless the run has forgotten somebody: for that no module is fitted.
        """
        self.reports = {p: report for p in self.participants if (report := self._kept_report(p)) is not None}
        for partition in sorted(held.keys() & self.reports.keys()):
            known, owner = self.reports[partition].labels, self.owners[partition]
            added = [label for label in sorted(held[partition] - known) if not self.spec.exclusion.covers(owner, label)]
            if not added:
                continue
            names = ", ".join(self.info.classes[label] for label in added)
            if Tombstone.read(self.directory.path).entries:
                self.notes.append(
                    f"site {owner} has added images of {names}, which are left out: this run has forgotten somebody, and fits no "
                    "module any more; begin one in another out with them"
                )
                logger.warning("fit: %s", self.notes[-1])
            else:
                logger.info("fit: site %s has added images of %s, and is asked for its modules once more", owner, names)
                del self.reports[partition]
        return set(self.participants) - set(self.reports)

    def receive(self, partition: int, content: RecordDict) -> list[Failure]:
        """Register one node's files; the failures are empty, or say why the node's whole reply is refused."""
        try:
            report, named = read_fit_reply(content, shared_store(self.spec), self.spec.trust.max_module_bytes)
            signatures = read_signatures(content, named)
            if report.partition != partition or sorted(report.modules.values()) != sorted(named):
                raise VerificationError("report", "it does not name the partition, and once each the files, it came with")
            if strange := report.labels - set(range(NO_IMAGES.label, last := len(self.info.classes))):
                raise VerificationError("report", f"labels {sorted(strange)[:5]}: this run's are 0 to {last - 1}")
            if excluded := [label for label in report.modules if self.spec.exclusion.covers(self.owners[partition], int(label))]:
                raise VerificationError("excluded", f"modules of labels {', '.join(excluded)}, which take no part")
            files = dict(named)  # read from a shared store here, no more of them than the run has labels
            if len({module_id(data) for data in files.values()}) < len(files):
                raise VerificationError("report", "one file came under two names; a module is of one label")
        except VerificationError as error:
            return [Failure(partition, str(error))]
        modules = [self._register(data, report, signatures.get(name)) for name, data in files.items()]
        kept = [module for module in modules if module is not None]
        before = len(self.ledger.transfers)
        self.ledger.add("up", "modules", count_modules(content), partition)
        if "modules" not in content:
            self.ledger.add("read", "modules-up", sum(len(data) for data in files.values()), partition)
        content.pop("modules", None)  # the registry has them; Flower keeps all replies to the end of the round
        if signatures:
            self.ledger.add("up", "signatures", sum(len(one) for one in signatures.values()), partition)
        self._transfers[partition] = self.ledger.transfers[before:]
        self.ledger.write(self.directory.path / "ledger.jsonl")
        self.reports[partition] = report
        path = self.directory.write(f"nodes/{partition}/fit.json", report.to_json().encode())
        stage = f"fit-{partition}"
        if len(kept) == len(files):
            seconds = report.work.ended - report.work.began
            outputs = [path, *(file for module in kept for file in module.files())]
            self.directory.finish(stage, self.spec.fit_digest(), outputs, seconds)
            drop_finished_fits(self.spec, self.owners[partition])  # of simulated nodes; others drop theirs when they are told
        else:
            self.directory.withdraw([stage])  # an earlier session's is of another report
        return []

    def modules_of(self, partition: int) -> list[RegisteredModule]:
        """Return the registered modules that a node reported and that are its owner's."""
        named = set(self.reports[partition].modules.values()) if partition in self.reports else set()
        return [one for one in self.registry if one.module_id in named and one.manifest.owner == self.owners[partition]]

    def give_up(self, partition: int) -> None:
        """Drop what came for a partition that two nodes claim, and what an earlier session kept: nobody can tell whose it is."""
        for module in self.modules_of(partition):
            self._drop(module.module_id)
        self.reports.pop(partition, None)
        self.refused = [one for one in self.refused if one["partition"] != partition]
        for transfer in self._transfers.pop(partition, []):
            self.ledger.transfers.remove(transfer)
        self.ledger.write(self.directory.path / "ledger.jsonl")
        self.directory.withdraw([f"fit-{partition}"])
        (self.directory.path / f"nodes/{partition}/fit.json").unlink(missing_ok=True)

    def complete(self) -> None:
        """Close the round: what silent nodes gave in an earlier session stays, and modules that no report names are removed."""
        self._take_over()
        self.reports = dict(sorted(self.reports.items()))
        self.refused.sort(key=lambda one: int(str(one["partition"])))
        self.withdraw_unreported()

    def withdraw_unreported(self) -> None:
        """Remove modules that an earlier, interrupted session left and no report names."""
        reported = self._partitions()
        for module in list(self.registry):
            if module.module_id not in reported:
                self._drop(module.module_id)

    def _drop(self, name: str) -> None:
        """Remove the module with the id ``name`` and what was drawn from it: no later request to forget its owner names it."""
        self.registry.remove(name)
        SampleCache(cache_root(self.spec) / "samples").remove(name)
        self._unshare(name)

    def vet(self, device: torch.device) -> None:
        """Quarantine the modules that may not be used, see `ff_flower.vetting`.

        Parameters
        ----------
        device : torch.device
            Where networks are evaluated.
        """
        began = time.monotonic()
        with sampling(self.spec, device) as cache:
            refusals = Vetting(self.registry, self.spec.trust, self.spec.seed, cache, device).refusals()
        partitions = self._partitions()
        for refused, error in refusals.items():
            module = self.registry.get(refused)
            data = module.read()
            self.registry.remove(refused)
            self._quarantine(data, error, partitions[refused])
            self.directory.withdraw_makers([f"modules/{module.path.name}"])
        self.vetting_seconds = time.monotonic() - began

    def check_enough(self, missing: Sequence[Failure]) -> None:
        """See that there are enough modules and classes to go on.

        Parameters
        ----------
        missing : sequence of Failure
            The nodes that sent nothing usable, to name the causes.

        Raises
        ------
        RunError
            With fewer than ``min_modules`` modules or ``min_classes`` classes.
        """
        labels = {module.manifest.label for module in self.registry}
        absent = [name for label, name in enumerate(self.info.classes) if label not in labels]
        if absent:
            logger.warning("fit: no module for class%s %s", "es" * (len(absent) > 1), ", ".join(absent))
        if len(self.registry) < self.spec.min_modules or len(labels) < self.spec.min_classes:
            causes = {failure.reason for failure in missing} | {str(refusal["detail"]) for refusal in self.refused}
            causes |= {str(declined["reason"]) for declined in self.declined()}
            why = f"the causes: {'; '.join(sorted(causes))}" if causes else "no node has more, so lower them where that is meant"
            raise RunError(
                f"{len(self.registry)} modules of {len(labels)} classes arrived: min-modules is {self.spec.min_modules} and "
                f"min-classes is {self.spec.min_classes}; {why}"
            )

    def digest(self) -> str:
        """Return one digest of the spec and all registered modules: what every later stage depends on."""
        return modules_inputs(self.spec, [module.module_id for module in self.registry])

    def declined(self) -> list[dict[str, object]]:
        """Return the classes that nodes fitted no module for, with their reasons."""
        return [{"partition": p, **asdict(d)} for p, report in sorted(self.reports.items()) for d in report.declined]

    def fallbacks(self) -> list[dict[str, object]]:
        """Return the classes that nodes fitted a simpler kind of module for, with their reasons."""
        return [{"partition": p, **asdict(f)} for p, report in sorted(self.reports.items()) for f in report.fallbacks]

    def _partitions(self) -> dict[str, int]:
        """Return the partition whose node reported a registered module as its own, by module_id."""
        return {module.module_id: partition for partition in self.reports for module in self.modules_of(partition)}

    def _take_over(self) -> None:
        """Take over the reports of nodes that lack a receipt, since a module was refused, and sent nothing in this session.

        Their other modules stand verified in the registry; the nodes themselves are missing as before.
        """
        for partition in set(self.participants) - set(self.reports):
            with suppress(OSError, UnicodeDecodeError, VerificationError):
                report = FitReport.from_json((self.directory.path / f"nodes/{partition}/fit.json").read_text(encoding="utf-8"))
                self.reports[partition] = report
                if report.partition != partition or not self.modules_of(partition):
                    del self.reports[partition]

    def _kept_report(self, partition: int) -> FitReport | None:
        if not self.directory.is_done(f"fit-{partition}", self.spec.fit_digest()):
            return None
        return FitReport.from_json((self.directory.path / f"nodes/{partition}/fit.json").read_text())

    def _register(self, data: bytes, report: FitReport, signature: bytes | None) -> RegisteredModule | None:
        partition = report.partition
        try:
            module = self.registry.add(data, replace(self.expectation, owner=self.owners[partition]), signature)
            try:
                self._check_claims(module, report)
            except VerificationError:
                self.registry.remove(module.module_id)
                raise
        except VerificationError as error:
            self._quarantine(data, error, partition)
            return None
        return module

    def _quarantine(self, data: bytes, error: VerificationError, partition: int) -> None:
        self.registry.quarantine(data, error, source=f"node {partition}")
        # A module that is another's stays in the store, where its owner may have left it.
        if error.rule != "owner":
            self._unshare(module_id(data))
        self.refused.append({"partition": partition, "rule": error.rule, "detail": error.detail})
        logger.warning("fit: a module of node %d is quarantined: %s", partition, error)

    def _unshare(self, name: str) -> None:
        """Remove the module with the id ``name`` from the store that nodes read, where there is one."""
        if (store := shared_store(self.spec)) is not None:
            try:
                store.remove(name)
            except OSError as left:
                logger.warning("fit: module %s stays in the shared store (%s)", name[:12], left.strerror)

    def _check_claims(self, module: RegisteredModule, report: FitReport) -> None:
        """Refuse a module that is not the one its owner reported for its label, or whose tensors do not make a network."""
        label = str(module.manifest.label)
        claimed = (report.modules.get(label), report.label_counts.get(label))
        if claimed != (module.module_id, module.manifest.num_examples):
            own = f"label {label} of {module.manifest.num_examples} images"
            raise VerificationError("report", f"{own} was reported as {claimed!r:.200}")
        open_module(self.registry, module.module_id)
