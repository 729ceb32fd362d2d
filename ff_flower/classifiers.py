"""Classifiers: networks, the one training loop, the product of experts and distillation.

Every classifier of every method (nodes', server's, student, FedAvg's, FedProx's, local, centralized) is built by
`build_classifier` and trained by `train`; a variant is another loss or another choice of images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .accelerator import low_precision, place
from .config import ClassifierSpec
from .data import AUGMENTATIONS, ImageSet, augment, to_unit
from .seeding import derive_seed, generator, seeded

Loss = Callable[[Tensor, Tensor], Tensor]


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


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes
    ----------
    steps, batch_size : int
        Optimizer steps and images per step.
    learning_rate, weight_decay : float
        Peak of the one-cycle schedule, or the constant rate; decoupled decay for AdamW, L2 for SGD.
    momentum : float, optional
        None trains by AdamW under a one-cycle schedule; a number by SGD with Nesterov momentum at a constant rate, as the local
        epochs between two averages do.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    momentum: float | None = None

    def optimizer(self, network: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """Return the optimizer of ``network`` and the schedule of its rate."""
        weights, rate, decay = network.parameters(), self.learning_rate, self.weight_decay
        if self.momentum is None:
            adamw = torch.optim.AdamW(weights, lr=rate, weight_decay=decay, fused=True)
            return adamw, torch.optim.lr_scheduler.OneCycleLR(adamw, rate, self.steps + 1, cycle_momentum=False)
        nesterov = self.momentum > 0
        sgd = torch.optim.SGD(weights, lr=rate, momentum=self.momentum, weight_decay=decay, nesterov=nesterov, fused=True)
        return sgd, torch.optim.lr_scheduler.ConstantLR(sgd, factor=1.0)


def schedule_of(spec: ClassifierSpec, steps: int | None = None) -> Schedule:
    """Return the schedule that ``spec`` gives every classifier trained at one place, for other ``steps`` where given."""
    return Schedule(steps or spec.steps, spec.batch_size, spec.learning_rate, spec.weight_decay)


def cross_entropy(labels: Tensor, smoothing: float = 0.0) -> Loss:
    """Return the loss against ``labels`` (n,) int64, as a function of logits (b, K) and the images' indices (b,)."""
    return lambda logits, index: F.cross_entropy(logits, labels[index], label_smoothing=smoothing)


def distillation(teacher: Tensor, temperature: float) -> Loss:
    """Return T^2 KL(teacher || student) at temperature T (Hinton et al. 2015, arXiv 1503.02531).

    Parameters
    ----------
    teacher : Tensor
        (n, K) logits or log-probabilities of the images.
    temperature : float
        Divides both sides' logits.
    """
    targets = F.softmax(teacher.float() / temperature, dim=1)

    def loss(logits: Tensor, index: Tensor) -> Tensor:
        return temperature**2 * F.kl_div(F.log_softmax(logits / temperature, dim=1), targets[index], reduction="batchmean")

    return loss


def proximal(base: Loss, network: nn.Module, mu: float) -> Loss:
    """Return ``base`` plus FedProx's mu/2 ||w - w_t||^2 (Li et al. 2018, arXiv 1812.06127), w_t being the weights of now."""
    weights = list(network.parameters())
    anchors = [weight.detach().clone() for weight in weights]

    def loss(logits: Tensor, index: Tensor) -> Tensor:
        distance = sum((weight - anchor).square().sum() for weight, anchor in zip(weights, anchors, strict=True))
        return base(logits, index) + mu / 2 * cast(Tensor, distance)

    return loss


def train(
    network: nn.Module,
    images: Tensor,
    loss: Loss,
    spec: ClassifierSpec,
    schedule: Schedule,
    *,
    policy: str,
    seed: int,
    device: torch.device,
    weights: Tensor | None = None,
) -> nn.Module:
    """Train ``network`` in place, and return it.

    Parameters
    ----------
    network : Module
        Maps (b, C, H, W) float32 in [-1, 1] to (b, K) logits.
    images : Tensor
        (n, C, H, W) uint8 in [0, 255].
    loss : callable
        ``loss(logits, index)``, see `cross_entropy`.
    spec : ClassifierSpec
        Tells whether images are augmented.
    schedule : Schedule
        Steps, batch size, optimizer and learning rate.
    policy : str
        Name of the augmentation policy.
    seed : int
        Root of batches and augmentation.
    device : torch.device
        Where to train.
    weights : Tensor, optional
        (n,) chances of the images to be drawn; by default every image is seen once per epoch.
    """
    place(network, device).train()
    images = images.to(device)
    optimizer, rate = schedule.optimizer(network)
    random = generator(seed, "augment", device=device)
    chosen = AUGMENTATIONS[policy if spec.augment else "none"]
    for index in batches(len(images), schedule, seed, weights):
        index = index.to(device)
        batch = augment(to_unit(images[index]), chosen, random)
        with low_precision(device):
            logits = network(batch)
        value = loss(logits.float(), index)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        rate.step()
    return network.eval()


def batches(num_images: int, schedule: Schedule, seed: int, weights: Tensor | None = None) -> Iterator[Tensor]:
    """Yield ``schedule.steps`` batches of indices: epochs of random permutations, or draws by ``weights``."""
    random = generator(seed, "batches")
    wanted = schedule.steps * schedule.batch_size
    if weights is None:
        epochs = -(-wanted // num_images)
        order = torch.cat([torch.randperm(num_images, generator=random) for _ in range(epochs)])[:wanted]
    else:
        order = torch.multinomial(weights, wanted, replacement=True, generator=random)
    yield from torch.split(order, schedule.batch_size)


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, device: torch.device, batch_size: int = 500) -> Tensor:
    """Return the logits (n, K) float32, on the CPU, of uint8 ``images``."""
    place(network, device).eval()
    parts = []
    for batch in torch.split(images, batch_size):
        with low_precision(device):
            parts.append(network(to_unit(batch.to(device))).float().cpu())
    return torch.cat(parts)


def fit_classifier(
    data: ImageSet,
    spec: ClassifierSpec,
    num_classes: int,
    *,
    policy: str,
    seed: int,
    device: torch.device,
    weights: Tensor | None = None,
) -> nn.Module:
    """Build a classifier and train it on labelled images by cross entropy; see `train`."""
    network = build_classifier(spec, data.images.shape[1], num_classes, derive_seed(seed, "init"))
    loss = cross_entropy(data.labels.to(device), spec.label_smoothing)
    return train(network, data.images, loss, spec, schedule_of(spec), policy=policy, seed=seed, device=device, weights=weights)


def product_of_experts(logits: Sequence[Tensor]) -> Tensor:
    """Return the normalized log-probabilities of p(y|x) proportional to the geometric mean of the experts' p_i(y|x).

    Parameters
    ----------
    logits : sequence of Tensor
        One (n, K) tensor per expert. The mean of log-probabilities orders classes as their sum, the product, does, and its
        scale does not grow with the number of experts.
    """
    total = torch.zeros_like(logits[0], dtype=torch.float32)
    for expert in logits:
        total += F.log_softmax(expert.float(), dim=1)
    return F.log_softmax(total / len(logits), dim=1)


def real_and_synthetic(own: ImageSet, synthetic: ImageSet, share: float) -> tuple[ImageSet, Tensor]:
    """Join a node's real images with the synthetic set, every class being drawn equally often.

    Parameters
    ----------
    own : ImageSet
        The node's real images; may be empty.
    synthetic : ImageSet
        The class-balanced synthetic set of all classes.
    share : float
        Share of synthetic draws within the classes of which the node has real images, in [0, 1].

    Returns
    -------
    tuple of ImageSet and Tensor
        All images, the real ones first, and the chance (n,) of each to be drawn.
    """
    labels = torch.cat([own.labels, synthetic.labels])
    is_real = torch.arange(len(labels)) < len(own)
    weights = torch.zeros(len(labels), dtype=torch.float64)
    for label in torch.unique(labels).tolist():
        real, made = (labels == label) & is_real, (labels == label) & ~is_real
        part = 1.0 if not real.any() else share if made.any() else 0.0
        for group, mass in ((real, 1.0 - part), (made, part)):
            weights[group] = mass / max(1, int(group.sum()))
    return ImageSet(torch.cat([own.images, synthetic.images]), labels), weights
