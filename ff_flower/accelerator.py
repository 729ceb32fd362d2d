"""Where tensors live and how fast arithmetic is chosen: device, precision, threads, compilation."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import SubprocessError
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.backends.cuda import enable_cudnn_sdp, enable_flash_sdp, enable_mem_efficient_sdp

from .config import RunSpec
from .errors import ConfigError
from .machine import usable_cores

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
        Torch threads; 0 means all usable cores. Sums are ordered by thread, so results repeat bit for bit for equal numbers only.
    """
    torch.set_num_threads(threads or usable_cores())
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(spec.deterministic, warn_only=True)
    # Nothing reads memory before it is written, so that filling it would cost time and change nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device = select_device(spec.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not spec.deterministic
        # The gradients of the fused kernels for attention are sums in no fixed order. What is left computes in single precision
        # unless it may not, and that costs half a step.
        for choose in (enable_flash_sdp, enable_mem_efficient_sdp, enable_cudnn_sdp):
            choose(not spec.deterministic)
        if (in_half := getattr(torch.backends.cuda, "allow_fp16_bf16_reduction_math_sdp", None)) is not None:  # since torch 2.5
            in_half(spec.deterministic)
        _race_kernels(not spec.deterministic)
    return device


def _race_kernels(race: bool) -> None:
    """Let the compiler time kernels and take the fastest, or not: in each process another may win, and add in another order."""
    import torch._inductor.config as inductor

    if hasattr(inductor, "deterministic"):  # since torch 2.9
        inductor.deterministic = not race


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
    if gpu:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()  # torch before 2.6 does not say
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


def accelerate(network: nn.Module, device: torch.device, on_cpu: bool = False) -> nn.Module:
    """Compile ``network`` for a GPU, and if ``on_cpu`` for a CPU; without a working compiler it computes as it is."""
    if _Compiled.broken or not (on_cpu or device.type == "cuda"):
        return network
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            _leave_out("no Triton compiler was found")
            return network
    return _Compiled(network)


def compiles() -> bool:
    """Tell whether nothing has kept this process from compiling so far."""
    return not _Compiled.broken


def compile_for_training(network: nn.Module, inputs: Callable[[], tuple[Tensor, ...]]) -> None:
    """Let a loss that `accelerate` returned compile its way forward and back now, before a clock starts.

    Parameters
    ----------
    network : Module
        Gives one number; its weights, and their gradients, are as before afterwards. One that is not compiled is left alone.
    inputs : callable
        Returns what it takes, of the shapes that training will have.
    """
    if isinstance(network, _Compiled):
        network.warm_up(*inputs())


class _Compiled(nn.Module):
    """A compiled network; whether the compiler works shows when it is first used, and where it does not, the network is used.

    After a failure nothing more is compiled in this process.
    """

    broken: ClassVar[bool] = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.compiled: Callable[..., Any] | None = None
        try:
            self.compiled = torch.compile(network, dynamic=False)
        except RuntimeError as error:  # a torch that does not compile on this Python
            _leave_out(str(error))

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the network does."""
        return self._try(lambda compiled: compiled(*inputs), lambda: self.network(*inputs))

    def warm_up(self, *inputs: Tensor) -> None:
        """Go forward and back once; the way back is compiled at its first use too."""
        self._try(lambda compiled: compiled(*inputs).backward(), lambda: None)
        for weight in self.network.parameters():
            weight.grad = None

    def _try(self, work: Callable[[Callable[..., Any]], Any], otherwise: Callable[[], Any]) -> Any:
        if self.compiled is not None and not _Compiled.broken:
            try:
                return work(self.compiled)
            except torch.cuda.OutOfMemoryError:
                raise
            except (RuntimeError, OSError, ImportError, SubprocessError, AssertionError) as error:  # it asserts layouts
                self.compiled = None
                _leave_out(next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__))
        return otherwise()


def _leave_out(reason: str) -> None:
    """Compile nothing more in this process, and say once why."""
    if not _Compiled.broken:
        logger.warning("torch.compile is left out: %s", reason)
    _Compiled.broken = True
