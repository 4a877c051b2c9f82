from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo_core import contracts
from zoo_core.contracts import Change, Context, Features, FeatureSpec, Site, Source, Target, Weights
from zoo_core.data.randomness import seeded
from zoo_core.errors import LawError, PluginError, RefusedError
from zoo_core.model.build import build, build_backbone, checksum
from zoo_core.model.learner import Learner
from zoo_core.model.objective import ScaledHead
from zoo_core.registry.catalog import Entry
from zoo_core.testing.recipes import ToyAdapter, ToyBackbones, ToyHeads, ToyHint, ToyMemory, ToyOpen, ToyTasks, toy_plan
from zoo_core.testing.toys import ToyBackbone

MAP = ToyBackbones(kind="map")


@dataclass(frozen=True, kw_only=True)
class Does(ToyAdapter):
    """An adapter that does one thing to a learner."""

    what: Callable[[Any], Any]

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        found = self.what(learner)
        return learner if found is None else found


# -- law: an adapter may only add -----------------------------------------------------------------------------------


def freeze_the_head(learner: Learner) -> None:
    learner.head.requires_grad_(False)


def open_the_last_norm(learner: Learner) -> None:
    learner.backbone.get_submodule("norm").requires_grad_(True)


def freeze_what_another_opened(learner: Learner) -> None:
    learner.backbone.get_submodule("norm").requires_grad_(False)


def drop_a_head_weight(learner: Learner) -> None:
    learner.head = nn.Identity()


def add_a_head(learner: Learner) -> None:
    learner.heads["aux"] = nn.Linear(12, 3)


def replace_a_head_weight(learner: Learner) -> None:
    """By a new one, if possible one that lies where the old one lay."""
    layer = learner.head.get_submodule("layers.0")
    assert isinstance(layer, nn.Linear)
    shape, place = layer.weight.shape, id(layer.weight)
    del layer.weight
    gc.collect()
    fresh = [nn.Parameter(torch.zeros(shape)) for _ in range(100)]
    layer.weight = next((parameter for parameter in fresh if id(parameter) == place), fresh[0])


def drop_a_frozen_weight(learner: Learner) -> None:
    del learner.backbone.get_submodule("blocks.1.conv").weight


def drop_a_stage(learner: Learner) -> None:
    learner.backbone.get_submodule("blocks")[1] = nn.Identity()  # type: ignore[operator]


def replace_a_buffer(learner: Learner) -> None:
    norm = learner.backbone.get_submodule("norm")
    assert isinstance(norm.running_mean, Tensor)
    norm.running_mean = norm.running_mean.clone()


def add_in_place(learner: Learner) -> None:
    with torch.no_grad():
        learner.backbone.get_parameter("stem.weight").add_(1e-7)


def swap_the_data(learner: Learner) -> None:
    weight = learner.backbone.get_parameter("blocks.0.conv.weight")
    weight.data = weight.data.flip(0)


def negate_two(learner: Learner) -> None:
    """A change whose sum is nothing."""
    weight = learner.backbone.get_parameter("blocks.0.conv.weight")
    weight.data.view(-1)[:2] *= -1


def swap_two(learner: Learner) -> None:
    weight = learner.backbone.get_parameter("blocks.2.bn.bias")
    weight.data = weight.data.clone()
    weight.data[0], weight.data[1] = 1.0, -1.0


def halve_precision(learner: Learner) -> None:
    learner.backbone.get_submodule("stem").half()


def move_a_statistic(learner: Learner) -> None:
    learner.backbone.get_buffer("norm.running_var").mul_(2)


def count_up(learner: Learner) -> None:
    learner.backbone.get_buffer("norm.num_batches_tracked").add_(1)


def move_what_no_file_keeps(learner: Learner) -> None:
    learner.backbone.get_buffer("blocks.0.one").add_(1)


def forward_in_training_mode(learner: Learner) -> None:
    learner.backbone.train()
    learner.backbone({"pixel_values": torch.randn(4, 3, 8, 8)})


def give_nothing(learner: Learner) -> Any:
    return learner.backbone


def give_another(learner: Learner) -> Learner:
    return build(toy_plan(backbone=MAP, seed=1))


WRONG: list[tuple[Callable[[Learner], Any], str]] = [
    (freeze_the_head, r"froze or removed heads.main.layers.0.weight"),
    (freeze_what_another_opened, "froze or removed backbone.norm.weight"),
    (drop_a_head_weight, r"froze or removed heads.main.layers.0.weight"),
    (replace_a_head_weight, r"froze or removed heads.main.layers.0.weight"),
    (add_a_head, "added a head 'aux'; a learner has one, learner.head"),
    (drop_a_frozen_weight, "removed backbone.blocks.1.conv.weight"),
    (drop_a_stage, "removed backbone.blocks.1.conv.weight"),
    (replace_a_buffer, "removed backbone.norm.running_mean"),
    (add_in_place, "changed the values of backbone.stem.weight"),
    (swap_the_data, "changed the values of backbone.blocks.0.conv.weight"),
    (negate_two, "changed the values of backbone.blocks.0.conv.weight"),
    (swap_two, "changed the values of backbone.blocks.2.bn.bias"),
    (halve_precision, "changed the values of backbone.stem.weight"),
    (move_a_statistic, "changed the values of backbone.norm.running_var"),
    (count_up, "changed the values of backbone.norm.num_batches_tracked"),
    (move_what_no_file_keeps, "changed the values of backbone.blocks.0.one"),
    (forward_in_training_mode, "changed the values of backbone.blocks.0.bn.running_mean"),
    (give_nothing, "gave ToyBackbone; apply returns a learner"),
    (give_another, "froze or removed"),
]


@pytest.mark.parametrize(("what", "told"), WRONG, ids=[what.__name__ for what, _ in WRONG])
def test_an_adapter_that_does_more_than_add_is_named(what: Callable[[Learner], Any], told: str) -> None:
    before = Does(what=open_the_last_norm if what is freeze_what_another_opened else look)
    with pytest.raises(LawError, match=rf"adapter Does .*{told}") as caught:
        build(toy_plan(before, Does(what=what), backbone=MAP))
    assert "\n" not in str(caught.value)


def open_all(learner: Learner) -> None:
    learner.backbone.requires_grad_(True)


def wrap_a_stage(learner: Learner) -> None:
    blocks = learner.backbone.get_submodule("blocks")
    blocks[1] = nn.Sequential(blocks[1], nn.Conv2d(12, 12, 1))  # type: ignore[operator,index]


def add_a_module(learner: Learner) -> None:
    learner.backbone.register_module("extra", nn.Linear(2, 2))


def parametrise(learner: Learner) -> None:
    class Plus(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.added = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.added

    nn.utils.parametrize.register_parametrization(learner.backbone.get_submodule("blocks.0.conv"), "weight", Plus())


def look(learner: Learner) -> None:
    learner.backbone({"pixel_values": torch.randn(4, 3, 8, 8)})


@pytest.mark.parametrize("what", [open_all, wrap_a_stage, parametrise, look])
def test_an_adapter_that_only_adds_is_welcome(what: Callable[[Learner], Any]) -> None:
    learner = build(toy_plan(Does(what=what), backbone=MAP))
    assert not learner.training
    assert all(x.requires_grad for x in learner.head.parameters())


def test_an_adapter_may_wrap_the_head_whose_keys_stay() -> None:
    def wrap(learner: Learner) -> None:
        learner.head = nn.Sequential(learner.head)

    learner = build(toy_plan(Does(what=wrap)))
    assert isinstance(learner.head, nn.Sequential)
    assert [name for name, _ in learner.named_children()] == ["backbone", "heads", "objective"]
    assert set(learner.delta()) == {"heads.main.0.layers.0.weight", "heads.main.0.layers.0.bias"}


def saying(changes: set[Change], what: Callable[[Any], Any]) -> Does:
    """An adapter that says that these are what it changes."""

    class Says(Does):
        pass

    Says.changes = frozenset(changes)
    return Says(what=what)


def hook_the_last_stage(learner: Learner) -> None:
    learner.backbone.get_submodule("blocks.2").register_forward_hook(lambda module, args, x: x + 1)


def wrap_the_head(learner: Learner) -> None:
    learner.head = Wrapped(learner.head)


class Wrapped(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Features) -> Tensor:
        predictions: Tensor = self.head(features)
        return predictions * 2


def replace_a_module_without_tensors(learner: Learner) -> None:
    learner.backbone.get_submodule("blocks.0").drop = nn.Identity()


def hold_a_buffer(learner: Learner) -> None:
    learner.backbone.register_buffer("mine", torch.ones(3), persistent=False)


@pytest.mark.parametrize("changes", [{"objective"}, {"schedule"}, {"objective", "schedule"}, set()])
@pytest.mark.parametrize(
    ("what", "found"),
    [
        (open_the_last_norm, "backbone.norm.bias"),
        (hook_the_last_stage, "backbone.blocks.2"),
        (wrap_the_head, "head"),
        (replace_a_module_without_tensors, "backbone.blocks.0.drop"),
        (hold_a_buffer, "backbone.mine"),
    ],
)
def test_what_stored_runs_are_used_without_changes_nothing_that_is_used(
    what: Callable[[Learner], Any], found: str, changes: set[Change]
) -> None:
    with pytest.raises(LawError, match=f"used without it, and it changed {found};"):
        build(toy_plan(saying(changes, what)))
    build(toy_plan(saying({*changes, "added"}, what)))
    build(toy_plan(saying(changes, lambda learner: learner.finishers.append(lambda _: None))))


def test_what_an_adapter_adds_trains_and_is_in_the_delta() -> None:
    learner = build(toy_plan(Does(what=wrap_a_stage), backbone=MAP))
    assert "backbone.blocks.1.1.weight" in learner.delta()
    assert "backbone.blocks.1.1.weight" in dict(learner.trainable())
    learner = build(toy_plan(Does(what=parametrise), backbone=MAP))
    assert "backbone.blocks.0.conv.parametrizations.weight.0.added" in learner.delta()
    assert "backbone.blocks.0.conv.parametrizations.weight.original" in learner.frozen()


# -- law: what is added and trains is reached by a loss -------------------------------------------------------------


def add_to_the_head(learner: Learner) -> None:
    learner.head.register_parameter("noise", nn.Parameter(torch.zeros(3)))


def add_to_the_objective(learner: Learner) -> None:
    assert learner.objective is not None
    learner.objective.register_module("projector", nn.Linear(12, 2))


@dataclass(frozen=True, kw_only=True)
class Pair(ToyAdapter):
    """Adds the product of two factors, one of them zero, to what the head gives; from half of the steps on."""

    used: bool = True

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        learner.head = Product(learner.head)
        if not self.used:
            learner.head.forward = learner.head.head.forward  # type: ignore[method-assign]
        learner.delay([x for name, x in learner.head.named_parameters(recurse=False)], 0.5)
        return learner


class Product(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.a, self.b = head, nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))

    def forward(self, features: Features) -> Tensor:
        found: Tensor = self.head(features) + self.a * self.b
        return found


class Sometimes(nn.Module):
    """A head whose addition takes part in evaluation alone, in half of the passes of training, or row by row."""

    def __init__(self, head: nn.Module, when: str) -> None:
        super().__init__()
        self.head, self.when = head, when
        self.added = nn.Parameter(torch.zeros(4))
        self.experts = nn.ParameterList(torch.zeros(()) for _ in range(4 if when == "routed" else 0))

    def forward(self, features: Features) -> Tensor:
        found: Tensor = self.head(features) + (self.added.sum() if self.when == "routed" else 0)
        if self.when == "routed":  # one expert for the whole batch, drawn anew
            expert: Tensor = self.experts[int(torch.randint(4, ()))]
            return found + expert
        if self.when == "evaluation":
            return found if self.training else found + self.added.sum()
        return found + self.added.sum() if self.training and torch.rand(()) < 0.5 else found


@dataclass(frozen=True, kw_only=True)
class Adds(ToyAdapter):
    """Puts the head into a Sometimes."""

    when: str

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        learner.head = Sometimes(learner.head, self.when)
        return learner


@pytest.mark.parametrize("when", ["skipped", "routed"])
def test_what_some_passes_of_training_reach_is_welcome(when: str) -> None:
    learner = build(toy_plan(Adds(when=when)))
    assert "heads.main.added" in dict(learner.trainable())


def test_what_evaluation_alone_reaches_is_refused() -> None:
    with pytest.raises(LawError, match=r"Adds added 1 tensors that take no part .* heads\.main\.added first"):
        build(toy_plan(Adds(when="evaluation")))


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        (Does(what=add_a_module), "Does added 2 tensors that take no part .* backbone.extra.weight first"),
        (Does(what=add_to_the_head), "Does added 1 tensors that take no part .* heads.main.noise first"),
        (Does(what=add_to_the_objective), "Does added 2 tensors that take no part .* objective.projector.weight first"),
        (Pair(used=False), "Pair added 2 tensors that take no part .* heads.main.a first"),
    ],
)
def test_what_no_loss_can_reach_is_refused_by_its_adapters_name(adapter: ToyAdapter, told: str) -> None:
    with pytest.raises(LawError, match=f"^adapter {told}"):
        build(toy_plan(Does(what=wrap_a_stage), adapter, ToyOpen(), backbone=MAP))


@pytest.mark.parametrize("kind", ["classes", "multilabel", "regression"])
def test_a_factor_of_zero_a_later_phase_and_what_only_the_objective_looks_at_are_reached(kind: Any) -> None:
    learner = build(toy_plan(Pair(), ToyHint(), task=ToyTasks(kind=kind)))
    assert {"heads.main.a", "objective.projector.weight"} <= {
        name.replace("heads.main.head.", "heads.main.") for name, _ in learner.trainable()
    }


def test_what_acts_in_training_alone_is_reached_and_no_statistic_moves() -> None:
    class Folded(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.shift = inner, nn.Parameter(torch.zeros(12, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.inner(x) + (self.shift if self.training else self.shift.detach())
            return found

    def fold(learner: Learner) -> None:
        learner.backbone.get_submodule("norm").requires_grad_(True)
        learner.backbone.get_submodule("blocks")[1] = Folded(  # type: ignore[operator]
            learner.backbone.get_submodule("blocks.1").requires_grad_(True)
        )

    learner = build(toy_plan(Does(what=fold), backbone=MAP))
    assert "backbone.blocks.1.shift" in learner.delta()
    assert torch.equal(learner.backbone.get_buffer("norm.running_mean"), torch.zeros(12))
    assert int(learner.backbone.get_buffer("norm.num_batches_tracked")) == 0


def test_looking_for_what_is_reached_moves_nothing_and_draws_nothing() -> None:
    def noisy(learner: Learner) -> None:
        learner.head.register_forward_hook(lambda *call: call[2] + torch.randn_like(call[2]))

    torch.manual_seed(3)
    learner = build(toy_plan(ToyOpen(), Does(what=wrap_a_stage), Does(what=noisy), backbone=MAP))
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))
    assert all(parameter.grad is None for parameter in learner.parameters())
    assert torch.equal(learner.backbone.get_buffer("norm.running_mean"), torch.zeros(12))
    assert not any(module.training for module in learner.modules())


def test_what_is_not_trained_is_not_looked_for() -> None:
    def add_frozen(learner: Learner) -> None:
        learner.backbone.register_module("extra", nn.Linear(2, 2).requires_grad_(False))

    build(toy_plan(Does(what=add_frozen)))
    build(toy_plan(Does(what=add_a_module)), purpose="use")  # as it is loaded, whoever made it


def test_each_adapter_answers_for_itself() -> None:
    class Innocent(ToyAdapter):
        pass

    with pytest.raises(LawError, match="adapter Does froze"):
        build(toy_plan(Innocent(), Does(what=freeze_the_head), Innocent(), backbone=MAP))


def test_an_adapter_keeps_the_tensors_of_an_objective_it_wraps() -> None:
    def drop_the_objective(learner: Learner) -> None:
        learner.objective = nn.Identity()

    with pytest.raises(LawError, match=r"adapter Does froze or removed objective.projector.weight"):
        build(toy_plan(ToyHint(), Does(what=drop_the_objective)))


# -- checksums ------------------------------------------------------------------------------------------------------

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (9000,)])
def test_equal_tensors_have_equal_sums(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (torch.randn(shape) > 0).to(dtype)
    assert checksum(x) == checksum(x.clone()) == checksum(x.clone().requires_grad_(dtype.is_floating_point))


def test_large_tensors_are_summed_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1000)
    whole = checksum(x)
    for length in (1, 7, 999, 1000):
        monkeypatch.setattr("zoo_core.model.build.CHECKED_AT_ONCE", length)
        assert checksum(x) == whole


def test_a_sum_does_not_depend_on_the_layout_in_memory() -> None:
    x = torch.randn(4, 6)
    assert checksum(x.T) == checksum(x.T.contiguous())
    assert checksum(x[:, ::2]) == checksum(x[:, ::2].clone())


@given(num=st.integers(1, 300), place=st.integers(0, 299), bit=st.integers(0, 31), seed=st.integers(0, 9))
def test_one_flipped_bit_changes_the_sum(num: int, place: int, bit: int, seed: int) -> None:
    x = torch.randn(num, generator=torch.Generator().manual_seed(seed))
    changed = x.clone()
    changed.view(torch.int32)[place % num] ^= -(2**31) if bit == 31 else 2**bit
    assert checksum(changed) != checksum(x)


@given(num=st.integers(2, 20_000), one=st.integers(0, 20_000), other=st.integers(0, 20_000))
@example(num=20_000, one=0, other=8191)
def test_two_swapped_values_change_the_sum(num: int, one: int, other: int) -> None:
    x = torch.arange(num, dtype=torch.float32)
    changed = x.clone()
    changed[one % num], changed[other % num] = x[other % num], x[one % num]
    assert (checksum(changed) != checksum(x)) == (one % num != other % num)


# -- building -------------------------------------------------------------------------------------------------------


def test_building_leaves_the_callers_draws_alone() -> None:
    before = torch.get_rng_state()
    build(toy_plan(ToyOpen(), weights="random"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_learner_follows_from_its_plan_alone(weights: Weights) -> None:
    torch.manual_seed(1)
    first = build(toy_plan(ToyOpen(), ToyHint(), weights=weights)).state_dict()
    torch.manual_seed(2)
    again = build(toy_plan(ToyOpen(), ToyHint(), weights=weights)).state_dict()
    assert all(torch.equal(x, again[name]) for name, x in first.items())


def test_each_seed_makes_another_head_and_another_random_backbone() -> None:
    by_seed = [build(toy_plan(weights="random", seed=seed)).state_dict() for seed in range(2)]
    for name in ("heads.main.layers.0.weight", "backbone.stem.weight"):
        assert not torch.equal(by_seed[0][name], by_seed[1][name])
    pretrained = [build(toy_plan(seed=seed)).state_dict()["backbone.stem.weight"] for seed in range(2)]
    assert torch.equal(*pretrained)


def test_an_adapter_before_does_not_change_the_draws_of_the_next() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Draws(ToyAdapter):
        def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
            drawn = torch.cat([torch.randn(3), torch.randn(3, generator=context.generator)])
            learner.backbone.register_buffer(f"drawn{len(list(learner.backbone.buffers()))}", drawn)
            return learner

    @dataclass(frozen=True, kw_only=True)
    class Greedy(ToyAdapter):
        def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
            torch.randn(1000)
            torch.randn(1000, generator=context.generator)
            return learner

    def drawn(before: ToyAdapter) -> Tensor:
        return build(toy_plan(before, Draws())).backbone.get_buffer("drawn0")

    assert torch.equal(drawn(ToyAdapter()), drawn(Greedy()))


def test_a_learner_is_frozen_but_for_its_head_and_in_evaluation_mode() -> None:
    learner = build(toy_plan())
    assert {name.split(".")[0] for name, _ in learner.trainable()} == {"heads"}
    assert not any(module.training for module in learner.modules())


def test_a_closed_form_head_trains_nothing() -> None:
    assert not list(build(toy_plan(head=ToyMemory())).trainable())


def test_values_get_a_head_in_their_units() -> None:
    learner = build(toy_plan(task=ToyTasks(kind="regression", size=2)))
    assert isinstance(learner.head, ScaledHead)


def test_a_learner_for_use_has_no_objective_and_the_same_delta() -> None:
    train = build(toy_plan(ToyHint(), ToyOpen()))
    use = build(toy_plan(ToyHint(), ToyOpen()), purpose="use")
    assert use.objective is None
    assert use.delta().keys() == train.delta().keys()


def test_the_number_of_outputs_must_be_known() -> None:
    plan = replace(toy_plan(), target=Target(kind="classes"))
    with pytest.raises(RefusedError, match="open the task first"):
        build(plan)
    assert build(plan, target=Target(kind="classes", size=5)).target.size == 5


@dataclass(frozen=True, kw_only=True)
class Gives:
    """A backbone recipe that gives what it is told."""

    what: Any

    def source(self) -> Source | None:
        return None

    def build(self, files: Path | None, weights: Weights) -> Any:
        return self.what


class Wide(nn.Module):
    """A head of four outputs, whatever was asked for, of one place."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(12, 4)

    def forward(self, features: Features) -> Tensor:
        found: Tensor = self.out(features.x if features.kind == "pooled" else features.x[:, 0])
        return found


@dataclass(frozen=True, kw_only=True)
class GivesHead(ToyHeads):
    """A head recipe that gives what it is told."""

    what: Any
    fit: Any = "gradient"

    def build(self, features: FeatureSpec, target: Target) -> Any:
        return self.what


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (GivesHead(what=None), "build gave NoneType; a head is a torch.nn.Module"),
        (GivesHead(what=nn.Identity(), fit="closed_form"), r"its module has no fit\(features, target\)"),
    ],
)
def test_what_is_no_head_is_its_plugins_fault(head: Any, told: str) -> None:
    with pytest.raises(PluginError, match=f"head 'toy-head' of zoo-toys 1 breaks its contract: .*{told}"):
        build(toy_plan(head=head))


@pytest.mark.parametrize(
    ("what", "target", "told"),
    [
        (nn.Identity(), Target(kind="classes", size=3), r"makes Features; predictions are \[2, 3\]"),
        (
            Wide(),
            Target(kind="classes", size=3),
            r"of pooled features \[2, 12\] it makes \[2, 4\]; predictions are \[2, 3\]",
        ),
        (Wide(), Target(kind="token_classes", size=4), r"it makes \[2, 4\]; predictions are \[2, 5, 4\]"),
    ],
)
def test_a_head_that_makes_other_predictions_is_blamed_at_build(what: nn.Module, target: Target, told: str) -> None:
    with pytest.raises(PluginError, match=f"head 'toy-head' of zoo-toys 1 breaks its contract: .*{told}"):
        build(toy_plan(head=GivesHead(what=what), target=target))


def test_looking_at_a_head_leaves_its_modes_and_what_is_drawn() -> None:
    head = nn.Sequential(Wide(), nn.BatchNorm1d(4)).train()
    torch.manual_seed(5)
    build(toy_plan(head=GivesHead(what=head), target=Target(kind="classes", size=4)))
    drawn = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(2))
    assert not head[1].running_mean.any()  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class GivesSites:
    """A backbone recipe whose backbone names the sites that it is told, for one role."""

    role: str
    site: Site
    kind: Any = "tokens"

    def source(self) -> Source | None:
        return None

    def build(self, files: Path | None, weights: Weights) -> nn.Module:
        role, site = self.role, self.site

        class Sited(ToyBackbone):
            def sites(self, asked: str) -> tuple[Site, ...]:
                return (site,) if asked == role else ()

        return Sited(self.kind)


@pytest.mark.parametrize(
    ("role", "site", "told"),
    [
        (
            "mlp.in",
            Site(path="blocks.0.qvk"),
            r"blocks.0.qvk.weight, and it has no module there; did you mean blocks.0.qkv",
        ),
        (
            "mlp.in",
            Site(path="norm", parameter="wieght"),
            "norm.wieght, and LayerNorm has no such tensor; did you mean weig",
        ),
        ("mlp.in", Site(path="norm", out_axis=1), r"whose out_axis is 1 and whose shape is \[12\]"),
        (
            "mlp.in",
            Site(path="blocks.0.qkv", outputs=(24, 48)),
            r"whose outputs are 24 to 48 and whose shape is \[36, 12\]",
        ),
        ("mlp.in", Site(path="blocks.0.qkv", outputs=(5, 5)), "whose outputs are 5 to 5"),
        ("mlp.in", Site(path="blocks.0.qkv", inputs=(0, 13)), "whose inputs are 0 to 13"),
        ("attn.q", Site(path="blocks.0.qkv", num_heads=3, head_dim=4), "which has 36 outputs for 3 heads of 4"),
    ],
)
def test_a_site_that_is_not_there_is_its_backbones_fault(role: str, site: Site, told: str) -> None:
    with pytest.raises(PluginError, match=told) as caught:
        build(toy_plan(ToyOpen(), backbone=GivesSites(role=role, site=site)))
    assert str(caught.value).startswith(f"backbone 'toy' of zoo-toys 1 breaks its contract: sites('{role}') names ")
    assert "Sited of zoo-toys 1 in " in str(caught.value)
    assert "test_build.py" in str(caught.value)


def test_sites_that_are_there_are_welcome() -> None:
    rows = Site(path="blocks.0.qkv", outputs=(12, 24), inputs=(0, 12), num_heads=3, head_dim=4)
    build(toy_plan(backbone=GivesSites(role="attn.k", site=rows)))


@pytest.mark.parametrize(
    ("features", "told"),
    [
        (
            FeatureSpec(kind="tokens", dim=13),
            "it says that it gives tokens with 3 axes of width 13, pooled 13, and it gives",
        ),
        (FeatureSpec(kind="tokens", dim=12, pooled_dim=6), "pooled 6, and it gives .* pooled 12"),
    ],
)
def test_features_that_are_not_what_a_backbone_says_are_its_fault(features: FeatureSpec, told: str) -> None:
    backbone = ToyBackbone("tokens")
    backbone.features = features
    with pytest.raises(LawError, match=f"backbone toy, which ToyBackbone of zoo-toys 1 in .*toys.py makes: .*{told}"):
        build_backbone(toy_plan(backbone=Gives(what=backbone)))


def test_a_backbone_whose_pass_fails_is_told_as_its_fault() -> None:
    backbone = ToyBackbone("tokens")
    backbone.stem = nn.Conv2d(5, 12, 2, stride=2)
    with pytest.raises(PluginError, match="backbone 'toy' of zoo-toys 1 raised RuntimeError"):
        build_backbone(toy_plan(backbone=Gives(what=backbone)))


class NoPool(nn.Module):
    modality = "image"
    features = FeatureSpec(kind="pooled", dim=3)
    stages = ("layer",)

    def forward(self, inputs: Any) -> Features:
        raise NotImplementedError


@pytest.mark.parametrize("what", [None, nn.Linear(2, 2), NoPool(), object()])
def test_what_is_no_backbone_is_told(what: Any) -> None:
    with pytest.raises(PluginError, match="toy did not build a backbone"):
        build_backbone(toy_plan(backbone=Gives(what=what)))


def test_a_backbone_that_breaks_the_law_of_stages_is_told() -> None:
    backbone = ToyBackbone("map")
    backbone.stages = ("blocks.1", "blocks.0")
    with pytest.raises(LawError, match="called in the order"):
        build_backbone(toy_plan(backbone=Gives(what=backbone)))


@pytest.mark.parametrize(
    ("promise", "told"),
    [
        ({"modality": "text"}, "modality text"),
        ({"features": FeatureSpec(kind="map", dim=12)}, "features"),
        ({"features": FeatureSpec(kind="tokens", dim=13)}, "features"),
        ({"num_stages": 4}, "stages 4, it has 3"),
    ],
)
def test_a_backbone_that_is_not_what_the_catalogue_says_is_told(promise: dict[str, Any], told: str) -> None:
    kept = Entry(
        name="toy",
        kind="backbone",
        describes="toy",
        modality="image",
        features=FeatureSpec(kind="tokens", dim=12),
        num_stages=3,
    )
    build_backbone(replace(toy_plan(), entry=kept))
    with pytest.raises(PluginError, match=f"its catalogue says {told}"):
        build_backbone(replace(toy_plan(), entry=replace(kept, **promise)))


def test_a_backbone_whose_files_are_not_pinned_is_refused() -> None:
    plan = replace(toy_plan(), sources={"backbone:toy": Source(repository="org/name", weights=("*.safetensors",))})
    with pytest.raises(RefusedError, match="backbone:toy is not pinned"):
        build_backbone(plan)


def test_a_backbone_stays_as_it_was_built() -> None:
    expected = ToyBackbones().build(None, "pretrained").state_dict()
    found = build(toy_plan(ToyOpen())).backbone.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in found.items())


def test_draws_of_a_part_follow_from_its_names() -> None:
    def draw(*parts: object) -> list[float]:
        with seeded(*parts) as generator:
            return [float(torch.rand(())), float(torch.rand((), generator=generator))]

    assert draw(0, "head", "linear") == draw(0, "head", "linear")
    assert len({tuple(draw(*parts)) for parts in ((0, "head"), (1, "head"), (0, "adapter"), ("0head",))}) == 4


def test_heads_are_made_for_what_they_consume() -> None:
    learner = build(toy_plan(head=ToyHeads(norm=True), backbone=MAP))
    assert learner.consumes == "pooled"
    assert learner({"pixel_values": torch.zeros(2, 3, 8, 8)}).predictions.shape == (2, 3)
