"""After the round, at the server: its own model, the product of experts, and the distilled student."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ff_flower.classifiers import (
    agreeing,
    build_classifier,
    class_balanced,
    distillation,
    fit_classifier,
    pooled,
    predict,
    product_of_experts,
    schedule_of,
    train,
    weights_file,
)
from ff_flower.config import RunSpec
from ff_flower.data import Splits
from ff_flower.figures import sample_grid
from ff_flower.metrics import ClassificationMetrics, classification_metrics, mean_metrics
from ff_flower.run_directory import RunDirectory, student_inputs
from ff_flower.seeding import derive_seed
from ff_flower.synthesis import SyntheticDataset, allocate, synthesize

from .federated_factory import FederatedFactory
from .outcome import Outcome
from .sampling import sampling
from .scoring import Voters

logger = logging.getLogger("flwr")


@dataclass(frozen=True)
class Consensus:
    """Turns modules and answers into classifiers.

    Parameters
    ----------
    strategy : FederatedFactory
        The strategy after its round.
    splits : Splits
        Gives the test set, on which results are scored and nothing is chosen.
    outcome : Outcome
        Takes the results.
    device : torch.device
        Where to work.
    waiting : list of Voters
        Takes the classifiers that sites are to score, where the server has no test set.
    """

    strategy: FederatedFactory
    splits: Splits
    outcome: Outcome
    device: torch.device
    waiting: list[Voters] = field(default_factory=list)

    @property
    def spec(self) -> RunSpec:
        """The run."""
        return self.strategy.spec

    @property
    def directory(self) -> RunDirectory:
        """Where classifiers are kept."""
        return self.strategy.directory

    def conclude(self) -> None:
        """Make every result that the run's modules and answers allow."""
        began = time.time()
        synthetic = self._synthesize()
        self.outcome.synthetic_digest = synthetic.digest()
        self.outcome.seconds["server-synthesis"] = time.time() - began
        self._draw_grids(synthetic)
        server = self._classifier("server", self.strategy.modules_digest(), lambda: self._fit_server(synthetic))
        self._record("server", [server], ("modules",))
        self._pool(synthetic)

    def _pool(self, synthetic: SyntheticDataset) -> None:
        answers = self.strategy.answers
        if not answers:
            return
        scores = [ClassificationMetrics.from_dict(answer.metrics) for answer in answers.values()]
        where = {"scored_on": "sites"} if self.spec.data.own else {}
        self.outcome.record("client_mean", mean_metrics(scores) | where, up=["modules"], down=["modules"])
        self._compare_digests()
        consensus = self.spec.consensus.split(",")
        experts = self._experts() if "poe" in consensus else []
        if experts:
            self._record("product_of_experts", experts, ("modules", "weights"), ("modules",))
        if "logits" in consensus:
            logits = [self._answered(partition, "logits")["logits"] for partition in answers]
            self._distil(synthetic, product_of_experts(logits), "logits")
        elif experts:
            teacher = product_of_experts([self._predict(expert, synthetic.data.images) for expert in experts])
            self._distil(synthetic, teacher, "weights")

    def _distil(self, synthetic: SyntheticDataset, teacher: Tensor, carried_by: str) -> None:
        taught_by = [self._answer_path(partition, carried_by) for partition in self.strategy.answers]
        inputs = student_inputs(self.strategy.modules_digest(), taught_by)
        kept = self._agreed(synthetic, teacher)
        student = self._classifier("student", inputs, lambda: self._fit_student(synthetic, teacher, kept))
        self._record("student", [student], ("modules", carried_by), ("modules",), {"images_left_out": int((~kept).sum())})

    def _agreed(self, synthetic: SyntheticDataset, teacher: Tensor) -> Tensor:
        """Return (n,) bool: the images on which the pooled classifiers agree with the label, or the whole class."""
        least = self.spec.distillation.min_agreement
        kept, whole = agreeing(teacher, synthetic.data.labels, least)
        for label in whole:
            name = self.splits.info.classes[label]
            self._note(f"class {name!r} is kept whole: no image of it has a pooled probability of {least} for its label")
        return kept

    def _synthesize(self) -> SyntheticDataset:
        shares = allocate(list(self.strategy.collection.registry), self.spec.synthesis.samples_per_class)
        with sampling(self.spec, self.device) as cache:
            return synthesize(self.strategy.collection.registry, shares, self.spec.seed, cache, self.device)

    def _fit_server(self, synthetic: SyntheticDataset) -> nn.Module:
        seed = derive_seed(self.spec.seed, "classifier", "server")
        policy = self.splits.info.augmentation
        return fit_classifier(
            synthetic.data, self.spec.classifier, self.splits.num_classes, policy=policy, seed=seed, device=self.device
        )

    def _fit_student(self, synthetic: SyntheticDataset, teacher: Tensor, kept: Tensor) -> nn.Module:
        spec, seed = self.spec, derive_seed(self.spec.seed, "classifier", "student")
        network = self._untrained(derive_seed(seed, "init"))
        data = synthetic.data if bool(kept.all()) else synthetic.data.subset(kept)
        soft, hard = spec.distillation.temperature, spec.distillation.hard_labels
        loss = distillation(teacher[kept].to(self.device), soft, data.labels.to(self.device), hard)
        chances = None if data is synthetic.data else class_balanced(data.labels)
        schedule = schedule_of(spec.classifier, spec.distillation.steps)
        policy = self.splits.info.augmentation
        return train(
            network, data.images, loss, spec.classifier, schedule, policy=policy, seed=seed, device=self.device, weights=chances
        )

    def _classifier(self, name: str, inputs: str, fit: Callable[[], nn.Module]) -> nn.Module:
        """Return the kept classifier where its receipt holds, else fit and keep it."""
        path = self.directory.path / "classifiers" / f"{name}.safetensors"
        if self.directory.is_done(name, inputs):
            network = self._untrained(0)
            network.load_state_dict(load_file(path))
            self.outcome.seconds[name] = self.directory.seconds(name)
            return network
        began = time.time()
        network = fit()
        self.outcome.seconds[name] = time.time() - began
        self.directory.write(f"classifiers/{name}.safetensors", weights_file(network.state_dict()))
        self.directory.finish(name, inputs, [path], self.outcome.seconds[name])
        return network

    def _experts(self) -> list[nn.Module]:
        """Return the nodes' classifiers, in the order of partitions."""
        experts = []
        for partition in self.strategy.answers:
            expert = self._untrained(0)
            expert.load_state_dict(self._answered(partition, "weights"))
            experts.append(expert)
        return experts

    def _predict(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return the logits of a network, which leaves the device again: nodes may have sent a hundred."""
        logits = predict(network, images, self.device)
        network.cpu()
        return logits

    def _answered(self, partition: int, name: str) -> dict[str, Tensor]:
        return load_file(self._answer_path(partition, name))

    def _answer_path(self, partition: int, name: str) -> Path:
        return self.directory.path / f"nodes/{partition}/{name}.safetensors"

    def _note(self, text: str) -> None:
        self.outcome.notes.append(text)
        logger.warning(text)

    def _untrained(self, seed: int) -> nn.Module:
        return build_classifier(self.spec.classifier, self.splits.info.shape[0], self.splits.num_classes, seed)

    def _record(
        self,
        name: str,
        networks: Sequence[nn.Module],
        up: tuple[str, ...],
        down: tuple[str, ...] = (),
        extra: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Score classifiers, several as a product of experts, on the test set; without one they wait for the sites."""
        test = self.splits.test
        if self.spec.data.own and not len(test):
            self.waiting.append(Voters(name, tuple(networks), up, down, extra))
            return
        logits = [self._predict(network, test.images) for network in networks]
        metrics = classification_metrics(pooled(logits), test.labels)
        where = {"scored_on": "server-test"} if self.spec.data.own else {}
        self.outcome.record(name, metrics.as_dict() | dict(extra) | where, up=up, down=down)

    def _compare_digests(self) -> None:
        ours = self.outcome.synthetic_digest
        other = [p for p, answer in self.strategy.answers.items() if answer.synthetic_digest != ours]
        if other:
            self._note(
                f"the synthetic sets of nodes {other} agree with the server's up to rounding only (other hardware); "
                "logits are pooled by index all the same"
            )

    def _draw_grids(self, synthetic: SyntheticDataset) -> None:
        for index, share in enumerate(synthetic.shares):
            path = self.directory.path / "modules" / f"{share.module_id}.png"
            if not path.exists():
                sample_grid(synthetic.data.images[synthetic.provenance == index][:64], path)
