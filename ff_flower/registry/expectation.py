"""What a run expects of the modules that it is sent."""

import reprlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from ..config import RunSpec, Scalar, normal_form
from ..data import DatasetInfo
from ..errors import ConfigError, VerificationError
from ..generative import KINDS
from .manifest import ModuleManifest
from .signatures import NO_POLICY, SignaturePolicy


@dataclass(frozen=True)
class Expectation:
    """What a module must say of itself to belong to this run.

    Attributes
    ----------
    dataset : str
        Name of the run's data set.
    root_seed : int
        The run's root seed.
    image_shape : tuple of int
        (C, H, W) of the run's images.
    label_names : tuple of str or None
        The data set's classes; the position is the label. None, where nobody can tell them, accepts any.
    owner : str or None
        The sender, where it is known; None accepts any.
    specs : mapping from str to mapping, or None
        The settings of every kind that may be sent: they decide what building and sampling a module costs. None accepts any.
    signatures : SignaturePolicy
        Whose signatures are believed, and whether one is required.
    """

    dataset: str
    root_seed: int
    image_shape: tuple[int, int, int]
    label_names: tuple[str, ...] | None
    owner: str | None = None
    specs: Mapping[str, Mapping[str, Scalar]] | None = None
    signatures: SignaturePolicy = NO_POLICY

    @classmethod
    def of_run(cls, spec: RunSpec, info: DatasetInfo, signatures: SignaturePolicy = NO_POLICY) -> Self:
        """Return what ``spec`` expects of its nodes' modules: any kind whose settings can take the images, from any owner.

        Raises
        ------
        ConfigError
            When the settings of the run's own kind cannot take them.
        """
        specs: dict[str, Mapping[str, Scalar]] = {spec.module.kind: spec.module.of_kind().resolved(info.shape).flat()}
        for kind in KINDS:
            with suppress(ConfigError):
                specs[kind] = spec.module.of_kind(kind).resolved(info.shape).flat()
        return cls(info.name, spec.seed, info.shape, info.classes, specs=specs, signatures=signatures)

    def check(self, manifest: ModuleManifest) -> None:
        """Compare a manifest with this run.

        Raises
        ------
        VerificationError
            Rule ``other-run``, ``image-shape``, ``label``, ``owner`` or ``spec``.
        """
        if (manifest.dataset, manifest.root_seed) != (normal_form(self.dataset), self.root_seed):
            found = f"data set {manifest.dataset!r} with root seed {manifest.root_seed}"
            raise VerificationError("other-run", f"{found}; this run has {self.dataset!r} with {self.root_seed}")
        if manifest.image_shape != self.image_shape:
            raise VerificationError("image-shape", f"{manifest.image_shape}; this run's images are {self.image_shape}")
        if self.label_names is not None:
            _check_label(manifest, self.label_names)
        if self.owner not in (None, manifest.owner):
            raise VerificationError("owner", f"{manifest.owner!r} in a module from {self.owner!r}; a node sends its own only")
        if self.specs is not None:
            _check_spec(manifest, self.specs)


def _check_label(manifest: ModuleManifest, names: Sequence[str]) -> None:
    if manifest.label >= len(names):
        raise VerificationError("label", f"{manifest.label}; this run's labels are 0 to {len(names) - 1}")
    name = normal_form(names[manifest.label])
    if manifest.label_name != name:
        raise VerificationError("label", f"{manifest.label_name!r} for label {manifest.label}, which is {name!r} in this run")


def _check_spec(manifest: ModuleManifest, specs: Mapping[str, Mapping[str, Scalar]]) -> None:
    if manifest.kind not in specs:
        raise VerificationError("spec", f"kind {manifest.kind!r}; this run accepts {', '.join(sorted(specs))}")
    asked = specs[manifest.kind]
    differing = sorted(key for key in {*asked, *manifest.spec} if asked.get(key) != manifest.spec.get(key))
    if differing:
        raise VerificationError("spec", f"{reprlib.repr(differing)} are not what this run asked of {manifest.kind!r}")
