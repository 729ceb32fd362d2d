"""The network: shapes, its state at the beginning, and what it is told."""

import pytest
import torch
from closed_forms import normal

from ff_flower.generative.unet import Attention, ResidualBlock, UNet, widths
from ff_flower.seeding import seeded


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize(("sides", "patch"), [((7, 7), 1), ((28, 28), 2), ((9, 5), 4), ((8, 8), 1), ((1, 1), 1), ((5, 8), 2)])
def test_the_network_keeps_any_shape_and_begins_at_zero(sides: tuple[int, int], patch: int, levels: int) -> None:
    """For any height and width the output has the input's, and before training it is zero."""
    output = UNet(6, 3, channels=8, depth=1, patch=patch, levels=levels)(torch.randn((2, 6, *sides)), torch.zeros(2))
    assert output.shape == (2, 3, *sides) and not output.any()


def test_blocks_begin_as_the_identity_plus_a_bias() -> None:
    """Before training, a residual block and an attention add the same number to every pixel of a channel, whatever the input."""
    x, embedding = normal(2, 8, 4, 4).float(), normal(2, 6).float()
    outputs = [ResidualBlock(8, 6, attention)(x, embedding) for attention in (False, True)] + [Attention(8)(x)]
    for added in (output - x for output in outputs):
        assert torch.allclose(added, added[:1, :, :1, :1].expand_as(added), atol=1e-6)


@pytest.mark.parametrize("side", [1, 4, 7])
def test_attention_is_the_scaled_dot_product(side: int) -> None:
    """Attention mixes values by softmax(q k / sqrt(d)) in each head, as PyTorch's own function does, forward and back."""
    attention = Attention(16).double()
    torch.nn.init.normal_(attention.projection.weight)
    x = normal(3, 16, side, side).requires_grad_()
    q, k, v = attention.queries_keys_values(attention.norm(x)).reshape(3, 3, 4, 4, side**2).transpose(-1, -2).unbind(1)
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(3, 16, side, side)
    expected, output = x + attention.projection(mixed), attention(x)
    assert torch.allclose(output, expected, atol=1e-12)
    direction = normal(3, 16, side, side)
    (wanted,), (found,) = (torch.autograd.grad((one * direction).sum(), x) for one in (expected, output))
    assert torch.allclose(found, wanted, atol=1e-11)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_attention_stands_at_the_two_lowest_resolutions(levels: int) -> None:
    """Attention is at the two lowest resolutions, never at the highest; each has twice as many blocks on the way up."""
    network = UNet(2, 1, channels=8, depth=2, levels=levels)
    stages = [*network.before, network.lowest, *reversed(network.after)]
    attentive = [any(isinstance(part, Attention) for part in stage.modules()) for stage in stages]
    expected = [level > 0 and level >= levels - 2 for level in range(levels)]
    assert attentive == [*expected, *reversed(expected[:-1])]
    assert [len(list(stage.children())) for stage in stages] == [2] * (levels - 1) + [4] * levels


def test_widths_grow_downwards() -> None:
    """Two resolutions have one and three times the channels, others one, two, three, four times."""
    assert [widths(16, levels) for levels in (1, 2, 3, 4)] == [(16,), (16, 48), (16, 32, 48), (16, 32, 48, 64)]


def test_zeros_tell_nothing() -> None:
    """A network that may be told conditions says the same with none and with zeros, and something else with others."""
    network = seeded(lambda: UNet(2, 1, channels=8, conditions=4), 0).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05)
        x, level = normal(3, 2, 8, 8).float(), torch.tensor([-1.0, 0.0, 1.0])
        assert torch.equal(network(x, level), network(x, level, torch.zeros(3, 4)))
        assert not torch.allclose(network(x, level), network(x, level, torch.ones(3, 4)), atol=1e-4)
