"""The node's side of FederatedFactory: fit a module per local class; later, synthesize, and fit a classifier."""

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ff_flower.accelerator import peak_memory
from ff_flower.classifiers import fit_classifier, predict, real_and_synthetic
from ff_flower.config import ModuleSpec, RunSpec, TrainingSpec
from ff_flower.environment import library_versions, source_digest
from ff_flower.errors import DataError, ModuleError, VerificationError
from ff_flower.generative import FitOptions, GaussianMixtureModule, GenerativeModule, build_module
from ff_flower.generative.base import Progress
from ff_flower.metrics import (
    ClassificationMetrics,
    classification_metrics,
    confusion_counts,
    metrics_of_counts,
    rounded_rows,
)
from ff_flower.module_store import StoredFiles
from ff_flower.registry import (
    Expectation,
    ModuleLimits,
    ModuleManifest,
    ModuleRegistry,
    SignaturePolicy,
    encode_module,
    module_id,
)
from ff_flower.reports import NO_IMAGES, Answer, Declined, Fallback, FitReport, Interval
from ff_flower.run_directory import cache_root, combined_digest
from ff_flower.seeding import derive_seed
from ff_flower.synthesis import SampleCache, SyntheticDataset, allocate, synthesize
from ff_flower.vetting import Vetting

from .resident import resident_set
from .site import Site

logger = logging.getLogger("flwr")


def fit_modules(spec: RunSpec, site: Site, device: torch.device) -> tuple[FitReport, dict[str, bytes]]:
    """Fit one module per class that the node holds.

    Returns
    -------
    tuple of FitReport and dict
        The account, and the module files by module_id. A class with fewer than ``module.min_images`` images, or whose fit
        fails, is declined with its reason; one with fewer than ``module.network_images`` may get a simpler kind.
    """
    began = time.time()
    files: dict[str, bytes] = {}
    modules: dict[str, str] = {}
    fallbacks: list[Fallback] = []
    declined = [] if len(site.own) else [NO_IMAGES]
    counts = torch.bincount(site.own.labels, minlength=site.splits.num_classes).tolist()
    label_counts = {str(label): site.told(count) for label, count in enumerate(counts) if count}
    for label, count in ((int(label), counts[int(label)]) for label in label_counts):
        try:
            data = fit_module(spec, site, label, device)
        except ModuleError as error:
            declined.append(Declined(label, str(error)))
            logger.warning("node %d: class %r declined: %s", site.partition, site.splits.info.classes[label], error)
            continue
        modules[str(label)] = module_id(data)
        files[modules[str(label)]] = data
        if note := choose_kind(spec.module, site.kind, count, site.told(count))[1]:
            fallbacks.append(Fallback(label, note))
    work, memory = Interval(began, time.time()), peak_memory(device)
    return FitReport(site.partition, label_counts, modules, tuple(declined), work, tuple(fallbacks), memory), files


def choose_kind(spec: ModuleSpec, kind: str, num_images: int, told: int | None = None) -> tuple[str, str]:
    """Return the kind of module for a class of ``num_images``, and a note that says why where it is not the ``kind`` wanted.

    A class with fewer than ``network_images`` images gets a ``gaussian_mixture`` in the place of a network. The note says the
    number that is ``told``, where it is another.
    """
    if num_images >= spec.network_images or not isinstance(spec.of_kind(kind), TrainingSpec):
        return kind, ""
    simple = GaussianMixtureModule.kind
    return (
        simple,
        f"{simple} in the place of {kind}: {told or num_images} images, fewer than module.network-images = {spec.network_images}",
    )


def fit_module(spec: RunSpec, site: Site, label: int, device: torch.device) -> bytes:
    """Fit the module of one class, and return its file; a fit that was interrupted continues from its checkpoint.

    Raises
    ------
    ModuleError
        When the class has too few images, or the fit fails.
    RunError
        When a checkpoint cannot be written.
    """
    info, images = site.splits.info, site.own.of_label(label).images
    _check_count(site, len(images), spec.module)
    kind, note = choose_kind(spec.module, site.kind, len(images), site.told(len(images)))
    module = build_module(spec.module, info.shape, device, kind)
    seed = derive_seed(spec.seed, "module", site.partition, label)
    options = FitOptions(
        progress=_progress(site, info.classes[label]),
        holdout=spec.module.holdout,
        max_seconds=spec.module.max_seconds,
        checkpoint=_checkpoint(spec, site, module, images, label) if spec.module.checkpoint_seconds else None,
        checkpoint_seconds=spec.module.checkpoint_seconds,
    )
    module.fit(images, seed, options)
    manifest = ModuleManifest(
        format_version=1,
        kind=kind,
        spec=module.spec.flat(),
        label=label,
        label_name=info.classes[label],
        image_shape=info.shape,
        value_range=(0, 255),
        num_examples=site.told(len(images)),
        owner=site.owner,
        dataset=info.name,
        images_shown=_images_shown(module, site, len(images)),
        root_seed=spec.seed,
        wire_dtype=spec.module.wire_dtype,
        libraries=library_versions(("torch", "numpy", "scikit-learn")),
        licence=info.licence,
        note=note,
    )
    return encode_module(module.state(), manifest, ModuleLimits.of_bytes(spec.trust.max_module_bytes))


def _images_shown(module: GenerativeModule[Any], site: Site, num_images: int) -> int:
    """Return the images shown; whole passes over a class would tell its size, so they are told by its rounded size."""
    passes, rest = divmod(module.images_shown, num_images)
    return module.images_shown if rest else passes * site.told(num_images)


def _check_count(site: Site, num_images: int, spec: ModuleSpec) -> None:
    if num_images < spec.min_images:
        raise ModuleError(
            f"{site.told(num_images)} images: a module needs at least {spec.min_images}; lower module.min-images or pool classes"
        )
    if num_images == 1:
        raise ModuleError("1 image: a module of it would be the image itself; add images or pool classes")


def _progress(site: Site, name: str) -> Progress:
    began = time.time()

    def progress(images_shown: int, share: float, loss: float) -> None:
        left = (time.time() - began) * (1 - share) / share
        text = "node %d: class %r at %.0f %% of its fit: %d images shown, loss %.3f, about %.0f s left"
        logger.info(text, site.partition, name, 100 * share, images_shown, loss, left)

    return progress


def _checkpoint(spec: RunSpec, site: Site, module: GenerativeModule[Any], images: Tensor, label: int) -> Path:
    """Return where an unfinished fit is kept, named by owner and label, by which it can be forgotten, and all it depends on."""
    seed = derive_seed(spec.seed, "module", site.partition, label)
    settings = [module.kind, module.spec.flat(), spec.module.holdout, spec.module.max_seconds, seed, module.device.type]
    content = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    key = combined_digest(json.dumps([*settings, list(images.shape)], sort_keys=True), content, source_digest())
    return cache_root(spec) / "fits" / f"{site.owner}+{label}+{key}.safetensors"


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
    network = fit_classifier(
        data,
        spec.classifier,
        site.splits.num_classes,
        policy=site.splits.info.augmentation,
        seed=derive_seed(spec.seed, "classifier", site.partition),
        device=device,
        weights=chances,
    )
    account = score(site, network, device, synthesized, digest, Interval(began, synthesized))
    wanted = spec.consensus.split(",")
    logits = predict(network, synthetic.data.images, device) if "logits" in wanted else None
    return account, logits, dict(network.state_dict()) if "poe" in wanted else None


def fit_local(spec: RunSpec, site: Site, device: torch.device) -> Answer:
    """Fit a classifier on the node's own images alone, and score it: the baseline without communication."""
    if not len(site.own):
        raise DataError("the node holds no images, and without communication it has nothing to learn from")
    began = time.time()
    network = fit_classifier(
        site.own,
        spec.classifier,
        site.splits.num_classes,
        policy=site.splits.info.augmentation,
        seed=derive_seed(spec.seed, "classifier", site.partition),
        device=device,
    )
    return score(site, network, device, began)


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
    cache = SampleCache(cache_root(spec) / "samples")
    with tempfile.TemporaryDirectory(prefix="ff-modules-") as folder:
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
