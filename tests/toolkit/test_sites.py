"""Changes at sites: where they act, what is left when they are folded, and which of them exclude each other."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import ClassVar, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo_core.contracts import Site
from zoo_core.errors import RefusedError
from zoo_core.toolkit.sites import (
    SiteChange,
    attach,
    changes_of,
    channels_first,
    fold_changes,
    read_bias,
    read_weight,
    sites_for,
)

D = 6


class Rows(SiteChange):
    """y + V x, with V of the weight's size: the plainest change of a weight."""

    weight_only: ClassVar[bool] = True

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.V = nn.Parameter(torch.zeros_like(weight.detach().flatten(1)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + F.linear(x, self.V)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.V.view_as(weight), bias


class Scale(SiteChange):
    """a y + b, along the channels that it is told."""

    def __init__(self, size: int, *, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.a = nn.Parameter(torch.ones(size))
        self.b = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shape = (-1, *[1] * (y.ndim - 2)) if self.first else (-1,)
        return y * self.a.view(shape) + self.b.view(shape)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert bias is not None
        return weight * self.a.view(-1, *[1] * (weight.ndim - 1)), bias * self.a + self.b


class Inputs(SiteChange):
    """The layer on a x."""

    changes_inputs: ClassVar[bool] = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(size))

    def inputs(self, x: Tensor) -> Tensor:
        return x * self.a

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight * self.a, bias


class Reader(Rows):
    """Rows, but computed from the layer's own weight."""

    reads_weight: ClassVar[bool] = True

    def act_on(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(layer, nn.Linear)
        return y + F.linear(x, self.V * layer.weight.detach())

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.V * weight, bias


class OneWay(Scale):
    mergeable: ClassVar[bool] = False


class Transposed(nn.Module):
    """GPT-2's linear layer: a weight of [inputs, outputs]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, 2 * D) / 3)
        self.bias = nn.Parameter(torch.randn(2 * D))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Network(nn.Module):
    """Layers of each kind in a row: fused, transposed, one with columns of two roles, one that is only read."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.Linear(D, 3 * D)
        self.transposed = Transposed()
        self.joint = nn.Linear(3 * D, D)
        self.read = nn.Linear(D, 2 * D, bias=False)
        self.norm = nn.LayerNorm(2 * D)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y = self.joint(torch.tanh(self.fused(x_BTD)))
        y = self.transposed(y).tanh()[..., D:]
        normed: Tensor = self.norm(F.linear(y, self.read.weight))
        return normed

    def sites(self, role: str) -> tuple[Site, ...]:
        return SITES.get(role, ())


SITES = {
    "attn.q": (Site(path="fused", outputs=(0, D)),),
    "attn.v": (Site(path="fused", outputs=(2 * D, 3 * D)),),
    "mlp.in": (Site(path="transposed", out_axis=1, outputs=(D, 2 * D)), Site(path="transposed", out_axis=1)),
    "attn.out": (Site(path="joint", inputs=(0, D)),),
    "mlp.out": (Site(path="joint", inputs=(D, 3 * D)),),
    "mlp.gate": (Site(path="read", outputs=(0, D), called=False), Site(path="read", called=False)),
    "norm": (Site(path="norm", kind="norm"),),
}
LINEAR = [(role, place) for role, sites in SITES.items() if role != "norm" for place in range(len(sites))]


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().double().requires_grad_(False)


@pytest.fixture
def x_BTD() -> Tensor:
    return torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def stir(network: nn.Module) -> None:
    """Gives every change numbers of its own."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, _, changes in changes_of(network):
            for change in changes:
                for parameter in change.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) / 3)


def rows_at(network: Network, site: Site, kind: Callable[[Tensor], SiteChange] = Rows) -> SiteChange:
    change = kind(read_weight(network, site))
    attach(network, site, change, "rows")
    return change


# -- reading ------------------------------------------------------------------------------------------------------


def test_a_weight_is_read_outputs_first_and_its_own_rows_and_columns_alone(network: Network) -> None:
    fused, transposed, joint = network.fused.weight, network.transposed.weight, network.joint.weight
    assert torch.equal(read_weight(network, SITES["attn.v"][0]), fused[2 * D :])
    assert torch.equal(read_weight(network, SITES["mlp.in"][0]), transposed.T[D:])
    assert torch.equal(read_weight(network, SITES["mlp.out"][0]), joint[:, D:])
    bias = read_bias(network, SITES["attn.v"][0])
    assert bias is not None
    assert torch.equal(bias, network.fused.bias[2 * D :])
    assert read_bias(network, SITES["mlp.gate"][0]) is None


def test_the_first_alternative_of_which_all_roles_are_there_is_taken(network: Network) -> None:
    sites = sites_for(network, [frozenset({"conv"}), frozenset({"mlp.out", "attn.q"}), frozenset({"norm"})])
    assert sites == [*SITES["attn.q"], *SITES["mlp.out"]]
    with pytest.raises(RefusedError, match=r"^it works on conv or else attn.k and attn.q; the backbone has attn.q, "):
        sites_for(network, [frozenset({"conv"}), frozenset({"attn.k", "attn.q"})])


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(2, 2, 1), True),
        (nn.BatchNorm1d(2), True),
        (nn.GroupNorm(1, 2), True),
        (nn.LayerNorm(2), False),
        (nn.Linear(2, 2), False),
        (type("LayerNorm2d", (nn.LayerNorm,), {})(2), True),
        (type("ConvNextLayerNorm", (nn.LayerNorm,), {"data_format": "channels_first"})(2), True),
        (type("ConvNextLayerNorm", (nn.LayerNorm,), {"data_format": "channels_last"})(2), False),
    ],
)
def test_it_is_known_which_axis_holds_the_channels(layer: nn.Module, expected: bool) -> None:
    assert channels_first(layer) == expected


# -- acting and folding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "place"), LINEAR)
def test_a_change_acts_as_another_weight_at_its_site_would(
    network: Network, x_BTD: Tensor, role: str, place: int
) -> None:
    site, plain = SITES[role][place], copy.deepcopy(network)
    change = rows_at(network, site)
    before = network(x_BTD)
    assert torch.equal(before, plain(x_BTD))
    stir(network)
    read_weight(plain, site).add_(cast(Tensor, change.V))  # a view
    assert not torch.allclose(network(x_BTD), before)
    torch.testing.assert_close(network(x_BTD), plain(x_BTD), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("role", "place"), LINEAR)
def test_folding_leaves_the_bases_keys_its_other_rows_and_no_hook(
    network: Network, x_BTD: Tensor, role: str, place: int
) -> None:
    site, before = SITES[role][place], copy.deepcopy(network)
    rows_at(network, site)
    stir(network)
    changed = network(x_BTD)
    fold_changes(network)
    torch.testing.assert_close(network(x_BTD), changed, rtol=0, atol=1e-12)
    assert list(network.state_dict()) == list(before.state_dict())
    assert [type(module) for module in network.modules()] == [type(module) for module in before.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    read_weight(before, site).copy_(read_weight(network, site))  # all else is bit for bit what it was
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_changes_of_one_layer_compose_in_their_order_with_those_of_inputs_before_all(
    network: Network, x_BTD: Tensor
) -> None:
    for site in (*SITES["attn.q"], *SITES["attn.v"]):
        rows_at(network, site)
        attach(network, site, Scale(D).double(), "scale")
        rows_at(network, site)
    attach(network, SITES["mlp.out"][0], Inputs(2 * D).double(), "inputs")
    rows_at(network, SITES["mlp.out"][0])
    rows_at(network, SITES["attn.out"][0])
    for place in (0, 1, 0):
        rows_at(network, SITES["mlp.gate"][place])
    attach(network, SITES["norm"][0], Scale(2 * D).double(), "scale")
    stir(network)
    changed = network(x_BTD)
    fold_changes(network)
    torch.testing.assert_close(network(x_BTD), changed, rtol=0, atol=1e-11)
    assert list(changes_of(network)) == []


@pytest.mark.parametrize("groups", [1, 2])
def test_rows_of_a_convolution_are_channels(groups: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 6, 3, groups=groups)).double().requires_grad_(False)
    attach(network, Site(path="0", kind="conv", outputs=(2, 5)), Scale(3, first=True).double(), "scale")
    stir(network)
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    changed = network(x)
    before = network.get_parameter("0.weight").clone()
    fold_changes(network)
    torch.testing.assert_close(network(x), changed, rtol=0, atol=1e-12)
    assert torch.equal(network.get_parameter("0.weight")[:2], before[:2])


class WithActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: nothing that leaves it can be folded into its weight."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.act(self.drop(super().forward(x)))
        return activated


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (WithActivation(D), (2, D, 3, 3)),
        (nn.BatchNorm2d(D), (2, D, 3, 3)),
        (nn.BatchNorm1d(D), (2, D)),
        (nn.GroupNorm(2, D), (2, D, 3)),
        (nn.LayerNorm(D), (2, 4, D)),
    ],
)
def test_a_change_of_a_norm_acts_before_its_activation_and_folds(norm: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(copy.deepcopy(norm)).double().eval().requires_grad_(False)
    site, first = Site(path="0", kind="norm"), channels_first(network[0])
    x = torch.randn(shape, dtype=torch.float64)
    base = network(x)
    for _ in range(2):  # the second one is not misled by the first
        attach(network, site, Scale(D, first=first).double(), "scale")
    assert torch.equal(network(x), base)
    stir(network)
    changed = network(x)
    assert not torch.allclose(changed, base)
    fold_changes(network)
    torch.testing.assert_close(network(x), changed, rtol=0, atol=1e-12)
    assert not any(module._forward_pre_hooks for module in network.modules())


# -- copies -------------------------------------------------------------------------------------------------------


def test_a_deep_copy_has_changes_of_its_own(network: Network, x_BTD: Tensor) -> None:
    for role, place in LINEAR:
        rows_at(network, SITES[role][place])
    before = network(x_BTD)
    other = copy.deepcopy(network)
    stir(other)
    assert torch.equal(network(x_BTD), before)
    changed = other(x_BTD)
    assert not torch.allclose(changed, before)
    fold_changes(other)
    assert len(list(changes_of(network))) == 4
    torch.testing.assert_close(other(x_BTD), changed, rtol=0, atol=1e-11)


def test_changes_of_called_layers_survive_pickling(network: Network, x_BTD: Tensor) -> None:
    for role in ("attn.q", "attn.v", "mlp.out"):
        rows_at(network, SITES[role][0])
    stir(network)
    again = pickle.loads(pickle.dumps(network))
    assert torch.equal(again(x_BTD), network(x_BTD))
    stir(again)
    assert not torch.allclose(again(x_BTD), network(x_BTD))


# -- what is refused ----------------------------------------------------------------------------------------------


def test_what_is_more_than_a_weight_is_refused_where_the_weight_is_read(network: Network) -> None:
    with pytest.raises(RefusedError, match="reads the weight of read without calling it"):
        attach(network, SITES["mlp.gate"][0], Scale(D), "scale")


@pytest.mark.parametrize("order", ["first", "second"])
def test_a_change_that_reads_the_weight_is_alone_at_its_rows(network: Network, order: str) -> None:
    site = SITES["attn.q"][0]
    rows_at(network, site, Reader if order == "first" else Rows)
    rows_at(network, SITES["attn.v"][0])  # other rows are another weight
    with pytest.raises(RefusedError, match=r"^rows: fused has rows already, and rows takes the weight there as"):
        rows_at(network, site, Rows if order == "first" else Reader)


def test_a_change_that_reads_the_weight_comes_before_those_of_outputs(network: Network, x_BTD: Tensor) -> None:
    site = Site(path="fused")
    first, second = copy.deepcopy(network), network
    attach(first, site, Scale(3 * D), "scale")
    with pytest.raises(RefusedError, match="comes first"):
        rows_at(first, site, Reader)
    attach(second, site, Inputs(D).double(), "inputs")  # what goes in is another matter
    rows_at(second, site, Reader)
    attach(second, site, Scale(3 * D).double(), "scale")
    stir(second)
    changed = second(x_BTD)
    fold_changes(second)
    torch.testing.assert_close(second(x_BTD), changed, rtol=0, atol=1e-12)


def test_nothing_is_folded_if_anything_cannot_be(network: Network) -> None:
    rows_at(network, SITES["attn.q"][0])
    attach(network, SITES["norm"][0], OneWay(2 * D), "one-way")
    stir(network)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(RefusedError, match=r"^one-way at norm does not fold into plain weights$"):
        fold_changes(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class Standardised(nn.Linear):
    """Uses its weight divided by its spread."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / self.weight.std(), self.bias)


@pytest.mark.parametrize("size", [1.0, 1e-3])  # a small change is told from rounding too
def test_folding_into_a_layer_that_uses_another_weight_is_refused(size: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(Standardised(D, D)).requires_grad_(False)
    change = Rows(network.get_parameter("0.weight"))
    attach(network, Site(path="0"), change, "rows")
    with torch.no_grad():
        change.V.normal_(std=size)
    with pytest.raises(RefusedError, match="rows at 0: Standardised does not use its weight as it stands"):
        fold_changes(network)


def test_folding_in_half_precision_is_no_reason_to_refuse() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64)).requires_grad_(False).bfloat16()
    attach(network, Site(path="0"), Rows(network.get_parameter("0.weight")), "rows")
    stir(network)
    x = torch.randn(4, 64).bfloat16()
    changed = network(x)
    fold_changes(network)
    torch.testing.assert_close(network(x), changed, rtol=0.05, atol=0.1)
