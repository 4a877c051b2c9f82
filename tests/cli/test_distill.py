"""`zoo distill`, `zoo evaluate --task` and what other commands tell of teachers: from the command to the student."""

from __future__ import annotations

import json
import shutil
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from PIL import Image

import zoo_core
from tests.conftest import Run, Shown, Zoo
from tests.tiny import tiny  # noqa: F401 -- a fixture
from zoo_core.benchmark import distilling
from zoo_core.benchmark.distilling import plan_distillation, unlabelled_part
from zoo_core.contracts import Change, Context, Learner
from zoo_core.errors import AmbiguousError, RefusedError
from zoo_core.plan.extensions import fitting
from zoo_core.registry.registry import registry

SHORT = ("--epochs", "1", "--num-rates", "1", "--device", "cpu")
STUDENT = "starter/convnet-nano+full"


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted teacher of digits: tokens of 32 pixels' patches."""
    folder = tmp_path_factory.mktemp("teacher") / "big"
    zoo_core.fit(
        "starter/vit-nano",
        task="digits(limit=200)",
        out=folder,
        budget=zoo_core.Budget(epochs=3, num_rates=1),
    )
    return folder


def draw(folder: Path, num: int = 48, *, size: int = 20) -> Path:
    """Pictures of noise, flat and below folders whose names mean nothing."""
    rng = np.random.default_rng(0)
    for number in range(num):
        path = folder / ("", "holiday", "holiday/2020")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def small(big: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of the teacher, of another family, that saw digits without labels."""
    folder = tmp_path_factory.mktemp("student") / "small"
    zoo_core.distill(big, STUDENT, data="digits(limit=300)", out=folder, budget=zoo_core.Budget(epochs=3, num_rates=1))
    return folder


@pytest.fixture(scope="module")
def backbone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of a backbone's features, which is a backbone itself."""
    folder = tmp_path_factory.mktemp("student") / "backbone"
    budget = zoo_core.Budget(epochs=1, num_rates=1)
    zoo_core.distill("starter/vit-nano", STUDENT, data=str(photos), out=folder, budget=budget)
    return folder


def told(shown: Shown, code: int, *reasons: str) -> None:
    assert shown[0] == code, shown
    assert "Traceback" not in "".join(shown[2])
    for reason in reasons:
        assert reason in shown[2][-1], shown


# --- what a user gets ------------------------------------------------------------------------------------------------


def test_photos_without_labels_make_a_model_that_predicts_its_teachers_classes(
    zoo_here: Run, big: Path, photos: Path, tmp_path: Path
) -> None:
    code, out, err = zoo_here("distill", big, STUDENT, "--data", photos, "--out", tmp_path / "s", *SHORT)
    assert code == 0, err
    assert "unlabelled, agreement" in err[0]
    lines = out.splitlines()
    assert lines[0].startswith("agreement 0.") or lines[0].startswith("agreement 1.")
    assert lines[0].endswith("held-out examples, with the teacher")
    assert "passes made" in out
    assert lines[-1] == f"it predicts classes, 0, 1, 2, 3, 4, 5 and 4 more: zoo predict {tmp_path / 's'} FILE..."
    assert zoo_core.load_run(tmp_path / "s").target == zoo_core.load_run(big).target
    again = zoo_here("distill", big, STUDENT, "--data", photos, "--out", tmp_path / "t", *SHORT)
    assert "teacher: 0 passes made in" in again[1], "what was stored is read"


def test_a_student_learns_what_its_teacher_knows(small: Path) -> None:
    found = zoo_core.evaluate(small, task="digits")
    assert found.metric == "accuracy"
    assert found.score > 0.6, "chance is 0.1, and no label was seen"


def test_a_backbone_as_a_teacher_makes_a_run_that_is_a_backbone(
    zoo_here: Run, backbone: Path, photos: Path, tmp_path: Path
) -> None:
    told(zoo_here("predict", backbone, photos / "0.png"), 2, "predicts nothing", "zoo embed", f'run(path="{backbone}")')
    told(zoo_here("evaluate", backbone), 2, "predicts nothing", "zoo fit")
    code, _, err = zoo_here("embed", backbone, photos, "--out", tmp_path / "features.npy")
    assert code == 0, err
    assert np.load(tmp_path / "features.npy").shape[0] == 48
    words = ("fit", f'run(path="{backbone}")', "--task", "digits(limit=40)", "--out", tmp_path / "probe", *SHORT)
    assert zoo_here(*words)[0] == 0
    with pytest.raises(zoo_core.ZooError, match="predicts nothing"):
        zoo_core.predict(zoo_core.load_run(backbone), [str(photos / "0.png")])


def test_a_run_that_is_a_backbone_teaches_features(backbone: Path, photos: Path) -> None:
    plan = plan_distillation(str(backbone), STUDENT, task=unlabelled_part(str(photos)))
    assert plan.target.kind == "unlabelled"
    assert [part.name for part in plan.adapters] == ["full", "distill-features"]


def test_the_student_is_used_without_plugin_and_teacher(small: Path, big: Path, tmp_path: Path) -> None:
    kept = shutil.copytree(small, tmp_path / "kept")
    elsewhere = tmp_path / "moved"
    big.rename(elsewhere)
    try:
        alone = Zoo(tmp_path)("evaluate", kept, "--task", "digits", "--json", ZOO_PLUGINS="zoo-starter,zoo-adapters")
    finally:
        elsewhere.rename(big)
    assert alone.code == 0, alone.err
    assert json.loads(alone.out)["score"] == pytest.approx(zoo_core.evaluate(small, task="digits").score, abs=0.01)


# --- which adapter ---------------------------------------------------------------------------------------------------


def chain(student: str, teacher: str, data: str = "digits") -> list[str]:
    plan = plan_distillation(teacher, student, task=unlabelled_part(data))
    return [str(part.canonical()) for part in plan.adapters]


def test_the_adapter_stands_behind_what_trains_and_before_what_changes_the_loss(big: Path) -> None:
    assert chain("starter/convnet-nano+full+l2sp", str(big)) == [
        "full",
        f'distill(alpha=1.0,teacher="{big}")',
        "l2sp",
    ]
    assert chain("starter/convnet-nano+full", "starter/vit-nano") == [
        "full",
        'distill-features(teacher="starter/vit-nano")',
    ]


def test_an_adapter_with_the_teacher_is_taken_as_it_stands(big: Path) -> None:
    own = f'distill(alpha=1.0,form=mse,teacher="{big}")'
    assert chain(f"starter/convnet-nano+full+{own}", str(big)) == ["full", own]
    other = 'distill-features(teacher="starter/vit-nano")'
    assert chain(f"starter/convnet-nano+full+{other}", str(big)) == [
        "full",
        f'distill(alpha=1.0,teacher="{big}")',
        other,
    ]


def test_features_of_a_run_with_a_head_make_a_backbone(big: Path) -> None:
    plan = plan_distillation(
        str(big), f'starter/convnet-nano+full+distill-features(teacher="{big}")', task=unlabelled_part("digits")
    )
    assert plan.target.kind == "unlabelled", "nobody would have trained a head"


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Another adapter that says it of features."""

    teacher: str
    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = frozenset({"objective"})
    distils: ClassVar[Literal["predictions", "features"]] = "features"

    @classmethod
    def without_labels(cls, teacher: str) -> Rival:
        return cls(teacher=teacher)

    def apply(self, learner: Learner, context: Context) -> Learner:
        return learner


def test_of_several_adapters_none_is_taken_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        distilling, "fitting", lambda *given: (*fitting(*given), *(["rival"] if given[2](Rival) else []))
    )
    with pytest.raises(AmbiguousError, match=r"distill-features and rival both learn features .*write the one"):
        chain(STUDENT, "starter/vit-nano")


def test_only_the_plugins_own_adapters_say_it() -> None:
    said = {
        name: recipe.distils
        for name in ("distill", "distill-features", "distill-token", "lora")
        if hasattr(recipe := registry().recipe(registry().find(name, "adapter")), "distils")
    }
    assert said == {"distill": "predictions", "distill-features": "features"}


# --- labels dropped --------------------------------------------------------------------------------------------------


def test_labels_that_are_dropped_change_nothing_but_what_is_seen(big: Path) -> None:
    plan = zoo_core.resolve(f'{STUDENT}+distill(teacher="{big}")', task="digits(labels=drop)")
    assert plan.task is not None
    assert plan.task.target.kind == "unlabelled"
    assert plan.metric_name == "agreement"
    assert str(plan.trial.task) == "digits(labels=drop)"
    with pytest.raises(zoo_core.ZooError, match="has no labels, and nothing here learns without them"):
        zoo_core.resolve(STUDENT, task="digits(labels=drop)")
    with pytest.raises(zoo_core.ZooError, match=r"shots=3 needs classes and the target is unlabelled"):
        zoo_core.distill(str(big), STUDENT, data="digits(shots=3)")


# --- other modalities ------------------------------------------------------------------------------------------------


def test_texts_with_another_tokeniser(tiny: Callable[[str], str], tmp_path: Path) -> None:  # noqa: F811
    texts = [f"{word} film number {'abcdefghij'[i % 10]}" for i in range(20) for word in ("good", "bad")]
    table = tmp_path / "reviews.csv"
    table.write_text("text,label\n" + "".join(f"{text},{text.split()[0]}\n" for text in texts), encoding="utf-8")
    (tmp_path / "texts.txt").write_text("\n".join(f"{text} again" for text in texts), encoding="utf-8")
    budget = zoo_core.Budget(epochs=1, num_rates=1, batch_size=8)
    zoo_core.fit(tiny("bert"), task=str(table), out=tmp_path / "teacher", budget=budget)
    folder = tmp_path / "student"
    source = Path(tiny("gpt2").removeprefix('hf(files="').removesuffix('")'))
    shutil.copytree(source, folder)
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokens["model"]["vocab"]
    for one, other in zip("abcdefghijklm", "zyxwvutsrqpon", strict=True):
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(tokens), encoding="utf-8")
    learner, result = zoo_core.distill(
        tmp_path / "teacher", f'hf(files="{folder}")+full', data=str(tmp_path / "texts.txt"), budget=budget
    )
    assert learner.target.names == ("bad", "good")
    assert result.metric == "agreement"
    assert 0 <= (result.score or 0) <= 1


def test_sounds(tiny: Callable[[str], str], tmp_path: Path) -> None:  # noqa: F811
    rng = np.random.default_rng(0)
    for number in range(90):
        with wave.open(str(tmp_path / f"{number}.wav"), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes(rng.integers(-3000, 3000, 600 + 10 * number).astype("<i2").tobytes())
    teacher = tiny("wav2vec2")
    student = teacher.replace('")', '",weights=random)') + "+full"
    budget = zoo_core.Budget(epochs=1, num_rates=1, batch_size=4)
    learner, result = zoo_core.distill(teacher, student, data=str(tmp_path), budget=budget)
    assert learner.target.kind == "unlabelled"
    assert result.teachers is not None
    assert result.teachers["made"] > 0


def test_a_table_is_learned_from_where_its_columns_are_the_teachers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def table(name: str, scale: float) -> Path:
        rows = rng.normal(size=(60, 3)) * scale
        lines = [f"{a:.3f},{b:.3f},{c:.3f},{'yes' if a > 0 else 'no'}\n" for a, b, c in rows]
        path = tmp_path / name
        path.write_text("a,b,c,label\n" + "".join(lines), encoding="utf-8")
        return path

    own, other = table("own.csv", 1), table("other.csv", 5)
    budget = zoo_core.Budget(epochs=1, num_rates=1)
    zoo_core.fit("starter/mlp-nano(weights=random)+full", task=str(own), out=tmp_path / "teacher", budget=budget)
    student = "starter/mlp-nano(weights=random)+full"
    learner, _ = zoo_core.distill(tmp_path / "teacher", student, data=f'csv(path="{own}")', budget=budget)
    assert learner.target.names == ("no", "yes")
    with pytest.raises(zoo_core.ZooError, match=r"scaled for its own table, and those of csv are scaled by other rows"):
        zoo_core.distill(tmp_path / "teacher", student, data=f'csv(path="{other}")', budget=budget)
    with pytest.raises(zoo_core.ZooError, match=r"teacher .* reads rows of 3 numbers, and those of task diabetes have"):
        zoo_core.distill(tmp_path / "teacher", student, data="diabetes", budget=budget)
    with pytest.raises(zoo_core.ZooError, match=r"rows of numbers have to be scaled .* labels=drop"):
        zoo_core.distill(tmp_path / "teacher", student, data=str(own), budget=budget)


# --- evaluate --task -------------------------------------------------------------------------------------------------


def named(folder: Path, labels: tuple[str, ...]) -> Path:
    """Digits as pictures in folders of classes of these names."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for number in range(150):
        label = labels[found.target[number] % len(labels)]
        path = folder / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((found.images[number] * 15).astype(np.uint8)).save(path)
    return folder


def test_classes_are_matched_by_name_and_unknown_ones_are_wrong(big: Path, tmp_path: Path) -> None:
    task = f'image-folder(path="{named(tmp_path / "a", (*"98765432", "ten", "eleven"))}")'
    found = zoo_core.evaluate(big, task=task)
    assert set(found.names) == {*"98765432", "ten", "eleven"}
    rows = {row["class"]: row for row in found.per_class}
    assert rows["ten"]["recall"] == 0
    assert rows["ten"]["num"] > 0
    assert len(found.confusion) == 10


def test_every_example_of_another_task_can_be_scored_and_of_its_own_none_that_it_saw(
    zoo_here: Run, big: Path, tmp_path: Path
) -> None:
    task = f'image-folder(path="{named(tmp_path / "a", tuple("9876543210"))}")'
    parts = [zoo_core.evaluate(big, task=task, split=split) for split in ("train", "val", "test")]
    whole = zoo_core.evaluate(big, task=task, split="all")
    assert whole.num_examples == sum(part.num_examples for part in parts)
    assert whole.score == pytest.approx(sum(part.score * part.num_examples for part in parts) / whole.num_examples)
    told(zoo_here("evaluate", big, "--split", "all"), 2, "split all is for another task")


def test_too_few_pictures_for_features_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="agreement of features needs 4 of each"):
        zoo_core.distill("starter/vit-nano", STUDENT, data=str(draw(tmp_path / "few", 8)))


def test_other_classes_are_refused_with_both_lists(zoo_here: Run, big: Path, tmp_path: Path) -> None:
    folder = named(tmp_path / "pets", ("cat", "dog"))
    told(zoo_here("evaluate", big, "--task", folder), 6, "share 0 outputs", "0, 1, 2", "cat, dog")
    words = ("fit", f'{STUDENT}+distill(teacher="{big}")', "--task", folder, "--out", tmp_path / "o", *SHORT)
    told(zoo_here(*words), 6, "share 0 outputs", "0, 1, 2", "cat, dog")
    told(zoo_here("evaluate", big, "--task", "diabetes"), 6, "reads image and task diabetes is table")


def test_a_run_that_saw_no_labels_says_how_it_is_scored(zoo_here: Run, small: Path) -> None:
    told(zoo_here("evaluate", small), 2, "was fitted without labels", f"zoo evaluate {small} --task T")
    told(zoo_here("evaluate", small, "--task", "digits(labels=drop)"), 2, "digits, without labels")


# --- what is told of teachers ----------------------------------------------------------------------------------------


def test_plan_fit_and_dry_run_tell_of_the_teacher(zoo_here: Run, big: Path, tmp_path: Path) -> None:
    spec = f'{STUDENT}+distill(teacher="{big}")+distill-features(teacher="starter/vit-nano",stages=[[1,2]])'
    code, out, _ = zoo_here("plan", spec, "--task", "digits")
    assert code == 0
    assert f"{big}, its predictions, from {big}; starter/vit-nano, its stage 2, from zoo-starter" in out
    code, out, _ = zoo_here("plan", spec, "--task", "digits", "--json")
    assert [row["reads"] for row in json.loads(out)["plans"][0]["teachers"]] == [["predictions"], ["stage 2"]]
    assert "teachers" not in zoo_here("plan", STUDENT, "--task", "digits")[1]
    words = ["distill", str(big), STUDENT, "--data", "digits(limit=60)", "--augment", "light", "--epochs", "4"]
    words += ["--views", "2", "--num-rates", "2", "--device", "cpu", "--seed", "7", "--out"]
    code, out, err = zoo_here(*words, tmp_path / "s", "--dry-run")
    assert code == 0, err
    forecast = next(line for line in out.splitlines() if line.startswith("teacher:"))
    assert not (tmp_path / "s").exists()
    assert zoo_here(*words, tmp_path / "s")[0] == 0
    result = json.loads((tmp_path / "s" / "results.jsonl").read_text(encoding="utf-8"))
    assert f" {result['teachers']['made']:,} passes, one of each example and view" in forecast
    assert "teacher:             0 passes" in zoo_here(*words, tmp_path / "t", "--dry-run")[1]
    told(zoo_here(*words, tmp_path / "s", "--dry-run"), 2, "already holds a run")
    told(zoo_here("distill", STUDENT, big, *words[3:], tmp_path / "t"), 2, "the teacher comes first")


@pytest.mark.slow
def test_the_end_of_a_bench_tells_the_passes_of_all(zoo: Zoo, big: Path, tmp_path: Path) -> None:
    adapters = f'full+distill(teacher="{big}")'
    words = ("bench", "--task", "digits(limit=40)", "--backbones", "starter/convnet-nano", "--adapters", adapters)
    # In a process of its own: the server that workers are forked from keeps the paths that it began with.
    err = zoo(*words, "--seeds", "1", *SHORT, "--out", tmp_path / "run").err
    assert any(line.startswith("teacher: ") and "passes made" in line for line in err.splitlines()), err
    assert "passes made" not in zoo(*words, "--seeds", "1", *SHORT, "--out", tmp_path / "run").err, "nothing was left"


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_teacher_that_is_missing_or_damaged_is_one_line(zoo_here: Run, big: Path, tmp_path: Path) -> None:
    more = ("--data", "digits(limit=40)", "--out", tmp_path / "out", *SHORT)
    told(zoo_here("distill", tmp_path / "none", STUDENT, *more), 3, "is not there (run.json is missing)", "zoo fit")
    told(zoo_here("distill", "starter/vit-nono", STUDENT, *more), 3, "starter/vit-nano")
    broken = shutil.copytree(big, tmp_path / "broken")
    (broken / "run.json").write_text("{", encoding="utf-8")
    told(zoo_here("distill", broken, STUDENT, *more), 5, "run.json", "damaged")
    torn = shutil.copytree(big, tmp_path / "torn")
    (torn / "delta.safetensors").write_bytes(b"not tensors")
    told(zoo_here("distill", torn, STUDENT, *more), 5, "delta.safetensors")
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_teacher_that_has_changed_since_it_was_locked_is_refused(zoo_here: Run, big: Path, tmp_path: Path) -> None:
    other = shutil.copytree(big, tmp_path / "teacher")
    spec, lock = f'{STUDENT}+distill(teacher="{other}")', tmp_path / "zoo.lock"
    assert zoo_here("lock", spec, "--task", "digits", "--lock", lock)[0] == 0
    table = json.loads((other / "run.json").read_text(encoding="utf-8"))
    (other / "run.json").write_text(json.dumps(table | {"seed": 5}), encoding="utf-8")
    words = ("fit", spec, "--task", "digits(limit=40)", "--lock", lock, "--out", tmp_path / "out", *SHORT)
    told(zoo_here(*words), 5, str(other), "run.json")


def test_a_teacher_of_other_examples_is_refused(zoo_here: Run, big: Path, tmp_path: Path) -> None:
    more = ("--out", tmp_path / "out", *SHORT)
    student = "starter/mlp-nano(weights=random)+full"
    shown = zoo_here("distill", big, student, "--data", "diabetes", *more)
    told(shown, 6, f"teacher {big} reads image, and the examples are table")
    told(
        zoo_here("distill", big, student, "--data", "digits", *more), 6, "mlp-nano reads table and task digits is image"
    )


def test_what_a_teacher_cannot_give_is_refused(zoo_here: Run, big: Path, tmp_path: Path) -> None:
    more = ("--data", "digits(limit=40)", "--out", tmp_path / "out", *SHORT)
    asked = f'{STUDENT}+distill(teacher="starter/vit-nano",alpha=1)'
    told(
        zoo_here("distill", "starter/vit-nano", asked, *more),
        6,
        "is a backbone, whose predictions nobody has trained",
        "distill-features",
    )
    asked = f'{STUDENT}+distill-features(teacher="{big}",stages=[[1,9]])'
    told(zoo_here("distill", big, asked, *more), 6, f"teacher {big}", "there is no stage 9")
    spoilt = zoo_core.load_run(big)
    with torch.no_grad():
        next(spoilt.head.parameters()).fill_(torch.nan)
    zoo_core.save(spoilt, tmp_path / "spoilt")
    told(zoo_here("distill", tmp_path / "spoilt", STUDENT, *more), 6, "not finite", "zoo predict")


def test_a_student_that_opens_nothing_is_told_what_to_add(zoo_here: Run, big: Path, tmp_path: Path) -> None:
    for student in ("starter/convnet-nano", "starter/convnet-nano+probe+mlp"):
        shown = zoo_here("distill", big, student, "--data", "digits", "--out", tmp_path / "out")
        told(shown, 6, "starter/convnet-nano+full", "+partial(n=2)", "+lora")


def test_data_that_are_none_are_one_line(zoo_here: Run, big: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out", *SHORT)
    (tmp_path / "empty").mkdir()
    told(zoo_here("distill", big, STUDENT, "--data", tmp_path / "empty", *out), 2, "is an empty folder")
    told(zoo_here("distill", big, STUDENT, "--data", tmp_path / "gone", *out), 3, "no file or folder")
    photos = draw(tmp_path / "photos", 12)
    (photos / "bad.png").write_bytes(b"no picture")
    told(zoo_here("distill", big, STUDENT, "--data", photos, *out), 2, "bad.png (is no picture", "unreadable=skip")
    assert zoo_here("distill", big, STUDENT, "--data", f'unlabelled(path="{photos}",unreadable=skip)', *out)[0] == 0


def test_without_the_plugin_one_line_says_what_to_install(big: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path, {"ZOO_PLUGINS": "zoo-starter,zoo-adapters,zoo-tasks"})
    done = zoo("distill", big, STUDENT, "--data", "digits", "--out", "out")
    assert done.code == 3
    assert "pip install zoo-distill" in done.line
