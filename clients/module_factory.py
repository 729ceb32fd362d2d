"""The node's side of FederatedFactory: fit a module per local class; later, synthesize, and fit a classifier."""

import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ff_flower.classifiers import fit_classifier, predict, real_and_synthetic
from ff_flower.config import RunSpec
from ff_flower.environment import library_versions
from ff_flower.errors import DataError, ModuleError
from ff_flower.generative import build_module
from ff_flower.metrics import classification_metrics
from ff_flower.registry import Expectation, ModuleManifest, ModuleRegistry, encode_module, module_id
from ff_flower.reports import Answer, Declined, FitReport, Interval
from ff_flower.run_directory import cache_root
from ff_flower.seeding import derive_seed
from ff_flower.synthesis import SampleCache, SyntheticDataset, allocate, synthesize

from .site import Site

logger = logging.getLogger("flwr")


def fit_modules(spec: RunSpec, site: Site, device: torch.device) -> tuple[FitReport, dict[str, bytes]]:
    """Fit one module per class that the node holds.

    Returns
    -------
    tuple of FitReport and dict
        The account, and the module files by module_id. A class with fewer than ``module.min_images`` images, or whose fit
        fails, is declined with its reason.
    """
    began = time.time()
    files: dict[str, bytes] = {}
    modules: dict[str, str] = {}
    declined = [] if len(site.own) else [Declined(-1, "the node holds no images")]
    counts = torch.bincount(site.own.labels, minlength=site.splits.num_classes).tolist()
    for label in (label for label, count in enumerate(counts) if count):
        try:
            data = fit_module(spec, site, label, device)
        except ModuleError as error:
            declined.append(Declined(label, str(error)))
            logger.warning("node %d: class %r declined: %s", site.partition, site.splits.info.classes[label], error)
            continue
        modules[str(label)] = module_id(data)
        files[modules[str(label)]] = data
    label_counts = {str(label): count for label, count in enumerate(counts) if count}
    return FitReport(site.partition, label_counts, modules, tuple(declined), Interval(began, time.time())), files


def fit_module(spec: RunSpec, site: Site, label: int, device: torch.device) -> bytes:
    """Fit the module of one class, and return its file.

    Raises
    ------
    ModuleError
        When the class has too few images, or the fit fails.
    """
    info, images = site.splits.info, site.own.of_label(label).images
    if len(images) < spec.module.min_images:
        raise ModuleError(
            f"{len(images)} images: a module needs at least {spec.module.min_images}; lower module.min-images or pool classes"
        )
    name, began = info.classes[label], time.time()

    def progress(step: int, steps: int, loss: float) -> None:
        seconds = time.time() - began
        left = seconds * (steps - step) / step
        logger.info("node %d: class %r step %d/%d loss %.3f, %.0f s left", site.partition, name, step, steps, loss, left)

    module = build_module(spec.module, info.shape, device)
    module.fit(images, derive_seed(spec.seed, "module", site.partition, label), progress)
    manifest = ModuleManifest(
        format_version=1,
        kind=spec.module.kind,
        spec=spec.module.of_kind().flat(),
        label=label,
        label_name=name,
        image_shape=info.shape,
        value_range=(0, 255),
        num_examples=len(images),
        owner=str(site.partition),
        dataset=info.name,
        images_shown=module.images_shown,
        root_seed=spec.seed,
        wire_dtype=spec.module.wire_dtype,
        libraries=library_versions(("torch", "numpy", "scikit-learn")),
        licence=info.licence,
    )
    return encode_module(module.state(), manifest)


def answer(
    spec: RunSpec, site: Site, files: Mapping[str, bytes], device: torch.device
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

    Returns
    -------
    tuple of Answer, Tensor or None, dict or None
        The account; logits (n, K) on the synthetic set and the classifier's weights, as far as ``spec.consensus`` asks for them.
    """
    began = time.time()
    synthetic = _synthesize(spec, site, files, device)
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
    account = score(site, network, device, synthesized, synthetic.digest(), Interval(began, synthesized))
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
    metrics = classification_metrics(predict(network, test.images, device), test.labels)
    logger.info("node %d: classifier reaches %.2f %% on the test set", site.partition, 100 * metrics.accuracy)
    return Answer(site.partition, metrics.as_dict(), synthetic_digest, Interval(began, time.time()), synthesis)


def _synthesize(spec: RunSpec, site: Site, files: Mapping[str, bytes], device: torch.device) -> SyntheticDataset:
    info = site.splits.info
    expectation = Expectation(info.name, spec.seed, info.shape, info.classes, owner=None)
    with tempfile.TemporaryDirectory(prefix="ff-modules-") as folder:
        registry = ModuleRegistry(Path(folder))
        for data in files.values():
            registry.add(data, expectation)
        shares = allocate(list(registry), spec.synthesis.samples_per_class)
        first = site.partition * len(shares) // spec.num_clients
        return synthesize(registry, shares, spec.seed, SampleCache(cache_root(spec) / "samples"), device, first)
