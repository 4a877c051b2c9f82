"""Steps in pieces: the gradient is that of the whole batch, and where it would not be, they are refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo_core import contracts
from zoo_core.benchmark.trial import run_trial
from zoo_core.contracts import Batch, Context, Features, Output, Target
from zoo_core.data.loader import Loader
from zoo_core.errors import RefusedError, UsageError
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.model.objective import CrossEntropy, default_objective
from zoo_core.plan.plan import Budget, Plan
from zoo_core.testing.recipes import ToyAdapter, ToyBackbones, ToyHint, ToyOpen, ToyTasks, toy_plan
from zoo_core.training.fit import Fitted, fit
from zoo_core.training.gradient_trainer import GradientTrainer, MemoryOptions
from zoo_core.training.micro_batches import pieces, weights_of

MAP = ToyBackbones(kind="map")
FLOAT32, FLOAT64 = 1e-6, 1e-12  # of the largest gradient: sums in another order


def loader_of(plan: Plan, learner: Learner) -> Loader:
    assert plan.task is not None
    return Loader(
        plan.task.recipe.open(None).splits["train"],
        modality="image",
        target=learner.target,
        preparation=learner.source.preparation,
        shuffled=True,
        batch_size=plan.budget.batch_size,
        seed=plan.seed,
    )


def fitted(plan: Plan, memory: MemoryOptions | None = None) -> tuple[Learner, Fitted]:
    learner = build(plan)
    loader = loader_of(plan, learner)
    return learner, fit(learner, loader, budget=plan.budget, learning_rate=1e-2, seed=0, memory=memory)


@dataclass(frozen=True, kw_only=True)
class Weighs(ToyAdapter):
    """Classes, or labels, that count differently."""

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        weights = torch.tensor([0.2, 1.0, 3.0])
        learner.objective = default_objective(learner.target, learner.head, weights)
        return learner


# -- gradients of losses --------------------------------------------------------------------------------------------


def gradients(objective: nn.Module, x: Tensor, batches: list[Batch], rows: list[slice]) -> Tensor:
    """Of a linear model's weight, the gradients of pieces weighted by what they count."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, x.shape[-1], generator=generator, dtype=x.dtype).requires_grad_()
    shares = [float(objective.num_items(batch)) for batch in batches]  # type: ignore[operator]
    for batch, at, share in zip(batches, rows, shares, strict=True):
        if share:
            output = Output(predictions=x[at] @ weight.T, features=Features(kind="pooled", x=x[at]))
            (sum(objective(output, batch).values()) * (share / sum(shares))).backward()
    assert weight.grad is not None
    return weight.grad


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["classes", "multilabel", "token_classes"])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, FLOAT32), (torch.float64, FLOAT64)])
def test_pieces_add_up_to_the_whole(kind: Any, weighted: bool, size: int, dtype: torch.dtype, allowed: float) -> None:
    draw = torch.Generator().manual_seed(0)
    shape = (7, 6, 4) if kind == "token_classes" else (7, 4)
    x = torch.randn(shape, generator=draw, dtype=dtype)
    target = torch.randint(0, 3, shape[:-1], generator=draw)
    if kind == "multilabel":
        target = torch.randint(0, 2, (7, 3), generator=draw).float()
    if kind == "token_classes":  # sentences of very different lengths, one without any word
        for row, num in enumerate([6, 1, 0, 3, 2, 6, 1]):
            target[row, num:] = -100
    weights = torch.tensor([0.2, 1.0, 3.0]) if weighted else None
    objective = default_objective(Target(kind=kind, size=3), nn.Identity(), weights)
    whole = Batch(inputs={"x": x}, target=target, ids=tuple("abcdefg"))
    parts = list(pieces(whole, size))
    rows = [slice(start, start + size) for start in range(0, 7, size)]
    assert [part.ids for part in parts] == [whole.ids[at] for at in rows]
    expected = gradients(objective, x, [whole], [slice(None)])
    found = gradients(objective, x, parts, rows)
    assert float((found - expected).abs().max()) <= allowed * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([{"": 3.0}, {"": 1.0}], [{"": 0.75}, {"": 0.25}]),
        ([{"": 0.0}, {"": 0.0}], [{"": 0.5}, {"": 0.5}]),  # no label is known, and a penalty enters once all the same
        ([{"a": 1.0}, {"a": 0.0}], [{"": 0.5, "a": 1.0}, {"": 0.5, "a": 0.0}]),
        ([{"": 2.0, "a": 0.0}, {"": 0.0, "a": 0.0}], [{"": 1.0, "a": 0.5}, {"": 0.0, "a": 0.5}]),
    ],
)
def test_the_weights_of_a_term_add_up_to_one(counts: Any, expected: Any) -> None:
    assert weights_of(counts) == expected


class Penalised(nn.Module):
    """Two means over different items, and a penalty that no batch enters and no count names."""

    stages: tuple[int, ...] = ()

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.labelled, self.weight = CrossEntropy(), (weight,)

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        all_of_them = output.predictions.square().mean()
        return {**self.labelled(output, batch), "all": all_of_them, "penalty": self.weight[0].square().sum()}

    def num_items(self, batch: Batch) -> dict[str, Tensor]:
        return {"cross_entropy": self.labelled.num_items(batch), "all": torch.tensor(float(len(batch)))}


@pytest.mark.parametrize("known", [0, 1, 5, 8])
def test_terms_over_different_items_and_a_penalty_add_up_in_pieces(known: int) -> None:
    plan = toy_plan(ToyOpen(), budget=Budget(batch_size=8, epochs=1))
    learner = build(plan).double()
    learner.objective = Penalised(next(learner.head.parameters()))
    learner.eval()
    target = torch.arange(8) % 3
    target[known:] = -100
    inputs = {"pixel_values": torch.randn(8, 3, 8, 8, dtype=torch.float64)}
    batch, found = Batch(inputs=inputs, target=target, ids=tuple("abcdefgh")), []
    trainer = GradientTrainer(learner, loader_of(plan, learner), budget=plan.budget, learning_rate=1e-3, seed=0)
    for parts in ([batch], list(pieces(batch, 3))):
        trainer._gradient(batch, *parts)
        found.append([parameter.grad.clone() for parameter in learner.parameters() if parameter.grad is not None])
    assert len(found[0]) == len(found[1]) > 4
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=FLOAT64, atol=FLOAT64)


def test_a_mean_of_means_is_another_gradient() -> None:
    """So the test above can fail: pieces of different numbers of words weighted alike."""
    target = torch.tensor([[0, 1, 2, 0], [1, -100, -100, -100]])
    x = torch.randn((2, 4, 4), generator=torch.Generator().manual_seed(0))

    class Alike(CrossEntropy):
        def num_items(self, batch: Batch) -> Tensor:
            return torch.tensor(1.0)

    whole = Batch(inputs={"x": x}, target=target, ids=("a", "b"))
    expected = gradients(CrossEntropy(), x, [whole], [slice(None)])
    found = gradients(Alike(), x, list(pieces(whole, 1)), [slice(0, 1), slice(1, 2)])
    assert float((found - expected).abs().max()) > 0.01


# -- whole fits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [1, 5, 16])
@pytest.mark.parametrize("kind", ["classes", "multilabel", "regression"])
def test_a_fit_in_pieces_is_the_fit_of_whole_batches(kind: Any, micro: int) -> None:
    """The last batch of an epoch is uneven: 60 examples, 16 at a time. Without dropout, which draws for each piece."""
    adapters = (ToyOpen(what="norms"), *((Weighs(),) if kind != "regression" else ()))
    plan = toy_plan(*adapters, task=ToyTasks(kind=kind, size=3), budget=Budget(epochs=1, batch_size=16, warmup=1.0))
    plan = replace(plan, budget=replace(plan.budget, clip=1e9))
    whole, told = fitted(plan)
    parted, told_parted = fitted(plan, MemoryOptions(micro_batch=micro))
    assert (told.micro_batch, told_parted.micro_batch) == (None, micro)
    assert told_parted.losses == pytest.approx(told.losses, rel=1e-5)  # float32 sums in another order
    for name, x in whole.delta().items():  # four steps of at most 1e-2; Adam divides by the gradient's size
        torch.testing.assert_close(parted.delta()[name], x, rtol=1e-3, atol=2e-4)


def test_a_micro_batch_as_large_as_the_batch_changes_no_bit() -> None:
    plan = toy_plan(ToyOpen(), budget=Budget(epochs=2, batch_size=16))
    whole, _ = fitted(plan)
    parted, told = fitted(plan, MemoryOptions(micro_batch=1000))
    assert told.micro_batch == 16
    assert all(torch.equal(x, parted.delta()[name]) for name, x in whole.delta().items())


def test_batch_norms_that_train_are_refused_and_frozen_ones_are_not() -> None:
    budget = Budget(epochs=1, batch_size=16)
    with pytest.raises(RefusedError, match=r"changes what \d batch norms compute, backbone\..* first: they train"):
        fitted(toy_plan(ToyOpen(), backbone=MAP, budget=budget), MemoryOptions(micro_batch=4))
    fitted(toy_plan(backbone=MAP, budget=budget), MemoryOptions(micro_batch=4))
    fitted(toy_plan(ToyOpen(), backbone=MAP, budget=budget), MemoryOptions(micro_batch=16))


def test_batch_norms_that_join_later_are_refused_when_they_do() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Later(ToyAdapter):
        def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
            learner.delay(learner.backbone.parameters(), 0.5)
            return learner

    with pytest.raises(RefusedError, match="batch norms compute"):
        fitted(toy_plan(ToyOpen(), Later(), backbone=MAP, budget=Budget(epochs=2)), MemoryOptions(micro_batch=4))


def test_an_objective_that_does_not_say_that_it_is_a_mean_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"is not for .*: that loss sees a batch as a whole; leave --micro-batch"):
        fitted(toy_plan(ToyOpen(), ToyHint(), budget=Budget(epochs=1, batch_size=16)), MemoryOptions(micro_batch=4))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "many"])
def test_other_micro_batches_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"allowed: a whole number, 1 or more, or auto"):
        MemoryOptions(micro_batch=wrong)


# -- the one that fits ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Narrow(ToyAdapter):
    """Memory for so many examples in a pass with gradients: beyond, what torch raises on a GPU. Dropout is drawn first.

    It trains what ToyOpen does.
    """

    most: int

    def apply(self, learner: contracts.Learner, context: Context) -> contracts.Learner:
        def check(module: nn.Module, args: Any, output: Any) -> None:
            if torch.is_grad_enabled() and len(output.x) > self.most:
                torch.rand(7)
                raise torch.OutOfMemoryError("CUDA out of memory")

        learner.backbone.register_forward_hook(check)
        return learner


def plenty(monkeypatch: pytest.MonkeyPatch, free: float = math.inf) -> None:
    monkeypatch.setattr("zoo_core.training.gradient_trainer.available_bytes", lambda device: free)


@pytest.mark.parametrize(("most", "found"), [(2, 2), (3, 2), (4, 4), (15, 8), (16, 16)])
def test_half_of_it_is_tried_where_memory_is_too_small(most: int, found: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plenty(monkeypatch)
    budget = Budget(epochs=2, batch_size=16)
    sought, told = fitted(toy_plan(ToyOpen(), Narrow(most=most), budget=budget), MemoryOptions(micro_batch="auto"))
    assert told.micro_batch == found
    given, _ = fitted(toy_plan(ToyOpen(), budget=budget), MemoryOptions(micro_batch=found))
    same = [torch.equal(x, given.delta()[name]) for name, x in sought.delta().items()]
    assert all(same), "a pass that did not fit leaves nothing, its draws neither"


def test_where_not_even_one_example_fits_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    plenty(monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        fitted(toy_plan(Narrow(most=0)), MemoryOptions(micro_batch="auto"))
    with pytest.raises(torch.OutOfMemoryError):
        fitted(toy_plan(Narrow(most=3)), MemoryOptions(micro_batch=4))


@pytest.mark.parametrize(("free", "found"), [(math.inf, 32), (0, 1)])
def test_on_a_cpu_memory_decides_before_the_first_pass(
    free: float, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plenty(monkeypatch, free)
    _, told = fitted(toy_plan(ToyOpen(), budget=Budget(epochs=1)), MemoryOptions(micro_batch="auto"))
    assert told.micro_batch == found


def test_looking_for_it_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    plenty(monkeypatch)
    plan = toy_plan(ToyOpen(), backbone=MAP, budget=Budget(epochs=2, batch_size=16))
    plain, sought = fitted(plan)[0], fitted(plan, MemoryOptions(micro_batch="auto"))[0]
    assert all(torch.equal(x, sought.delta()[name]) for name, x in plain.delta().items())


def test_the_result_says_which_it_was() -> None:
    plan = toy_plan(ToyOpen(), budget=Budget(epochs=1, batch_size=16))
    result, _, _ = run_trial(plan, memory=MemoryOptions(micro_batch=5))
    assert result.chosen is not None
    assert result.chosen["micro_batch"] == 5
    plain, _, _ = run_trial(plan)
    assert plain.chosen is not None
    assert "micro_batch" not in plain.chosen
    assert plain.digest == result.digest
