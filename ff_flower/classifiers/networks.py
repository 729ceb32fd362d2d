"""The networks of classifiers, the same for all methods."""

from collections.abc import Mapping
from typing import cast

import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from ..config import ClassifierSpec
from ..seeding import seeded


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, with GroupNorm, which does not average badly over nodes as BatchNorm does."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm_in = nn.GroupNorm(8, outputs)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm_out = nn.GroupNorm(8, outputs)
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, outputs, h / stride, w / stride)."""
        hidden = self.conv_out(F.relu(self.norm_in(self.conv_in(x))))
        return F.relu(self.norm_out(hidden) + self.shortcut(x))


class ConvolutionalClassifier(nn.Sequential):
    """A convolution and three residual blocks at three resolutions, for images of 8 to 64 pixels.

    Parameters
    ----------
    channels : int
        Channels of the images.
    num_classes : int
        Number of logits.
    width : int
        Channels at the first resolution; twice and four times that at the others.
    """

    def __init__(self, channels: int, num_classes: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.GroupNorm(8, width),
            nn.ReLU(),
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, num_classes),
        )


def build_classifier(spec: ClassifierSpec, channels: int, num_classes: int, seed: int) -> nn.Module:
    """Return an untrained network for images of ``channels`` channels; equal seeds give equal weights."""

    def build() -> nn.Module:
        if spec.network == "cnn":
            return ConvolutionalClassifier(channels, num_classes, spec.width)
        import torchvision

        build_resnet = {"resnet18": torchvision.models.resnet18, "resnet50": torchvision.models.resnet50}[spec.network]
        network = build_resnet(num_classes=num_classes, norm_layer=lambda width: nn.GroupNorm(min(32, width), width))
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
        return cast(nn.Module, network)

    return seeded(build, seed)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by name: tensors are a network's where these are those of its ``state_dict``."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def weights_file(state: dict[str, Tensor]) -> bytes:
    """Return a network's tensors as one safetensors file without metadata; equal tensors give equal bytes."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
