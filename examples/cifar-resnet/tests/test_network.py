"""What the network computes, in plain torch once more, and what its stages and sites say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from zoo_cifar_resnet.loading import build
from zoo_cifar_resnet.network import Network
from zoo_cifar_resnet.recipes import DEPTHS


def by_hand(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """The map that a checkpoint's tensors give, written without modules."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            tensors[f"{name}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = norm("bn1", functional.conv2d(x, tensors["conv1.weight"], padding=1)).clamp(min=0)
    for layer in (1, 2, 3):
        for block in range(sum(f"layer{layer}." in name and name.endswith("conv1.weight") for name in tensors)):
            at, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = functional.conv2d(x, tensors[f"{at}.conv1.weight"], stride=stride, padding=1)
            y = norm(f"{at}.bn1", y).clamp(min=0)
            y = norm(f"{at}.bn2", functional.conv2d(y, tensors[f"{at}.conv2.weight"], padding=1))
            if stride == 2:
                zeros = torch.zeros(len(x), x.shape[1] // 2, *y.shape[2:], dtype=x.dtype)
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
            x = (y + x).clamp(min=0)
    return x


@pytest.mark.parametrize("depth", [20, 56])
def test_the_map_is_that_of_the_formulas(depth: int) -> None:
    """float64, where 1e-10 is far above rounding and far below any mistake."""
    network = Network(depth).double()
    generator = torch.Generator().manual_seed(1)
    for name, x in network.state_dict().items():
        if "bn" in name and x.is_floating_point():
            x.copy_(torch.rand(x.shape, generator=generator) + 0.5)
    pictures = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        found = network.eval()(pictures)
    expected = by_hand(network.state_dict(), pictures)
    assert found.shape == (2, 64, 8, 8)
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize(("name", "depth"), DEPTHS.items())
def test_a_network_of_6n_and_2_layers_has_3n_stages_and_a_site_for_each_weight(name: str, depth: int) -> None:
    backbone = build(depth)
    assert len(backbone.stages) == (depth - 2) // 2
    assert backbone.stages[0] == "network.layer1.0"
    assert len(backbone.sites("conv")) == len(backbone.sites("norm")) == depth - 1
    named = {f"{site.path}.weight" for role in ("conv", "norm") for site in backbone.sites(role)}
    assert named == {path for path, x in backbone.named_parameters() if path.endswith("weight")}
    assert backbone.sites("attn.q") == ()


def test_random_weights_have_the_spread_of_kaiming() -> None:
    weight = Network(20).layer3[1].get_parameter("conv2.weight")  # 36,864 values: the spread is known to 0.4 %
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
