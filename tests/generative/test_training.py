"""The training loop, on an objective of one weight whose every step is known."""

import math
import resource
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from ff_flower import accelerator
from ff_flower.config import TrainingSpec
from ff_flower.errors import RunError
from ff_flower.generative import FitOptions, training
from ff_flower.generative.training import CHECKS, HELD_IMAGES, Objective, Training, split_holdout, warmup_cosine

SPEC = TrainingSpec(steps=64, batch_size=4, learning_rate=0.05, ema=0.0)


class Brightness(Objective):
    """Learns the mean brightness of images, and writes down what it was shown and asked."""

    shown: ClassVar[list[Tensor]] = []
    judged: ClassVar[list[tuple[float, float]]] = []

    def __init__(self, inertia: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inertia))

    def draw(self, images: Tensor, random: torch.Generator) -> tuple[Tensor, ...]:
        """Return each image's mean, a little disturbed."""
        self.shown.append(images.clone())
        means = images.mean((1, 2, 3))
        return (means + 0.01 * torch.randn(means.shape, generator=random),)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the mean square distance from the weight, which is written down where no gradient is wanted."""
        loss = (inputs[0][:, None] - self.weight).square().mean()
        if not torch.is_grad_enabled():
            self.judged.append((float(loss), float(self.weight[0])))
        return loss


class Clock:
    """A clock that goes on by one second whenever it is read."""

    def __init__(self, begin: float = 0.0) -> None:
        self.now = begin

    def monotonic(self) -> float:
        """Return the time."""
        self.now += 1.0
        return self.now


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Begin with an empty record of what was shown and judged."""
    Brightness.shown.clear()
    Brightness.judged.clear()
    yield


def _images(brightness: float, count: int = 20) -> Tensor:
    return torch.full((count, 1, 2, 2), brightness)


NONE = _images(0.0, 0)


def _train(held: Tensor = NONE, spec: TrainingSpec = SPEC, inertia: int = 1, **options: Any) -> tuple[Training, Objective]:
    one = Training(Brightness(inertia), _images(1.0), held, spec, 7, FitOptions(**options))
    return one, one.run()


def _bytes(objective: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in objective.state_dict().items()}


def _interrupt(path: Path, at: int, held: Tensor = NONE, **options: Any) -> None:
    """Train until progress is told for the ``at``-th time."""
    told = 0

    def progress(*report: float) -> None:
        nonlocal told
        told += 1
        if told == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(held, progress=progress, checkpoint=path, checkpoint_seconds=0.0, **options)


def test_the_step_with_the_best_held_out_loss_is_kept() -> None:
    """The weight climbs to 1, past the held-out images' 0.4: what is returned is the judged weight of the smallest loss."""
    trained, best = _train(_images(0.4, 8), SPEC.model_copy(update={"learning_rate": 0.02}))
    losses, weights = zip(*Brightness.judged, strict=True)
    chosen = losses.index(min(losses))
    assert 0 < chosen < len(losses) - 1 and losses[-1] > 2 * losses[chosen]
    assert float(best.get_parameter("weight")) == weights[chosen]
    assert trained.best_loss == losses[chosen] and 0 < trained.best_step < SPEC.steps
    assert float(trained.average.get_parameter("weight")) == weights[-1] > 0.6


def test_a_fit_compiled_on_a_cpu_learns_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compiled, a fit ends at the weights of an uncompiled one up to rounding, and twice in the same bytes."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(accelerator._Compiled, "broken", False)
    held = _images(0.4, 8)
    _, plain = _train(held)
    (fit, first), (_, second) = (_train(held, compile_on_cpu=True) for _ in range(2))
    if accelerator._Compiled.broken:
        pytest.skip("torch.compile needs a C++ compiler, and none works here")
    assert isinstance(fit._loss, accelerator._Compiled) and fit._loss.compiled is not None
    assert torch.allclose(first.get_parameter("weight"), plain.get_parameter("weight"), atol=1e-4)
    assert _bytes(first) == _bytes(second)


def test_looks_are_evenly_spread() -> None:
    """Held-out images are looked at in sixteenths of the budget from a quarter on, and after a single step at least once."""
    _train(_images(0.3, 8))
    assert len(Brightness.judged) == CHECKS - 3
    Brightness.judged.clear()
    _train(_images(0.3, 8), SPEC.model_copy(update={"steps": 1}))
    assert len(Brightness.judged) == 1


def test_without_held_out_images_the_last_step_is_kept() -> None:
    """With nothing held out nothing is judged, and the average of the last step is returned."""
    trained, last = _train()
    assert Brightness.judged == [] and last is trained.average
    assert float(last.get_parameter("weight")) > 0.9


def test_held_out_images_are_only_watched() -> None:
    """The held-out images fill the one batch that is watched and are never among those that are trained on."""
    _train(_images(0.3, 8))
    watched, *batches = Brightness.shown
    assert watched.shape[0] == HELD_IMAGES and (watched == 0.3).all()
    assert len(batches) == SPEC.steps and all((batch == 1.0).all() and len(batch) == 4 for batch in batches)


@pytest.mark.parametrize(
    ("count", "share", "held"), [(40, 0.1, 4), (39, 0.1, 0), (6, 0.5, 0), (8, 0.5, 4), (40, 0.0, 0), (4000, 0.1, 128)]
)
def test_the_split_is_a_partition(count: int, share: float, held: int) -> None:
    """Every image is on one side; held out are ``share`` of them, none rather than fewer than 4, at most 128, by the seed."""
    images = torch.arange(count).reshape(-1, 1, 1, 1)
    kept, out = split_holdout(images, share, seed=0)
    assert len(out) == held and torch.equal(torch.cat([kept, out]).flatten().sort().values, images.flatten())
    assert all(torch.equal(*pair) for pair in zip(split_holdout(images, share, seed=0), (kept, out), strict=True))
    assert not held or not torch.equal(split_holdout(images, share, seed=1)[1], out)


def test_the_average_looks_back_over_a_share_of_the_steps() -> None:
    """At step t the average takes in a share 1 / (1 + ema t) of the weights."""
    one = Training(Brightness(), _images(1.0), NONE, SPEC.model_copy(update={"ema": 0.5}), 7, FitOptions())
    average = 0.0
    for step in range(1, 6):
        one._advance(1.0)
        average += (float(one.objective.get_parameter("weight").detach()) - average) / (1 + 0.5 * step)
        assert float(one.average.get_parameter("weight")) == pytest.approx(average, rel=1e-5)


def test_the_learning_rate_rises_and_falls() -> None:
    """The rate climbs linearly over a tenth of the budget, is 1, halves midway down the cosine and is 0 at the end."""
    rates = [warmup_cosine(share / 100) for share in range(101)]
    assert rates[:11] == pytest.approx([share / 10 for share in range(11)])
    assert rates[100] == pytest.approx(0.0) and rates[55] == pytest.approx(0.5)
    assert all(before >= after for before, after in pairwise(rates[10:]))


def test_progress_is_told_in_quarters() -> None:
    """Progress is told after each quarter of the budget with the images shown, the share spent and a finite loss."""
    told: list[tuple[int, float, float]] = []
    _train(progress=lambda *report: told.append(report))
    assert [report[:2] for report in told] == [(64, 0.25), (128, 0.5), (192, 0.75), (256, 1.0)]
    assert all(math.isfinite(loss) for _, _, loss in told)


def test_a_time_limit_shortens_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million steps at a second each, 200 seconds pay for 200: the last report is of share 1, the last rate near 0."""
    monkeypatch.setattr(training, "time", Clock())
    told: list[tuple[int, float, float]] = []
    spec = SPEC.model_copy(update={"steps": 1_000_000})
    trained, _ = _train(_images(0.3, 8), spec, max_seconds=200.0, progress=lambda *report: told.append(report))
    assert trained.step == pytest.approx(200, abs=3) and trained.images_shown == 4 * trained.step
    assert told[-1][:2] == (trained.images_shown, 1.0) and len(told) == 4
    assert len(Brightness.judged) == CHECKS - 3
    assert 0 <= trained.optimizer.param_groups[0]["lr"] < 1e-3 * spec.learning_rate


def test_a_time_limit_that_is_not_reached_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the steps end before the seconds, the fit is that without a limit."""
    monkeypatch.setattr(training, "time", Clock())
    free, limited = (_train(max_seconds=seconds)[1] for seconds in (0.0, 1000.0))
    assert _bytes(free) == _bytes(limited)


def test_a_resumed_fit_has_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A fit interrupted halfway through its seconds and resumed on another day takes as many steps as an unbroken one."""
    options = {"spec": SPEC.model_copy(update={"steps": 1_000_000}), "max_seconds": 400.0}
    monkeypatch.setattr(training, "time", Clock())
    _interrupt(tmp_path / "fit", at=2, **options)
    monkeypatch.setattr(training, "time", Clock(1e6))
    resumed, _ = _train(checkpoint=tmp_path / "fit", checkpoint_seconds=0.0, **options)
    monkeypatch.setattr(training, "time", Clock())
    unbroken, _ = _train(checkpoint=tmp_path / "other", checkpoint_seconds=0.0, **options)
    assert resumed.step == pytest.approx(unbroken.step, abs=4)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("ema", [0.0, 0.1])
def test_a_resumed_fit_equals_an_unbroken_one(tmp_path: Path, at: int, ema: float) -> None:
    """Wherever a fit is interrupted, resumed it ends in the same bytes, and then its checkpoint is gone."""
    spec, held, path = SPEC.model_copy(update={"ema": ema}), _images(0.3, 8), tmp_path / "folder" / "fit.safetensors"
    whole, best = _train(held, spec)
    _interrupt(path, at, held, spec=spec)
    assert list(path.parent.iterdir()) == [path]
    Brightness.shown.clear()
    resumed, again = _train(held, spec, checkpoint=path)
    assert len(Brightness.shown) - 1 == SPEC.steps - (at * SPEC.steps // 4 - 1)
    assert _bytes(again) == _bytes(best) and _bytes(resumed.objective) == _bytes(whole.objective)
    assert (resumed.step, resumed.best_step, resumed.best_loss) == (whole.step, whole.best_step, whole.best_loss)
    assert float(resumed.recent) == float(whole.recent)
    assert list(path.parent.iterdir()) == []


def test_checkpoints_are_as_far_apart_as_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A checkpoint is written when the seconds between two have passed, not at every step."""
    monkeypatch.setattr(training, "time", Clock())
    saved: list[int] = []
    monkeypatch.setattr(Training, "_save", lambda self, path: saved.append(self.step))
    _train(checkpoint=tmp_path / "fit", checkpoint_seconds=20.0)
    assert len(saved) > 3 and all(later - earlier >= 8 for earlier, later in pairwise([0, *saved]))


def _damage(path: Path, how: str) -> None:
    from safetensors.torch import load_file, save_file

    data, tensors = path.read_bytes(), load_file(path)
    if how in tensors:
        save_file({name: tensor for name, tensor in tensors.items() if name != how}, path)
    elif how == "of another network":
        _interrupt(path.with_name("other"), 2, inertia=3)
        path.with_name("other").replace(path)
    else:
        one_bit = data[:-2000] + bytes([data[-2000] ^ 1]) + data[-1999:]
        path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "noise": b"\xff" * 4000, "one bit": one_bit}[how])


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "empty",
        "noise",
        "one bit",
        "of another network",
        "digest",
        "random",
        "numbers",
        "optimizer.0.exp_avg",
        "best.weight",
    ],
)
def test_a_damaged_checkpoint_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """A checkpoint that is no whole one of this fit is left out with a warning, and the fit begins anew."""
    path = tmp_path / "fit.safetensors"
    _interrupt(path, 2)
    _damage(path, how)
    Brightness.shown.clear()
    _, again = _train(checkpoint=path)
    assert len(Brightness.shown) == SPEC.steps
    assert f"the checkpoint {path.name} is left out" in caplog.text
    assert _bytes(again) == _bytes(_train()[1]) and not path.exists()


def test_a_checkpoint_needs_a_folder(tmp_path: Path) -> None:
    """Where a file stands in the folder's place, the error names the path and the setting that does without checkpoints."""
    (tmp_path / "file").write_text("x")
    path = tmp_path / "file" / "fit"
    with pytest.raises(RunError, match=r"file/fit: cannot be written .*set module\.checkpoint-seconds = 0"):
        _train(checkpoint=path, checkpoint_seconds=0.0)
    assert _train(checkpoint=path)[0].step == SPEC.steps


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """Where the disk takes no more, the error says so, and no part of a file is left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(RunError, match=r"cannot be written .*free some space"):
            _train(inertia=20_000, checkpoint=tmp_path / "fit", checkpoint_seconds=0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_equal_seeds_give_equal_fits() -> None:
    """Chance follows from the seed alone."""
    torch.manual_seed(1)
    first = _bytes(_train()[1])
    torch.manual_seed(2)
    assert _bytes(_train()[1]) == first
    other = Training(Brightness(), _images(1.0), NONE, SPEC, 8, FitOptions()).run()
    assert _bytes(other) != first


def test_the_clock_of_a_fit_starts_after_its_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compilation that takes longer than the whole budget of seconds takes no step away, and changes no chance."""
    options = {"spec": SPEC.model_copy(update={"steps": 1_000_000}), "max_seconds": 50.0}
    monkeypatch.setattr(training, "time", Clock())
    quick, _ = _train(**options)
    clock = Clock()
    monkeypatch.setattr(training, "time", clock)
    monkeypatch.setattr(training, "compile_for_training", lambda loss, inputs: [clock.monotonic() for _ in range(1000)])
    slow, _ = _train(**options)
    assert slow.step == quick.step and _bytes(slow.objective) == _bytes(quick.objective)
