"""Losses against hand calculations, batches, the training loop, the product of experts, and the networks."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ff_flower.classifiers import (
    Mixing,
    Schedule,
    agreeing,
    batches,
    build_classifier,
    class_balanced,
    cross_entropy,
    distillation,
    fit_classifier,
    pooled,
    predict,
    product_of_experts,
    proximal,
    real_and_synthetic,
    schedule_of,
    train,
    weights_file,
)
from ff_flower.config import ClassifierSpec
from ff_flower.data import ImageSet, Splits, to_unit

CPU = torch.device("cpu")
PLAIN = ClassifierSpec(width=8, augment=False, weight_decay=0.0)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def _labelled(labels: list[int]) -> ImageSet:
    return ImageSet(torch.zeros((len(labels), 1, 4, 4), dtype=torch.uint8), torch.tensor(labels, dtype=torch.int64))


def _linear(images: Tensor, schedule: Schedule, gain: float = 1.0) -> Tensor:
    """Train y = w x from w = 0 on the loss -gain mean(y), whose gradient is -gain times the images' mean; return w (4,)."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
    nn.init.zeros_(network[1].weight)
    train(network, images, lambda logits, _: -gain * logits.mean(), PLAIN, schedule, policy="none", seed=0, device=CPU)
    return network[1].weight.detach()[0]


def test_cross_entropy_picks_its_labels_by_index() -> None:
    """The loss of a batch is the mean of -log p(label) over the labels at the batch's indices."""
    logits = _random(2, 3)
    loss = cross_entropy(torch.tensor([2, 0, 1]))(logits, torch.tensor([1, 0]))
    assert torch.allclose(loss, -(logits.log_softmax(1)[0, 0] + logits.log_softmax(1)[1, 2]) / 2)


def test_distillation_is_zero_where_student_and_teacher_agree() -> None:
    """A student with the teacher's logits, up to a constant per image, has no loss and no gradient."""
    teacher = _random(4, 5)
    student = (teacher + 3.0).requires_grad_()
    loss = distillation(teacher, 2.0)(student, torch.arange(4))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.allclose(student.grad, torch.zeros(4, 5), atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_pulls_towards_the_soft_targets(temperature: float) -> None:
    """The gradient is T (softmax(student / T) - softmax(teacher / T)) / n: at T = 1 that of cross entropy with soft labels."""
    teacher, index = _random(6, 3, seed=1), torch.tensor([4, 0, 5])
    student = _random(3, 3, seed=2).requires_grad_()
    distillation(teacher, temperature)(student, index).backward()
    targets = (teacher[index] / temperature).softmax(1)
    expected = temperature * ((student.detach() / temperature).softmax(1) - targets) / 3
    assert torch.allclose(student.grad, expected, atol=1e-6)
    if temperature == 1.0:
        soft = _random(3, 3, seed=2).requires_grad_()
        F.cross_entropy(soft, targets).backward()
        assert torch.allclose(student.grad, soft.grad, atol=1e-6)


def test_the_proximal_term_pulls_back_to_the_start() -> None:
    """FedProx adds mu/2 |w - w_t|^2, and so mu (w - w_t) to the gradient; w_t are the weights when the loss was made."""
    network = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(network.weight)
    base = cross_entropy(torch.zeros(1, dtype=torch.int64))
    loss = proximal(base, network, mu=0.5)
    with torch.no_grad():
        network.weight += torch.tensor([[3.0, -4.0]])
    logits, index = torch.tensor([[0.0, 0.0]]), torch.tensor([0])
    value = loss(logits, index)
    value.backward()
    assert value.item() == pytest.approx(math.log(2) + 0.25 * 25)
    assert torch.allclose(network.weight.grad, torch.tensor([[1.5, -2.0]]))


def test_without_mu_the_proximal_loss_is_its_base(digits: Splits) -> None:
    """Training with mu = 0 ends in the weights of training without the term, bit for bit."""
    images, labels = digits.train.images[:64], digits.train.labels[:64]
    trained = []
    for with_term in (False, True):
        network = build_classifier(PLAIN, 1, 10, seed=0)
        loss = proximal(cross_entropy(labels), network, 0.0) if with_term else cross_entropy(labels)
        trained.append(train(network, images, loss, PLAIN, Schedule(3, 16, 0.1, 0.0), policy="none", seed=0, device=CPU))
    assert _same(*trained)


@given(n=st.integers(1, 40), steps=st.integers(1, 12), batch_size=st.integers(1, 30), seed=st.integers(0, 2**63 - 1))
def test_every_epoch_shows_every_image_once(n: int, steps: int, batch_size: int, seed: int) -> None:
    """Batches cut a row of random permutations into equal pieces: each run of n indices holds each image once."""
    drawn = list(batches(n, Schedule(steps, batch_size, 0.1, 0.0), seed))
    assert [len(batch) for batch in drawn] == [batch_size] * steps
    order = torch.cat(drawn)
    for epoch in torch.split(order, n):
        assert len(set(epoch.tolist())) == len(epoch) and epoch.max() < n
    assert torch.equal(order, torch.cat(list(batches(n, Schedule(steps, batch_size, 0.1, 0.0), seed))))


def test_weights_are_the_chances_of_the_images() -> None:
    """By weights, an image of weight 0 is never drawn, and the others as often as their weights say."""
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0], dtype=torch.float64)
    order = torch.cat(list(batches(4, Schedule(100, 100, 0.1, 0.0), 0, weights)))
    counts = torch.bincount(order, minlength=4)
    assert counts[0] == counts[3] == 0 and counts.sum() == 10_000
    assert abs(int(counts[2]) - 7500) < 5 * math.sqrt(10_000 * 3 / 16)


def test_a_step_is_the_rate_times_the_gradient() -> None:
    """At a constant rate, n steps of plain SGD on a linear loss move the weights by n times rate times gradient."""
    images = torch.tensor([[0, 255, 255, 0], [255, 255, 0, 0]], dtype=torch.uint8).reshape(2, 1, 2, 2)
    moved = _linear(images, Schedule(5, 2, 0.3, 0.0, momentum=0.0))
    assert torch.allclose(moved, 5 * 0.3 * to_unit(images).flatten(1).mean(0), rtol=1e-5)


def test_a_cycle_rises_to_its_peak_and_falls() -> None:
    """Under AdamW's one cycle a constant gradient moves the weights by about half the peak rate per step: two half cosines."""
    images = torch.full((2, 1, 2, 2), 255, dtype=torch.uint8)
    moved = _linear(images, Schedule(200, 2, 0.3, 0.0))
    assert torch.allclose(moved / 200, torch.full((4,), 0.15), rtol=0.05)


def test_between_averages_training_is_sgd() -> None:
    """With a momentum, training is torch's SGD with Nesterov momentum and weight decay, step by step."""
    images = torch.full((2, 1, 2, 2), 255, dtype=torch.uint8)
    weight = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.2, momentum=0.9, weight_decay=0.1, nesterov=True)
    for _ in range(4):
        optimizer.zero_grad()
        (-weight.sum()).backward()
        optimizer.step()
    assert torch.allclose(_linear(images, Schedule(4, 2, 0.2, 0.1, momentum=0.9)), weight.detach(), rtol=1e-4)


def test_steep_gradients_are_clipped() -> None:
    """A gradient longer than 5 is shortened to 5."""
    images = torch.full((2, 1, 2, 2), 255, dtype=torch.uint8)
    moved = _linear(images, Schedule(1, 2, 0.1, 0.0, momentum=0.0), gain=1000.0)
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_training_repeats_by_its_seed(digits: Splits) -> None:
    """Equal seeds end in equal weights whatever the global generator holds, which stays as it was; other seeds in others."""
    spec = ClassifierSpec(width=8, steps=3, batch_size=16)
    part = digits.train.subset(range(60))
    fitted = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        fitted.append(fit_classifier(part, spec, 10, policy="digits", seed=seed, device=CPU))
        assert torch.equal(torch.get_rng_state(), before)
    assert _same(fitted[0], fitted[1]) and not _same(fitted[0], fitted[2])
    assert not fitted[0].training


def test_augmentation_can_be_left_out(digits: Splits) -> None:
    """The policy changes training exactly when the settings ask for augmentation."""
    part = digits.train.subset(range(40))
    for augmented in (True, False):
        spec = ClassifierSpec(width=8, steps=2, batch_size=16, augment=augmented)
        fitted = [fit_classifier(part, spec, 10, policy=policy, seed=0, device=CPU) for policy in ("none", "digits")]
        assert _same(*fitted) != augmented


def test_a_small_network_learns_the_digits(digits: Splits) -> None:
    """A hundred steps on the digits give more than 90 % on the test images."""
    spec = ClassifierSpec(width=16, steps=100, batch_size=64, learning_rate=0.2)
    network = fit_classifier(digits.train, spec, 10, policy="digits", seed=0, device=CPU)
    found = predict(network, digits.test.images, CPU).argmax(1)
    assert (found == digits.test.labels).float().mean() > 0.9


def test_images_of_no_weight_teach_nothing(digits: Splits) -> None:
    """Training with weight 0 on some images is training without ever seeing them: their pixels and labels do not matter."""
    spec, part = ClassifierSpec(width=8, steps=2, batch_size=16), digits.train.subset(range(40))
    weights = (torch.arange(40) < 30).double()
    spoilt = ImageSet(part.images.clone(), part.labels.clone())
    spoilt.images[30:], spoilt.labels[30:] = 255, 0
    fitted = [fit_classifier(data, spec, 10, policy="none", seed=0, device=CPU, weights=weights) for data in (part, spoilt)]
    assert _same(*fitted)


def test_predictions_stand_in_order() -> None:
    """Row k of the logits belongs to image k, however the images are cut into batches."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images = torch.randint(0, 256, (11, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = predict(network, images, CPU, batch_size=4)
    assert logits.dtype == torch.float32 and logits.shape == (11, 3)
    assert torch.allclose(logits, network(to_unit(images)), atol=0.05)


def test_a_product_of_equal_experts_is_the_expert() -> None:
    """The geometric mean of equal distributions is that distribution, whatever constant each adds to its logits."""
    logits = _random(4, 3)
    product = product_of_experts([logits, logits + 5.0, logits - 2.0])
    assert torch.allclose(product, logits.log_softmax(1), atol=1e-5)


def test_one_classifier_is_pooled_with_nobody() -> None:
    """One classifier's logits stand as they are, to the last bit; those of several become their product."""
    logits = _random(4, 3)
    assert pooled([logits]) is logits
    assert torch.equal(pooled([logits, -logits]), product_of_experts([logits, -logits]))


def test_the_product_of_two_experts_by_hand() -> None:
    """Of (.5 .4 .1) and (.1 .4 .5) the product is the normalized (sqrt .05, .4, sqrt .05); of sure and unsure, the sure one's."""
    experts = [torch.tensor([[0.5, 0.4, 0.1], [0.25, 0.25, 0.5]]), torch.tensor([[0.1, 0.4, 0.5], [1 / 3, 1 / 3, 1 / 3]])]
    product = product_of_experts([expert.log() for expert in experts]).exp()
    root, total = math.sqrt(0.05), 0.4 + 2 * math.sqrt(0.05)
    assert torch.allclose(product[0], torch.tensor([root, 0.4, root]) / total)
    half, one = math.sqrt(0.25), math.sqrt(0.5)
    assert torch.allclose(product[1], torch.tensor([half, half, one]) / (2 * half + one))
    assert product.argmax(1).tolist() == [1, 2]


@pytest.mark.parametrize("size", [torch.nan, torch.inf, 3e38])
def test_an_expert_without_finite_logits_has_no_opinion(size: float) -> None:
    """Beside experts whose logits are not finite the others choose the classes; beside absurd ones the product stays finite."""
    one, strange = _random(6, 3), torch.full((6, 3), size)
    strange[:, 0] *= -1
    product = product_of_experts([one, strange, -strange])
    assert torch.isfinite(product).all()
    if not math.isfinite(size):
        assert torch.equal(product.argmax(1), one.argmax(1))


def test_experts_have_no_order() -> None:
    """The product is the same up to rounding in whatever order the experts come, also in half precision."""
    experts = [_random(5, 4, seed=seed).half() for seed in range(3)]
    product = product_of_experts(experts)
    assert product.dtype == torch.float32
    assert torch.allclose(product, product_of_experts(experts[::-1]), atol=1e-5)
    assert torch.allclose(product.exp().sum(1), torch.ones(5))


@given(
    own=st.lists(st.integers(0, 3), max_size=12),
    made=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    share=st.floats(0.0, 1.0),
)
def test_every_class_is_drawn_equally_often(own: list[int], made: list[int], share: float) -> None:
    """Each class has mass 1, split between real and synthetic images by the share where there are both, evenly within each."""
    joined, weights = real_and_synthetic(_labelled(own), _labelled(made), share)
    assert joined.labels.tolist() == own + made and len(weights) == len(joined)
    for label in set(own + made):
        of_label = joined.labels == label
        real, synthetic = weights[: len(own)][of_label[: len(own)]], weights[len(own) :][of_label[len(own) :]]
        expected = 1.0 if not len(real) else 0.0 if not len(synthetic) else share
        assert float(synthetic.sum()) == pytest.approx(expected) and float(real.sum()) == pytest.approx(1.0 - expected)
        assert all(len(group.unique()) <= 1 for group in (real, synthetic))


def test_hard_labels_are_a_share_of_the_loss() -> None:
    """The loss with hard labels is (1 - s) times the divergence plus s times the cross entropy; s = 1 forgets the teacher."""
    teacher, labels = _random(6, 3, seed=1), torch.tensor([0, 1, 2, 2, 1, 0])
    logits, index = _random(2, 3, seed=2), torch.tensor([4, 1])
    soft, hard = distillation(teacher, 2.0)(logits, index), cross_entropy(labels)(logits, index)
    for share in (0.0, 0.3, 1.0):
        mixed = distillation(teacher, 2.0, labels, share)(logits, index)
        assert torch.allclose(mixed, (1 - share) * soft + share * hard)


def test_images_below_the_agreement_are_left_out() -> None:
    """An image is kept when its label's pooled probability reaches the least; a class of none is kept whole and named."""
    probabilities = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.6, 0.4], [0.8, 0.2]])
    kept, whole = agreeing(probabilities.log(), torch.tensor([0, 0, 1, 1]), 0.7)
    assert kept.tolist() == [True, False, True, True] and whole == [1]
    kept, whole = agreeing(probabilities.log(), torch.tensor([0, 0, 1, 1]), 0.3)
    assert kept.tolist() == [True, True, True, False] and whole == []


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=12), least=st.floats(0.0, 1.0), seed=st.integers(0, 99))
def test_no_class_is_filtered_away(labels: list[int], least: float, seed: int) -> None:
    """Whatever agreement is demanded, every class keeps an image; demanding none, or of sure classifiers, leaves out nothing."""
    truth = torch.tensor(labels)
    teacher = (3 * _random(len(labels), 5, seed=seed)).log_softmax(1)
    kept, _ = agreeing(teacher, truth, least)
    assert set(truth[kept].tolist()) == set(labels)
    assert agreeing(teacher, truth, 0.0)[0].all()
    assert agreeing(F.one_hot(truth, 5).float().log(), truth, 1.0)[0].all()


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_balanced_chances_give_every_class_the_same(labels: list[int]) -> None:
    """The chances of the images of a class are equal and sum to 1, also where labels between are absent."""
    chances = class_balanced(torch.tensor(labels))
    assert torch.isfinite(chances).all()
    for label in set(labels):
        of_class = chances[torch.tensor(labels) == label]
        assert float(of_class.sum()) == pytest.approx(1.0) and len(of_class.unique()) == 1


def test_without_mixing_images_stay_as_they_are() -> None:
    """Switched off, or with a single image, a batch comes back itself with a share of 1."""
    images = _random(3, 1, 4, 4)
    mixed, share = Mixing(PLAIN, 0)(images)
    assert mixed is images and share == 1.0
    mixed, share = Mixing(ClassifierSpec(mixup=1.0, cutmix=1.0), 0)(images[:1])
    assert torch.equal(mixed, images[:1]) and share == 1.0


def test_mixup_blends_each_image_with_the_one_before() -> None:
    """Mixup returns share times the image plus the rest of its neighbour, and the shares vary around a half."""
    images, mixing, shares = _random(5, 2, 4, 4), Mixing(ClassifierSpec(mixup=1.0), 0), []
    for _ in range(400):
        mixed, share = mixing(images)
        assert torch.allclose(mixed, share * images + (1 - share) * images[[4, 0, 1, 2, 3]], atol=1e-6)
        shares.append(share)
    assert abs(np.mean(shares) - 1 / 2) < 0.05 and abs(np.var(shares) - 1 / 12) < 0.02  # Beta(1, 1) is uniform


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 14)])
def test_cutmix_pastes_a_rectangle_of_the_one_before(height: int, width: int) -> None:
    """CutMix takes every pixel from the image or, within one rectangle, from its neighbour; the share is the area that stayed."""
    images = torch.arange(3.0)[:, None, None, None].expand(3, 2, height, width)
    mixing, shares = Mixing(ClassifierSpec(cutmix=1.0), 0), []
    for _ in range(200):
        mixed, share = mixing(images)
        pasted = mixed[1, 0] == 0.0
        assert torch.equal(mixed[2], mixed[1] + 1) and torch.equal(mixed[0], torch.where(pasted, 2.0, 0.0).expand(2, -1, -1))
        assert torch.equal(pasted, pasted.any(1, keepdim=True) & pasted.any(0, keepdim=True))
        assert share == pytest.approx(1 - pasted.float().mean().item())
        shares.append(share)
    assert min(shares) < 0.3 and max(shares) > 0.9


@pytest.mark.parametrize("loss_of", ["cross entropy", "distillation", "proximal"])
def test_any_loss_is_mixed_as_its_images_are(loss_of: str) -> None:
    """One step of plain SGD on mixed images is a step on share times the loss of each image plus the rest of its neighbour's."""
    spec = ClassifierSpec(width=8, mixup=1.0, augment=False)
    images = torch.randint(0, 256, (4, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, teacher = torch.tensor([0, 1, 2, 1]), _random(4, 3)
    schedule = Schedule(1, 4, 0.1, 0.0, momentum=0.0)
    moved, expected = (nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)) for _ in range(2))
    expected.load_state_dict(moved.state_dict())

    def loss(network: nn.Module):
        if loss_of == "distillation":
            return distillation(teacher, 2.0, labels, 0.5)
        base = cross_entropy(labels)
        return proximal(base, network, 0.5) if loss_of == "proximal" else base

    train(moved, images, loss(moved), spec, schedule, policy="none", seed=3, device=CPU)
    (index,) = batches(4, schedule, 3)
    batch, share = Mixing(spec, 3)(to_unit(images[index]))
    objective, logits = loss(expected), expected(batch)
    (share * objective(logits, index) + (1 - share) * objective(logits, index.roll(1))).backward()
    assert 0 < share < 1
    assert torch.allclose(moved[1].weight, expected[1].weight - 0.1 * expected[1].weight.grad, atol=1e-2 * 0.1)


def test_the_average_takes_in_each_step() -> None:
    """With ema e the weights are the average a_t = a_{t-1} + (w_t - a_{t-1}) / (1 + e t) of weights that move by equal steps."""
    images = torch.full((2, 1, 2, 2), 255, dtype=torch.uint8)
    moved = _linear(images, Schedule(6, 2, 0.3, 0.0, momentum=0.0, ema=0.5))
    average = 0.0
    for step in range(1, 7):
        average += (0.3 * step - average) / (1 + 0.5 * step)
    assert torch.allclose(moved, torch.full((4,), average), rtol=1e-5)


def test_a_short_average_is_the_last_weights() -> None:
    """As ema goes to 0 the averaged weights go to the last ones, which ema = 0 returns; the training itself is the same."""
    images = torch.full((2, 1, 2, 2), 255, dtype=torch.uint8)
    last, short = (_linear(images, Schedule(20, 2, 0.3, 0.0, ema=ema)) for ema in (0.0, 1e-6))
    assert torch.allclose(short, last, rtol=1e-3)


def test_training_mixes_and_averages_as_the_settings_say(digits: Splits) -> None:
    """Each switch changes the trained weights, and the same seed repeats them bit for bit."""
    part, plain = digits.train.subset(range(40)), ClassifierSpec(width=8, steps=3, batch_size=16)
    base = fit_classifier(part, plain, 10, policy="digits", seed=0, device=CPU)
    for switch in ({"mixup": 0.5}, {"cutmix": 1.0}, {"ema": 0.5}):
        spec = plain.model_copy(update=switch)
        fitted = [fit_classifier(part, spec, 10, policy="digits", seed=0, device=CPU) for _ in range(2)]
        assert _same(*fitted) and not _same(fitted[0], base)


@pytest.mark.parametrize("side", [8, 28, 33, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_small_network_takes_any_size(side: int, channels: int) -> None:
    """The network maps images of 8 to 64 pixels and 1 or 3 channels to one logit per class."""
    network = build_classifier(PLAIN, channels, 7, seed=0)
    assert network(torch.zeros((2, channels, side, side))).shape == (2, 7)


def test_no_image_looks_at_its_neighbours_in_the_batch() -> None:
    """Networks normalize by groups of channels: an image's logits in training mode do not depend on the batch it stands in."""
    network = build_classifier(PLAIN, 1, 3, seed=0).train()
    images = _random(4, 1, 8, 8)
    assert torch.allclose(network(images)[:1], network(images[:1]), atol=1e-5)
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_residual_networks_have_a_small_stem_and_no_batch_norm(name: str) -> None:
    """Residual networks begin with a 3x3 convolution of stride 1, without pooling, and normalize by groups."""
    network = build_classifier(ClassifierSpec(network=name), 1, 4, seed=0)
    assert (network.conv1.kernel_size, network.conv1.stride, network.conv1.in_channels) == ((3, 3), (1, 1), 1)
    assert isinstance(network.maxpool, nn.Identity)
    kinds = {type(layer) for layer in network.modules()}
    assert nn.GroupNorm in kinds and nn.BatchNorm2d not in kinds
    with torch.no_grad():
        assert network.eval()(torch.zeros((1, 1, 8, 8))).shape == (1, 4)


def test_equal_seeds_build_equal_networks() -> None:
    """Untrained weights follow from the seed."""
    first, again, other = (build_classifier(PLAIN, 1, 10, seed) for seed in (3, 3, 4))
    assert _same(first, again) and not _same(first, other)


def test_the_schedule_is_that_of_the_settings() -> None:
    """Every classifier trained at one place follows one cycle of the settings' steps, batch size and peak rate."""
    spec = ClassifierSpec(steps=7, batch_size=5, learning_rate=0.3, weight_decay=0.2)
    assert schedule_of(spec) == Schedule(7, 5, 0.3, 0.2) and schedule_of(spec, 9) == Schedule(9, 5, 0.3, 0.2)
    assert schedule_of(spec.model_copy(update={"ema": 0.2})) == Schedule(7, 5, 0.3, 0.2, ema=0.2)


def test_equal_tensors_give_equal_weights_files():
    """A weights file depends on the tensors alone, not on their memory order, their graph, or the dictionary's order."""
    weight = torch.arange(6.0).reshape(2, 3)
    plain = weights_file({"a": weight, "b": torch.ones(2)})
    twisted = {"b": torch.ones(2, requires_grad=True), "a": weight.t().contiguous().t()}
    assert weights_file(twisted) == plain
