from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from zoo_core.contracts import Features
from zoo_core.errors import LawError
from zoo_core.testing.toys import ToyBackbone
from zoo_core.toolkit.attention import attention_calls
from zoo_core.toolkit.stages import boundary, capture, groups, stage_modules


def pictures(backbone: ToyBackbone, num: int = 3) -> dict[str, Tensor]:
    shape = backbone.preparation.dummy(num)["pixel_values"].shape
    return {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(1))}


class TupleStages(ToyBackbone):
    """Each stage also hands on a bias that it doubles, in a tuple."""

    class Block(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            return self.block(x) + bias, 2 * bias

    def __init__(self, kind: Literal["tokens", "map"] = "tokens") -> None:
        super().__init__(kind)
        self.blocks = nn.Sequential(*(self.Block(block) for block in self.blocks))

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        x = self.stem(inputs["pixel_values"])
        if self.features.kind == "tokens":
            x = x.flatten(2).transpose(1, 2)
        bias = x.mean()
        for block in self.blocks:
            x, bias = block(x, bias)
        return Features(kind=self.features.kind, x=self.norm(x) + bias)


class InPlaceStages(ToyBackbone):
    """Stages that write into the hidden state they are given, as pre-activation networks do."""

    class Block(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.block(x.add_(1))
            return found

    def __init__(self) -> None:
        super().__init__("map")
        self.blocks = nn.Sequential(*(self.Block(block) for block in self.blocks))


def backbones() -> dict[str, Callable[[], ToyBackbone]]:
    return {
        "tokens": lambda: ToyBackbone("tokens"),
        "map": lambda: ToyBackbone("map"),
        "tuple of tokens": lambda: TupleStages("tokens"),
        "tuple of a map": lambda: TupleStages("map"),
        "in place": InPlaceStages,
    }


def starter(name: str) -> Any:
    pytest.importorskip("zoo_starter")
    import zoo_core

    return zoo_core.load_backbone(f"starter/{name}(weights=random)")


# -- the stage seam -------------------------------------------------------------------------------------------------


def test_a_boundary_stops_the_pass() -> None:
    backbone = ToyBackbone("tokens").eval()
    called: list[int] = []
    for index, module in enumerate(stage_modules(backbone)):
        module.register_forward_hook(lambda *_, index=index: called.append(index))
    boundary(backbone, pictures(backbone), 2)
    assert called == [0, 1]
    assert not any(module._forward_pre_hooks for module in backbone.modules()), "nothing is left behind"


def test_a_boundary_at_a_stage_that_is_never_called_breaks_the_law() -> None:
    backbone = ToyBackbone("tokens", layer_drop=True).train()  # skips its stages
    with pytest.raises(LawError, match=r"stage 1 \(blocks.1\) was never called"):
        boundary(backbone, pictures(backbone), 1)


def fail(*_: object) -> None:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("name", backbones())
def test_captured_states_are_those_that_leave_each_stage(name: str) -> None:
    backbone = backbones()[name]().eval()
    inputs = pictures(backbone)
    with capture(backbone, (0, 1, 2)) as states:
        backbone(inputs)
    for stage in (1, 2):
        assert torch.equal(states[stage - 1], boundary(backbone, inputs, stage))
    before = dict(states)
    backbone(inputs)
    assert states == before, "closed, it captures nothing"


def test_gradients_flow_through_captured_states() -> None:
    backbone = ToyBackbone("tokens").eval()
    with capture(backbone, (1,)) as states:
        backbone(pictures(backbone))
    states[1].sum().backward()
    assert backbone.stem.weight.grad is not None
    assert stage_modules(backbone)[2].norm.weight.grad is None  # type: ignore[union-attr]


# -- groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", backbones())
def test_groups_count_stem_stages_and_what_follows(name: str) -> None:
    backbone = backbones()[name]()
    found = groups(backbone)
    assert found.keys() == dict(backbone.named_parameters()).keys()
    for parameter, group in found.items():
        first = parameter.split(".")[0]
        assert group == {"stem": 0, "norm": 4}.get(first, int(parameter.split(".")[1]) + 1 if first == "blocks" else 9)


@pytest.mark.parametrize("name", ["vit-nano", "convnet-nano", "mlp-nano"])
def test_groups_of_a_starter_backbone_are_in_calling_order(name: str) -> None:
    backbone = starter(name)
    num_stages = len(backbone.stages)
    for parameter, group in groups(backbone).items():
        part = parameter.split(".")[1]
        expected = {"stem": 0, "norm": num_stages + 1}.get(part)
        assert group == (int(parameter.split(".")[2]) + 1 if expected is None else expected)


class AttentionPool(ToyBackbone):
    """Pools by attention with weights of its own, one of them in a module that is read and not called."""

    def __init__(self) -> None:
        super().__init__("tokens")
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 1, 12))

    def pool(self, features: Features) -> Tensor:
        found: Tensor = self.attention(self.query.expand(len(features.x), -1, -1), features.x, features.x)[0]
        return found.squeeze(1)


def test_weights_of_the_pooling_follow_the_last_stage() -> None:
    found = groups(AttentionPool())
    assert found["attention.in_proj_weight"] == 4
    assert found["attention.out_proj.weight"] == 4, "it is read by the module above, never called itself"


class Repeats(ToyBackbone):
    """Calls its stages as often as told."""

    def __init__(self, *calls: int) -> None:
        super().__init__("tokens")
        self.calls = calls

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        x = self.stem(inputs["pixel_values"]).flatten(2).transpose(1, 2)
        for block, times in zip(self.blocks, self.calls, strict=True):
            for _ in range(times):
                x = block(x)
        return Features(kind="tokens", x=self.norm(x))


@pytest.mark.parametrize(("calls", "stage", "times"), [((1, 2, 1), 1, 2), ((1, 1, 0), 2, 0), ((0, 1, 1), 0, 0)])
def test_a_stage_called_never_or_twice_breaks_the_law(calls: tuple[int, ...], stage: int, times: int) -> None:
    with pytest.raises(LawError, match=rf"stage blocks.{stage} is called {times} times"):
        groups(Repeats(*calls))


def test_stages_called_once_keep_the_law() -> None:
    assert groups(Repeats(1, 1, 1)).keys() == groups(ToyBackbone("tokens")).keys()


def test_a_module_first_called_before_the_stages_does_not_follow_them() -> None:
    class Shared(ToyBackbone):
        def forward(self, inputs: Mapping[str, Tensor]) -> Features:
            x = self.norm(self.stem(inputs["pixel_values"]).flatten(2).transpose(1, 2))
            return Features(kind="tokens", x=self.norm(self.blocks(x)))

    assert groups(Shared("tokens"))["norm.weight"] == 0


def test_what_is_called_between_two_stages_belongs_to_the_earlier_one() -> None:
    class Narrowing(ToyBackbone):
        def __init__(self) -> None:
            super().__init__("tokens")
            self.down = nn.Linear(12, 12)

        def forward(self, inputs: Mapping[str, Tensor]) -> Features:
            x = self.stem(inputs["pixel_values"]).flatten(2).transpose(1, 2)
            x = self.blocks[2](self.down(self.blocks[1](self.blocks[0](x))))
            return Features(kind="tokens", x=self.norm(x))

    found = groups(Narrowing())
    assert (found["down.weight"], found["blocks.1.proj.weight"], found["blocks.2.proj.weight"]) == (2, 2, 3)


class NeedsValues(ToyBackbone):
    """Looks at values while it runs, keeps one, and holds a tensor that is neither parameter nor buffer."""

    def __init__(self, *, plain: bool, asks: bool) -> None:
        super().__init__("tokens")
        self.table = torch.ones(12) if plain else None
        self.asks = asks

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        features = super().forward(inputs)
        self.seen = features.x
        if self.asks:
            assert features.x.sum().item() == features.x.sum().item()
        return features if self.table is None else Features(kind="tokens", x=features.x * self.table)


@pytest.mark.parametrize(("plain", "asks"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_backbone_that_needs_values_is_looked_at_with_them(plain: bool, asks: bool) -> None:
    backbone = NeedsValues(plain=plain, asks=asks)
    assert groups(backbone) == groups(ToyBackbone("tokens"))
    assert not any(x.is_meta for x in (*backbone.parameters(), *backbone.buffers()))
    assert ("seen" in vars(backbone)) == (plain or asks), "without values, nothing that a pass keeps stays"
    assert not vars(backbone).get("seen", torch.zeros(1)).is_meta


def test_parts_that_a_backbone_shares_are_counted_once_without_values_too() -> None:
    backbone = ToyBackbone("tokens")
    backbone.blocks[2].qkv = backbone.blocks[0].qkv
    assert groups(backbone)["blocks.0.qkv.weight"] == 1


def test_a_backbone_on_the_meta_device_has_the_same_groups() -> None:
    for kind in ("tokens", "map"):
        with torch.device("meta"):
            backbone = ToyBackbone(kind)
        assert groups(backbone) == groups(ToyBackbone(kind))


def test_a_backbone_without_stages_breaks_the_law() -> None:
    backbone = ToyBackbone("tokens")
    backbone.stages = ()
    with pytest.raises(LawError, match="names no stages"):
        groups(backbone)


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        (("blocks.1", "blocks.0", "blocks.2"), "called in the order blocks.0, blocks.1, blocks.2"),
        (("blocks.0", "blocks.0", "blocks.2"), "stage blocks.0 lies inside stage blocks.0"),
        (("blocks", "blocks.2"), "stage blocks.2 lies inside stage blocks"),
    ],
)
def test_stages_out_of_order_or_inside_each_other_break_the_law(stages: tuple[str, ...], told: str) -> None:
    backbone = ToyBackbone("tokens")
    backbone.stages = stages
    with pytest.raises(LawError, match=told):
        groups(backbone)


def test_one_block_at_two_places_breaks_the_law() -> None:
    backbone = ToyBackbone("tokens")
    backbone.blocks[2] = backbone.blocks[0]
    with pytest.raises(LawError, match="is called 2 times"):
        groups(backbone)


def test_looking_at_groups_changes_nothing() -> None:
    backbone = ToyBackbone("map").train()
    backbone.blocks[1].eval()
    before = {name: x.clone() for name, x in backbone.state_dict().items()}
    modes = [module.training for module in backbone.modules()]
    drawn = torch.get_rng_state()
    groups(backbone)
    assert modes == [module.training for module in backbone.modules()]
    assert all(torch.equal(x, before[name]) for name, x in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_groups_of_a_backbone_of_another_precision_are_the_same(dtype: torch.dtype) -> None:
    assert groups(ToyBackbone("tokens").to(dtype)) == groups(ToyBackbone("tokens"))
    assert attention_calls(ToyBackbone("tokens").to(dtype)) == [1, 1, 1]
