"""What a fit will need: activations counted, the batch that fits, and the forecast of a dry run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import Run
from zoo_core.benchmark.dry_run import downloads, dry_run
from zoo_core.model.build import build
from zoo_core.plan.plan import Budget
from zoo_core.plan.resolve import resolve
from zoo_core.testing.recipes import ToyBackbones, ToyMemory, ToyOpen, ToyTasks, toy_plan
from zoo_core.training.gradient_trainer import MemoryOptions
from zoo_core.training.memory import activations, available_bytes, fitting_batch, state_bytes
from zoo_core.training.timing import count_parameters


def inputs_of(num: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(num, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


# -- activations ----------------------------------------------------------------------------------------------------


class Squares(nn.Module):
    """A stage that keeps exactly its input and one intermediate value of the same size for the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return (x.square()).square() + 0 * self.scale


def test_what_a_pass_keeps_is_counted_to_the_byte() -> None:
    learner = build(toy_plan())
    stages = learner.source.stages
    for path in stages:
        parent, _, name = path.rpartition(".")
        setattr(learner.backbone.get_submodule(parent), name, Squares())
    entering: list[Tensor] = []
    learner.backbone.get_submodule(stages[0]).register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    learner.requires_grad_(True)
    inputs = learner.source.preparation.normalise(learner.source.preparation.dummy(3))
    found = activations(learner, lambda: learner(inputs).predictions.sum(), 3)
    size = entering[0].nbytes / 3  # of one example's hidden state
    assert found.between == len(stages) * size
    assert found.largest_stage in (size, 2 * size)  # its own input was kept by the stage before, or not
    assert found.inside <= found.all
    assert found.bytes(recomputes=False) == found.all
    assert found.bytes(recomputes=True) == found.all - found.inside + found.between + found.largest_stage


def test_parameters_are_no_activations_and_frozen_stages_keep_nothing() -> None:
    learner = build(toy_plan())  # a probe
    inputs = learner.source.preparation.normalise(learner.source.preparation.dummy(3))
    probe = activations(learner, lambda: learner(inputs).predictions.sum(), 3)
    assert probe.inside == 0
    whole = build(toy_plan(ToyOpen()))
    assert activations(whole, lambda: whole(inputs).predictions.sum(), 3).inside > 10 * probe.all


@pytest.mark.parametrize(
    ("free", "found"), [(1e9, 32), (32 * 100 / 0.8, 32), (31 * 100 / 0.8, 16), (1700 / 0.8, 16), (150, 1), (-5, 1)]
)
def test_the_largest_halving_that_fits(free: float, found: int) -> None:
    assert fitting_batch(32, free=free, for_each=100) == found


def test_state_is_gradients_and_two_moments() -> None:
    learner = build(toy_plan(ToyOpen()))
    assert state_bytes(learner) == 3 * 4 * count_parameters(learner)[0]


def test_free_memory_is_that_of_this_machine() -> None:
    assert 2**20 < available_bytes(torch.device("cpu")) < 2**50


# -- dry runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [ToyBackbones(), ToyBackbones(kind="map")])
def test_a_dry_run_counts_the_steps_of_the_whole_fit(backbone: ToyBackbones) -> None:
    task = ToyTasks(num=100)
    plan = toy_plan(
        ToyOpen(), backbone=backbone, task=task, budget=Budget(epochs=50, batch_size=16), learning_rates=(1e-3, 1e-2)
    )
    data = task.open(None)
    found = dry_run(plan, data)
    num = data.splits["train"].num
    assert (found.num_rates, found.num_epochs, found.num_steps) == (2, 50, 50 * -(-num // 16))
    assert (found.num_trainable, found.num_parameters) == count_parameters(build(plan))
    longer = dry_run(toy_plan(ToyOpen(), backbone=backbone, task=task, budget=Budget(epochs=5000)), data)
    assert longer.num_steps == 5000 * -(-num // 32)
    assert found.peak_memory_bytes > 2**20


def test_a_closed_form_is_one_pass() -> None:
    task = ToyTasks()
    found = dry_run(toy_plan(head=ToyMemory(), task=task), task.open(None))
    assert (found.num_rates, found.num_epochs, found.num_steps) == (1, 1, 2)


def test_where_the_batch_does_not_fit_a_smaller_one_is_run_and_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    task = ToyTasks()
    plan = toy_plan(ToyOpen(), task=task, budget=Budget(batch_size=32))
    roomy = dry_run(plan, task.open(None))
    assert not any("scaled" in line for line in roomy.assumed)
    monkeypatch.setattr("zoo_core.benchmark.dry_run.available_bytes", lambda device: 0)
    tight = dry_run(plan, task.open(None))
    assert any("scaled to batches of 32, whose activations do not fit" in line for line in tight.assumed)
    sought = dry_run(plan, task.open(None), memory=MemoryOptions(micro_batch="auto"))
    assert sought.micro_batch == 1
    given = dry_run(plan, task.open(None), memory=MemoryOptions(micro_batch=5))
    assert given.micro_batch == 5


def test_downloads_are_known_from_pins_alone() -> None:
    starter = resolve("starter/vit-nano", task="digits")
    assert downloads(starter) == {}
    far = resolve("timm/vit_tiny_patch16_224.augreg_in21k", task="digits")
    assert list(downloads(far).values()) == [None]


# -- zoo fit --dry-run ----------------------------------------------------------------------------------------------


def test_a_dry_run_tells_and_stores_nothing(zoo_here: Run, tmp_path: Path) -> None:
    words = ("--task", "digits(shots=2)", "--epochs", "3", "--out", tmp_path / "run", "--device", "cpu", "--dry-run")
    code, out, err = zoo_here("fit", "starter/vit-nano+bitfit", *words, "--micro-batch", "7")
    assert (code, err) == (0, [])
    rows = dict(line.split(":", 1) for line in out.splitlines())
    assert {"trial", "learning_rates", "download", "trains", "steps", "peak memory", "time", "assumed"} <= rows.keys()
    assert rows["trial"].endswith("keep=best seed=0")
    assert rows["steps"].strip() == "3 x 3, in 3 epochs, of 20 examples, 7 in a pass"
    assert "MiB are free now" in rows["peak memory"]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_cannot_be_known_without_a_download(
    zoo_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    words = ("--task", "digits(shots=2)", "--out", tmp_path / "run", "--device", "cpu", "--dry-run")
    code, out, err = zoo_here("fit", "hf/nobody/nothing", *words)
    assert (code, err) == (0, [])
    assert "download:            backbone:hf/nobody/nothing, unknown" in out
    assert "memory and time:     not known: " in out
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_what_is_refused_is_refused(zoo_here: Run, tmp_path: Path) -> None:
    words = ("--task", "digits", "--out", tmp_path / "run", "--dry-run")
    assert zoo_here("fit", "starter/vit-nanoo", *words)[0] == 3
    assert zoo_here("fit", "starter/vit-nano", *words, "--micro-batch", "0")[0] == 2
