"""A teacher sees what its student sees, gives what was asked, and is no part of any learner."""

from __future__ import annotations

import copy
import hashlib
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo_core
from tests.taught.fixture import DIGITS, Taught
from zoo_core.contracts import Batch, Change, Context, Learner, Output, Target, Teacher, TeacherOutput
from zoo_core.errors import LawError, PluginError, RefusedError, UsageError
from zoo_core.model.learner import Learner as Built
from zoo_core.model.teachers import TeacherModel, Teachers
from zoo_core.testing.toys import ToyBackbone

pytest.importorskip("zoo_starter")
pytest.importorskip("zoo_distill")


def pictures(num: int = 6) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (8, 8), dtype=np.uint8) for _ in range(num)]


def batch_of(learner: Built, num: int = 6) -> Batch:
    transform = learner.transform()
    batch: Batch = learner.collate([(transform(x), index % 10) for index, x in enumerate(pictures(num))])
    return batch


def student(folder: Path, more: str = "") -> Built:
    return zoo_core.load(f'starter/vit-nano+partial(n=1)+distill(teacher="{folder}"{more})', classes=DIGITS)


def digest(model: TeacherModel) -> str:
    assert model.head is not None
    tensors = [*model.backbone.state_dict().values(), *model.head.state_dict().values()]
    return hashlib.sha256(b"".join(x.numpy().tobytes() for x in tensors)).hexdigest()


# -- no part of the learner ------------------------------------------------------------------------------------------


def test_a_teacher_is_in_no_state_and_is_not_counted(taught: Taught) -> None:
    plain = zoo_core.load("starter/vit-nano+partial(n=1)", classes=DIGITS)
    learner = student(taught.run)
    learner.loss(learner(batch_of(learner).inputs), batch_of(learner))  # it is loaded by now
    assert learner.state_dict().keys() == plain.state_dict().keys()
    assert sum(x.numel() for x in learner.parameters()) == sum(x.numel() for x in plain.parameters())
    own = {type(module).__name__ for module in learner.modules()} - {
        type(module).__name__ for module in plain.modules()
    }
    assert own == {"Distillation"}
    assert learner.delta().keys() == plain.delta().keys()
    linear = zoo_core.load(f'starter/vit-nano+full+distill-features(teacher="{taught.run}")', classes=DIGITS)
    assert any(name.startswith("objective.") for name, _ in linear.trainable()), "a linear map from 96 to 10 wide"
    assert not [name for name in linear.delta() if "objective" in name]


def test_a_teacher_stays_in_evaluation_mode_and_as_it_was(taught: Taught) -> None:
    learner = student(taught.run)
    assert learner.teachers is not None
    model = learner.teachers.model(str(taught.run))
    before = digest(model)
    parent = nn.ModuleDict({"learner": learner, "more": nn.Linear(2, 2)}).train().requires_grad_(True)
    optimiser = torch.optim.AdamW(parent.parameters(), lr=0.1, weight_decay=0.1)
    batch = batch_of(learner)
    for _ in range(2):
        learner.loss(learner(batch.inputs), batch).backward()
        optimiser.step()
    assert learner.training
    modules = [*model.backbone.modules(), *(model.head or nn.Identity()).modules()]
    assert not any(module.training for module in modules)
    assert not any(x.requires_grad for module in modules for x in module.parameters())
    assert digest(model) == before


def test_a_copy_shares_its_teachers_and_a_pickle_loads_them_again(taught: Taught) -> None:
    learner = student(taught.run)
    batch = batch_of(learner)
    expected = learner.loss(learner(batch.inputs), batch)
    twin = copy.deepcopy(learner)
    assert twin.teachers is learner.teachers
    stored = pickle.dumps(learner)
    again: Built = pickle.loads(stored)
    assert again.teachers is not None
    assert again.teachers is not learner.teachers
    assert len(stored) < len(pickle.dumps(zoo_core.load("starter/vit-nano+partial(n=1)", classes=DIGITS))) + 20_000
    for each in (twin, again):
        assert torch.equal(each.loss(each(batch.inputs), batch), expected)


def test_what_is_made_for_use_has_no_teacher(taught: Taught, tmp_path: Path) -> None:
    learner = student(taught.run)
    zoo_core.save(learner, tmp_path / "run")
    for used in (learner.merge(), zoo_core.load_run(tmp_path / "run")):
        assert used.teachers is None
        assert used.transform()(pictures()[0]).keys() == {"pixel_values"}


# -- what it sees, what it gives --------------------------------------------------------------------------------------


def test_each_network_reads_the_same_augmented_example_in_its_own_way(taught: Taught) -> None:
    learner = student(taught.run)
    batch = batch_of(learner)
    beside = batch.beside[str(taught.run)]["pixel_values"]
    assert (batch.inputs["pixel_values"].shape[-1], beside.shape[-1]) == (32, 20)
    torch.manual_seed(0)
    drawn = learner.transform(train=True)(pictures()[0])
    torch.manual_seed(0)
    assert torch.equal(learner.source.transform(train=True)(pictures()[0])["pixel_values"], drawn["pixel_values"])
    crop = next(x for name, x in drawn.items() if name != "pixel_values")
    plain = learner.transform()(pictures()[0])
    assert not torch.equal(crop, next(x for name, x in plain.items() if name != "pixel_values")), "it is cropped too"


def test_its_pass_draws_nothing_and_knows_no_autocast_or_inference_mode(taught: Taught) -> None:
    learner = student(taught.run)
    batch = batch_of(learner)
    plain = learner.taught(batch).teachers[str(taught.run)].predictions
    state = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = learner.taught(batch).teachers[str(taught.run)].predictions
    with torch.inference_mode():
        inferred = learner.taught(batch).teachers[str(taught.run)].predictions
    assert plain is not None
    assert mixed is not None
    assert inferred is not None
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(plain, mixed)
    assert torch.equal(plain, inferred)
    assert not plain.requires_grad
    assert not inferred.is_inference()


def test_a_batch_that_no_teacher_saw_is_told_and_a_loss_asks_once(
    taught: Taught,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = student(taught.run)
    of, batch = str(taught.run), batch_of(learner)
    transform = learner.source.transform()
    unseen = learner.collate([(transform(x), 0) for x in pictures()])
    with pytest.raises(UsageError, match=r"holds nothing that teacher .* reads: make examples with learner\.transform"):
        learner.loss(learner(unseen.inputs), unseen)
    told = learner.taught(batch)
    assert learner.teachers is not None
    monkeypatch.setattr(learner.teachers, "output", lambda *_: pytest.fail("it was asked before"))
    assert learner.taught(told) is told
    learner.loss(learner(told.inputs), told)
    part = told[2:4]
    predictions, whole = part.teachers[of].predictions, told.teachers[of].predictions
    assert predictions is not None
    assert whole is not None
    assert torch.equal(predictions, whole[2:4])


@pytest.mark.parametrize("names", [tuple(reversed(DIGITS)), ("7", "x", "3", "y", "1")])
def test_predictions_come_in_the_students_order_of_classes(
    taught: Taught,
    names: tuple[str, ...],
) -> None:
    of = str(taught.run)
    same, other = (
        zoo_core.load(f'starter/vit-nano+full+distill(teacher="{of}")', classes=classes) for classes in (DIGITS, names)
    )
    expected = same.taught(batch_of(same)).teachers[of].predictions
    batch = replace(batch_of(same), target=torch.zeros(6, dtype=torch.int64))
    found = other.taught(batch).teachers[of]
    assert expected is not None
    assert found.predictions is not None
    known = [name for name in names if name in DIGITS]
    assert torch.equal(found.predictions, expected[:, [DIGITS.index(name) for name in known]])
    assert found.columns == (None if len(known) == len(names) else (0, 2, 4))
    assert other.loss(other(batch.inputs), batch).isfinite()


def test_too_few_classes_in_common_are_refused_with_both_lists(taught: Taught) -> None:
    told = "share 1 outputs; the teacher has 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; the target has 1, cat"
    with pytest.raises(RefusedError, match=told):
        zoo_core.load(f'starter/vit-nano+full+distill(teacher="{taught.run}")', classes=("1", "cat"))


def test_predictions_of_words_stand_at_the_students_first_pieces() -> None:
    """Both read words 0 and 1 of the first example, and 0 of the second; the teacher has cut off word 2."""
    teachers = Teachers(
        {"t": Teacher(of="t")},
        {"t": Target(kind="token_classes", names=("b", "a"))},
        lambda _: pytest.fail("nothing is loaded"),
        Target(kind="token_classes", names=("a", "b")),
    )
    theirs = torch.tensor([[-1, 0, -1, 1, -1], [0, -1, -1, -1, -1]])
    own = torch.tensor([[0, 1, -1, 2], [-1, -1, 0, -1]])
    given = TeacherOutput(predictions=torch.arange(20.0).view(2, 5, 2))
    found = teachers.for_student("t", given, {"word_ids": theirs}, own).predictions
    nan = torch.nan
    expected = torch.tensor(
        [[[3.0, 2], [7, 6], [nan, nan], [nan, nan]], [[nan, nan], [nan, nan], [11, 10], [nan, nan]]]
    )
    assert found is not None
    assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))
    with pytest.raises(RefusedError, match="matched word by word, and one of them tells no words apart"):
        teachers.for_student("t", given, {}, own)


# -- what is wrong with it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "keep", "told"),
    [
        (torch.nan, "float32", "gives values that are not finite for 6 of 6 examples; nothing can be learned"),
        (torch.inf, "float16", "gives values that are not finite for 6 of 6 examples"),
        (1e6, "float16", "gives values that float16 cannot hold; keep=float32 can"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused(
    value: float,
    keep: str,
    told: str,
    taught: Taught,
    tmp_path: Path,
) -> None:
    learner = zoo_core.load_run(taught.run)
    bias = next(x for name, x in learner.delta().items() if name.endswith("bias"))
    bias[0] = value
    zoo_core.save(learner, tmp_path / "bad")
    mine = student(tmp_path / "bad", f",keep={keep}")
    batch = batch_of(mine)
    with pytest.raises(RefusedError, match=f"teacher .*bad {told}"):
        mine.loss(mine(batch.inputs), batch)


class Reading(nn.Module):
    stages: tuple[int, ...] = ()

    def __init__(self, objective: nn.Module, of: str, says: bool) -> None:
        super().__init__()
        self.objective, self.of, self.taught = objective, of, says

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.objective(output, batch)
        given = batch.teachers[self.of].pooled
        assert given is not None
        return terms | {"mine": given.sum() * 0}


@dataclass(frozen=True, kw_only=True)
class Reads:
    """An adapter whose objective reads a teacher that may not be the one that it declares."""

    reads: str = "pyramid"
    declares: str | None = "pyramid"
    says: bool = True

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = frozenset({"objective"})

    def teachers(self) -> Any:
        if self.declares == "raise":
            raise ZeroDivisionError
        if self.declares == "rubbish":
            return ["pyramid"]
        return () if self.declares is None else (Teacher(of=self.declares, predictions=False, pooled=True),)

    def apply(self, learner: Learner, context: Context) -> Learner:
        assert learner.objective is not None
        learner.objective = Reading(learner.objective, self.reads, self.says)
        return learner


@pytest.mark.parametrize(
    ("adapter", "error", "told"),
    [
        (Reads(declares=None), LawError, "no recipe of the chain declares any; its teachers"),
        (Reads(says=False), LawError, "declares a teacher, and no module of the objective says .* `taught = True`"),
        (Reads(declares="raise"), PluginError, "raised ZeroDivisionError"),
        (Reads(declares="rubbish"), PluginError, r"teachers\(\) gave \['pyramid'\]; allowed: a tuple of"),
    ],
)
def test_what_is_read_and_what_is_declared_go_together(
    adapter: Reads,
    error: type[Exception],
    told: str,
    taught: Taught,
) -> None:
    with pytest.raises(error, match=told):
        zoo_core.load(["starter/vit-nano+full", adapter], classes=DIGITS)


def test_an_objective_that_reads_another_teacher_is_told(taught: Taught) -> None:
    learner = zoo_core.load(["starter/vit-nano+full", Reads(reads="other")], classes=DIGITS)
    batch = batch_of(learner)
    with pytest.raises(
        LawError, match=r"reads what teacher 'other' gave, and the recipes of the chain declare 'pyramid'"
    ):
        learner.loss(learner(batch.inputs), batch)


def test_a_teacher_in_float64_gives_what_can_be_stored() -> None:
    backbone = ToyBackbone("map").double()
    teachers = Teachers(
        {"t": Teacher(of="t", predictions=False, pooled=True)}, {}, lambda _: TeacherModel(backbone=backbone), THREE
    )
    found = teachers.raw("t", {"pixel_values": torch.randn(2, 3, 8, 8, dtype=torch.float64)}).pooled
    assert found is not None
    assert found.dtype == torch.float32


THREE = Target(kind="classes", names=("a", "b", "c"))
