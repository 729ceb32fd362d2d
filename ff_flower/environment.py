"""Where a result was made: versions, hardware, and a digest of the code."""

import hashlib
import importlib.metadata
import os
import platform
from functools import cache
from pathlib import Path

PACKAGES = ("ff_flower", "strategies", "clients")
LIBRARIES = ("flwr", "ray", "torch", "torchvision", "numpy", "scikit-learn", "safetensors", "flwr-datasets", "medmnist")


@cache
def source_digest() -> str:
    """Return the SHA-256 of this app's Python files, by which server and nodes see that they run the same code."""
    root = Path(__file__).resolve().parents[1]
    content = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            content.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()


def library_versions(names: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Return the installed versions of ``names``; what is not installed is left out."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_environment() -> dict[str, object]:
    """Return what someone needs to know who repeats a run."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "libraries": library_versions(),
        "source_digest": source_digest(),
    }


def processor() -> str:
    """Return the processor's model where the system tells it, else its architecture."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8", errors="replace").splitlines() if told.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
