"""Vetting: whether a module may be used, asked of what it costs, of its weights and of a few of its samples.

Server and nodes ask the same questions after a file was verified by itself (`registry`) and before anything is learned from it:

===================  ==========================================================================================================
rule                 what is refused
===================  ==========================================================================================================
``architecture``     settings whose network would take gigabytes or hours to sample, or tensors that do not belong to them
``duplicate``        the weights of another module under another manifest; of one label the first in registry order stays, of
                     several labels none does, since all but one of them lie
``finite-samples``   a sample with NaN or infinity
``sample-range``     samples far outside [-1, 1]
``constant``         images of one grey level
``collapsed``        the same few images again and again
``noise``            images whose neighbouring pixels have nothing to do with each other
``near-duplicate``   two labels whose samples from the same noise are nearly the same; both are refused
===================  ==========================================================================================================

The probe looks at the first samples that synthesis would use, which a CPU draws once; a GPU, which draws eight such blocks at a
time, draws them again with the others. `near-duplicate` takes up to 32 from noise that all modules share.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .config import TrustSpec
from .config.modules import NetworkSpec
from .errors import ConfigError, ModuleError, VerificationError
from .generative import BLOCK, GenerativeModule, read_settings
from .registry import ModuleManifest, ModuleRegistry, RegisteredModule
from .seeding import derive_seed, generator
from .synthesis import SampleCache, Share, load_module, sample_stream

MAX_NUMBERS = 2**30  # held at a time while a block is sampled: 4 GiB of float32
MAX_WORK = 2**34  # the same, times evaluations of the network
MAX_EXCESS = 0.5  # mean distance from [-1, 1]; of an honest module at most 0.08 was measured
COMPARED = 32  # samples of two modules that are compared one by one


def check_cost(manifest: ModuleManifest) -> None:
    """Refuse a module that would take gigabytes or hours to sample; nothing is built, and no tensor is needed.

    What building it costs is bounded by its file: its tensors are compared with its settings before memory is taken; on a
    GPU the Gaussian's directions are then filled up to as many as the settings allow, 200 MB at most.

    Raises
    ------
    VerificationError
        Rule ``architecture``: unknown kind, settings that the kind does not have or that cannot take the images, or too costly.
    """
    try:
        spec = read_settings(manifest.kind, manifest.spec).resolved(manifest.image_shape)
    except (ModuleError, ConfigError) as error:
        raise VerificationError("architecture", str(error)) from error
    channels, height, width = manifest.image_shape
    if isinstance(spec, NetworkSpec):
        each = spec.activations(manifest.image_shape)
    else:
        components = min(int(manifest.spec.get("components", 0)), channels * height * width)
        each = max(components**2, channels * height * width)
    numbers = BLOCK * each
    work = numbers * int(manifest.spec.get("evaluations", 1))
    if numbers > MAX_NUMBERS or work > MAX_WORK:
        raise VerificationError(
            "architecture",
            f"{BLOCK} samples of {manifest.image_shape} hold about {numbers:.1e} numbers at a time and work on {work:.1e}; "
            f"at most {MAX_NUMBERS:.1e} and {MAX_WORK:.1e} are allowed",
        )


def open_module(registry: ModuleRegistry, module_id: str, device: torch.device | str = "cpu") -> GenerativeModule[Any]:
    """Return the fitted module of a registered file, once its cost is known to be bearable.

    Raises
    ------
    VerificationError
        Rule ``architecture``; see `check_cost`. Tensors that do not belong to the settings break it too.
    """
    check_cost(registry.get(module_id).manifest)
    try:
        return load_module(registry, module_id, device)
    except (ModuleError, ConfigError) as error:
        raise VerificationError("architecture", str(error)) from error


def tensors_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a module's tensors alone, by name, whatever the manifest says."""
    content = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        content.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()


@dataclass(frozen=True)
class Vetting:
    """Asks all modules of a registry the questions of this file.

    Parameters
    ----------
    registry : ModuleRegistry
        The modules, each verified by itself.
    trust : TrustSpec
        How many samples are looked at, and the thresholds.
    root_seed : int
        Root seed of the run.
    cache : SampleCache
        Keeps the samples that are drawn, which synthesis uses too.
    device : torch.device
        Where networks are evaluated.
    """

    registry: ModuleRegistry
    trust: TrustSpec
    root_seed: int
    cache: SampleCache
    device: torch.device
    _open: dict[str, GenerativeModule[Any]] = field(default_factory=dict, init=False, repr=False)

    def refusals(self) -> dict[str, VerificationError]:
        """Return the broken rule of every module that may not be used, by module_id, in registry order.

        Raises
        ------
        RunError
            When the cache cannot be written.
        """
        refused = self._duplicates()
        twins: list[tuple[RegisteredModule, Tensor]] = []
        for module in self.registry if self.trust.probe else ():
            if module.module_id in refused:
                continue
            try:
                check_samples(self._samples(module), self.trust)
                twins.append((module, self._twins(module)))
            except VerificationError as error:
                refused[module.module_id] = error
            self._open.clear()
        refused |= near_duplicates(twins, self.trust.min_difference)
        return {module.module_id: refused[module.module_id] for module in self.registry if module.module_id in refused}

    def _duplicates(self) -> dict[str, VerificationError]:
        groups: dict[str, list[RegisteredModule]] = defaultdict(list)
        for module in self.registry:
            groups[tensors_digest(self.registry.load(module.module_id)[1])].append(module)
        refused = {}
        for group in groups.values():
            labels = sorted({module.manifest.label for module in group})
            for module in group[1:] if len(labels) == 1 else group:
                other = next(one for one in group if one is not module)
                refused[module.module_id] = VerificationError(
                    "duplicate", f"the weights are those of {_named(other)}; a module is fitted for one label by one owner"
                )
        return refused

    def _samples(self, module: RegisteredModule) -> Tensor:
        """Return the first samples that synthesis uses of a module, (n, C, H, W) uint8."""
        return self._read(module, self.trust.probe, self.root_seed, lambda: sample_stream(self.root_seed, module.module_id))

    def _twins(self, module: RegisteredModule) -> Tensor:
        """Return samples from the noise that all modules share, (n, C, H, W) uint8: as many as are compared."""
        count = min(self.trust.probe, COMPARED)
        return self._read(module, count, derive_seed(self.root_seed, "probe"), lambda: generator(self.root_seed, "probe"))

    def _read(self, module: RegisteredModule, count: int, seed: int, stream: Callable[[], torch.Generator]) -> Tensor:
        def draw(module_id: str, start: int, stop: int) -> Tensor:
            if module_id not in self._open:
                self._open[module_id] = open_module(self.registry, module_id, self.device)
            return self._open[module_id].sample(stop - start, stream(), start, check_batch)

        share = Share(module.module_id, module.manifest.label, count)
        self.cache.fill([share], seed, module.manifest.image_shape, draw)
        return self.cache.read(share, seed)


def check_batch(images: Tensor) -> None:
    """Refuse samples (b, C, H, W), not yet quantized, that are not finite or far outside [-1, 1].

    Raises
    ------
    VerificationError
        Rule ``finite-samples`` or ``sample-range``.
    """
    if not bool(torch.isfinite(images).all()):
        raise VerificationError("finite-samples", "a sample holds NaN or infinity; refit the module")
    excess = float((images.float().abs() - 1).clamp_min(0).mean())
    if excess > MAX_EXCESS:
        raise VerificationError("sample-range", f"samples lie {excess:.3g} outside [-1, 1] on average, at most {MAX_EXCESS}")


def check_samples(images: Tensor, trust: TrustSpec) -> None:
    """Refuse samples (n, C, H, W) uint8, n at least 2, that no class of images looks like.

    Raises
    ------
    VerificationError
        Rule ``constant``, ``collapsed`` or ``noise``.
    """
    pixels = images.float()
    if min(images.shape[2:]) > 1:
        inside = pixels - pixels.mean((2, 3), keepdim=True)
        if (contrast := float(inside.square().mean().sqrt())) < trust.min_variation:
            found = f"pixels deviate by {contrast:.2f} grey levels from their image's mean"
            raise VerificationError("constant", f"{found}, trust.min-variation is {trust.min_variation}")
    if (distance := nearest_distance(pixels)) < trust.min_variation:
        found = f"half of the samples have another one within {distance:.2f} grey levels"
        raise VerificationError("collapsed", f"{found}, trust.min-variation is {trust.min_variation}")
    if min(images.shape[2:]) > 1 and (found_correlation := neighbour_correlation(inside)) < trust.min_correlation:
        found = f"neighbouring pixels have correlation {found_correlation:.3f}"
        raise VerificationError("noise", f"{found}, trust.min-correlation is {trust.min_correlation}")


def nearest_distance(images: Tensor) -> float:
    """Return the median over images (n, C, H, W), n at least 2, of the root mean square distance to the nearest other one."""
    flat = images.flatten(1)
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") / math.sqrt(flat.shape[1])
    return float(distances.fill_diagonal_(math.inf).min(1).values.median())


def neighbour_correlation(deviations: Tensor) -> float:
    """Return the correlation of neighbouring pixels of (n, C, H, W) deviations from the images' means, in [-1, 1]."""
    pairs = ((deviations[..., 1:], deviations[..., :-1]), (deviations[..., 1:, :], deviations[..., :-1, :]))
    together = sum(float((one * other).sum()) for one, other in pairs)
    apart = sum(float((one.square() + other.square()).sum()) / 2 for one, other in pairs)
    return together / apart if apart else 0.0


def near_duplicates(twins: list[tuple[RegisteredModule, Tensor]], least: float) -> dict[str, VerificationError]:
    """Return the modules of different labels whose samples (n, C, H, W) from the same noise nearly agree.

    Sample k of one is compared with sample k of the other: root mean square over k, in units of what it is over all pairs of
    samples. A copy has 0, modules that know nothing of each other nearly 1.
    """
    refused: dict[str, VerificationError] = {}
    if len(twins) < 2:
        return refused
    modules, ratios = [module for module, _ in twins], differences([images for _, images in twins])
    for i, j in (ratios < least).nonzero().tolist():  # both (i, j) and (j, i), ascending
        if modules[i].manifest.label != modules[j].manifest.label:
            found = f"samples are those of {_named(modules[j])} but for {float(ratios[i, j]):.3f} of their spread"
            refused[modules[i].module_id] = VerificationError(
                "near-duplicate", f"{found}, trust.min-difference is {least}; one of the two labels is wrong"
            )
    return refused


def differences(samples: list[Tensor]) -> Tensor:
    """Return (M, M): root mean square distance of sample k of one module to sample k of another, over that of all pairs.

    Parameters
    ----------
    samples : list of Tensor
        (n, C, H, W) uint8 of each of M modules, sample k of all from the same noise.
    """
    pixels = torch.stack([images.flatten(1) for images in samples])  # (M, n, D)
    modules, count, size = pixels.shape
    means, squares = torch.zeros(modules, size, dtype=torch.double), torch.zeros(modules, dtype=torch.double)
    together = torch.zeros(modules, modules, dtype=torch.double)
    for index in range(count):  # sample by sample, so that only one of each module is held as floats
        each = pixels[:, index].double()
        means += each / count
        squares += each.square().sum(1) / count
        together += each @ each.T / count
    sums = squares[:, None] + squares[None, :]
    return ((sums - 2 * together).clamp_min(0) / (sums - 2 * means @ means.T).clamp_min(1e-9)).sqrt()


def _named(module: RegisteredModule) -> str:
    return f"module {module.module_id[:12]} (owner {module.manifest.owner!r}, label {module.manifest.label_name!r})"
