"""Learners whose adapters train as rows end as each of them does alone, or are not trained together."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo_core.benchmark.loaders import open_task, training_loader
from zoo_core.data.loader import Loader
from zoo_core.data.splits import carve
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Budget
from zoo_core.plan.resolve import resolve
from zoo_core.training import rows as training_rows
from zoo_core.training.gradient_trainer import GradientTrainer, moving
from zoo_core.training.rows import NotTogether, Row, RowEnd, StepSeconds, train_rows

BUDGET = Budget(epochs=5, batch_size=20, num_rates=2, clip=0.5)  # ten steps of ten classes, four examples of each
SEEDS = (0, 1)
CPU = torch.device("cpu")
ADAPTERS = (
    "lora",
    *(
        pytest.param(text, marks=pytest.mark.slow)
        for text in ("lora(init=pissa)", "dora", "ia3", "bitfit", "bottleneck", "ssf", "norm", "full")
    ),
    "prefix",
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps are small, and on a busy machine two threads wait for each other in every call."""
    num = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num)


def rows_of(adapter: str, backbone: str = "starter/vit-nano") -> list[Row]:
    """Rates and seeds of one combination in float64, on the photographs of digits."""
    found = []
    for seed in SEEDS:
        plan = resolve(f"{backbone}+{adapter}", task="digits(shots=4)", seed=seed, budget=BUDGET)
        assert plan.task is not None
        splits = carve(open_task(plan), seed=seed, **plan.task.common)
        learner = build(plan, target=splits.target)
        loader = training_loader(plan, learner, splits.train, splits.target, CPU, 0)
        found += [Row(learner=learner.double(), loader=doubled(loader), learning_rate=r) for r in plan.learning_rates]
    shared = {id(row.learner): row.loader for row in found}
    return [Row(learner=row.learner, loader=shared[id(row.learner)], learning_rate=row.learning_rate) for row in found]


def doubled(loader: Loader) -> Loader:
    table = torch.cat([batch.inputs["pixel_values"] for batch in loader.seen(0, range(loader.num), 64)]).double()
    return loader.of_stored(lambda draw, positions: {"pixel_values": table[list(positions)]})


def together(rows: list[Row]) -> list[RowEnd]:
    return train_rows(rows, budget=BUDGET, validate=lambda *_: 0.0)


def alone(row: Row) -> Mapping[str, Tensor]:
    learner: Learner = copy.deepcopy(row.learner)
    rate, seed = row.learning_rate, row.loader.seed
    trainer = GradientTrainer(learner, row.loader, budget=BUDGET, learning_rate=rate, seed=seed)
    trainer.run(None, lambda _: None)
    return moving(learner)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_rows_end_as_each_learner_does_alone(adapter: str) -> None:
    rows = rows_of(adapter)
    for row, end in zip(rows, together(rows), strict=True):
        assert end.weights is not None
        assert end.num_steps == 10
        for name, tensor in alone(row).items():
            assert torch.allclose(tensor, end.weights[name], rtol=0, atol=1e-9), name


@pytest.mark.parametrize(("cost", "pays"), [(0.8, True), (0.9, False)])
def test_rows_train_together_only_where_a_step_is_faster(
    cost: float, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[StepSeconds] = []
    monkeypatch.setattr(training_rows._Rows, "weighed", lambda self: StepSeconds(together=cost, alone=1.0))
    rows = rows_of("lora")
    with nullcontext() if pays else pytest.raises(NotTogether, match="not clearly faster together"):
        train_rows(rows, budget=BUDGET, validate=lambda *_: 0.0, weigh=found.append)
    assert found == [StepSeconds(together=cost, alone=1.0)]


def test_a_step_is_measured_both_ways() -> None:
    found: list[StepSeconds] = []
    with suppress(NotTogether):
        train_rows(rows_of("lora"), budget=BUDGET, validate=lambda *_: 0.0, weigh=found.append)
    (seconds,) = found
    assert 0.1 < seconds.together / seconds.alone < 10  # of four rows: one alone would be a quarter of them at most


def test_what_draws_inside_is_not_trained_together() -> None:
    rows = rows_of("lora(dropout=0.5)")
    before = [{name: x.clone() for name, x in row.learner.delta().items()} for row in rows]
    with pytest.raises(NotTogether, match="they cannot be vectorised: "):
        together(rows)
    for row, tensors in zip(rows, before, strict=True):
        assert all(torch.equal(x, tensors[name]) for name, x in row.learner.delta().items())


def test_learners_of_which_one_takes_much_memory_train_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of("lora")
    sizes: list[int] = []
    train = training_rows._Rows.train

    def counted(self: Any, *given: Any) -> list[RowEnd]:
        sizes.append(len(self._rows))
        return train(self, *given)

    monkeypatch.setattr(training_rows, "AT_ONCE", 1)
    monkeypatch.setattr(training_rows._Rows, "train", counted)
    together(rows)
    assert sizes == [1] * len(rows)
