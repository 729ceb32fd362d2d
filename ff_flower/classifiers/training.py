"""The one training loop: schedule, batches, mixed images, averaged weights; and predictions.

Every classifier of every method (nodes', server's, student, FedAvg's, FedProx's, local, centralized) is trained by `train`;
a variant is another loss or another choice of images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..accelerator import low_precision, place
from ..config import ClassifierSpec
from ..data import AUGMENTATIONS, ImageSet, augment, to_unit
from ..seeding import derive_seed, generator
from .losses import Loss, cross_entropy
from .mixing import Mixing
from .networks import build_classifier

CPU_BATCH, GPU_BATCH = 100, 500  # images that are classified at once


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
    ema : float
        The returned weights are a moving average, which takes in a share 1 / (1 + ema t) of them at step t and so looks back
        over ``ema`` of the training; 0 returns the last weights. Local epochs leave it off: FedAvg averages already.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    momentum: float | None = None
    ema: float = 0.0

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
    return Schedule(steps or spec.steps, spec.batch_size, spec.learning_rate, spec.weight_decay, ema=spec.ema)


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
        Tells whether images are augmented, and how they are mixed.
    schedule : Schedule
        Steps, batch size, optimizer, learning rate and average.
    policy : str
        Name of the augmentation policy.
    seed : int
        Root of batches, augmentation and mixing.
    device : torch.device
        Where to train.
    weights : Tensor, optional
        (n,) chances of the images to be drawn; by default every image is seen once per epoch.
    """
    place(network, device).train()
    images = images.to(device)
    optimizer, rate = schedule.optimizer(network)
    average, mixing = MovingAverage(network, schedule.ema), Mixing(spec, seed)
    random = generator(seed, "augment", device=device)
    chosen = AUGMENTATIONS[policy if spec.augment else "none"]
    for index in batches(len(images), schedule, seed, weights, device):
        batch, share = mixing(augment(to_unit(images[index]), chosen, random))
        with low_precision(device):
            logits = network(batch)
        value = _mixed(loss, logits.float(), index, share)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        rate.step()
        average.update()
    average.restore()
    return network.eval()


def _mixed(loss: Loss, logits: Tensor, index: Tensor, share: float) -> Tensor:
    """Return the loss of images of which ``share`` is their own and the rest of the image before; see `Mixing`."""
    if share == 1:
        return loss(logits, index)
    return share * loss(logits, index) + (1 - share) * loss(logits, index.roll(1))


class MovingAverage:
    """The average of a network's weights over the last share of its training, as `Schedule.ema` says.

    Parameters
    ----------
    network : Module
        Whose weights are followed, in place.
    ema : float
        Share of the training; 0 does nothing.
    """

    def __init__(self, network: nn.Module, ema: float) -> None:
        self.ema, self.step = ema, 0
        self.weights: list[Tensor] = [weight.detach() for weight in network.parameters()] if ema > 0 else []
        self.average = [weight.clone() for weight in self.weights]

    def update(self) -> None:
        """Take in the weights after a step."""
        self.step += 1
        if self.weights:
            torch._foreach_lerp_(self.average, self.weights, 1 / (1 + self.ema * self.step))

    def restore(self) -> None:
        """Give the network the average."""
        for weight, average in zip(self.weights, self.average, strict=True):
            weight.copy_(average)


def batches(
    num_images: int, schedule: Schedule, seed: int, weights: Tensor | None = None, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """Yield ``schedule.steps`` batches of indices: epochs of random permutations, or draws by ``weights``.

    They are drawn on the CPU, and moved to the ``device`` all at once: a copy per step would wait for a GPU.
    """
    random = generator(seed, "batches")
    wanted = schedule.steps * schedule.batch_size
    if weights is None:
        epochs = -(-wanted // num_images)
        order = torch.cat([torch.randperm(num_images, generator=random) for _ in range(epochs)])[:wanted]
    else:
        order = torch.multinomial(weights, wanted, replacement=True, generator=random)
    yield from torch.split(order.to(device), schedule.batch_size)


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, device: torch.device, batch_size: int = 0) -> Tensor:
    """Return the logits (n, K) float32, on the CPU, of uint8 ``images``.

    With ``batch_size`` 0 as many images at once as the device likes: what a CPU works on fits its cache, which makes it 1.7 times
    as fast at 28x28 as with a GPU's batches.
    """
    place(network, device).eval()
    parts = []
    for batch in torch.split(images, batch_size or (CPU_BATCH if device.type == "cpu" else GPU_BATCH)):
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
