"""Where tensors live and how fast arithmetic is chosen: device, precision, threads, compilation."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import SubprocessError
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .config import RunSpec
from .errors import ConfigError

Network = TypeVar("Network", bound=nn.Module)

logger = logging.getLogger("flwr")


def select_device(name: str = "auto") -> torch.device:
    """Return the device called ``name``; ``auto`` is the first GPU when there is one, else the CPU.

    Raises
    ------
    ConfigError
        When ``cuda`` is asked for and this process sees no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError(
            "device = 'cuda': this process sees no GPU; give clients a share of one "
            "(--federation-config client-resources-num-gpus=0.5) or set device = 'auto'"
        )
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def prepare(spec: RunSpec, threads: int) -> torch.device:
    """Set this process's torch threads and determinism as ``spec`` demands, and return its device.

    Parameters
    ----------
    spec : RunSpec
        Gives ``device`` and ``deterministic``.
    threads : int
        Torch threads; 0 means all cores. Sums are ordered by thread, so results repeat bit for bit for equal numbers only.
    """
    torch.set_num_threads(threads or os.cpu_count() or 1)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(spec.deterministic, warn_only=True)
    device = select_device(spec.device)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not spec.deterministic
    return device


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Compute on so many torch threads, and on as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def low_precision(device: torch.device) -> torch.autocast:
    """Return an autocast to bfloat16 where the device computes in it natively, and one that does nothing elsewhere.

    GPUs before Ampere only emulate it, several times slower than single precision.
    """
    gpu = device.type == "cuda"
    native = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=native)


def place(network: Network, device: torch.device) -> Network:
    """Move ``network`` to ``device``, channels last on a GPU, where convolutions are fastest in that layout."""
    layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
    return network.to(device, memory_format=layout)  # type: ignore[call-overload, no-any-return]


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held: of the GPU's memory for tensors, or of the machine's on a CPU.

    Where the system does not say it is 0.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not a Unix
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def accelerate(network: nn.Module, device: torch.device) -> nn.Module:
    """Compile ``network`` for a GPU; anywhere else, or without a working compiler, it computes as it is."""
    if device.type != "cuda":
        return network
    from torch.utils._triton import has_triton

    if not has_triton():
        logger.info("torch.compile is left out: no Triton compiler was found")
        return network
    return _Compiled(network)


class _Compiled(nn.Module):
    """A compiled network; whether the compiler works shows when it is first used, and where it does not, the network is used."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.compiled: Callable[..., Any] | None = torch.compile(network, dynamic=False)

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the network does."""
        if self.compiled is not None:
            try:
                return self.compiled(*inputs)
            except torch.cuda.OutOfMemoryError:
                raise
            except (RuntimeError, OSError, ImportError, SubprocessError) as error:
                self.compiled = None
                reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
                logger.info("torch.compile is left out: %s", reason)
        return self.network(*inputs)
