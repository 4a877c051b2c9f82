"""The network in plain torch, and the same under the backbone contract. Axes: B batch, D width, H W rows and columns.

Modules have the names of the published checkpoints: conv1, bn1, then layer1 to layer3 of n blocks each.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from zoo_core.contracts import Features, FeatureSpec, Modality, Site
from zoo_core.toolkit.features import masked_mean
from zoo_core.toolkit.preparations import ImagePreparation

__all__ = ["WIDTHS", "CifarResNetBackbone", "Network"]

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3 x 3 convolutions, added to a shortcut without parameters.

    Where the map shrinks, the shortcut takes every second position and fills the new channels with zeros on both sides.
    Source: He et al. 2016, section 3.3, option A; on both sides as in akamaster/pytorch_resnet_cifar10 at d5489e8.
    """

    def __init__(self, dim_in: int, dim_out: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.added = (dim_out - dim_in) // 2
        self.conv1 = nn.Conv2d(dim_in, dim_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim_out)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim_out)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """x_BDHW: float [B, D, H, W]. Returns float [B, D', H / stride, W / stride], not negative."""
        y_BDHW = functional.relu(self.bn1(self.conv1(x_BDHW)))
        shortcut = x_BDHW[:, :, :: self.stride, :: self.stride]
        if self.added:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.added, self.added))
        return functional.relu(self.bn2(self.conv2(y_BDHW)) + shortcut)


class Network(nn.Module):
    """6n + 2 layers: a convolution, three times n blocks of width 16, 32 and 64, and the classifier, left out here.

    Random weights are drawn by Kaiming's normal of the outputs, as for ReLU; batch norms begin at one and zero.
    Source: He et al. 2016, section 4.2; He et al. 2015, "Delving deep into rectifiers", equation 14.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        num_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _blocks(WIDTHS[0], WIDTHS[0], num_blocks, stride=1)
        self.layer2 = _blocks(WIDTHS[0], WIDTHS[1], num_blocks, stride=2)
        self.layer3 = _blocks(WIDTHS[1], WIDTHS[2], num_blocks, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: float [B, 3, H, W], normalised. Returns a map, float [B, 64, H / 4, W / 4], not negative."""
        x_BDHW = functional.relu(self.bn1(self.conv1(pixel_values)))
        for blocks in (self.layer1, self.layer2, self.layer3):
            x_BDHW = blocks(x_BDHW)
        return x_BDHW


class CifarResNetBackbone(nn.Module):
    """The network without its classifier: a map of 64 channels, pooled by the mean; every block is a stage."""

    modality: Modality = "image"
    features = FeatureSpec(kind="map", dim=WIDTHS[-1])

    def __init__(self, network: Network, preparation: ImagePreparation) -> None:
        super().__init__()
        self.network = network
        self.preparation = preparation
        self.stages = tuple(f"network.{name}" for name, module in network.named_modules() if isinstance(module, Block))
        named = [(f"network.{name}", module) for name, module in network.named_modules()]
        self._sites = {
            "conv": tuple(Site(path=path, kind="conv") for path, module in named if isinstance(module, nn.Conv2d)),
            "norm": tuple(Site(path=path, kind="norm") for path, module in named if isinstance(module, nn.BatchNorm2d)),
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        """inputs: `pixel_values`, float [B, 3, H, W]."""
        return Features(kind="map", x=self.network(inputs["pixel_values"]))

    def pool(self, features: Features) -> Tensor:
        """Mean over positions: float [B, D]."""
        return masked_mean(features)

    def sites(self, role: str) -> tuple[Site, ...]:
        return self._sites.get(role, ())


def _blocks(dim_in: int, dim_out: int, num: int, *, stride: int) -> nn.Sequential:
    first = Block(dim_in, dim_out, stride=stride)
    return nn.Sequential(first, *(Block(dim_out, dim_out, stride=1) for _ in range(num - 1)))
