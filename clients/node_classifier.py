"""The node's second half of FederatedFactory: synthesize from all modules, fit a classifier, and account for it."""

import json
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ff_flower.accelerator import peak_memory
from ff_flower.classifiers import fit_classifier, predict, real_and_synthetic
from ff_flower.config import RunSpec
from ff_flower.data import ImageSet
from ff_flower.errors import VerificationError
from ff_flower.metrics import (
    ClassificationMetrics,
    classification_metrics,
    confusion_counts,
    metrics_of_counts,
    rounded_rows,
)
from ff_flower.module_store import StoredFiles
from ff_flower.registry import Expectation, ModuleLimits, ModuleRegistry, SignaturePolicy, module_id
from ff_flower.reports import Answer, Interval
from ff_flower.run_directory import RECEIVED, cache_root, combined_digest
from ff_flower.seeding import derive_seed
from ff_flower.synthesis import SampleCache, SyntheticDataset, allocate, synthesize
from ff_flower.vetting import Vetting

from .resident import resident_set
from .site import Site

logger = logging.getLogger("flwr")


def answer(
    spec: RunSpec,
    site: Site,
    files: Mapping[str, bytes],
    device: torch.device,
    signatures: Mapping[str, bytes],
    policy: SignaturePolicy,
) -> tuple[Answer, Tensor | None, dict[str, Tensor] | None]:
    """Synthesize from the broadcast modules, fit the node's classifier, and score it.

    Parameters
    ----------
    spec : RunSpec
        The run.
    site : Site
        The node.
    files : mapping from str to bytes
        The broadcast module files, verified here once more before use.
    device : torch.device
        Where to work.
    signatures : mapping from str to bytes
        Their owners' signatures by module_id, as far as they came with any.
    policy : SignaturePolicy
        Whose signatures the node believes.

    Returns
    -------
    tuple of Answer, Tensor or None, dict or None
        The account; logits (n, K) on the synthetic set and the classifier's weights, as far as ``spec.consensus`` asks for them.
    """
    began = time.time()
    expectation = Expectation.of_run(spec, site.splits.info, policy)
    believed = [policy.required, sorted((owner, key.public_bytes_raw().hex()) for owner, key in policy.keys.items())]
    signed = sorted((name, signature.hex()) for name, signature in signatures.items())
    held = list(files) if isinstance(files, StoredFiles) else [[name, module_id(data)] for name, data in files.items()]
    decided_by = [spec.flat(), held, signed, believed, site.splits.info.name, site.splits.info.classes, device.type]
    key = combined_digest(json.dumps(decided_by))
    synthetic, digest = resident_set(key, lambda: _synthesize(spec, site, files, device, signatures, expectation))
    synthesized = time.time()
    data, chances = real_and_synthetic(site.own, synthetic.data, spec.synthesis.own_class)
    network = _fit(spec, site, data, device, chances)
    account = score(site, network, device, synthesized, digest, Interval(began, synthesized))
    wanted = spec.consensus.split(",")
    logits = predict(network, synthetic.data.images, device) if "logits" in wanted else None
    return account, logits, dict(network.state_dict()) if "poe" in wanted else None


def fit_local(spec: RunSpec, site: Site, device: torch.device) -> Answer:
    """Fit a classifier on the node's own images alone, of which there must be some: the baseline without communication."""
    began = time.time()
    return score(site, _fit(spec, site, site.own, device), device, began)


def score(
    site: Site,
    network: nn.Module,
    device: torch.device,
    began: float,
    synthetic_digest: str = "",
    synthesis: Interval = Interval(0.0, 0.0),  # noqa: B008 - frozen
) -> Answer:
    """Return the account of a classifier whose training began at ``began``, scored on the test set."""
    test = site.splits.test
    metrics = _scores(site, predict(network, test.images, device))
    logger.info("node %d: classifier reaches %.2f %% on the test set", site.partition, 100 * metrics.accuracy)
    return Answer(
        site.partition, metrics.as_dict(), synthetic_digest, Interval(began, time.time()), synthesis, peak_memory(device)
    )


def _fit(spec: RunSpec, site: Site, data: ImageSet, device: torch.device, chances: Tensor | None = None) -> nn.Module:
    """Fit the node's classifier, always from the node's own seed; ``chances`` weigh the images of ``data``."""
    return fit_classifier(
        data,
        spec.classifier,
        site.splits.num_classes,
        policy=site.splits.info.augmentation,
        seed=derive_seed(spec.seed, "classifier", site.partition),
        device=device,
        weights=chances,
    )


def _scores(site: Site, logits: Tensor) -> ClassificationMetrics:
    """Score logits on the test set; from rounded counts where the node tells no exact ones."""
    if site.count_granularity == 1:
        return classification_metrics(logits, site.splits.test.labels)
    return metrics_of_counts(rounded_rows(confusion_counts(logits, site.splits.test.labels), site.count_granularity))


def _synthesize(
    spec: RunSpec,
    site: Site,
    files: Mapping[str, bytes],
    device: torch.device,
    signatures: Mapping[str, bytes],
    expectation: Expectation,
) -> SyntheticDataset:
    cache, received = SampleCache(cache_root(spec) / "samples", device, spec.threads), cache_root(spec) / RECEIVED
    received.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=received) as folder:
        registry = ModuleRegistry(Path(folder), ModuleLimits.of_bytes(spec.trust.max_module_bytes))
        for name, data in files.items():
            if registry.add(data, expectation, signatures.get(name)).module_id != name:
                raise VerificationError("digest", f"the server sent module {module_id(data)[:12]} under the name {name[:12]!r}")
        # All nodes must build one set: what the server should have refused is not left out here, it ends the node's work.
        for refused, error in Vetting(registry, spec.trust, spec.seed, cache, device).refusals().items():
            raise VerificationError(error.rule, f"the server sent module {refused[:12]}: {error.detail}") from error
        shares = allocate(list(registry), spec.synthesis.samples_per_class)
        first = site.partition * len(shares) // spec.num_clients
        return synthesize(registry, shares, spec.seed, cache, device, first)
