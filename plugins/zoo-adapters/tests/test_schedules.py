"""lp-ft, gradual-unfreeze and layer-decay: what begins when, at which rate, and that nothing moves before its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

import zoo_core
from zoo_adapters.schedules import GradualUnfreeze, LayerDecay, LpFt
from zoo_core.benchmark.loaders import open_task
from zoo_core.data.loader import Loader
from zoo_core.errors import RefusedError, UsageError
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Budget, Plan
from zoo_core.toolkit.stages import groups
from zoo_core.training.fit import fit

Resolve = Callable[..., Plan]
Build = Callable[..., Learner]

CHAINS = ("full", "partial", "bitfit", "norm", "lora(r=2)", "partial+lora(r=2)")
SHORT = Budget(epochs=4, batch_size=25)  # two steps in each epoch of 50 examples: eight


def loaded(adapters: str, backbone: str = "starter/vit-nano") -> Learner:
    return zoo_core.load(f"{backbone}+{adapters}", num_classes=10)


def trained(learner: Learner) -> set[str]:
    return {name for name, _ in learner.trainable()}


def by_name(learner: Learner, what: str) -> dict[str, Any]:
    """Rate (of a learning rate of one) or start of each trainable parameter, from the groups of the optimiser."""
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    return {names[id(x)]: group[what] for group in learner.parameter_groups(1.0) for x in group["params"]}


def by_group(learner: Learner, what: str) -> dict[int, Any]:
    """The same of each group of the backbone, which has one of it."""
    found = by_name(learner, what)
    group = groups(learner.backbone)
    values: dict[int, set[Any]] = {}
    for name, value in found.items():
        if name.startswith("backbone."):
            values.setdefault(group[name.removeprefix("backbone.")], set()).add(value)
    assert all(len(each) == 1 for each in values.values())
    return {index: next(iter(each)) for index, each in sorted(values.items())}


def fitted(learner: Learner, *, budget: Budget = SHORT, rate: float = 1e-3) -> Learner:
    """Trained on five digits of each class."""
    plan = zoo_core.resolve("starter/vit-nano", task="digits(shots=5)")
    assert plan.task is not None
    splits = zoo_core.data.splits.carve(open_task(plan), seed=0, shots=5)
    loader = Loader(
        splits.train,
        modality="image",
        target=splits.target,
        preparation=learner.source.preparation,
        batch_size=budget.batch_size,
        shuffled=True,
    )
    fit(learner, loader, budget=budget, learning_rate=rate, seed=0)
    return learner


def state(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    return {name for name, x in one.items() if not torch.equal(x, other[name])}


@contextmanager
def steps_of(learner: Learner) -> Iterator[list[tuple[dict[str, Tensor], set[str]]]]:
    """While open, before each step of the optimiser: the learner's state, and which parameters have a gradient."""
    steps: list[tuple[dict[str, Tensor], set[str]]] = []

    def look(optimiser: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        steps.append((state(learner), {name for name, x in learner.named_parameters() if x.grad is not None}))

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield steps
    finally:
        handle.remove()


# -- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("schedule", ["lp-ft", "gradual-unfreeze", "layer-decay"])
def test_a_schedule_changes_neither_what_trains_nor_the_delta_nor_a_value(chain: str, schedule: str) -> None:
    plain, scheduled = loaded(chain), loaded(f"{chain}+{schedule}")
    assert trained(scheduled) == trained(plain)
    assert scheduled.delta().keys() == plain.delta().keys()
    assert not differing(state(plain), state(scheduled))


@pytest.mark.parametrize("schedule", ["lp-ft", "gradual-unfreeze", "layer-decay"])
@pytest.mark.parametrize("chain", ["{0}", "probe+{0}", "{0}+full", "{0}+lora+layer-decay"])
def test_a_schedule_before_which_nothing_trains_is_refused_with_its_place(
    build_toy: Build, schedule: str, chain: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        build_toy(f"toy/tokens+{chain.format(schedule)}")
    assert str(caught.value) == (
        f"{schedule}: nothing of the backbone trains yet; it acts on what adapters before it opened or added: "
        f"write full+{schedule}, or lora+{schedule}"
    )


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("lp-ft(share=0)", "lp-ft(share=0): allowed: a share of all steps, above 0 and below 1"),
        ("lp-ft(share=1)", "lp-ft(share=1): allowed: a share of all steps, above 0 and below 1"),
        ("lp-ft(share=-0.5)", "lp-ft(share=-0.5): allowed"),
        ("gradual-unfreeze(until=1.5)", "gradual-unfreeze(until=1.5): allowed: a share of all steps"),
        ("gradual-unfreeze(decay=0.9)", "gradual-unfreeze(decay=0.9): allowed: 1 or more"),
        ("layer-decay(rate=0)", "layer-decay(rate=0): allowed: above 0, at most 1"),
        ("layer-decay(rate=1.01)", "layer-decay(rate=1.01): allowed: above 0, at most 1"),
        ("layer-decay(decay=0.9)", "decay"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(resolve_toy: Resolve, adapter: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_toy(f"toy/tokens+full+{adapter}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused_from_python_too(number: float) -> None:
    for make in (lambda: LpFt(share=number), lambda: GradualUnfreeze(decay=number), lambda: LayerDecay(rate=number)):
        with pytest.raises(UsageError, match="allowed"):
            make()


@pytest.mark.parametrize("schedule", ["lp-ft", "gradual-unfreeze", "layer-decay"])
def test_the_learning_rates_are_those_of_what_trains(resolve_toy: Resolve, schedule: str) -> None:
    plain = resolve_toy("toy/tokens+bitfit")
    scheduled = resolve_toy(f"toy/tokens+bitfit+{schedule}")
    assert scheduled.learning_rates == plain.learning_rates
    assert [part.name for part in scheduled.adapters] == ["bitfit", schedule]
    assert scheduled.first_stage == plain.first_stage == 0


# -- lp-ft ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", CHAINS)
def test_the_backbone_joins_at_the_share_and_the_head_at_once(chain: str) -> None:
    for name, start in by_name(loaded(f"{chain}+lp-ft(share=0.3)"), "start").items():
        assert start == (0.3 if name.startswith("backbone.") else 0.0)


def test_what_comes_after_lp_ft_trains_from_the_start() -> None:
    starts = by_name(loaded("bitfit+lp-ft+norm"), "start")
    assert starts["backbone.network.blocks.0.norm1.weight"] == 0.0
    assert starts["backbone.network.blocks.0.norm1.bias"] == 0.5


@pytest.mark.parametrize("backbone", ["starter/vit-nano", "starter/convnet-nano"])
def test_fine_tuning_starts_from_the_probes_head_on_the_bases_backbone(backbone: str) -> None:
    probe, learner = loaded("probe", backbone), loaded("full(head_scale=1)+lp-ft", backbone)
    before = state(learner)
    with steps_of(probe) as probing:
        fitted(probe)
    with steps_of(learner) as steps:
        fitted(learner)
    heads = {name for name in trained(learner) if name.startswith("heads.")}
    assert [names for _, names in steps] == [heads] * 4 + [trained(learner)] * 4
    for step in range(5):  # before the fifth step, which is the first of all, the head is still the probe's
        assert not differing({name: probing[step][0][name] for name in heads}, steps[step][0])
    assert differing(before, steps[3][0]) == heads
    assert not differing(before, steps[4][0]) & {
        name for name, _ in learner.backbone.named_parameters(prefix="backbone")
    }
    assert trained(learner) <= differing(before, state(learner))


# -- gradual-unfreeze -----------------------------------------------------------------------------------------------


def test_groups_join_evenly_from_the_last_to_the_first() -> None:
    learner = loaded("full+gradual-unfreeze(until=0.6)")
    assert by_group(learner, "start") == pytest.approx({0: 0.6, 1: 0.5, 2: 0.4, 3: 0.3, 4: 0.2, 5: 0.1})
    assert {start for name, start in by_name(learner, "start").items() if name.startswith("heads.")} == {0.0}


@pytest.mark.parametrize("chain", ["partial(n=2)", "partial(n=2)+lora(r=2, roles=[attn.q])"])
def test_only_groups_in_which_something_trains_are_counted(chain: str) -> None:
    starts = by_group(loaded(f"{chain}+gradual-unfreeze"), "start")
    expected = {3: 0.5, 4: 1 / 3, 5: 1 / 6} if chain == "partial(n=2)" else {1: 0.5, 2: 0.4, 3: 0.3, 4: 0.2, 5: 0.1}
    assert starts == pytest.approx(expected)


def test_what_was_added_to_a_stage_joins_with_it() -> None:
    starts = by_group(loaded("lora(r=2)+gradual-unfreeze"), "start")
    assert starts == pytest.approx({1: 0.5, 2: 0.375, 3: 0.25, 4: 0.125})


@pytest.mark.parametrize("decay", [1.0, 1.5, 2.6])
def test_each_group_learns_slower_than_the_one_after_it(decay: float) -> None:
    learner = loaded(f"full+gradual-unfreeze(decay={decay})")
    assert by_group(learner, "lr") == pytest.approx({group: decay ** -(5 - group) for group in range(6)})
    assert {rate for name, rate in by_name(learner, "lr").items() if name.startswith("heads.")} == {10.0}


@pytest.mark.parametrize("backbone", ["starter/vit-nano", "starter/convnet-nano"])
def test_trained_counts_are_prefix_sums_and_nothing_moves_before_it_joins(backbone: str) -> None:
    """Statistics of batch norms included."""
    learner = loaded("full+gradual-unfreeze(until=0.75)", backbone)
    group = {f"backbone.{name}": index for name, index in groups(learner.backbone).items()}
    numels = {name: x.numel() for name, x in learner.named_parameters()}
    sizes = [sum(numels[name] for name, each in group.items() if each == index) for index in range(6)]
    heads = sum(numels.values()) - sum(sizes)
    before = state(learner)
    with steps_of(learner) as steps:
        fitted(learner, budget=Budget(epochs=4, batch_size=25))
    seen = [sum(numels[name] for name in names) for _, names in steps]
    present = [size for size in reversed(sizes) if size]  # the last group of the convnet is empty
    sums = list(accumulate([heads, *present]))
    joined = [sum(round(0.75 * place / len(present) * 8) <= step for place in range(1, 7)) for step in range(8)]
    assert seen == [sums[min(place, len(present))] for place in joined]
    assert seen[-1] == sums[-1]
    first = {name: next(step for step, (_, names) in enumerate(steps) if name in names) for name in group}
    owner = {name.rpartition(".")[0]: first[name] for name in group}
    for step, (held, _) in enumerate(steps):
        for name in differing(before, held):
            if name.startswith("backbone."):
                assert owner[name.rpartition(".")[0]] <= step, name


def test_with_all_joined_at_the_first_step_it_is_full() -> None:
    found = [state(fitted(loaded(chain))) for chain in ("full", "full+gradual-unfreeze(until=0.06, decay=1)")]
    assert not differing(*found)


# -- layer-decay ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.5, 0.75, 1.0])
def test_each_stage_learns_at_a_power_of_the_rate(rate: float) -> None:
    learner = loaded(f"full+layer-decay(rate={rate})")
    assert by_group(learner, "lr") == pytest.approx({group: rate ** (5 - group) for group in range(6)})
    assert {rate for name, rate in by_name(learner, "lr").items() if name.startswith("heads.")} == {10.0}


def test_it_multiplies_what_an_earlier_adapter_said() -> None:
    learner = loaded("full+layer-decay(rate=0.5)+layer-decay(rate=0.5)+gradual-unfreeze(decay=2)")
    assert by_group(learner, "lr") == {group: 0.125 ** (5 - group) for group in range(6)}  # powers of two are exact


def test_a_partial_backbone_keeps_the_places_of_its_stages() -> None:
    assert by_group(loaded("partial(n=2)+layer-decay(rate=0.5)"), "lr") == {3: 0.25, 4: 0.5, 5: 1.0}
    assert by_group(loaded("lora(r=2)+layer-decay(rate=0.5)"), "lr") == {1: 0.0625, 2: 0.125, 3: 0.25, 4: 0.5}


def test_with_rate_one_updates_are_bit_equal_to_plain_ones() -> None:
    found = [state(fitted(loaded(chain, "starter/convnet-nano"))) for chain in ("full", "full+layer-decay(rate=1)")]
    assert not differing(*found)


def test_early_stages_move_less() -> None:
    start = state(loaded("full"))
    ends = {rate: state(fitted(loaded(f"full+layer-decay(rate={rate})"))) for rate in (1.0, 0.3)}

    def moved(rate: float, path: str) -> float:
        names = [name for name in start if name.startswith(path) and name.endswith("weight")]
        return float(sum((ends[rate][name] - start[name]).norm() for name in names))

    ratios = [
        moved(0.3, f"backbone.network.blocks.{i}.") / moved(1.0, f"backbone.network.blocks.{i}.") for i in range(4)
    ]
    assert ratios == sorted(ratios)
    assert ratios == pytest.approx([0.3**4, 0.3**3, 0.3**2, 0.3], rel=0.35)  # AdamW moves by its rate, decay aside
