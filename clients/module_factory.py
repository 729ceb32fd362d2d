"""The node's first half of FederatedFactory: fit a module per local class."""

import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ff_flower.accelerator import peak_memory
from ff_flower.config import ModuleSpec, RunSpec, TrainingSpec
from ff_flower.environment import library_versions, source_digest
from ff_flower.errors import ModuleError
from ff_flower.generative import FitOptions, GaussianMixtureModule, GenerativeModule, build_module
from ff_flower.generative.base import ONE_IMAGE, Progress
from ff_flower.registry import ModuleLimits, ModuleManifest, encode_module, module_id
from ff_flower.reports import NO_IMAGES, Declined, Fallback, FitReport, Interval
from ff_flower.run_directory import cache_root, combined_digest, finished_fit
from ff_flower.seeding import derive_seed

from .finished_fits import Fit, drop_others, find, keep
from .site import Site

logger = logging.getLogger("flwr")


def fit_modules(spec: RunSpec, site: Site, device: torch.device) -> tuple[FitReport, dict[str, bytes]]:
    """Fit one module per class that the node holds.

    Returns
    -------
    tuple of FitReport and dict
        The account, and the module files by module_id. A class with fewer than ``module.min_images`` images, or whose fit
        fails, is declined with its reason; one with fewer than ``module.network_images`` may get a simpler kind. The files stay
        in the node's cache until `drop_finished_fits`: a node that is interrupted, or replies too late, fits no class twice,
        and accounts for the seconds of fits that it finished before.
    """
    began, seconds = time.time(), 0.0
    files: dict[str, bytes] = {}
    modules: dict[str, str] = {}
    fallbacks: list[Fallback] = []
    declined = [] if len(site.own) else [NO_IMAGES]
    counts = torch.bincount(site.own.labels, minlength=site.splits.num_classes).tolist()
    label_counts = {str(label): site.told(count) for label, count in enumerate(counts) if count}
    for label, count in ((int(label), counts[int(label)]) for label in label_counts):
        try:
            fit = fit_module(spec, site, label, device)
        except ModuleError as error:
            declined.append(Declined(label, str(error)))
            logger.warning("node %d: class %r declined: %s", site.partition, site.splits.info.classes[label], error)
            continue
        modules[str(label)] = module_id(fit.data)
        files[modules[str(label)]] = fit.data
        seconds += fit.seconds
        if note := choose_kind(spec.module, site.kind, count, not _rounds(site))[1]:
            fallbacks.append(Fallback(label, note))
    drop_others(spec, site.owner, files.keys())
    ended = time.time()
    work, memory = Interval(min(began, ended - seconds), ended), peak_memory(device)
    return FitReport(site.partition, label_counts, modules, tuple(declined), work, tuple(fallbacks), memory), files


def choose_kind(spec: ModuleSpec, kind: str, num_images: int, exact: bool = True) -> tuple[str, str]:
    """Return the kind of module for a class of ``num_images``, and a note that says why where it is not the ``kind`` wanted.

    A class with fewer than ``network_images`` images gets a ``gaussian_mixture`` in the place of a network. The note says the
    number, where ``exact`` numbers are told.
    """
    if num_images >= spec.network_images or not isinstance(spec.of_kind(kind), TrainingSpec):
        return kind, ""
    simple = GaussianMixtureModule.kind
    images = f"{num_images} images, fewer than" if exact else "fewer images than"
    return simple, f"{simple} in the place of {kind}: {images} module.network-images = {spec.network_images}"


def fit_module(spec: RunSpec, site: Site, label: int, device: torch.device) -> Fit:
    """Fit the module of one class.

    A fit that was interrupted continues from its checkpoint; one that was finished, and whose file is still there, is done.

    Raises
    ------
    ModuleError
        When the class has too few images, or the fit fails.
    RunError
        When a checkpoint cannot be written.
    """
    began = time.time()
    info, images = site.splits.info, site.own.of_label(label).images
    _check_count(site, len(images), spec.module)
    kind, note = choose_kind(spec.module, site.kind, len(images), not _rounds(site))
    module = build_module(spec.module, info.shape, device, kind)
    seed = derive_seed(spec.seed, "module", site.partition, label)
    checkpoint = _checkpoint(spec, site, module, images, label) if spec.module.checkpoint_seconds else None
    place, limits = _place(spec, site, label, checkpoint), ModuleLimits.of_bytes(spec.trust.max_module_bytes)
    if place is not None and (finished := find(place, limits)) is not None:
        logger.info("node %d: class %r is fitted already", site.partition, info.classes[label])
        return finished
    options = FitOptions(
        progress=_progress(site, info.classes[label]),
        holdout=spec.module.holdout,
        max_seconds=spec.module.max_seconds,
        checkpoint=checkpoint,
        checkpoint_seconds=spec.module.checkpoint_seconds,
        compile_on_cpu=spec.module.compile_on_cpu,
        coarse_counts=_rounds(site),
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
    fit = Fit(encode_module(module.state(), manifest, limits), time.time() - began)
    if place is not None:
        keep(place, fit)
    return fit


def _rounds(site: Site) -> bool:
    """Tell whether the node tells rounded numbers of images: then nothing else may tell a class's exact one."""
    return site.count_granularity > 1


def _images_shown(module: GenerativeModule[Any], site: Site, num_images: int) -> int:
    """Return the images shown: of training in steps their product with the batch, else the passes over the class's told size."""
    trained = isinstance(module.spec, TrainingSpec)
    return module.images_shown if trained else module.images_shown // num_images * site.told(num_images)


def _check_count(site: Site, num_images: int, spec: ModuleSpec) -> None:
    if num_images < spec.min_images:
        images = "too few images" if _rounds(site) else f"{num_images} images"
        raise ModuleError(f"{images}: a module needs at least {spec.min_images}; lower module.min-images or pool classes")
    if num_images == 1:
        exact = "1 image: a module of it would be the image itself; add images or pool classes"
        raise ModuleError(ONE_IMAGE if _rounds(site) else exact)


def _progress(site: Site, name: str) -> Progress:
    told: list[tuple[float, float]] = []  # seconds and share: a fit may begin where an earlier process left it

    def progress(images_shown: int, share: float, loss: float) -> None:
        told.append((time.time(), share))
        (began, before), (now, _) = told[0], told[-1]
        rest = f", about {(now - began) * (1 - share) / (share - before):.0f} s left" if share > before else ""
        text = "node %d: class %r at %.0f %% of its fit: %d images shown, loss %.3f%s"
        logger.info(text, site.partition, name, 100 * share, images_shown, loss, rest)

    return progress


def _checkpoint(spec: RunSpec, site: Site, module: GenerativeModule[Any], images: Tensor, label: int) -> Path:
    """Return where an unfinished fit is kept, named by owner and label, by which it can be forgotten, and all it depends on."""
    seed = derive_seed(spec.seed, "module", site.partition, label)
    training = [spec.module.holdout, spec.module.max_seconds, spec.module.compile_on_cpu, _rounds(site)]
    process = [module.device.type, spec.threads, spec.deterministic, library_versions()]
    settings = [module.kind, module.spec.flat(), *training, *process, seed, list(images.shape)]
    content = hashlib.sha256(images.reshape(-1).numpy().data).hexdigest()
    key = combined_digest(json.dumps(settings, sort_keys=True), content, source_digest())
    return cache_root(spec) / "fits" / f"{site.owner}+{label}+{key}.safetensors"


def _place(spec: RunSpec, site: Site, label: int, checkpoint: Path | None) -> Path | None:
    """Return where the file of a finished fit is kept, by all that its manifest depends on too; None where none is.

    None is without checkpoints, nor where the server alone synthesizes: it never tells its nodes that it has their modules.
    """
    if checkpoint is None or spec.synthesis.site == "server":
        return None
    info = site.splits.info
    told = [info.name, info.licence, info.classes[label], str(site.told(int((site.own.labels == label).sum())))]
    return finished_fit(spec, site.owner, label, combined_digest(checkpoint.stem, *told)[:32])
