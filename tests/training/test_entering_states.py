"""A learner that trains from stored states trains as it does from inputs, or says why it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.tiny import tiny  # noqa: F401 -- a fixture
from zoo_core.benchmark.loaders import open_task, training_loader
from zoo_core.contracts import Batch, Change, Context
from zoo_core.contracts import Learner as LearnerContract
from zoo_core.data.loader import Loader
from zoo_core.data.model_outputs import ModelOutputs
from zoo_core.data.splits import carve
from zoo_core.errors import RefusedError
from zoo_core.files.fetch import pin_plan
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Budget
from zoo_core.plan.resolve import resolve
from zoo_core.registry.registry import registry
from zoo_core.spec.parser import parse_part
from zoo_core.testing.recipes import toy_plan
from zoo_core.toolkit.stages import boundary, stage_modules
from zoo_core.training import entering_states
from zoo_core.training.entering_states import states_refusal
from zoo_core.training.fit import fit
from zoo_core.training.frozen_features import FeatureMemory, FeaturePass, FrozenFeatures
from zoo_core.training.gradient_trainer import moving

Tiny = Callable[[str], str]
BUDGET = Budget(epochs=2, batch_size=8)
TEXTS = "text,label\n" + "".join(f"{'word ' * (1 + at % 7)}{at},{'even' if at % 2 else 'odd'}\n" for at in range(60))


@dataclass(frozen=True, kw_only=True)
class Noisy:
    """An adapter of a third party: dropout after the last stage, or, against its word, something at the first one."""

    how: str = "drops"

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = frozenset({"added"})

    def first_stage(self, num_stages: int) -> int:
        return num_stages - 1

    def apply(self, learner: LearnerContract, context: Context) -> LearnerContract:
        first, *_, last = stage_modules(learner.backbone)
        if self.how == "drops":
            last.add_module("noise", nn.Dropout(0.3))
            last.register_forward_hook(lambda module, args, output: module.noise(output))
        elif self.how == "scales the first":
            first.register_forward_hook(lambda module, args, output: 1.1 * output)
        elif self.how == "draws at the first":
            first.register_forward_hook(
                lambda module, args, output: output + torch.rand_like(output) if learner.training else output
            )
        return learner


def partial(n: int) -> Any:
    return registry().bind(parse_part(f"partial(n={n})"), "adapter").recipe


class ExactLoader(Loader):
    """Gives inputs in float64."""

    def on_device(self, batch: Batch) -> Batch:
        found = super().on_device(batch)
        exact = {name: x.double() if x.is_floating_point() else x for name, x in found.inputs.items()}
        return replace(found, inputs=exact)


def world(plan: Any) -> tuple[Learner, nn.Module, Loader]:
    """A learner in float64, its backbone without adapters, and the loader to train on."""
    splits = carve(open_task(plan), seed=plan.seed, target=plan.target, **plan.task.common)
    bare = build(replace(plan, adapters=(), places=None), target=splits.target, purpose="use").double()
    learner = build(plan, target=splits.target).double()
    loader = training_loader(plan, learner, splits.train, splits.target, torch.device("cpu"), 0)
    loader.__class__ = ExactLoader
    return learner, bare.backbone, loader


def on_states(backbone: nn.Module, stage: int, loader: Loader) -> Loader:
    store = ModelOutputs(Path("nowhere"), {}, loader.num, max_bytes=0, on_full=lambda _: None)
    frozen = FrozenFeatures(
        backbone,
        loader,
        what=stage,
        rows=np.arange(loader.num, dtype=np.int64),
        stores={stage: store},
        memory=FeatureMemory(),
        passed=FeaturePass(),
    )
    frozen.fill()
    return frozen.loader()


def trained(learner: Learner, loader: Loader, plan: Any) -> tuple[tuple[float, ...], dict[str, Tensor]]:
    learner = copy.deepcopy(learner)
    fitted = fit(learner, loader, budget=plan.budget, learning_rate=1e-2, seed=3)
    assert fitted.num_steps >= 10
    return fitted.losses, {name: x.detach().clone() for name, x in moving(learner).items()}


def toy(*adapters: Any) -> Any:
    return toy_plan(*adapters, budget=BUDGET)


def real(name: str, task: str) -> Callable[[Tiny, Path], Any]:
    def plan(made: Tiny, folder: Path) -> Any:
        (folder / "texts.csv").write_text(TEXTS, encoding="utf-8")
        at = name if name.startswith("starter/") else made(name)
        spec = f"{at}+partial(n=1)"
        return pin_plan(resolve(spec, task=task.replace("TEXTS", f'"{folder}/texts.csv"'), budget=BUDGET))

    return plan


DIGITS = "digits(limit=60)"
WORLDS: dict[str, Callable[[Tiny, Path], Any]] = {
    "third party, dropout": lambda made, folder: toy(partial(1), Noisy()),
    "two of three stages": lambda made, folder: toy(partial(2)),
    "vit": real("starter/vit-nano", DIGITS),
    "batch norms": real("starter/convnet-nano", DIGITS),
    "texts of several lengths": real("bert", "csv(path=TEXTS)"),
}


@pytest.mark.parametrize("name", WORLDS)
def test_states_train_as_inputs_do(name: str, tiny: Tiny, tmp_path: Path) -> None:  # noqa: F811
    plan = WORLDS[name](tiny, tmp_path)
    learner, backbone, loader = world(plan)
    stage = len(learner.source.stages) - (2 if "two" in name else 1)
    states = on_states(backbone, stage, loader)
    losses, weights = trained(learner, loader, plan)
    found, same = trained(learner, states, plan)
    assert np.allclose(found, losses, rtol=0, atol=1e-9)
    assert all(torch.allclose(same[each], x, rtol=0, atol=1e-9) for each, x in weights.items())
    assert not refused(learner, backbone, stage, loader, states)


def refused(learner: Learner, backbone: nn.Module, stage: int, loader: Loader, states: Loader | None = None) -> str:
    """Why states are not used, whatever the reading of them takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entering_states, "_dear", lambda *_: "")
        return states_refusal(learner, backbone, stage, loader, lambda: states or loader)


@pytest.mark.parametrize(
    ("adapters", "stage", "reason"),
    [
        ((partial(1), Noisy(how="scales the first")), 2, "the state that enters stage 3 is not that of the base"),
        ((partial(1), Noisy(how="draws at the first")), 2, "the state that enters stage 3 is not that of the base"),
        ((partial(2),), 2, "something that stage 3 begins with trains"),
        ((partial(3),), 0, "no stage before those that train"),
    ],
)
def test_what_is_not_as_the_adapter_says_is_found_out(adapters: tuple[Any, ...], stage: int, reason: str) -> None:
    learner, backbone, loader = world(toy(*adapters))
    before = torch.random.get_rng_state()
    assert reason in refused(learner, backbone, stage, loader)
    assert torch.equal(before, torch.random.get_rng_state())


def test_states_that_are_dearer_to_read_than_to_compute_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, backbone, loader = world(toy(partial(1)))
    states = on_states(backbone, 2, loader)
    found = []
    for seconds in ([0.2, 0.0004], [0.0004, 0.2]):
        monkeypatch.setattr(entering_states, "_seconds", lambda call, loader, left=seconds: (call(), left.pop(0))[1])
        found.append(states_refusal(learner, backbone, 2, loader, lambda: states))
    said = "reading the states of a batch that enter stage 3 takes 2e+02 ms, and computing them 0.4 ms"
    assert found == [said, ""]


def test_a_state_of_parts_of_examples_is_refused_before_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    _, backbone, loader = world(toy(partial(1)))
    monkeypatch.setattr(f"{FrozenFeatures.__module__}.boundary", lambda *given: boundary(*given).repeat(4, 1, 1))
    with pytest.raises(RefusedError, match=r"what enters stage 3 is of \d+ rows for \d+ examples"):
        on_states(backbone, 2, loader)
