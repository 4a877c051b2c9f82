"""What a teacher gives is the same bits live, while it is stored, and replayed; whatever prepares the batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import zoo_core
from tests.taught.fixture import Taught
from zoo_core.benchmark.loaders import open_task, training_loader
from zoo_core.benchmark.teaching import replay_of
from zoo_core.contracts import Batch, Target, Teacher
from zoo_core.data.loader import AS_IT_IS, Loader
from zoo_core.data.model_outputs import ModelOutputs
from zoo_core.data.splits import carve
from zoo_core.files.fetch import pin_plan
from zoo_core.model.build import build
from zoo_core.model.replay import Passes, Replay
from zoo_core.model.teachers import TeacherModel, Teachers
from zoo_core.plan.plan import Budget, Plan
from zoo_core.plan.resolve import resolve
from zoo_core.testing.toys import ToyBackbone, ToyTask

pytest.importorskip("zoo_starter")
pytest.importorskip("zoo_distill")

NUM = 23  # in batches of 8, so that the last one of each epoch is smaller, and another one in each
BOTH = (
    'starter/convnet-nano+full+distill(teacher="{run}")+distill-features(teacher="starter/vit-nano",stages=[[-1,-1]])'
)
HALF = 'starter/vit-nano+full+distill(teacher="{run}",keep=float16)'


def planned(spec: str, run: Path, *, epochs: int = 3, **budget: object) -> Plan:
    told = Budget(epochs=epochs, batch_size=8, **budget)  # type: ignore[arg-type]
    return pin_plan(resolve(spec.format(run=run), task=f"digits(limit={NUM})", budget=told))


def given(plan: Plan, *, workers: int = 0) -> tuple[list[Tensor], Passes]:
    """All that teachers gave in all epochs of a fit, in order, and what it took."""
    assert plan.task is not None
    splits = carve(open_task(plan), seed=plan.seed, **plan.task.common)
    learner, passes, found = build(plan, target=splits.target), Passes(), list[Tensor]()
    beside = replay_of(plan, learner, splits.train, torch.device("cpu"), passes, role="train")
    loader = training_loader(plan, learner, splits.train, splits.target, torch.device("cpu"), workers, beside)
    for epoch in range(plan.budget.epochs):
        for batch in loader.epoch(epoch):
            assert batch.teachers.keys() == plan.teachers.keys()
            for output in batch.teachers.values():
                found += [x for x in (output.predictions, output.pooled, *output.stages.values()) if x is not None]
    return found, passes


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Path]]:
    """An empty cache; gives the files of rows in it."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return lambda: sorted((tmp_path / "cache").rglob("*.rows"))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("views", [None, 2])
@pytest.mark.parametrize("spec", [pytest.param(BOTH, marks=pytest.mark.slow), HALF])
def test_live_filling_and_replayed_are_the_same_bits(
    spec: str,
    views: int | None,
    workers: int,
    taught: Taught,
    stores: Callable[[], list[Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = planned(spec, taught.run, augment="strong", views=views)
    filling, made = given(plan, workers=workers)
    assert stores()
    replayed, read = given(plan, workers=workers)
    monkeypatch.setenv("ZOO_OUTPUTS_BYTES", "0")
    live, asked = given(plan, workers=workers)
    assert equal(filling, replayed)
    if views is None:
        assert equal(live, filling)
    for one, other in zip(live, filling, strict=True):  # a view that comes again stands in other batches, which may
        assert torch.allclose(one, other, rtol=1e-3 if spec == HALF else 1e-5, atol=1e-6)  # round otherwise
    num_teachers = len(plan.teachers)
    assert (read.made, read.saved) == (0, 3 * NUM * num_teachers)
    assert (asked.made, asked.saved) == (3 * NUM * num_teachers, 0)
    assert made.made == (views or 3) * NUM * num_teachers
    if spec == HALF:
        assert all(torch.equal(x, x.half().float()) for x in live), "what is kept in float16 is so live too"
    epoch = len(live) // 3
    assert not equal(live[:epoch], live[epoch : 2 * epoch]), "an epoch is another view"


def test_a_damaged_row_is_computed_again(taught: Taught, stores: Callable[[], list[Path]]) -> None:
    plan = planned(HALF, taught.run, epochs=1)
    expected, _ = given(plan)
    (file,) = stores()
    held = bytearray(file.read_bytes())
    written = [place for place in range(len(held) // 2, len(held)) if held[place]]
    for place in (written[len(written) // 3], written[-1]):
        held[place] ^= 0xFF
    file.write_bytes(bytes(held))
    found, passes = given(plan)
    assert equal(found, expected)
    assert 1 <= passes.made <= 2
    assert passes.saved == NUM - passes.made
    again, mended = given(plan)
    assert equal(again, expected)
    assert mended.made == 0, "it was stored again"


def test_students_seeds_and_limits_share_what_is_stored(taught: Taught, stores: Callable[[], list[Path]]) -> None:
    given(planned(HALF, taught.run))
    other = planned('starter/convnet-nano+full+distill(teacher="{run}",keep=float16,alpha=0.9)', taught.run)
    assert given(other)[1].made == 0
    few = pin_plan(resolve(str(other.spec), task="digits(limit=9)", budget=other.budget))
    assert given(few)[1].made < 9 * 3
    whole = planned('starter/convnet-nano+full+distill(teacher="{run}")', taught.run)
    assert given(whole)[1].made == NUM, "float32 is another room, and one view without augmentation is made once"


def test_a_teacher_that_changed_is_asked_again(
    taught: Taught, tmp_path: Path, stores: Callable[[], list[Path]]
) -> None:
    learner = zoo_core.load_run(taught.run)
    zoo_core.save(learner, tmp_path / "one")
    before, made = given(planned(HALF, tmp_path / "one"))
    (tmp_path / "one").rename(tmp_path / "two")
    moved, read = given(planned(HALF, tmp_path / "two"))
    assert equal(before, moved)
    assert (made.made, read.made) == (NUM, 0), "it is known by its content"
    for parameter in learner.head.parameters():
        parameter.data += 1
    zoo_core.save(learner, tmp_path / "three")
    after, again = given(planned(HALF, tmp_path / "three"))
    assert again.made == NUM
    assert not equal(before, after)


# -- one loader -------------------------------------------------------------------------------------------------------

THREE = Target(kind="classes", names=("left", "middle", "right"))


def beside(split: object, store: ModelOutputs | None) -> tuple[Replay, Passes]:
    backbone, passes = ToyBackbone("map").eval(), Passes()
    teachers = Teachers(
        {"t": Teacher(of="t", predictions=False, pooled=True)}, {}, lambda _: TeacherModel(backbone=backbone), THREE
    )
    stores = {} if store is None else {"t": store}
    return Replay(teachers, stores, np.arange(split.num), passes), passes  # type: ignore[attr-defined]


def loader_of(split: object, replay: Replay | None, device: str = "cpu") -> Loader:
    return Loader(
        split,  # type: ignore[arg-type]
        modality="image",
        target=THREE,
        preparation=ToyBackbone().preparation,
        batch_size=7,
        device=device,
        beside=replay,
    )


def test_what_was_stored_comes_to_the_device(tmp_path: Path) -> None:
    """Where all of a batch was stored, no teacher brings it there."""
    split = ToyTask(num=12).splits["train"]
    store = ModelOutputs(tmp_path, {}, 12, max_bytes=10**6, on_full=pytest.fail)
    replay, passes = beside(split, store)
    list(loader_of(split, replay).epoch())
    assert (passes.made, passes.saved) == (12, 0)
    for batch in loader_of(split, replay, "meta").epoch():
        pooled = batch.teachers["t"].pooled
        assert pooled is not None
        assert pooled.device.type == batch.inputs["pixel_values"].device.type == "meta"
    assert passes.saved == 12


def test_a_loader_without_it_makes_the_same_batches(tmp_path: Path) -> None:
    split = ToyTask(num=12).splits["train"]
    replay, passes = beside(split, None)
    loader = loader_of(split, replay)
    plain: list[Batch] = list(loader.without_beside().epoch())
    assert passes.made == 0
    for batch, other in zip(loader.epoch(), plain, strict=True):
        assert torch.equal(batch.inputs["pixel_values"], other.inputs["pixel_values"])
        assert not other.teachers
        assert replace(batch, teachers={}).ids == other.ids


def test_what_a_preparation_draws_is_stored_of_drawn_views_alone(tmp_path: Path) -> None:
    """A view as it is would be another one in each epoch, if its preparation draws."""

    class Drawing(type(ToyBackbone().preparation)):  # type: ignore[misc]
        random = True

    split = ToyTask(num=12).splits["train"]
    store = ModelOutputs(tmp_path, {}, 12, max_bytes=10**6, on_full=pytest.fail)
    replay, passes = beside(split, store)
    plain = ToyBackbone().preparation
    replay._preparations["t"] = Drawing(size=8, mean=plain.mean, std=plain.std)
    loader = loader_of(split, replay)
    for epoch in range(2):
        list(loader.epoch(epoch))
    assert (passes.made, passes.saved) == (24, 0)
    assert not store.held(AS_IT_IS, np.arange(12)).any()
