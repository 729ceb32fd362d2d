"""The pipeline without Flower: fit modules, sample them, train the server's classifier; each in worker processes."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from ff_flower.accelerator import prepare, select_device
from ff_flower.classifiers import fit_classifier, predict, real_and_synthetic
from ff_flower.config import RunSpec, Scalar, from_run_config
from ff_flower.data import ImageSet, load_splits
from ff_flower.environment import library_versions, source_digest
from ff_flower.generative import KINDS, FitOptions, GenerativeModule, build_module, restore_module
from ff_flower.machine import whole_file
from ff_flower.metrics import classification_metrics
from ff_flower.registry import ModuleLimits, ModuleManifest, decode_module, encode_module
from ff_flower.run_directory import cache_root, combined_digest
from ff_flower.seeding import derive_seed, generator

from ..run import resolve_spec
from .variants import FULL_PRECISION

Result = TypeVar("Result")
WireType = Literal["float32", "float16", "bfloat16"]
Part = Literal["val", "test"]
Scores = dict[Part, list[float]]  # accuracies of several classifiers, on each part that has images
PARTS: tuple[Part, ...] = ("val", "test")

_SMALL: Mapping[str, Scalar] = {"steps": 4, "batch-size": 8, "channels": 8, "rank": 8}
QUICK: Mapping[str, Scalar] = {  # toy sizes: every part runs, no number means anything
    "module.gaussian-mixture.components": 8,
    "synthesis.samples-per-class": 12,
    "classifier.width": 8,
    "classifier.steps": 4,
    "distillation.steps": 4,
} | {
    key: _SMALL[name]
    for key in RunSpec().flat()
    for name in _SMALL
    if key in (f"module.edm.{name}", f"module.flow.{name}", f"module.vae.{name}")
}


class Workers:
    """Processes of one thread each; none at all where ``count`` is 0, and everything happens here.

    Parameters
    ----------
    count : int
        Processes.
    fresh : bool
        Whether every task gets a process of its own, so that its memory can be told.
    """

    def __init__(self, count: int, *, fresh: bool = False) -> None:
        context = multiprocessing.get_context("spawn")  # forked threads of torch would hang
        limit = 1 if fresh else None
        self.pool = ProcessPoolExecutor(count, mp_context=context, max_tasks_per_child=limit) if count else None

    def __enter__(self) -> Self:
        """Return the workers."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """End the processes, after what they are at."""
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]]) -> list[Result]:
        """Return ``function(*task)`` of every task, in order; ``function`` stands at the top level of a file."""
        if self.pool is None:
            return [function(*task) for task in tasks]
        return [future.result() for future in [self.pool.submit(function, *task) for task in tasks]]


def overlaid(spec: RunSpec, settings: Sequence[str]) -> RunSpec:
    """Return ``spec`` changed by ``settings``, ``key=value`` each, and with the run directories' folder of this machine."""
    chosen = resolve_spec("", settings).flat()
    named = {setting.partition("=")[0].strip() for setting in settings} | {"out"}
    return changed(spec, {key: chosen[key] for key in named})


def changed(spec: RunSpec, changes: Mapping[str, Scalar]) -> RunSpec:
    """Return ``spec`` with other values of some keys."""
    return from_run_config({**spec.flat(), **changes})


def fit_file(spec: RunSpec, label: int) -> bytes:
    """Fit the module of one class on all its training images, and return its file with weights of full precision."""
    splits = load_splits(spec.data, spec.seed)
    module = fit_images(spec, label, splits.train.of_label(label).images)
    return module_file(module, spec.seed, label, splits.info.classes[label], splits.info.name)


def fit_images(spec: RunSpec, label: int, images: Tensor) -> GenerativeModule[Any]:
    """Return a module of a class fitted to ``images``, uint8 (n, C, H, W), as the owner of that class alone fits it."""
    device = prepare(spec, spec.threads)
    _, channels, height, width = images.shape
    module = build_module(spec.module, (channels, height, width), device)
    options = FitOptions(
        holdout=spec.module.holdout, max_seconds=spec.module.max_seconds, compile_on_cpu=spec.module.compile_on_cpu
    )
    return module.fit(images, derive_seed(spec.seed, "module", label, label), options)


def module_file(
    module: GenerativeModule[Any], seed: int, label: int, name: str, dataset: str, wire_dtype: WireType = "float32"
) -> bytes:
    """Return the file of a fitted module, as the owner of that class alone would send it."""
    manifest = ModuleManifest(
        kind=module.kind,
        spec=module.spec.flat(),
        label=label,
        label_name=name,
        image_shape=module.image_shape,
        num_examples=1,
        owner=str(label),
        dataset=dataset,
        images_shown=module.images_shown,
        root_seed=seed,
        wire_dtype=wire_dtype,
        libraries=library_versions(("torch",)),
        licence="as the images",
    )
    return encode_module(module.state(), manifest)


def fitted_files(spec: RunSpec, workers: Workers) -> list[bytes]:
    """Return the module files of all classes, from the cache of an earlier command where code and settings are the same."""
    process = {"device": select_device(spec.device).type, "threads": spec.threads, "deterministic": spec.deterministic}
    settings = repr(sorted({**spec.data.flat(), **spec.module.flat(), "seed": spec.seed, **process}.items()))
    folder = cache_root(spec) / "benchmark" / combined_digest(settings, source_digest())[:16]
    paths = [folder / f"{label}.safetensors" for label in range(load_splits(spec.data, spec.seed).num_classes)]
    absent = [label for label, path in enumerate(paths) if not path.exists()]
    for label, data in zip(absent, workers.map(fit_file, [(spec, label) for label in absent]), strict=True):
        with whole_file(paths[label]) as unfinished:
            unfinished.write_bytes(data)
    return [path.read_bytes() for path in paths]


@dataclass(frozen=True)
class Sampling:
    """What a module was asked to make.

    Attributes
    ----------
    count : int
        Number of samples.
    changes : mapping from str to scalar
        Settings of its kind that differ from the file's, such as ``{"evaluations": 18}``.
    full_precision : bool
        Whether arithmetic is float32 without compilation, in batches of 64, as the paper samples.
    """

    count: int
    changes: Mapping[str, Scalar]
    full_precision: bool = False


def opened(data: bytes) -> tuple[ModuleManifest, dict[str, Tensor]]:
    """Return what is in a module file of any size, made here or verified by the registry that it comes from."""
    return decode_module(data, ModuleLimits.of_bytes(len(data)))


def open_module(data: bytes, sampling: Sampling, device: torch.device) -> GenerativeModule[Any]:
    """Return the module of a file, set to sample as ``sampling`` says."""
    manifest, state = opened(data)
    settings = {**manifest.spec, **sampling.changes}
    if not sampling.full_precision:
        return restore_module(manifest.kind, settings, manifest.image_shape, state, device)
    flat = {f"module.{manifest.kind}.{key}": value for key, value in settings.items()}
    spec = from_run_config(flat).module.of_kind(manifest.kind)
    return FULL_PRECISION[manifest.kind].restore(spec, manifest.image_shape, state, device)


def sample_file(spec: RunSpec, data: bytes, sampling: Sampling) -> tuple[np.ndarray, float]:
    """Return samples of a module file, uint8 (count, C, H, W), and the seconds that they took.

    The noise depends on the label alone: other settings, or other types of the weights, turn the same noise into images.
    """
    device = prepare(spec, spec.threads)
    module, label = open_module(data, sampling, device), opened(data)[0].label
    if device.type == "cuda":
        module.sample(1, generator(spec.seed, "warm-up"))  # compiles
    began = time.perf_counter()
    images = module.sample(sampling.count, generator(spec.seed, "sample", label))
    return images.numpy(), time.perf_counter() - began


def synthetic_set(spec: RunSpec, files: list[bytes], sampling: Sampling, workers: Workers) -> tuple[ImageSet, float]:
    """Return the samples of all modules with their labels, and the seconds of all samplings together."""
    made = workers.map(sample_file, [(spec, data, sampling) for data in files])
    labels = torch.tensor([opened(data)[0].label for data in files]).repeat_interleave(sampling.count)
    return ImageSet(torch.from_numpy(np.concatenate([images for images, _ in made])), labels), sum(seconds for _, seconds in made)


def train_and_score(
    spec: RunSpec, images: np.ndarray, labels: np.ndarray, number: int, parts: Sequence[Part] = PARTS, node: int | None = None
) -> dict[Part, dict[str, Any]]:
    """Train a classifier on synthetic images, the server's or that of a node, and return its metrics on each part of the images.

    Parameters
    ----------
    spec : RunSpec
        Images and the classifier's settings.
    images, labels : ndarray
        Synthetic, uint8 (n, C, H, W) and int64 (n,).
    number : int
        Counts repetitions with other initial weights and batches; 0 has the run's own seed.
    parts : sequence of str
        Whether it is scored on validation images, on test images or on both.
    node : int, optional
        The node that owns all training images of the class of this label, and learns from them too; None is the server.
    """
    device = prepare(spec, spec.threads)
    splits = load_splits(spec.data, spec.seed)
    seed = derive_seed(spec.seed, "classifier", "server" if node is None else node, *([number] if number else []))
    data, chances = ImageSet(torch.from_numpy(images), torch.from_numpy(labels)), None
    if node is not None:
        data, chances = real_and_synthetic(splits.train.of_label(node), data, spec.synthesis.own_class)
    policy, classes = splits.info.augmentation, splits.num_classes
    network = fit_classifier(data, spec.classifier, classes, policy=policy, seed=seed, device=device, weights=chances)
    asked: dict[Part, ImageSet] = {part: getattr(splits, part) for part in parts}
    return {
        part: classification_metrics(predict(network, images.images, device), images.labels).as_dict()
        for part, images in asked.items()
        if len(images)
    }


def scores(spec: RunSpec, sets: list[ImageSet], repeats: int, workers: Workers) -> list[Scores]:
    """Return the accuracies of ``repeats`` server classifiers on each of ``sets``; repetition i of all shares its seed."""
    tasks = [(spec, one.images.numpy(), one.labels.numpy(), number) for one in sets for number in range(repeats)]
    found = workers.map(train_and_score, tasks)
    alike = [found[begin : begin + repeats] for begin in range(0, len(found), repeats)]
    return [{part: [float(each[part]["accuracy"]) for each in some] for part in some[0]} for some in alike]


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median of the seconds of several calls."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def random_images(shape: tuple[int, int, int], count: int = 256) -> Tensor:
    """Return smooth uint8 images (count, C, H, W): the time of a fit does not depend on what they show.

    By default they are as many as the Gaussian under a network of any size needs for all its directions.
    """
    random = generator(0, "images")
    coarse = torch.rand((count, shape[0], 4, 4), generator=random)
    fine = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear") * 200
    return (fine + 55 * torch.rand(fine.shape, generator=random)).to(torch.uint8)


def trained_kinds() -> list[str]:
    """Return the kinds that train a network."""
    from ff_flower.config import ModuleSpec, TrainingSpec

    return [kind for kind in KINDS if isinstance(ModuleSpec().of_kind(kind), TrainingSpec)]
