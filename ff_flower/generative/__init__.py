"""Generative modules: what a site fits per local class and uploads once."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import ImageShape, KindSpec, ModuleSpec, Scalar, from_run_config, unknown_name
from ..errors import ModuleError
from .base import BLOCK, FitOptions, GenerativeModule
from .edm import EDMModule
from .flow import FlowModule
from .gaussian_mixture import GaussianMixtureModule
from .vae import VAEModule

KINDS: dict[str, type[GenerativeModule[Any]]] = {
    kind.kind: kind for kind in (EDMModule, FlowModule, VAEModule, GaussianMixtureModule)
}


def build_module(
    spec: ModuleSpec, image_shape: ImageShape, device: torch.device | str = "cpu", kind: str = ""
) -> GenerativeModule[Any]:
    """Return an unfitted module of the kind that ``spec`` chooses, or of another ``kind`` with its settings in ``spec``."""
    return KINDS[kind or spec.kind](spec.of_kind(kind), image_shape, device)


def read_settings(kind: str, settings: Mapping[str, Scalar]) -> KindSpec:
    """Return the spec that a manifest's kind and flat settings describe.

    Raises
    ------
    ModuleError
        For an unknown kind.
    ConfigError
        For settings that the kind does not have.
    """
    if kind not in KINDS:
        raise ModuleError(unknown_name("module kind", kind, list(KINDS)))
    table = f"module.{kind.replace('_', '-')}"
    flat = {"module.kind": kind} | {f"{table}.{key}": value for key, value in settings.items()}
    return from_run_config(flat).module.of_kind()


def restore_module(
    kind: str,
    settings: Mapping[str, Scalar],
    image_shape: ImageShape,
    state: Mapping[str, Tensor],
    device: torch.device | str = "cpu",
) -> GenerativeModule[Any]:
    """Return the fitted module that a manifest's kind and settings and a file's tensors describe.

    Raises
    ------
    ModuleError
        For an unknown kind, or tensors that do not belong to the settings.
    ConfigError
        For settings that the kind does not have.
    """
    spec = read_settings(kind, settings)
    return KINDS[kind].restore(spec, image_shape, state, device)


__all__ = [
    "BLOCK",
    "KINDS",
    "EDMModule",
    "FitOptions",
    "FlowModule",
    "GaussianMixtureModule",
    "GenerativeModule",
    "VAEModule",
    "build_module",
    "read_settings",
    "restore_module",
]
