"""Stages computed twice: the same bits, less memory, and a backbone that is afterwards what it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.test_micro_batches import loader_of
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Budget, Plan
from zoo_core.testing.recipes import ToyBackbones, ToyHint, ToyOpen, toy_plan
from zoo_core.toolkit.stages import stage_modules
from zoo_core.training.activation_checkpointing import recomputed
from zoo_core.training.fit import fit
from zoo_core.training.gradient_trainer import MemoryOptions
from zoo_core.training.memory import activations

MAP = ToyBackbones(kind="map")
CASES: dict[str, Any] = {
    "dropout": lambda: toy_plan(ToyOpen(), budget=Budget(epochs=2)),
    "batch norms": lambda: toy_plan(ToyOpen(), backbone=MAP, budget=Budget(epochs=2)),
    "stage states asked for": lambda: toy_plan(ToyOpen(), ToyHint(), budget=Budget(epochs=2)),
    "half of it frozen": lambda: toy_plan(ToyOpen(what="last"), budget=Budget(epochs=2)),
    "all of it frozen": lambda: toy_plan(budget=Budget(epochs=2)),
}


def fitted(plan: Plan, memory: MemoryOptions | None) -> dict[str, Tensor]:
    learner = build(plan)
    fit(learner, loader_of(plan, learner), budget=plan.budget, learning_rate=1e-2, seed=0, memory=memory)
    return learner.state_dict()


@pytest.mark.parametrize("case", CASES)
def test_a_fit_has_the_same_bits(case: str) -> None:
    plan = CASES[case]()
    plain, saving = fitted(plan, None), fitted(plan, MemoryOptions(checkpoint_activations=True))
    assert plain.keys() == saving.keys()
    assert all(torch.equal(x, saving[name]) for name, x in plain.items())


def counting(learner: Learner) -> list[int]:
    calls: list[int] = []
    for index, module in enumerate(stage_modules(learner.backbone)):
        module.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    return calls


def test_each_stage_is_called_again_in_the_backward_pass_hooks_included() -> None:
    learner = build(toy_plan(ToyOpen()))
    calls = counting(learner)
    batch = next(iter(loader_of(toy_plan(), learner).epoch()))
    learner.train()
    with recomputed(learner.backbone):
        loss = learner.loss(learner(batch.inputs), batch)
    assert calls == [0, 1, 2]
    loss.backward()
    assert sorted(calls) == [0, 0, 1, 1, 2, 2]


def test_without_gradients_nothing_is_called_twice() -> None:
    learner = build(toy_plan(ToyOpen()))
    calls = counting(learner)
    with recomputed(learner.backbone), torch.no_grad():
        learner(next(iter(loader_of(toy_plan(), learner).epoch())).inputs)
    assert calls == [0, 1, 2]


def test_a_backbone_is_afterwards_what_it_was() -> None:
    learner = build(toy_plan(ToyOpen()))
    before = [dict(module.__dict__) for module in stage_modules(learner.backbone)]
    with pytest.raises(KeyboardInterrupt), recomputed(learner.backbone):
        raise KeyboardInterrupt
    assert [dict(module.__dict__) for module in stage_modules(learner.backbone)] == before
    copy.deepcopy(learner)


def test_a_compiled_stage_stays_compiled() -> None:
    learner = build(toy_plan(ToyOpen()))
    stage = stage_modules(learner.backbone)[0]
    calls: list[int] = []

    def compiled(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return stage._call_impl(*args, **kwargs)

    stage._compiled_call_impl = compiled
    with recomputed(learner.backbone):
        learner(next(iter(loader_of(toy_plan(), learner).epoch())).inputs).predictions.sum().backward()
    assert calls == [1, 1]
    assert stage._compiled_call_impl is compiled


class Wide(nn.Module):
    """A stage that keeps much more inside than what enters it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        wide = (x.repeat_interleave(50, -1) * (1 + self.gain)).sin().exp().sin()
        found: Tensor = self.inner(x) + self.gain * wide.mean()
        return found


def test_what_is_kept_for_the_backward_pass_is_less() -> None:
    learner = build(toy_plan(ToyOpen()))
    backbone = learner.backbone
    for path in learner.source.stages:
        parent, _, name = path.rpartition(".")
        setattr(backbone.get_submodule(parent), name, Wide(backbone.get_submodule(path)))
    learner.requires_grad_(True)
    batch = next(iter(loader_of(toy_plan(), learner).epoch()))

    def kept() -> float:
        return activations(learner, lambda: learner.loss(learner(batch.inputs), batch), len(batch)).all

    plain = kept()
    with recomputed(backbone):
        assert kept() < 0.2 * plain
