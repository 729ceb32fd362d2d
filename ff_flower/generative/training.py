"""The training loop of the network kinds: AdamW, a moving average, a held-out watch, a time limit, and checkpoints."""

import copy
import hashlib
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..accelerator import accelerate, compile_for_training, low_precision
from ..config import TrainingSpec
from ..errors import RunError
from ..machine import whole_file
from ..seeding import generator
from .base import FitOptions

logger = logging.getLogger("flwr")

CHECKS = 16  # looks at the held-out images, in equal shares of the budget
FIRST_CHECK = 4
HELD_IMAGES = 128
FEWEST_HELD = 4
REPORTS = 4


class Objective(nn.Module, ABC):
    """A network with its loss; its state is what the module file holds."""

    @abstractmethod
    def draw(self, images: Tensor, random: torch.Generator) -> tuple[Tensor, ...]:
        """Turn (b, C, H, W) images in [-1, 1] into the inputs of ``forward``, with all the chance that the loss needs."""

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the loss () of a batch."""


def split_holdout(images: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the images to train on and those held out: ``share`` of all, at most 128; none where that is fewer than 4."""
    held = min(int(share * len(images)), HELD_IMAGES)
    held = held if held >= FEWEST_HELD else 0
    order = torch.randperm(len(images), generator=generator(seed, "holdout")).to(images.device)
    return images[order[held:]], images[order[:held]]


def warmup_cosine(share: float, warmup: float = 0.1) -> float:
    """Return the learning rate, as a part of its peak, at a ``share`` of the budget: linear up, then a half cosine to 0."""
    if share < warmup:
        return share / warmup
    return 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))


class Training:
    """One fit of an `Objective`, which can be interrupted after any step.

    Parameters
    ----------
    objective : Objective
        On the device; trained in place.
    images, held : Tensor
        (n, C, H, W) float32 in [-1, 1], on the device: those to train on, and those that choose the step.
    spec : TrainingSpec
        Steps, batch size, learning rate and moving average.
    seed : int
        Root of all chance.
    options : FitOptions
        Time limit, checkpoint and progress.
    """

    def __init__(
        self, objective: Objective, images: Tensor, held: Tensor, spec: TrainingSpec, seed: int, options: FitOptions
    ) -> None:
        self.objective, self.images, self.spec, self.options = objective, images, spec, options
        self.average = copy.deepcopy(objective).eval().requires_grad_(False)
        self.best = copy.deepcopy(self.average)
        self._weights: list[Tensor] = list(objective.parameters())
        self._averaged: list[Tensor] = list(self.average.parameters())
        self.best_loss, self.best_step = math.inf, 0
        self.random = generator(seed, "steps", device=images.device)
        self.optimizer = torch.optim.AdamW(
            objective.parameters(), lr=spec.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
        )
        self.step, self.seconds = 0, 0.0
        self.recent = torch.zeros((), device=images.device)
        self._loss = accelerate(objective, images.device, options.compile_on_cpu)
        self._watched: tuple[Tensor, ...] = ()
        if len(held):
            rows = held[torch.arange(HELD_IMAGES, device=held.device) % len(held)]
            self._watched = self.average.draw(rows, generator(seed, "watch", device=images.device))

    def run(self) -> Objective:
        """Train to the end of the budget, and return the averaged weights of the step with the best held-out loss.

        Without held-out images it is the last step. The checkpoint is removed.

        Raises
        ------
        RunError
            When the checkpoint cannot be written, for example to a full disk.
        """
        self._resume()
        self._compile()
        began, saved = time.monotonic() - self.seconds, time.monotonic()
        while (share := self._share(self.step)) < 1:
            self._advance(warmup_cosine(self._share(self.step + 1, over=1)))
            self.seconds = time.monotonic() - began
            self._look(share, self._share(self.step))
            if self.options.checkpoint and time.monotonic() - saved >= self.options.checkpoint_seconds:
                self._save(self.options.checkpoint)
                saved = time.monotonic()
        if self.options.checkpoint and self.options.checkpoint.exists():
            self.options.checkpoint.unlink()
        return self.best if self._watched else self.average

    @property
    def images_shown(self) -> int:
        """Images that were shown, repetitions counted."""
        return self.step * self.spec.batch_size

    def _compile(self) -> None:
        """Compile where that is done, before the clock starts: seconds of a fit are seconds of training."""
        device, size = self.images.device, self.spec.batch_size
        any_images = torch.zeros(size, dtype=torch.int64, device=device)
        with low_precision(device):
            compile_for_training(self._loss, lambda: self.objective.draw(self.images[any_images], generator(0, device=device)))

    def _share(self, step: int, over: int = 0) -> float:
        limit = self.options.max_seconds
        return max(step / (self.spec.steps + over), min(1.0, self.seconds / limit) if limit and step else 0.0)

    def _advance(self, rate: float) -> None:
        """Take one step at a learning rate of ``rate`` times its peak."""
        batch = (self.spec.batch_size,)
        index = torch.randint(len(self.images), batch, generator=self.random, device=self.images.device)
        inputs = self.objective.draw(self.images[index], self.random)
        with low_precision(self.images.device):
            loss = self._loss(*inputs)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.learning_rate * rate
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, self._weights, 1 / (1 + self.spec.ema * self.step))
            self.recent.lerp_(loss.detach().float(), 1.0 if self.step == 1 else 0.05)

    def _look(self, before: float, after: float) -> None:
        """Judge the averaged weights, and tell of the progress, where the step crossed a mark of the budget."""
        due = math.floor(after * CHECKS) > math.floor(before * CHECKS) or after >= 1
        if self._watched and due and (after * CHECKS >= FIRST_CHECK or after >= 1):
            with torch.inference_mode(), low_precision(self.images.device):
                loss = float(self.average(*self._watched))
            if loss < self.best_loss or self.best_step == 0:
                self.best_loss, self.best_step = loss, self.step
                self.best.load_state_dict(self.average.state_dict())
        told = math.floor(after * REPORTS) > math.floor(before * REPORTS) or after >= 1
        if self.options.progress is not None and told:
            self.options.progress(self.images_shown, min(after, 1.0), float(self.recent))

    def _save(self, path: Path) -> None:
        """Write everything that the next step depends on, whole or not at all."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {f"{part}.{name}": tensor for part, one in self._parts() for name, tensor in one.state_dict().items()}
        for position, weight in enumerate(self.objective.parameters()):
            tensors |= {f"optimizer.{position}.{name}": tensor for name, tensor in self.optimizer.state[weight].items()}
        numbers = [float(self.step), self.seconds, self.best_loss, float(self.best_step), float(self.recent)]
        tensors |= {"random": self.random.get_state(), "numbers": torch.tensor(numbers, dtype=torch.float64)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            with whole_file(path) as unfinished:
                save_file(tensors | {"digest": _digest(tensors)}, unfinished)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{path}: cannot be written ({error}); free some space or set module.checkpoint-seconds = 0"
            ) from error

    def _resume(self) -> None:
        """Continue from the checkpoint where there is one; one that cannot be read is made anew."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.options.checkpoint
        if path is None or not path.exists():
            return
        try:
            tensors = load_file(path)
            digest = tensors.pop("digest")
            if {name: tensor.shape for name, tensor in tensors.items()} != self._shapes():
                raise ValueError("its tensors are not this fit's")
            if not torch.equal(digest, _digest(tensors)):
                raise ValueError("its numbers are not those that were written")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            logger.warning("the checkpoint %s is left out: %s", path.name, error)
            return
        for part, one in self._parts():
            one.load_state_dict({name: tensors[f"{part}.{name}"] for name in one.state_dict()})
        for position, weight in enumerate(self.objective.parameters()):
            state = {name: tensors[f"optimizer.{position}.{name}"] for name in ("step", "exp_avg", "exp_avg_sq")}
            moments = {name: torch.empty_like(weight).detach().copy_(state[name]) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[weight] = {"step": state["step"].to(weight.device), **moments}
        self.random.set_state(tensors["random"])
        step, self.seconds, self.best_loss, best_step, recent = tensors["numbers"].tolist()
        self.step, self.best_step = int(step), int(best_step)
        self.recent.fill_(recent)
        logger.info("a fit continues at step %d of %d", self.step, self.spec.steps)

    def _shapes(self) -> dict[str, torch.Size]:
        """Return the names and shapes of a checkpoint of this fit."""
        shapes = {f"{part}.{name}": value.shape for part, one in self._parts() for name, value in one.state_dict().items()}
        for position, weight in enumerate(self.objective.parameters()):
            moments = {"step": torch.Size(), "exp_avg": weight.shape, "exp_avg_sq": weight.shape}
            shapes |= {f"optimizer.{position}.{name}": shape for name, shape in moments.items()}
        return shapes | {"random": self.random.get_state().shape, "numbers": torch.Size([5])}

    def _parts(self) -> tuple[tuple[str, Objective], ...]:
        return ("objective", self.objective), ("average", self.average), ("best", self.best)


def _digest(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the 32 bytes of the SHA-256 of all names and numbers of ``tensors``."""
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(name.encode())
        content.update(tensors[name].numpy().tobytes())
    return torch.frombuffer(bytearray(content.digest()), dtype=torch.uint8)
