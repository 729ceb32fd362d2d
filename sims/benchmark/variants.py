"""Two other ways to sample a network: as the paper does, and many modules at once."""

from typing import Any

import torch
from torch import Tensor, nn

from ff_flower.generative import EDMModule, FlowModule
from ff_flower.generative.diffusion import DiffusionModule, StandardizedModel


class _FullPrecision(DiffusionModule[Any]):
    """Samples in float32, uncompiled, in batches of 64."""

    def _take(self, network: StandardizedModel, rank: int) -> None:
        super()._take(network, rank)
        self.batch_blocks, self._evaluate = 1, network.model

    def _generate(self, noise: Tensor) -> Tensor:
        assert self._network is not None
        cudnn = torch.backends.cudnn
        settings = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
        with cudnn.flags(**settings, allow_tf32=False):
            return self._network.images(self._integrate(self._network.model, self._network.model.prior, noise))


class FullPrecisionEDM(_FullPrecision, EDMModule):
    """An ``edm`` module sampled as the paper does."""


class FullPrecisionFlow(_FullPrecision, FlowModule):
    """A ``flow`` module likewise."""


FULL_PRECISION: dict[str, type[DiffusionModule[Any]]] = {one.kind: one for one in (FullPrecisionEDM, FullPrecisionFlow)}


class Generation(nn.Module):
    """A fitted module's way from noise to images as a network, so that the weights of several can be stacked."""

    def __init__(self, module: DiffusionModule[Any]) -> None:
        super().__init__()
        assert module._network is not None
        self.module, self.network = [module], module._network

    def forward(self, noise: Tensor) -> Tensor:
        """Turn (b, C, H, W) normal numbers into images, about [-1, 1]."""
        return self.network.images(self.module[0]._integrate(self.network.model, self.network.model.prior, noise))


@torch.inference_mode()
def one_after_the_other(modules: list[DiffusionModule[Any]], noise: Tensor) -> Tensor:
    """Turn (modules, b, C, H, W) normal numbers into as many images, module by module, as sampling does it."""
    return torch.stack([module._generate(one) for module, one in zip(modules, noise, strict=True)])


def stacked(modules: list[DiffusionModule[Any]]) -> "StackedGeneration":
    """Return one function that samples all ``modules``, which have one architecture, at once."""
    return StackedGeneration([Generation(module) for module in modules])


class StackedGeneration:
    """Several networks of one architecture as one, by `torch.func.vmap` over their stacked weights."""

    def __init__(self, networks: list[Generation]) -> None:
        self.weights, self.buffers = torch.func.stack_module_state(networks)
        self.one = networks[0]

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, noise: Tensor) -> Tensor:
        """Turn (modules, b, C, H, W) normal numbers into as many images."""

        def generate(weights: dict[str, Tensor], buffers: dict[str, Tensor], noise: Tensor) -> Tensor:
            images: Tensor = torch.func.functional_call(self.one, (weights, buffers), (noise,))
            return images

        images: Tensor = torch.func.vmap(generate)(self.weights, self.buffers, noise)
        return images
