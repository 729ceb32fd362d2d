"""Whether the files that come with a node's answer can be pooled: asked when they arrive, so that who sent others is missing."""

from collections.abc import Mapping

import torch

from ff_flower.classifiers import build_classifier, shapes_of
from ff_flower.config import RunSpec
from ff_flower.data import DatasetInfo
from ff_flower.errors import VerificationError
from ff_flower.messages import read_tensors
from ff_flower.registry import ModuleRegistry
from ff_flower.synthesis import allocate

CARRIED = {"poe": "weights", "logits": "logits"}  # the file that a node's answer brings for each part of the consensus
DTYPES = {"weights": torch.float32, "logits": torch.float16}  # of all tensors of such a file
Shapes = Mapping[str, tuple[int, ...]]


def expected_files(spec: RunSpec, info: DatasetInfo, registry: ModuleRegistry) -> dict[str, Shapes]:
    """Return the shapes of the tensors in each file that the consensus asks for.

    Parameters
    ----------
    spec : RunSpec
        The run.
    info : DatasetInfo
        Its image set.
    registry : ModuleRegistry
        The modules that were broadcast: they decide how many images the synthetic set has.
    """
    classes = len(info.classes)
    shapes: dict[str, Shapes] = {}
    for name in (CARRIED[part] for part in spec.consensus.split(",") if part in CARRIED):
        if name == "logits":
            shares = allocate(list(registry), spec.synthesis.samples_per_class)
            shapes[name] = {"logits": (sum(share.count for share in shares), classes)}
        else:
            shapes[name] = shapes_of(build_classifier(spec.classifier, info.shape[0], classes, seed=0).state_dict())
    return shapes


def check_files(files: Mapping[str, bytes], expected: Mapping[str, Shapes]) -> None:
    """Refuse other files than were asked for, and tensors that are not of the run's shapes and dtype, or not finite.

    Raises
    ------
    VerificationError
        Rule ``report``, or ``safetensors`` for a file without tensors.
    """
    if sorted(files) != sorted(expected):
        raise VerificationError("report", f"an answer came with files {sorted(files)!r:.200}; asked for were {sorted(expected)}")
    for name, data in files.items():
        tensors = read_tensors(data)
        found, shapes = shapes_of(tensors), expected[name]
        if found != shapes:
            wrong = sorted(key for key in {*found, *shapes} if found.get(key) != shapes.get(key))[0]
            raise VerificationError(
                "report", f"{name}: {wrong[:80]!r} has shape {found.get(wrong)}; this run's has {shapes.get(wrong)}"
            )
        if other := [tensor.dtype for tensor in tensors.values() if tensor.dtype != DTYPES[name]]:
            raise VerificationError("report", f"{name}: a tensor is of {other[0]}; all of them must be of {DTYPES[name]}")
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise VerificationError("report", f"{name}: NaN or infinity; its training diverged")
