"""Where tensors live, and what a process is set to."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ff_flower import accelerator
from ff_flower.accelerator import accelerate, compile_for_training, low_precision, peak_memory, place, prepare, select_device
from ff_flower.config import RunSpec
from ff_flower.errors import ConfigError
from ff_flower.machine import usable_cores

CPU = torch.device("cpu")


@pytest.fixture
def torch_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put torch's global settings back as they were."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"))
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])
    torch.backends.cudnn.benchmark = before[2]


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    """``cpu`` is always the CPU; ``auto`` is a GPU exactly when this process sees one."""
    assert select_device("cpu") == CPU
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this process sees a GPU")
def test_a_missing_gpu_is_refused() -> None:
    """Asking for a GPU that this process does not see is an error which says how to get one."""
    with pytest.raises(ConfigError, match=r"device = 'cuda': this process sees no GPU; .*client-resources-num-gpus.*'auto'"):
        select_device("cuda")


@pytest.mark.usefixtures("torch_as_before")
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_process_is_set_as_the_run_demands(deterministic: bool) -> None:
    """Threads and determinism are those that were asked for; 0 threads means all usable cores."""
    spec = RunSpec(device="cpu", deterministic=deterministic)
    assert prepare(spec, threads=2) == CPU
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    prepare(spec, threads=0)
    assert torch.get_num_threads() == usable_cores()


def test_on_a_cpu_networks_stay_as_they_are() -> None:
    """Placing and accelerating on a CPU return the network itself, its weights unchanged."""
    network = nn.Conv2d(1, 2, 3)
    weight = network.weight.detach().clone()
    assert place(network, CPU) is network and accelerate(network, CPU) is network
    assert torch.equal(network.weight, weight)


class _BrokenCompiler:
    """A compiler that takes a network, and fails when it is used."""

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def __call__(self, network: nn.Module, dynamic: bool) -> Callable[..., Any]:
        return self.compiled

    def compiled(self, *inputs: Tensor) -> Tensor:
        """Fail."""
        self.calls += 1
        raise self.error


def _accelerated(monkeypatch: pytest.MonkeyPatch, compiler: Callable[..., Any]) -> tuple[nn.Module, nn.Module]:
    """Return a network, and what is made of it for a GPU; both stay on the CPU."""
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(accelerator._Compiled, "broken", False)
    network = nn.Linear(2, 3)
    return network, accelerate(network, torch.device("cuda"))


def test_on_a_cpu_only_what_asks_for_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network on a CPU is itself unless compilation is asked for, and then needs no compiler for GPUs."""
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: lambda images: 2 * network(images))
    monkeypatch.setattr(accelerator._Compiled, "broken", False)
    network, images = nn.Linear(2, 3), torch.ones(4, 2)
    assert accelerate(network, CPU) is network
    assert torch.equal(accelerate(network, CPU, on_cpu=True)(images), 2 * network(images))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler.\nSet CC"),
        FileNotFoundError("cc"),
        ImportError("x"),
        AssertionError("expected size 16==16, stride 64==1 at dim=1"),
    ],
    ids=repr,
)
def test_without_a_compiler_a_network_computes_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """Where compilation fails at the first use one line says why, and from then on the network itself is used."""
    compiler = _BrokenCompiler(error)
    network, accelerated = _accelerated(monkeypatch, compiler)
    images = torch.ones(4, 2)
    with caplog.at_level("INFO", logger="flwr"):
        results = [accelerated(images) for _ in range(3)]
    assert all(torch.equal(result, network(images)) for result in results)
    assert [record.getMessage() for record in caplog.records] == [f"torch.compile is left out: {str(error).splitlines()[0]}"]
    assert compiler.calls == 1


def test_a_torch_that_does_not_compile_at_all_leaves_the_network(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where ``torch.compile`` itself refuses, as on a Python that it does not know, a network computes as it is."""

    def compiler(network: nn.Module, dynamic: bool) -> Callable[..., Any]:
        raise RuntimeError("Dynamo is not supported on this Python")

    with caplog.at_level("INFO", logger="flwr"):
        network, accelerated = _accelerated(monkeypatch, compiler)
    assert torch.equal(accelerated(torch.ones(4, 2)), network(torch.ones(4, 2)))
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile is left out: Dynamo is not supported on this Python"
    ]


def test_what_fails_once_is_not_tried_with_the_next_network(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a failure the process compiles nothing more, and says so once."""
    compiler = _BrokenCompiler(RuntimeError("no compiler"))
    _, accelerated = _accelerated(monkeypatch, compiler)
    with caplog.at_level("INFO", logger="flwr"):
        accelerated(torch.ones(4, 2))
        other = nn.Linear(2, 3)
        assert accelerate(other, torch.device("cuda")) is other
    assert compiler.calls == 1 and len(caplog.records) == 1


class _NoWayBack(torch.autograd.Function):
    """Nothing on the way forward; fails on the way back, as a compiler that works there first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Fail."""
        raise RuntimeError("no kernel for the way back")


def test_the_way_back_is_compiled_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails on the way back alone shows when both ways are compiled; then the network trains as it is, untouched."""

    def compiled(network: nn.Module, dynamic: bool) -> Callable[..., Any]:
        return lambda x: _NoWayBack.apply(network(x)).mean()

    network, accelerated = _accelerated(monkeypatch, compiled)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    compile_for_training(accelerated, lambda: (torch.ones(4, 2),))
    accelerated(torch.ones(4, 2)).sum().backward()
    assert network.weight.grad is not None and torch.equal(network.weight.grad, torch.full((3, 2), 4.0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_compiling_leaves_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """After both ways were gone once, the weights have no gradients; a network that is not compiled is left alone."""
    calls: list[Tensor] = []

    def compiled(network: nn.Module, dynamic: bool) -> Callable[..., Any]:
        return lambda x: calls.append(x) or network(x).mean()

    network, accelerated = _accelerated(monkeypatch, compiled)
    compile_for_training(accelerated, lambda: (torch.ones(4, 2),))
    compile_for_training(network, lambda: (torch.ones(4, 2),))
    assert len(calls) == 1 and all(weight.grad is None for weight in network.parameters())


def test_a_full_gpu_is_no_fault_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that runs out is told, and not tried again without the compiler."""
    compiler = _BrokenCompiler(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    _, accelerated = _accelerated(monkeypatch, compiler)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        accelerated(torch.ones(4, 2))


def test_low_precision_is_for_speed_only() -> None:
    """Inside the context a product is close to the exact one; outside it is the exact one."""
    a, b = (torch.randn((8, 8), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    exact = a @ b
    with low_precision(CPU):
        assert torch.allclose((a @ b).float(), exact, atol=0.1)
    assert torch.equal(a @ b, exact)


@pytest.mark.parametrize(("capability", "native"), [(7, False), (8, True), (9, True)])
def test_low_precision_is_not_emulated(monkeypatch: pytest.MonkeyPatch, capability: int, native: bool) -> None:
    """A GPU computes in bfloat16 from Ampere on; before it, where bfloat16 is emulated, precision stays single."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=capability, minor=5))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert low_precision(torch.device("cuda"))._enabled is native


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system is no Linux")
def test_peak_memory_is_what_the_system_says() -> None:
    """On a CPU the peak is the process's high-water mark as Linux keeps it, in bytes."""
    before = peak_memory(CPU)
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    assert before - 2**24 <= 1024 * kilobytes <= peak_memory(CPU) + 2**24


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this process sees no GPU")
def test_peak_memory_of_a_gpu_counts_its_tensors() -> None:
    """On a GPU the peak is what tensors took there at once, and it stays when they are given back."""
    cuda = torch.device("cuda")
    taken = torch.zeros(2**24, device=cuda)
    assert peak_memory(cuda) >= taken.nbytes
    del taken
    assert peak_memory(cuda) >= 2**26
