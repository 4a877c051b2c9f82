"""Heads that are trained together end as each of them does alone, or are not trained together."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoo_core.contracts import Features, FeatureSpec, Target, TargetKind
from zoo_core.data.loader import Loader
from zoo_core.errors import DivergedError
from zoo_core.model.build import build
from zoo_core.model.given_features import X
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Budget
from zoo_core.registry.registry import registry
from zoo_core.spec.parser import parse_part
from zoo_core.testing.recipes import ToyBackbones, ToyHeads, ToyTasks, toy_plan
from zoo_core.training import rows as training_rows
from zoo_core.training import stacked
from zoo_core.training.fit import fit, take_unit
from zoo_core.training.gradient_trainer import moving, put
from zoo_core.training.rows import NotTogether, Row, RowEnd, train_rows

BUDGET = Budget(epochs=4, batch_size=16, clip=0.5, warmup=0.2)  # four steps an epoch; the norms are above that
RATES = (1e-3, 1e-2, 1e-1)
SEEDS = (0, 1)


@dataclass(frozen=True)
class Stubborn:
    """A head of a third party that computes in some way that cannot be vectorised, or differs when it is."""

    how: str

    version: ClassVar[int] = 1
    learning_rates: ClassVar[tuple[float, ...]] = RATES

    def build(self, features: FeatureSpec, target: Target) -> nn.Module:
        how = self.how

        class Head(nn.Module):
            mean: Tensor
            count: Tensor

            def __init__(self) -> None:
                super().__init__()
                self.out = nn.Linear(features.dim, target.size or 0)
                self.calls, self.dice = 0, random.Random(0)
                self.register_buffer("mean", torch.zeros(features.dim))
                self.register_buffer("count", torch.zeros(()), persistent=False)
                if how == "twice":
                    self.again = self.out

            def forward(self, features: Features) -> Tensor:
                found: Tensor = self.out(features.x)
                if how == "draws":
                    return found + torch.rand_like(found)
                if how == "looks":
                    return found if float(found.sum()) > 0 else -found
                if how == "draws unseen":
                    return found * random.random()
                if how == "draws its own":
                    return found * self.dice.random()
                if how == "counts":
                    self.calls += 1
                    return found if self.calls < 5 else 0.1 * found
                if how == "counts in a buffer that is not saved":
                    self.count.add_(1)
                    return torch.where(self.count < 5, found, 0.1 * found)
                if how == "binds anew":  # functional_call puts the old tensor back, and nobody sees the new one
                    self.mean = 0.9 * self.mean + 0.1 * features.x.detach().mean(0)
                return found

        return Head()


def head_of(text: str) -> Any:
    return registry().bind(parse_part(text), "head").recipe


def world(
    head: Any, *, kind: TargetKind = "classes", budget: Budget = BUDGET, tokens: bool = False
) -> list[tuple[Learner, Loader]]:
    """A learner in float64 and a loader of random features for each seed."""
    found = []
    for seed in SEEDS:
        plan = toy_plan(
            backbone=ToyBackbones(kind="tokens" if tokens else "map"),
            head=head,
            task=ToyTasks(kind=kind),
            budget=budget,
            seed=seed,
        )
        learner = build(plan).double()
        assert plan.task is not None
        split = plan.task.recipe.open(None).splits["train"]
        dim = learner.source.features.width("tokens" if tokens else "pooled")
        shape = (split.num, 5, dim) if tokens else (split.num, dim)
        table = torch.from_numpy(np.random.default_rng(7).normal(size=shape))
        loader = Loader(
            split,
            modality="image",
            target=learner.target,
            preparation=learner.source.preparation,
            shuffled=True,
            batch_size=budget.batch_size,
            seed=seed,
        )
        loader.targets = loader.targets if kind == "classes" else loader.targets.double()
        found.append((learner, loader.of_stored(lambda draw, positions, table=table: {X: table[list(positions)]})))
        take_unit(*found[-1])
    return found


def worth(learner: Learner, loader: Loader) -> float:
    """A validation score that depends on every weight."""
    learner.eval()
    with torch.no_grad():
        batch = next(loader.epoch())
        return -float(learner.loss(learner(batch.inputs), batch))


def together(found: list[tuple[Learner, Loader]], budget: Budget, rates: tuple[float, ...] = RATES) -> list[RowEnd]:
    rows = [Row(learner=learner, loader=loader, learning_rate=rate) for learner, loader in found for rate in rates]
    judges = [copy.deepcopy(learner) for learner, _ in found for _ in rates]

    def validate(row: int, weights: Mapping[str, Tensor]) -> float:
        put(moving(judges[row]), weights)
        return worth(judges[row], rows[row].loader)

    return train_rows(rows, budget=budget, validate=validate)


def alone(learner: Learner, loader: Loader, rate: float, budget: Budget) -> tuple[Learner, Any]:
    learner = copy.deepcopy(learner)
    fitted = fit(
        learner,
        loader,
        budget=budget,
        learning_rate=rate,
        seed=loader.seed,
        validate=lambda found: worth(found, loader),
    )
    return learner, fitted


HEADS: dict[str, tuple[Callable[[], Any], TargetKind, bool]] = {
    "linear": (lambda: head_of("linear"), "classes", False),
    "mlp": (lambda: head_of("mlp(hidden_dim=8)"), "classes", False),
    "attention-pool": (lambda: head_of("attention-pool(num_heads=2)"), "classes", True),
    "third party, statistics": (lambda: ToyHeads(norm=True), "classes", False),
    "multilabel": (lambda: head_of("linear"), "multilabel", False),
    "regression": (lambda: head_of("mlp(hidden_dim=8)"), "regression", False),
}
KEPT = {
    "last": BUDGET,
    "best": replace(BUDGET, epochs=6, keep="best"),
    "patience": replace(BUDGET, epochs=8, patience=1),
}


def differences(name: str, budget: Budget) -> float:
    """The largest difference of a weight or a score between rows and the same heads alone."""
    make, kind, tokens = HEADS[name]
    found = world(make(), kind=kind, budget=budget, tokens=tokens)
    ends = together(found, budget)
    gap = 0.0
    for at, end in enumerate(ends):
        learner, loader = found[at // len(RATES)]
        fitted_learner, fitted = alone(learner, loader, RATES[at % len(RATES)], budget)
        assert end.weights is not None
        assert (end.epoch, end.num_steps) == (fitted.epoch, fitted.num_steps)
        for weight, tensor in moving(fitted_learner).items():
            gap = max(gap, float((tensor.double() - end.weights[weight].double()).abs().max()))
        assert len(end.losses) == len(fitted.losses)
        if fitted.score is not None:
            assert end.score is not None
            gap = max(gap, abs(end.score - fitted.score))
    return gap


@pytest.mark.parametrize("name", HEADS)
def test_rows_end_as_each_head_does_alone(name: str) -> None:
    assert differences(name, BUDGET) < 1e-9  # float64, sixteen steps


def test_rows_round_in_half_precision_and_are_trained_together_all_the_same() -> None:
    budget = replace(BUDGET, precision="bfloat16")
    table = torch.randn(60, 12)
    found = [
        (learner.float(), loader.of_stored(lambda draw, positions: {X: table[list(positions)]}))
        for learner, loader in world(head_of("mlp(hidden_dim=8)"), budget=budget)
    ]
    for at, end in enumerate(together(found, budget)):
        _, fitted = alone(*found[at // len(RATES)], RATES[at % len(RATES)], budget)
        assert end.losses == pytest.approx(fitted.losses, rel=0.03)  # bfloat16 has three digits


def test_rows_tell_the_losses_of_each_head_alone() -> None:
    found = world(head_of("mlp(hidden_dim=8)"))
    for at, end in enumerate(together(found, BUDGET)):
        _, fitted = alone(*found[at // len(RATES)], RATES[at % len(RATES)], BUDGET)
        assert end.losses == pytest.approx(fitted.losses, rel=1e-6)  # of a head alone they are summed in float32


@pytest.mark.parametrize("kept", KEPT)
def test_each_row_keeps_its_own_epoch_and_has_its_own_patience(kept: str) -> None:
    assert differences("mlp", KEPT[kept]) < 1e-9


@pytest.mark.parametrize(("name", "value"), [("BETAS", (0.9, 0.99)), ("EPS", 1e-3)])
def test_another_optimiser_would_be_noticed(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked, name, value)
    assert differences("linear", BUDGET) > 1e-6


@pytest.mark.parametrize("num_bytes", [1, 3000])  # one row, and two of three rates, with 1,360 bytes each
def test_rows_that_do_not_fit_into_memory_at_once_are_trained_in_turn(
    num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = world(head_of("linear"))
    whole = together(found, BUDGET)
    monkeypatch.setattr(training_rows, "AT_ONCE", num_bytes)
    for one, other in zip(whole, together(found, BUDGET), strict=True):
        assert one.weights is not None
        assert other.weights is not None
        assert all(torch.allclose(x, other.weights[name], atol=1e-12) for name, x in one.weights.items())


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_a_row_that_diverges_leaves_the_others_as_they_were(name: str) -> None:
    found = world(HEADS[name][0]())
    good, ends = together(found, BUDGET), together(found, BUDGET, (*RATES, 1e308))
    bad = ends[len(RATES)]
    assert bad.weights is None
    with pytest.raises(DivergedError) as error:
        alone(*found[0], 1e308, BUDGET)
    assert bad.diverged == str(error.value)
    for one, other in zip(good[: len(RATES)], ends, strict=False):
        assert one.weights is not None
        assert other.weights is not None
        assert all(torch.allclose(x, other.weights[weight], atol=1e-12) for weight, x in one.weights.items())


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("linear(dropout=0.5)", "they cannot be vectorised: "),
        (Stubborn("draws"), "they cannot be vectorised: "),
        (Stubborn("looks"), "they cannot be vectorised: "),
        (Stubborn("draws unseen"), "a call changes a generator of the whole process, which"),
        (Stubborn("draws its own"), "a call changes heads.main.dice, which"),
        (Stubborn("counts"), "a call changes heads.main.calls, which"),
        (Stubborn("counts in a buffer that is not saved"), "a call changes heads.main.count, which is no part of"),
        (Stubborn("binds anew"), "together they compute something else than alone"),
        (Stubborn("twice"), "they hold one tensor under two names"),
    ],
)
def test_what_cannot_be_trained_together_says_why_before_it_trains(head: Any, reason: str) -> None:
    found = world(head_of(head) if isinstance(head, str) else head)
    before = [{name: x.clone() for name, x in learner.delta().items()} for learner, _ in found]
    with pytest.raises(NotTogether, match=reason):
        together(found, BUDGET)
    for (learner, _), tensors in zip(found, before, strict=True):
        assert all(torch.equal(x, tensors[name]) for name, x in learner.delta().items())


def test_heads_of_two_shapes_are_not_trained_together() -> None:
    found = [world(head_of("mlp(hidden_dim=8)"))[0], world(head_of("mlp(hidden_dim=9)"))[1]]
    with pytest.raises(NotTogether, match="differ in shape"):
        together(found, BUDGET)
