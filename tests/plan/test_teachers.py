"""Which teachers a chain has, what a digest knows of them, and what is refused before anything is built."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import zoo_core
from tests.taught.fixture import DIGITS, Taught
from zoo_core.contracts import Change, Context, Learner, Target, Teacher
from zoo_core.errors import IntegrityError, NotFoundError, RefusedError, UsageError
from zoo_core.files.fetch import pin_plan
from zoo_core.lock import lock_of, read_pins, write_lock
from zoo_core.plan.plan import Plan
from zoo_core.plan.resolve import resolve
from zoo_core.plan.teachers import common_outputs

pytest.importorskip("zoo_starter")
pytest.importorskip("zoo_distill")

TASK = "digits(limit=9)"


def planned(spec: Any, **more: Any) -> Plan:
    return pin_plan(resolve(spec, task=TASK, **more))


def taught_by(folder: Path | str, more: str = "") -> str:
    return f'starter/vit-nano+full+distill(teacher="{folder}"{more})'


def copied(run: Path, to: Path, change: float = 0.0) -> Path:
    """The same run elsewhere, or another one with other weights."""
    if not change:
        shutil.copytree(run, to)
        return to
    learner = zoo_core.load_run(run)
    next(iter(learner.head.parameters())).data += change
    zoo_core.save(learner, to)
    return to


# -- the digest -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Several:
    """An adapter with a list of teachers, and one that no argument names."""

    teachers_of: tuple[str, ...] = ()
    hidden: str | None = None
    note: str = ""

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = frozenset({"objective"})

    def teachers(self) -> tuple[Teacher, ...]:
        return tuple(Teacher(of=of) for of in (*self.teachers_of, *((self.hidden + "/",) if self.hidden else ())))

    def apply(self, learner: Learner, context: Context) -> Learner:
        return learner


def specs(folder: Path) -> dict[str, Any]:
    return {
        "an argument": taught_by(folder),
        "a list": ["starter/vit-nano+full", Several(teachers_of=(str(folder),))],
        "none": ["starter/vit-nano+full", Several(hidden=str(folder))],
    }


@pytest.mark.parametrize("named", ["an argument", "a list", "none"])
def test_a_digest_knows_a_teacher_by_its_content(named: str, taught: Taught, tmp_path: Path) -> None:
    first = copied(taught.run, tmp_path / "first")
    moved, other = copied(taught.run, tmp_path / "moved"), copied(taught.run, tmp_path / "other", 0.5)
    digests = {
        name: planned(specs(folder)[named]).digest
        for name, folder in {"first": first, "moved": moved, "other": other}.items()
    }
    assert digests["other"] != digests["first"]
    shutil.rmtree(first)
    other.rename(first)
    assert planned(specs(first)[named]).digest not in (digests["first"], digests["moved"])
    if named != "none":  # the argument that no teacher is called by is a text like any other
        assert digests["first"] == digests["moved"]


def test_an_argument_that_happens_to_be_a_teachers_name_stays(taught: Taught) -> None:
    of = str(taught.run)
    mine = [Several(note=note) for note in (of, "another")]
    one, other = (planned(["starter/vit-nano+full", each, *_parts(taught_by(of))]) for each in mine)
    assert one.digest != other.digest
    assert one.teachers.keys() == {of}


def _parts(spec: str) -> list[str]:
    return [spec.partition("+full+")[2]]


def test_without_weight_the_teacher_is_not_looked_for() -> None:
    plan = planned(taught_by("/nowhere", ",alpha=0.0"))
    assert not plan.teachers
    assert [part.name for part in plan.parts] == ["starter/vit-nano", "full", "distill", "linear", "digits"]


# -- the lock ---------------------------------------------------------------------------------------------------------


def test_a_lock_holds_a_teacher_to_its_content(taught: Taught, tmp_path: Path) -> None:
    folder = copied(taught.run, tmp_path / "teacher")
    plan = planned(taught_by(folder))
    write_lock(tmp_path / "zoo.lock", lock_of(plan.parts, plan.pins))
    pins = read_pins(tmp_path / "zoo.lock")
    assert any("teacher" in key for key in pins)
    assert planned(taught_by(folder), pins=pins).digest == plan.digest
    assert f'backbone:run(path="{folder}")' in plan.contents
    shutil.rmtree(folder)
    copied(taught.run, folder, 0.5)
    with pytest.raises(IntegrityError, match="teacher"):
        planned(taught_by(folder), pins=pins)


def test_a_teacher_that_changes_after_it_was_pinned_is_not_loaded(taught: Taught, tmp_path: Path) -> None:
    from zoo_core.model.build import build

    folder = copied(taught.run, tmp_path / "teacher")
    plan = planned(taught_by(folder))
    learner = build(replace(plan, target=Target(kind="classes", names=DIGITS)))
    shutil.rmtree(folder)
    copied(taught.run, folder, 0.5)
    assert learner.teachers is not None
    with pytest.raises(IntegrityError, match="teacher"):
        learner.teachers.model(str(folder))


# -- refused ----------------------------------------------------------------------------------------------------------


def test_teachers_are_asked_once_for_all_that_any_adapter_reads(taught: Taught) -> None:
    of = str(taught.run)
    plan = planned(f'{taught_by(of)}+distill-features(teacher="{of}",stages=[[1,-1],[2,1]])+relational(teacher="{of}")')
    (asked, _) = plan.teachers[of]
    assert (asked.predictions, asked.pooled, len(asked.stages)) == (True, True, 2)
    with pytest.raises(RefusedError, match=r"keeps what teacher .* gives in float16, and another one in float32"):
        planned(f'{taught_by(of)}+distill-features(teacher="{of}",keep=float16)')


def test_what_is_no_teacher_is_told(taught: Taught, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"the teacher .*/empty of distill holds no fitted model"):
        planned(taught_by(tmp_path / "empty"))
    with pytest.raises(NotFoundError, match=r"the teacher .*/gone of distill is not there"):
        planned(taught_by(tmp_path / "gone"))
    with pytest.raises(UsageError, match="is no name of a backbone"):
        planned(taught_by("a+b"))
    with pytest.raises(RefusedError, match="is a backbone, whose predictions nobody has trained"):
        planned(taught_by("starter/vit-nano"))
    with pytest.raises(RefusedError, match="reads table, and the examples are image"):
        planned('starter/vit-nano+full+distill-features(teacher="starter/mlp-nano")')
    damaged = copied(taught.run, tmp_path / "damaged")
    (damaged / "run.json").write_text("{")
    with pytest.raises(IntegrityError, match="is damaged"):
        planned(taught_by(damaged))


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        ("abc", "abc", ((0, 1, 2), (0, 1, 2))),
        ("abc", "cab", ((2, 0, 1), (0, 1, 2))),
        ("abcd", "db", ((3, 1), (0, 1))),
        ("ab", "xbya", ((1, 0), (1, 3))),
    ],
)
def test_outputs_are_matched_by_name(teacher: str, student: str, expected: Any) -> None:
    one, other = (Target(kind="classes", names=tuple(names)) for names in (teacher, student))
    assert common_outputs("t", one, other) == expected


@pytest.mark.parametrize(
    ("teacher", "student", "told"),
    [
        (
            Target(kind="classes", names=("a", "b")),
            Target(kind="classes", names=("b", "c")),
            "share 1 outputs; the teacher has a, b; the target has b, c",
        ),
        (Target(kind="classes", size=3), Target(kind="classes", names=("b", "c")), "has 3 outputs and the target 2"),
        (Target(kind="regression", size=2), Target(kind="classes", size=2), "predicts regression, and the target is"),
    ],
)
def test_outputs_that_are_not_shared_are_told(teacher: Target, student: Target, told: str) -> None:
    with pytest.raises(RefusedError, match=told):
        common_outputs("t", teacher, student)
    places = ((0, 1), (0, 1))
    assert common_outputs("t", Target(kind="classes", size=2), Target(kind="classes", size=2)) == places


def test_the_fixture_predicts_something(taught: Taught) -> None:
    learner = zoo_core.load_run(taught.run)
    assert learner(learner.source.preparation.dummy(2)).predictions.shape == torch.Size([2, 10])
