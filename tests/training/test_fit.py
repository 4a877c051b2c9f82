from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from zoo_core import contracts
from zoo_core.benchmark.trial import choose, run_trial
from zoo_core.contracts import Context, Preparation
from zoo_core.data.loader import Loader
from zoo_core.errors import DivergedError, LawError, ZooError
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Budget, Plan
from zoo_core.testing.recipes import ToyAdapter, ToyBackbones, ToyHeads, ToyHint, ToyMemory, ToyOpen, ToyTasks, toy_plan
from zoo_core.testing.toys import ToySplit
from zoo_core.toolkit.preparations import ImagePreparation
from zoo_core.training.fit import Fitted, calibrate, fit, pause_fit
from zoo_core.training.metrics import predict
from zoo_core.training.progress import FitProgress

MAP = ToyBackbones(kind="map")
SHORT = Budget(epochs=2, batch_size=16)


def loader_of(plan: Plan, learner: Learner, split: str = "train", **more: Any) -> Loader:
    assert plan.task is not None
    given: dict[str, Any] = {"shuffled": split == "train", "batch_size": plan.budget.batch_size, "seed": plan.seed}
    data = plan.task.recipe.open(None)
    return Loader(
        data.splits[split],
        modality="image",
        target=learner.target,
        **({"preparation": learner.source.preparation} | given | more),
    )


def fitted(
    plan: Plan, learning_rate: float | None = 1e-2, seed: int = 0, num_workers: int = 0, **more: Any
) -> tuple[Learner, Fitted]:
    learner = build(plan)
    loader = loader_of(plan, learner, num_workers=num_workers)
    return learner, fit(learner, loader, budget=plan.budget, learning_rate=learning_rate, seed=seed, **more)


def state(learner: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


@contextmanager
def watched() -> Iterator[list[list[dict[str, Any]]]]:
    """While open, each optimiser step's groups: rate, decay and gradients just before it."""
    steps: list[list[dict[str, Any]]] = []

    def note(optimiser: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        steps.append(
            [
                {
                    "lr": float(group["lr"]),
                    "weight_decay": group["weight_decay"],
                    "params": group["params"],
                    "norm": torch.cat([x.grad.flatten() for x in group["params"] if x.grad is not None]).norm(),
                }
                for group in optimiser.param_groups
            ]
        )

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield steps
    finally:
        handle.remove()


# -- one pass a step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapters", [(), (ToyOpen(),), (ToyOpen(what="last"), ToyHint())])
def test_each_step_makes_one_forward_pass(adapters: tuple[ToyAdapter, ...]) -> None:
    plan = toy_plan(*adapters, budget=replace(SHORT, epochs=3))
    learner = build(plan)
    calls: list[bool] = []
    learner.backbone.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    loader = loader_of(plan, learner)
    with watched() as steps:
        found = fit(learner, loader, budget=plan.budget, learning_rate=1e-2, seed=0)
    assert len(calls) == len(steps) == found.num_steps == 3 * loader.num_batches == 12
    assert all(calls)


def test_a_second_pass_is_seen() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Twice(ToyAdapter):
        def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
            assert isinstance(learner, nn.Module)
            learner.register_forward_hook(lambda module, args, output: learner.backbone(args[0]) and None)
            return learner

    plan = toy_plan(Twice(), budget=SHORT)
    learner = build(plan)
    calls: list[int] = []
    learner.backbone.register_forward_hook(lambda *_: calls.append(1))
    found = fit(learner, loader_of(plan, learner), budget=plan.budget, learning_rate=1e-2, seed=0)
    assert len(calls) == 2 * found.num_steps


def test_a_closed_form_fit_makes_one_pass_over_the_data_and_no_graph() -> None:
    plan = toy_plan(head=ToyMemory(), budget=SHORT)
    learner = build(plan)
    seen: list[tuple[bool, bool, int]] = []
    learner.backbone.register_forward_hook(
        lambda module, args, output: seen.append((torch.is_grad_enabled(), module.training, len(output.x)))
    )
    loader = loader_of(plan, learner, shuffled=False)
    found = fit(learner, loader, budget=plan.budget, learning_rate=None, seed=0)
    assert seen == [(False, False, 16), (False, False, 16), (False, False, 16), (False, False, 12)]
    assert found == Fitted(losses=(), num_steps=0, seconds=found.seconds, training=None)
    predictions, _ = predict(learner, loader)
    assert (predictions.argmax(1) == loader.targets).all(), "each training example is its own nearest"


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_a_closed_form_head_is_fitted_to_other_targets(kind: Any) -> None:
    plan = toy_plan(head=ToyMemory(), task=ToyTasks(kind=kind, size=2))
    learner = build(plan)
    loader = loader_of(plan, learner, shuffled=False)
    fit(learner, loader, budget=plan.budget, learning_rate=None, seed=0)
    predictions, _ = predict(learner, loader)
    torch.testing.assert_close(predictions, loader.targets, rtol=1e-6, atol=1e-4)  # values: to their unit and back


# -- steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
def test_rates_rise_in_a_line_and_fall_as_half_a_cosine(warmup: float) -> None:
    plan = toy_plan(budget=Budget(epochs=5, batch_size=15, warmup=warmup))
    with watched() as steps:
        fitted(plan, 0.5)
    num, rising = 20, max(1, round(20 * warmup))
    expected = [
        (step + 1) / rising if step < rising else 0.5 + 0.5 * math.cos(math.pi * (step - rising) / (num - rising))
        for step in range(num)
    ]
    for step, share in zip(steps, expected, strict=True):
        assert step[0]["lr"] == pytest.approx(0.5 * share, rel=1e-12)  # rounding of float64
    assert max(expected) == 1.0
    assert expected[-1] < 0.05 or warmup == 1.0


def test_scales_and_decay_reach_the_optimiser() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Faster(ToyAdapter):
        def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
            learner.set_scale(learner.head.parameters(), 4.0)
            return learner

    plan = toy_plan(ToyOpen(what="last"), Faster(), budget=Budget(epochs=1, weight_decay=0.3, warmup=0))
    with watched() as steps:
        learner, _ = fitted(plan, 0.25)
    head = {id(parameter) for parameter in learner.head.parameters()}
    for group in steps[0]:
        for parameter in group["params"]:
            assert group["lr"] == (1.0 if id(parameter) in head else 0.25)
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)
    assert sum(len(group["params"]) for group in steps[0]) == len(list(learner.trainable()))


@pytest.mark.parametrize("clip", [1e-3, 1e9])
def test_gradients_are_clipped_together(clip: float) -> None:
    plan = toy_plan(ToyOpen(), ToyHint(), budget=replace(SHORT, clip=clip))
    with watched() as steps:
        fitted(plan)
    norms = [float(torch.stack([group["norm"] for group in step]).norm()) for step in steps]
    if clip == 1e-3:
        assert norms == pytest.approx([clip] * len(norms), rel=1e-3)  # torch divides by the norm plus 1e-6
    else:
        assert min(norms) > 1e-2


def test_a_fit_is_the_loop_that_anybody_would_write() -> None:
    plan = toy_plan(backbone=MAP, budget=Budget(epochs=3, batch_size=16, weight_decay=0.1, clip=0.5, warmup=0.25))
    learner, found = fitted(plan, 0.05, seed=3)
    twin = build(plan)
    twin.train()
    weight, bias = (twin.head.get_parameter(f"layers.0.{name}") for name in ("weight", "bias"))
    optimiser = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}], lr=0.05, fused=True
    )
    losses: list[float] = []
    step = 0
    loader = loader_of(plan, twin)
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            share = (step + 1) / 3 if step < 3 else 0.5 + 0.5 * math.cos(math.pi * (step - 3) / 9)
            for group in optimiser.param_groups:
                group["lr"] = 0.05 * share
            loss = nn.functional.cross_entropy(twin(batch.inputs).predictions, batch.target)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([weight, bias], 0.5)
            optimiser.step()
            losses.append(float(loss.detach()))
            step += 1
    assert same(state(learner), state(twin))
    means = [sum(losses[start : start + 4]) / 4 for start in (0, 4, 8)]
    assert found.losses == pytest.approx(means, rel=1e-6)  # a float32 sum against a float64 one


@pytest.mark.parametrize("kind", ["classes", "multilabel", "regression"])
@pytest.mark.parametrize("backbone", [ToyBackbones(), MAP])
def test_each_target_is_learnt(kind: Any, backbone: ToyBackbones) -> None:
    plan = toy_plan(
        ToyOpen(what="last"),
        backbone=backbone,
        head=ToyHeads(norm=True),
        task=ToyTasks(kind=kind, size=3),
        budget=Budget(epochs=15),
    )
    _, found = fitted(plan, 2e-2)
    assert found.losses[-1] < 0.8 * found.losses[0]


def test_progress_tells_of_every_step() -> None:
    told: list[FitProgress] = []
    plan = toy_plan(budget=SHORT)
    _, found = fitted(plan, progress=told.append)
    assert [progress.step for progress in told] == list(range(1, found.num_steps + 1))
    assert {progress.num_steps for progress in told} == {found.num_steps}
    assert all(math.isfinite(progress.loss) and progress.examples_per_second > 0 for progress in told)


# -- one seed, one result -------------------------------------------------------------------------------------------

MOVING = (ToyOpen(), ToyHint())  # dropout is on, and a projector trains


@pytest.mark.parametrize("backbone", [ToyBackbones(), MAP])
def test_two_runs_with_one_seed_are_bit_equal_whatever_the_caller_draws(backbone: ToyBackbones) -> None:
    plan = toy_plan(*MOVING, backbone=backbone, budget=replace(SHORT, augment="strong"))
    torch.manual_seed(1)
    first, told = fitted(plan)
    torch.manual_seed(2)
    torch.rand(3)
    again, told_again = fitted(plan)
    assert same(state(first), state(again))
    assert told.losses == told_again.losses


def test_another_seed_draws_other_dropout() -> None:
    plan = toy_plan(*MOVING, budget=SHORT)
    assert not same(state(fitted(plan, seed=0)[0]), state(fitted(plan, seed=1)[0]))
    still = toy_plan(budget=SHORT)
    assert same(state(fitted(still, seed=0)[0]), state(fitted(still, seed=1)[0])), "nothing else is drawn in a fit"


def test_a_fit_leaves_the_callers_draws_alone() -> None:
    before = torch.get_rng_state()
    fitted(toy_plan(*MOVING, budget=replace(SHORT, augment="light")))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("augment", ["none", "light"])
def test_workers_change_no_bit_of_a_fit(augment: Any) -> None:
    plan = toy_plan(*MOVING, budget=replace(SHORT, augment=augment))
    assert same(state(fitted(plan)[0]), state(fitted(plan, num_workers=2)[0]))


def test_a_copy_of_a_learner_trains_to_the_same_bits() -> None:
    plan = toy_plan(*MOVING, budget=SHORT)
    learner = build(plan)
    for each in (learner, twin := copy.deepcopy(learner)):
        fit(each, loader_of(plan, each), budget=plan.budget, learning_rate=1e-2, seed=0)
    assert same(state(learner), state(twin))


# -- early stopping -------------------------------------------------------------------------------------------------


def test_training_does_not_stop_early_unless_asked() -> None:
    def never(learner: Learner) -> float:
        raise AssertionError("nobody asked for validation")

    _, found = fitted(toy_plan(budget=SHORT), validate=never)
    assert len(found.losses) == 2


@pytest.mark.parametrize(
    ("scores", "patience", "epochs"),
    [
        ([1, 2, 3, 4, 5, 6], 1, 6),
        ([3, 2, 1], 1, 2),
        ([3, 3, 3], 1, 2),
        ([3, 2, 4, 1, 1, 1], 2, 5),
        ([math.nan, math.nan, math.nan], 2, 2),
    ],
)
def test_training_stops_after_epochs_without_a_better_score(scores: list[float], patience: int, epochs: int) -> None:
    given = iter(scores)
    _, found = fitted(toy_plan(budget=Budget(epochs=6, patience=patience)), validate=lambda _: next(given))
    assert len(found.losses) == epochs


def test_validating_changes_no_bit_of_training() -> None:
    plan = toy_plan(*MOVING, budget=SHORT)
    patient = replace(plan, budget=replace(SHORT, patience=1000))

    def validate(learner: Learner) -> float:
        torch.rand(())
        return float(predict(learner, loader_of(plan, learner, "val", num_workers=1))[0].mean())

    assert same(state(fitted(plan)[0]), state(fitted(patient, validate=validate)[0]))


class Cached(nn.Module):
    """A stage that keeps a table from its first pass on and multiplies by it, as rotary embeddings do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.tables: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if len(x) not in self.tables:
            self.tables[len(x)] = torch.ones_like(x)
        found: Tensor = self.inner(x * self.tables[len(x)])
        return found


def test_a_table_kept_while_predicting_serves_in_training() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Caches(ToyAdapter):
        def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
            blocks = learner.backbone.get_submodule("blocks")
            assert isinstance(blocks, nn.Sequential)
            blocks[1] = Cached(blocks[1])
            return learner

    plan = toy_plan(ToyOpen(), Caches(), budget=replace(SHORT, batch_size=20))
    learner = build(plan)
    predict(learner, loader_of(plan, learner, "val"))
    fit(learner, loader_of(plan, learner), budget=plan.budget, learning_rate=1e-2, seed=0)


# -- what is frozen does not move -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["none", "last", "biases", "norms"])
def test_a_fit_moves_nothing_that_is_frozen(what: Any) -> None:
    plan = toy_plan(
        *(() if what == "none" else (ToyOpen(what=what),)), backbone=MAP, budget=replace(SHORT, weight_decay=0.5)
    )
    learner = build(plan)
    before = {name: tensor.clone() for name, tensor in learner.frozen().items()}
    opened = {name: tensor.clone() for name, tensor in learner.delta().items()}
    fit(learner, loader_of(plan, learner), budget=plan.budget, learning_rate=1e-2, seed=0)
    assert same(learner.frozen(), before)
    assert all(not torch.equal(x, opened[name]) for name, x in learner.delta().items())
    assert not any(module.training for module in learner.modules())


@dataclass(frozen=True, kw_only=True)
class Does(ToyAdapter):
    """An adapter that does one thing at each forward pass of the backbone."""

    what: Callable[[nn.Module], None]

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            with torch.no_grad():
                self.what(module)

        learner.backbone.register_forward_hook(hook)
        return learner


def move_a_statistic(backbone: nn.Module) -> None:
    backbone.get_buffer("norm.running_mean").add_(1e-6)


def move_a_weight(backbone: nn.Module) -> None:
    backbone.get_parameter("stem.weight").data.mul_(1.001)


def count(backbone: nn.Module) -> None:
    backbone.get_buffer("blocks.0.bn.num_batches_tracked").add_(1)


def replace_a_statistic(backbone: nn.Module) -> None:
    norm = backbone.get_submodule("norm")
    assert isinstance(norm.running_var, Tensor)
    norm.running_var = norm.running_var * 1.01


@pytest.mark.parametrize(
    ("what", "name"),
    [
        (move_a_statistic, "backbone.norm.running_mean"),
        (move_a_weight, "backbone.stem.weight"),
        (count, "backbone.blocks.0.bn.num_batches_tracked"),
        (replace_a_statistic, "backbone.norm.running_var"),
    ],
)
def test_a_forward_pass_that_moves_what_is_frozen_breaks_the_law(what: Callable[..., None], name: str) -> None:
    with pytest.raises(LawError, match=rf"1 frozen tensors moved during training, {name} first"):
        fitted(toy_plan(Does(what=what), backbone=MAP, budget=SHORT))


def test_state_that_appears_in_training_breaks_the_law() -> None:
    def register(backbone: nn.Module) -> None:
        backbone.register_buffer("late", torch.zeros(()))

    with pytest.raises(LawError, match=r"appeared or vanished after building: backbone.late"):
        fitted(toy_plan(Does(what=register), backbone=MAP, budget=SHORT))


def test_state_that_vanishes_in_training_breaks_the_law() -> None:
    def remove(backbone: nn.Module) -> None:
        backbone._buffers.pop("extra", None)

    @dataclass(frozen=True, kw_only=True)
    class Adds(ToyAdapter):
        def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
            learner.backbone.register_buffer("extra", torch.zeros(()))
            return learner

    with pytest.raises(LawError, match=r"appeared or vanished after building: backbone.extra"):
        fitted(toy_plan(Adds(), Does(what=remove), backbone=MAP, budget=SHORT))


# -- numbers that are not finite ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Spoils(ToyAdapter):
    """Multiplies the predictions of chosen passes, or their gradients alone, by a number."""

    by: float = math.nan
    first: int = 0
    gradients: bool = False

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        passes: list[int] = []

        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            passes.append(1)
            if len(passes) <= self.first:
                return None
            if self.gradients:
                output.register_hook(lambda gradient: gradient * self.by)
                return None
            return output * self.by

        learner.head.register_forward_hook(hook)
        return learner


@pytest.mark.parametrize("by", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_told_in_one_line(by: float) -> None:
    with pytest.raises(ZooError, match=r"the loss is (nan|inf) in epoch 1 at learning rate 0.01") as caught:
        fitted(toy_plan(Spoils(by=by), budget=SHORT))
    assert isinstance(caught.value, DivergedError)
    assert "\n" not in str(caught.value)


def test_a_last_step_that_spoils_the_weights_is_told() -> None:
    with pytest.raises(DivergedError, match="a weight is no longer finite after 8 steps"):
        fitted(toy_plan(Spoils(first=7, gradients=True), budget=SHORT))


def test_a_rate_that_diverges_loses_to_one_that_does_not() -> None:
    class DivergesFast(ToyAdapter):
        """Spoils what a rate above one makes of the head."""

        def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
            def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                return output * (math.nan if module.layers[0].weight.abs().max() > 1 else 1)  # type: ignore[index,union-attr]

            learner.head.register_forward_hook(hook)
            return learner

    plan = toy_plan(DivergesFast(), budget=SHORT, learning_rates=(1e-3, 1e-2, 1e3))
    result, learner, _ = run_trial(plan)
    assert result.chosen is not None
    scores = [candidate["validation_score"] for candidate in result.chosen["candidates"]]
    assert scores[2] is None
    assert None not in scores[:2]
    assert all(x.isfinite().all() for x in learner.parameters())
    with pytest.raises(DivergedError) as caught:
        run_trial(replace(plan, learning_rates=(1e3,)))
    assert "\n" not in str(caught.value)


# -- phases ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Later(ToyAdapter):
    """Delays what stands below a path of the backbone."""

    path: str
    start: float

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        learner.delay(learner.backbone.get_submodule(self.path).parameters(), self.start)
        return learner


BACKBONE_LATER = (ToyOpen(), Later(path="", start=0.5))
IN_THREE = (ToyOpen(), Later(path="", start=0.5), Later(path="blocks.2", start=0.25), Later(path="norm", start=0.25))


@contextmanager
def looking(look: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    """While open, `look` sees the optimiser before each of its steps, gradients in place."""
    handle = register_optimizer_step_pre_hook(lambda optimiser, args, kwargs: look(optimiser))
    try:
        yield
    finally:
        handle.remove()


def part_of(learner: Learner, path: str) -> dict[str, Tensor]:
    return {name: x for name, x in state(learner).items() if name.startswith(path)}


@pytest.mark.parametrize("backbone", [ToyBackbones(), MAP])
def test_what_has_not_joined_stays_bit_identical_and_what_has_moves(backbone: ToyBackbones) -> None:
    plan = toy_plan(*IN_THREE, backbone=backbone, budget=Budget(epochs=2, batch_size=16, weight_decay=0.5))
    learner = build(plan)
    seen: list[dict[str, Tensor]] = []
    with looking(lambda _: seen.append(state(learner))):
        fit(learner, loader_of(plan, learner), budget=plan.budget, learning_rate=1e-2, seed=0)
    start, ends = seen[0], [*seen[1:], state(learner)]  # ends[i]: after step i of 8, the next pass not yet made
    kept = [name for name, x in start.items() if x.is_floating_point()]
    for name in kept:
        first = 0 if name.startswith("heads") else 2 if name.startswith(("backbone.blocks.2", "backbone.norm")) else 4
        moved = [not torch.equal(end[name], start[name]) for end in ends]
        expected = [step >= first for step in range(8)]
        if "running" in name:  # statistics move in the pass, and `seen` is later than the pass
            expected = [*expected[1:], True]
        assert moved == expected, name


def test_a_part_that_has_not_joined_holds_no_gradient_and_no_state_of_the_optimiser() -> None:
    plan = toy_plan(*BACKBONE_LATER, backbone=MAP, budget=SHORT)
    learner = build(plan)
    found: list[tuple[set[str], set[str]]] = []

    def look(optimiser: torch.optim.Optimizer) -> None:
        held = {name for name, x in learner.named_parameters() if x.grad is not None}
        found.append((held, {name for name, x in learner.named_parameters() if x in optimiser.state}))

    with looking(look):
        fit(learner, loader_of(plan, learner), budget=plan.budget, learning_rate=1e-2, seed=0)
    names = {name for name, _ in learner.named_parameters()}
    head = {name for name in names if name.startswith("heads")}
    assert found == [(head, set()), *[(head, head)] * 3, (names, head), *[(names, names)] * 3]


def test_moments_of_what_trains_already_are_kept_when_others_join() -> None:
    plan = toy_plan(*BACKBONE_LATER, budget=SHORT)
    learner = build(plan)
    weight = learner.head.get_parameter("layers.0.weight")
    late = learner.backbone.get_parameter("stem.weight")
    mean = torch.zeros_like(weight)
    steps: list[float] = []

    def look(optimiser: torch.optim.Optimizer) -> None:
        assert weight.grad is not None
        if optimiser.state[weight]:
            assert torch.equal(optimiser.state[weight]["exp_avg"], mean)
        mean.lerp_(weight.grad, 0.1)  # what AdamW makes of it: beta1 is 0.9
        steps.append(float(optimiser.state[late]["step"]) if late in optimiser.state else 0)

    with looking(look):
        fit(learner, loader_of(plan, learner), budget=plan.budget, learning_rate=1e-2, seed=0)
    assert steps == [0, 0, 0, 0, 0, 1, 2, 3]  # its own bias correction begins when it joins


def test_the_first_phase_is_the_fit_of_a_probe_bit_for_bit() -> None:
    budget = Budget(epochs=4, batch_size=16)
    found: list[list[dict[str, Tensor]]] = []
    for adapters in ((), BACKBONE_LATER):
        plan = toy_plan(*adapters, backbone=MAP, budget=budget)
        learner = build(plan)
        seen: list[dict[str, Tensor]] = []

        def look(_: Any, learner: Learner = learner, seen: list[dict[str, Tensor]] = seen) -> None:
            seen.append(part_of(learner, "heads"))

        with looking(look):
            fit(learner, loader_of(plan, learner), budget=budget, learning_rate=1e-2, seed=0)
        found.append(seen)
    assert [same(one, other) for one, other in zip(*found, strict=True)] == [True] * 9 + [False] * 7


@pytest.mark.parametrize(("backbone", "what"), [(MAP, "blocks.0.bn"), (ToyBackbones(), "blocks.0.drop")])
def test_a_part_is_in_training_mode_from_when_it_joins(backbone: ToyBackbones, what: str) -> None:
    plan = toy_plan(*BACKBONE_LATER, backbone=backbone, budget=replace(SHORT, patience=9))
    learner = build(plan)
    modes: list[bool] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            modes.append(module.training)

    learner.backbone.get_submodule(what).register_forward_hook(note)
    fit(learner, loader_of(plan, learner), budget=plan.budget, learning_rate=1e-2, seed=0, validate=lambda _: 0.0)
    assert modes == [False] * 4 + [True] * 4


def test_a_container_drops_layers_only_when_all_of_it_has_joined() -> None:
    plan = toy_plan(ToyOpen(), Later(path="blocks.0", start=0.5), backbone=ToyBackbones(layer_drop=True), budget=SHORT)
    learner = build(plan)
    called: list[int] = []
    learner.backbone.get_submodule("blocks.0").register_forward_hook(lambda *_: called.append(1))
    fit(learner, loader_of(plan, learner), budget=plan.budget, learning_rate=1e-2, seed=0)
    assert len(called) == 4  # the toy leaves out every stage when its container trains


def test_what_joins_later_warms_up_below_the_same_cosine() -> None:
    plan = toy_plan(*BACKBONE_LATER, budget=Budget(epochs=5, batch_size=15, warmup=0.2))
    with watched_rates() as steps:
        fitted(plan, 0.5)
    cosine = [1.0] * 4 + [0.5 + 0.5 * math.cos(math.pi * (step - 4) / 16) for step in range(4, 20)]
    assert steps[0.0] == pytest.approx([0.5 * min(1, (step + 1) / 4) * x for step, x in enumerate(cosine)], rel=1e-12)
    late = [0.5 * min(1, max(0, step - 9) / 4) * x for step, x in enumerate(cosine)]
    assert steps[0.5] == pytest.approx(late, rel=1e-12)  # rounding of float64


@contextmanager
def watched_rates() -> Iterator[dict[float, list[float]]]:
    """While open, the rates of each phase's parameters at each step, by the phase's start."""
    rates: dict[float, list[float]] = {}

    def look(optimiser: torch.optim.Optimizer) -> None:
        for start in {group["start"] for group in optimiser.param_groups}:
            (rate,) = {float(group["lr"]) for group in optimiser.param_groups if group["start"] == start}
            rates.setdefault(start, []).append(rate)

    with looking(look):
        yield rates


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_with_fewer_steps_than_phases_all_have_joined_by_the_last(num_steps: int) -> None:
    phases = [Later(path=path, start=start) for path, start in (("norm", 0.4), ("blocks", 0.6), ("stem", 0.99))]
    plan = toy_plan(ToyOpen(), *phases, budget=Budget(epochs=num_steps, batch_size=60, warmup=0.0))
    learner = build(plan)
    before = state(learner)
    joined: list[int] = []
    with looking(lambda _: joined.append(sum(x.grad is not None for x in learner.parameters()))):
        fit(learner, loader_of(plan, learner), budget=plan.budget, learning_rate=1e-2, seed=0)
    assert joined == sorted(joined)
    assert joined[-1] == len(list(learner.parameters()))
    assert not any(torch.equal(x, before[name]) for name, x in state(learner).items())


def test_a_phase_that_is_replaced_by_a_start_at_once_changes_no_bit() -> None:
    plain = toy_plan(ToyOpen(), backbone=MAP, budget=SHORT)
    replaced = toy_plan(*BACKBONE_LATER, Later(path="", start=0.0), backbone=MAP, budget=SHORT)
    assert same(state(fitted(plain)[0]), state(fitted(replaced)[0]))


def test_after_a_fit_that_diverged_in_its_first_phase_all_is_trainable_again() -> None:
    plan = toy_plan(*BACKBONE_LATER, Spoils(), budget=SHORT)
    learner = build(plan)
    names = {name for name, _ in learner.trainable()}
    with pytest.raises(DivergedError, match="in epoch 1"):
        fit(learner, loader_of(plan, learner), budget=plan.budget, learning_rate=1e-2, seed=0)
    assert {name for name, _ in learner.trainable()} == names


def test_each_candidate_goes_through_all_phases() -> None:
    task = ToyTasks(kind="regression", size=1)
    plan = toy_plan(*IN_THREE, backbone=MAP, budget=SHORT, learning_rates=(1e-2, 3e-2), task=task)
    data = task.open(None)

    def scores(rates: tuple[float, ...]) -> list[Any]:
        splits = data.splits["train"], data.splits["val"], data.target
        return [
            candidate["validation_score"]
            for candidate in choose(replace(plan, learning_rates=rates), *splits, device=torch.device("cpu")).candidates
        ]

    assert scores((1e-2, 3e-2)) == [scores((rate,))[0] for rate in (1e-2, 3e-2)]


def test_patience_begins_with_the_last_phase() -> None:
    scores = iter([5.0, 4.0, 3.0, 3.5, 3.4])  # of epochs 3, 4 and so on: those before nobody asks for
    plan = toy_plan(ToyOpen(), Later(path="", start=0.25), budget=Budget(epochs=8, batch_size=60, patience=2))
    _, found = fitted(plan, validate=lambda _: next(scores))
    assert len(found.losses) == 5
    assert next(scores) == 3.5


# -- what was added takes part --------------------------------------------------------------------------------------


class Shifted(nn.Module):
    """x plus a shift that starts at zero."""

    def __init__(self, inner: nn.Module, dim: int) -> None:
        super().__init__()
        self.inner = inner
        self.shift = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x) + self.shift
        return found


@dataclass(frozen=True, kw_only=True)
class Shift(ToyAdapter):
    """Adds a shift to the second stage, from `start` on."""

    start: float = 0.0

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        blocks = learner.backbone.get_submodule("blocks")
        assert isinstance(blocks, nn.Sequential)
        blocks[1] = shifted = Shifted(blocks[1], 12)
        learner.delay([x for name, x in shifted.named_parameters(recurse=False)], self.start)
        return learner


@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_added_tensor_that_takes_part_trains(start: float, precision: Any) -> None:
    learner, _ = fitted(toy_plan(Shift(start=start), budget=replace(SHORT, precision=precision)))
    assert learner.backbone.get_parameter("blocks.1.shift").abs().sum() > 0


# -- when training is over ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Finishes(ToyAdapter):
    """Has something done to the learner when training is over."""

    what: Callable[[contracts.Learner], None]

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        learner.finishers.append(self.what)
        return learner


@torch.no_grad()
def halve(learner: contracts.Learner) -> None:
    assert isinstance(learner, nn.Module)
    assert all(x.requires_grad for x in learner.parameters()), "all phases are over"
    for parameter in learner.head.parameters():
        parameter.mul_(0.5)


@torch.no_grad()
def shift(learner: contracts.Learner) -> None:
    for parameter in learner.head.parameters():
        parameter.add_(1)


def test_finishers_are_called_once_in_order_after_the_last_step() -> None:
    plain, _ = fitted(toy_plan(*BACKBONE_LATER, budget=SHORT))
    done, _ = fitted(toy_plan(*BACKBONE_LATER, Finishes(what=halve), Finishes(what=shift), budget=SHORT))
    for name, x in part_of(plain, "heads").items():
        assert torch.equal(done.state_dict()[name], x * 0.5 + 1)
    assert same(part_of(plain, "backbone"), part_of(done, "backbone"))


def test_candidates_are_scored_as_they_are_finished() -> None:
    @torch.no_grad()
    def spoil(learner: contracts.Learner) -> None:
        for name, parameter in learner.head.named_parameters():
            parameter.fill_(-1 if name.endswith("bias") else 0)

    task = ToyTasks(kind="regression", size=1)
    plan = toy_plan(Finishes(what=spoil), budget=SHORT, learning_rates=(1e-2, 1e-1), task=task)
    splits = task.open(None).splits
    chosen = choose(plan, splits["train"], splits["val"], task.target, device=torch.device("cpu"))
    first, second = (candidate["validation_score"] for candidate in chosen.candidates)
    assert first == second < 0  # a constant one deviation below the mean, whatever was learnt


def test_a_finisher_that_moves_what_is_frozen_breaks_the_law() -> None:
    def move(learner: contracts.Learner) -> None:
        learner.backbone.get_parameter("stem.weight").data.mul_(1.001)

    with pytest.raises(LawError, match=r"1 frozen tensors moved during training, backbone.stem.weight first"):
        fitted(toy_plan(Finishes(what=move), budget=SHORT))


# -- candidates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapters", [MOVING, (ToyOpen(what="norms"),), (ToyHint(),)])
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_each_candidate_starts_from_the_same_state(adapters: tuple[ToyAdapter, ...], weights: Any) -> None:
    rates = (1e-2, 3e-2, 1e-1)
    plan = toy_plan(
        *adapters,
        backbone=MAP,
        weights=weights,
        budget=SHORT,
        learning_rates=rates,
        task=ToyTasks(kind="regression", size=1),  # a score that tells any two models apart
    )
    data = ToyTasks(kind="regression", size=1).open(None)

    def scores(rates: tuple[float, ...]) -> list[Any]:
        chosen = choose(
            replace(plan, learning_rates=rates),
            data.splits["train"],
            data.splits["val"],
            data.target,
            device=torch.device("cpu"),
        )
        return [candidate["validation_score"] for candidate in chosen.candidates]

    together = scores(rates)
    assert together == [scores((rate,))[0] for rate in rates]
    assert len(set(together)) == 3


def test_the_chosen_learner_is_the_one_that_was_scored() -> None:
    plan = toy_plan(
        ToyOpen(), budget=SHORT, learning_rates=(1e-4, 1e-2, 1e-1), task=ToyTasks(kind="regression", size=1)
    )
    data = ToyTasks(kind="regression", size=1).open(None)
    splits = data.splits
    chosen = choose(plan, splits["train"], splits["val"], data.target, device=torch.device("cpu"))
    rate = chosen.candidates[chosen.best]["learning_rate"]
    alone = choose(
        replace(plan, learning_rates=(rate,)), splits["train"], splits["val"], data.target, device=torch.device("cpu")
    )
    assert same(chosen.learner.delta(), alone.learner.delta())
    assert chosen.candidates[chosen.best]["validation_score"] == max(
        candidate["validation_score"] for candidate in chosen.candidates
    )


# -- a backbone that was never trained ------------------------------------------------------------------------------


def test_calibration_takes_statistics_of_frozen_norms_from_one_pass() -> None:
    plan = toy_plan(ToyOpen(what="last"), backbone=MAP, weights="random")
    learner = build(plan)
    loader = loader_of(plan, learner, shuffled=False)
    before = state(learner)
    seen: list[Tensor] = []
    learner.backbone.get_submodule("blocks.0.conv").register_forward_hook(
        lambda module, args, output: seen.append(output.detach())
    )
    calibrate(learner, loader)
    bn = learner.backbone.get_submodule("blocks.0.bn")
    assert isinstance(bn, nn.BatchNorm2d)
    wanted = torch.stack([x.mean(dim=(0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(bn.running_mean, wanted, rtol=1e-5, atol=1e-6)  # float32, a running mean
    assert bn.momentum == 0.1
    changed = {name for name, x in state(learner).items() if not torch.equal(x, before[name])}
    assert {name.rpartition(".")[0] for name in changed} == {"backbone.blocks.0.bn", "backbone.blocks.1.bn"}
    assert not any(module.training for module in learner.modules())


def test_calibrating_twice_is_calibrating_once() -> None:
    plan = toy_plan(backbone=MAP, weights="random")
    learner = build(plan)
    loader = loader_of(plan, learner)
    calibrate(learner, loader)
    once = state(learner)
    calibrate(learner, loader)
    assert same(state(learner), once)


def test_a_trial_calibrates_random_backbones_alone() -> None:
    for weights, moved in (("random", True), ("pretrained", False)):
        plan = toy_plan(backbone=MAP, weights=weights, budget=SHORT)  # type: ignore[arg-type]
        fresh = build(plan).backbone.state_dict()["norm.running_mean"]
        assert torch.equal(run_trial(plan)[1].backbone.state_dict()["norm.running_mean"], fresh) != moved


# -- odd numbers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Doubled:
    """A preparation whose inputs are float64."""

    plain: ImagePreparation
    digest: str = "doubled"
    random: bool = False

    def prepare(self, examples: Sequence[Any]) -> list[Mapping[str, Tensor]]:
        return self.plain.prepare(examples)

    def collate(self, prepared: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return self.plain.collate(prepared)

    def normalise(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: x.double() for name, x in self.plain.normalise(inputs).items()}

    def dummy(self, batch_size: int) -> dict[str, Tensor]:
        return self.plain.dummy(batch_size)


@pytest.mark.parametrize("kind", ["classes", "multilabel", "regression"])
@pytest.mark.parametrize("backbone", [ToyBackbones(), MAP])
def test_float64_and_float32_agree_at_first(kind: Any, backbone: ToyBackbones) -> None:
    plan = toy_plan(
        ToyOpen(what="norms"), backbone=backbone, task=ToyTasks(kind=kind), budget=Budget(epochs=1, warmup=1.0)
    )
    found: list[Learner] = []
    for dtype in (torch.float32, torch.float64):
        learner = build(plan).to(dtype)
        plain = learner.source.preparation
        assert isinstance(plain, ImagePreparation)
        preparation: Preparation = plain if dtype == torch.float32 else Doubled(plain)
        loader = loader_of(plan, learner, preparation=preparation)
        fit(learner, loader, budget=plan.budget, learning_rate=1e-3, seed=0)
        found.append(learner)
    assert {x.dtype for x in found[1].parameters()} == {torch.float64}
    for name, x in found[1].delta().items():
        # two steps of 1e-3: float32 rounding of gradients, and Adam divides by their size
        torch.testing.assert_close(found[0].delta()[name].double(), x.double(), rtol=1e-3, atol=3e-4)


@pytest.mark.parametrize("kind", ["classes", "multilabel", "regression"])
def test_one_example_can_be_fitted(kind: Any) -> None:
    plan = toy_plan(ToyOpen(), task=ToyTasks(num=1, kind=kind, size=2), budget=SHORT)
    learner, found = fitted(plan)
    assert found.num_steps == 2
    assert predict(learner, loader_of(plan, learner, "test"))[0].isfinite().all()


@pytest.mark.parametrize(("kind", "size"), [("classes", 1), ("multilabel", 1), ("regression", 1), ("multilabel", 3)])
def test_one_output_can_be_fitted(kind: Any, size: int) -> None:
    plan = toy_plan(task=ToyTasks(num=12, kind=kind, size=max(size, 3)), budget=SHORT)
    learner = build(plan, target=replace(plan.target, size=size))
    data = ToyTasks(num=12, kind=kind, size=max(size, 3)).open(None).splits["train"]
    targets = data.targets * 0 if kind == "classes" else data.targets[:, :size]
    assert isinstance(data, ToySplit)
    loader = Loader(
        replace(data, targets=targets),
        modality="image",
        target=learner.target,
        preparation=learner.source.preparation,
        batch_size=4,
    )
    fit(learner, loader, budget=plan.budget, learning_rate=1e-2, seed=0)
    assert predict(learner, loader)[0].shape == (12, size)


def test_values_that_do_not_vary_are_predicted() -> None:
    plan = toy_plan(task=ToyTasks(num=12, kind="regression", size=1), budget=Budget(epochs=40))
    learner = build(plan)
    data = ToyTasks(num=12, kind="regression", size=1).open(None).splits["train"]
    assert isinstance(data, ToySplit)
    loader = Loader(
        replace(data, targets=data.targets * 0 + 1234.5),
        modality="image",
        target=learner.target,
        preparation=learner.source.preparation,
        batch_size=12,
    )
    fit(learner, loader, budget=plan.budget, learning_rate=1e-2, seed=0)
    assert predict(learner, loader)[0].flatten().tolist() == pytest.approx([1234.5] * 12, abs=0.5)  # its unit is one


@settings(max_examples=20)
@given(warmup=st.floats(0, 1), epochs=st.integers(1, 3))
def test_any_budget_ends_with_finite_rates(warmup: float, epochs: int) -> None:
    plan = toy_plan(budget=Budget(epochs=epochs, warmup=warmup, batch_size=30))
    with watched() as steps:
        fitted(plan, 1.0)
    assert all(0 < step[0]["lr"] <= 1 for step in steps)


def test_the_training_rate_of_a_fit_that_paused_is_of_all_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo_core.training.timing.MIN_WINDOW_SECONDS", 0.0)  # each step is a window, but for two
    plan = toy_plan(ToyOpen(), budget=SHORT)
    learner = build(plan)
    given: dict[str, Any] = {"budget": plan.budget, "learning_rate": 1e-2, "seed": 0}
    paused, _ = pause_fit(learner, loader_of(plan, learner), epochs=1, validate=lambda _: 0.5, **given)
    found = fit(learner, loader_of(plan, learner), state=paused, **given)
    assert found.training is not None
    assert found.training["repeats"] == found.num_steps - 2 * 2 == 4
