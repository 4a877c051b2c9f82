"""digits, digits-attributes and diabetes: what is in their splits, that it stays so, and what their metrics say."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import KNeighborsClassifier

from zoo_core.contracts import METRICS, Target, TaskData, TaskRecipe, fact
from zoo_core.data.decoding import decode
from zoo_core.data.splits import carve
from zoo_core.errors import IntegrityError, RefusedError
from zoo_core.registry.registry import registry
from zoo_core.spec.parser import Part, parse_part
from zoo_core.training.metrics import score as score_with
from zoo_starter import arrays
from zoo_starter.digits_split import SPLIT_SIZES, split_digits
from zoo_starter.tasks import ATTRIBUTES, Diabetes, Digits, DigitsAttributes

TASKS: tuple[type[TaskRecipe], ...] = (Digits, DigitsAttributes, Diabetes)
DIGITS_IDS = {
    "train": "372dc0802df04c1f262defcbc1f7cf3da0c7c0cfc7ccccff04a939259866d9f8",
    "val": "86f4819e9c4c98a75272d7217e54a7569ea2e0da70882852195dedabf85594a8",
    "test": "a762b04daa211aa74b5a890dfad10664ed6f73b804c9b94b1f86361c4f7f2082",
}
DIABETES_IDS = {
    "train": "451486397ec726e3b80cd53412fe03ffe828dacced26a304b6f3a2b1acf19a9b",
    "val": "d7a6dca39883445914e77afefca5328152de30b23ad6f266910d226202adb37b",
    "test": "6e594cc774b83f9a24584acfda1dc4613d16412941c33b05743b21f9dcc01281",
}


def pixels(data: TaskData, split: str) -> np.ndarray:
    part = data.splits[split]
    return np.stack([np.asarray(part.raw(index), dtype=float).ravel() for index in range(part.num)])


# -- splits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "sizes", "hashes"),
    [
        (Digits, {"train": 897, "val": 300, "test": 600}, DIGITS_IDS),
        (DigitsAttributes, {"train": 897, "val": 300, "test": 600}, DIGITS_IDS),
        (Diabetes, {"train": 266, "val": 88, "test": 88}, DIABETES_IDS),
    ],
)
def test_the_splits_are_the_ones_that_results_were_published_with(
    recipe: type[TaskRecipe], sizes: dict[str, int], hashes: dict[str, str]
) -> None:
    splits = recipe().open(None).splits
    assert {name: part.num for name, part in splits.items()} == sizes
    assert {name: hashlib.sha256(",".join(part.ids).encode()).hexdigest() for name, part in splits.items()} == hashes
    assert all(len(part.targets) == len(part.ids) == part.num for part in splits.values())


@pytest.mark.parametrize("recipe", TASKS)
def test_every_row_is_in_exactly_one_split_and_no_two_rows_are_equal(recipe: type[TaskRecipe]) -> None:
    data = recipe().open(None)
    ids = [number for part in data.splits.values() for number in part.ids]
    assert sorted(ids, key=int) == [str(number) for number in range(len(ids))]
    rows = np.concatenate([pixels(data, split) for split in data.splits])
    assert len(np.unique(rows, axis=0)) == len(rows)  # so nothing of the test split is seen in training


def test_each_class_of_the_digits_is_spread_in_proportion() -> None:
    data = Digits().open(None)
    counts = {name: np.bincount(part.targets) for name, part in data.splits.items()}
    whole = sum(counts.values())
    for name, part in data.splits.items():
        assert np.abs(counts[name] - whole * part.num / 1797).max() <= 1.5  # one image, and the place of the first


def test_the_split_of_the_digits_is_a_function_of_the_classes_alone() -> None:
    labels = np.arange(1797) % 10
    first, second = split_digits(labels), split_digits(labels)
    assert {name: len(part) for name, part in first.items()} == dict(SPLIT_SIZES)
    assert all(np.array_equal(first[name], second[name]) for name in SPLIT_SIZES)
    assert not np.array_equal(first["test"], split_digits(labels[::-1])["test"])


# -- examples and targets -----------------------------------------------------------------------------------------


def test_images_are_uint8_with_seventeen_grey_levels_from_black_to_white() -> None:
    part = Digits().open(None).splits["train"]
    assert part.raw(0).dtype == np.uint8
    assert part.raw(0).shape == (8, 8)
    levels = np.unique([part.raw(index) for index in range(part.num)])
    assert levels.tolist() == [round(level * 255 / 16) for level in range(17)]
    assert tuple(decode("image", part.raw(0)).shape) == (1, 8, 8)


def test_targets_have_the_declared_kind_and_size() -> None:
    digits, attributes, diabetes = (recipe().open(None) for recipe in TASKS)
    assert digits.target.names == tuple("0123456789")
    assert digits.splits["train"].targets.dtype == np.int64
    assert attributes.target.names == ("even", "prime", "above four", "closed loop")
    assert attributes.splits["train"].targets.dtype == np.float32
    assert attributes.splits["train"].targets.shape == (897, 4)
    assert diabetes.target.names == ("progression",)
    assert diabetes.splits["train"].targets.dtype == np.float32
    assert diabetes.splits["train"].targets.shape == (266, 1)


@pytest.mark.parametrize("recipe", TASKS)
def test_what_is_known_before_opening_is_what_is_found(recipe: type[TaskRecipe]) -> None:
    assert recipe().open(None).target == recipe().target
    assert recipe().target.kind in METRICS[recipe().metric].targets
    assert fact("task", recipe(), "source")() is None


def test_attributes_follow_from_the_digit() -> None:
    digits, attributes = Digits().open(None), DigitsAttributes().open(None)
    rules: dict[str, Callable[[int], bool]] = {
        "even": lambda digit: digit % 2 == 0,
        "prime": lambda digit: digit > 1 and all(digit % divisor for divisor in range(2, digit)),
        "above four": lambda digit: digit > 4,
        "closed loop": lambda digit: digit in (0, 6, 8, 9),
    }
    assert tuple(rules) == tuple(ATTRIBUTES)
    for split in ("train", "val", "test"):
        labels = digits.splits[split].targets
        expected = [[rule(int(label)) for rule in rules.values()] for label in labels]
        assert np.array_equal(attributes.splits[split].targets, np.array(expected, dtype=np.float32))
        assert np.array_equal(pixels(digits, split), pixels(attributes, split))


def test_patients_are_standardised_by_the_training_rows_alone() -> None:
    data = Diabetes().open(None)
    train = pixels(data, "train")
    assert data.splits["train"].raw(0).dtype == np.float32
    assert np.abs(train.mean(0)).max() < 1e-6  # 266 float32 numbers of order one
    assert np.abs(train.std(0) - 1).max() < 1e-6
    assert np.abs(pixels(data, "test").mean(0)).max() > 1e-3  # the test rows had no say


@pytest.mark.parametrize("recipe", TASKS)
def test_a_split_is_small_when_it_goes_to_a_worker_process(recipe: type[TaskRecipe]) -> None:
    part = recipe().open(None).splits["train"]
    assert len(pickle.dumps(part)) < 100_000


# -- what can be learnt, and what the metrics say -------------------------------------------------------------------


def test_images_and_classes_belong_together() -> None:
    data = Digits().open(None)
    neighbour = KNeighborsClassifier(1).fit(pixels(data, "train"), data.splits["train"].targets)
    assert neighbour.score(pixels(data, "val"), data.splits["val"].targets) > 0.95  # 0.98 when this was written


def test_patients_and_progression_belong_together() -> None:
    data = Diabetes().open(None)
    line = LinearRegression().fit(pixels(data, "train"), data.splits["train"].targets)
    errors = {split: found(data, split, line.predict) for split in ("train", "val")}
    constant = found(data, "val", lambda x: np.full((len(x), 1), data.splits["train"].targets.mean()))
    assert errors["val"] < 0.8 * constant  # a line explains about half of the variance: Efron et al. 2004
    assert 35 < errors["train"] < 50  # in the units of the target, 25 to 346


def score(name: str, predictions: torch.Tensor, truth: torch.Tensor, target: Target) -> float:
    return score_with(registry().bind(Part(name), "metric"), predictions, truth, target)


def found(data: TaskData, split: str, predict: Callable[[np.ndarray], np.ndarray]) -> float:
    predictions = torch.from_numpy(predict(pixels(data, split)).astype(np.float32))
    return score("mean_absolute_error", predictions, torch.from_numpy(data.splits[split].targets), data.target)


@pytest.mark.parametrize("recipe", TASKS)
def test_the_truth_gets_the_best_score_and_a_constant_a_middling_one(recipe: type[TaskRecipe]) -> None:
    data = recipe().open(None)
    targets = torch.from_numpy(data.splits["test"].targets)
    truth = torch.nn.functional.one_hot(targets, 10).float() if data.target.kind == "classes" else targets
    best = {"accuracy": 1.0, "average_precision": 1.0, "mean_absolute_error": 0.0}[recipe().metric]
    assert score(recipe().metric, truth, targets, data.target) == pytest.approx(best, abs=1e-6)
    middling = score(recipe().metric, torch.zeros_like(truth), targets, data.target)
    expected = {  # the share of zeros, the mean share of the attributes, the mean of all targets
        "accuracy": 59 / 600,
        "average_precision": float(targets.float().mean()),
        "mean_absolute_error": float(targets.float().mean()),
    }
    assert middling == pytest.approx(expected[recipe().metric], rel=1e-5)


# -- shots and limit, drawn by the core ---------------------------------------------------------------------------


def test_shots_are_that_many_of_each_class_from_the_training_split() -> None:
    data = Digits().open(None)
    splits = carve(data, seed=0, shots=10)
    assert np.bincount(splits.train.targets).tolist() == [10] * 10
    assert set(splits.train.ids) <= set(data.splits["train"].ids)
    assert (splits.val.num, splits.test.num) == (300, 600)
    other = carve(data, seed=1, shots=10)
    assert set(other.train.ids) != set(splits.train.ids)
    assert list(carve(data, seed=0, shots=10).train.ids) == list(splits.train.ids)


def test_more_shots_than_a_class_has_are_refused_and_so_are_shots_without_classes() -> None:
    with pytest.raises(RefusedError, match=r"shots=90, and class 0 has 89 training examples"):
        carve(Digits().open(None), seed=0, shots=90)
    for recipe in (DigitsAttributes, Diabetes):
        with pytest.raises(RefusedError, match="needs classes"):
            carve(recipe().open(None), seed=0, shots=5)
        assert carve(recipe().open(None), seed=0, limit=20).train.num == 20


@pytest.mark.parametrize(("name", "recipe"), [("digits", Digits), ("digits-attributes", DigitsAttributes)])
def test_a_task_is_found_by_its_name_with_the_arguments_of_the_core(name: str, recipe: type[TaskRecipe]) -> None:
    bound = registry().bind(parse_part(f"{name}(limit=50)"), "task")
    assert bound.recipe == recipe()
    assert bound.common == {"shots": None, "limit": 50, "rest": "drop", "labels": "keep"}


# -- other data under the same name -------------------------------------------------------------------------------


def with_other_bytes(load: Callable[..., SimpleNamespace], fields: Sequence[str]) -> Callable[..., SimpleNamespace]:
    """A loader whose first number is another one."""

    def loaded(**arguments: object) -> SimpleNamespace:
        bunch = load(**arguments)
        copies = {field: np.array(getattr(bunch, field), dtype=float) for field in fields}
        copies[fields[0]].flat[0] += 1
        return SimpleNamespace(**copies)

    return loaded


@pytest.mark.parametrize(
    ("recipe", "loader", "fields"),
    [
        (Digits, "load_digits", ("images", "target")),
        (Digits, "load_digits", ("target", "images")),
        (DigitsAttributes, "load_digits", ("images", "target")),
        (Diabetes, "load_diabetes", ("data", "target")),
        (Diabetes, "load_diabetes", ("target", "data")),
    ],
)
def test_data_that_scikit_learn_changed_are_not_used(
    monkeypatch: pytest.MonkeyPatch, recipe: type[TaskRecipe], loader: str, fields: Sequence[str]
) -> None:
    monkeypatch.setattr(arrays, loader, with_other_bytes(getattr(arrays, loader), fields))
    with pytest.raises(IntegrityError, match=r"^scikit-learn's .* is not the data set this version knows") as caught:
        recipe().open(None)
    assert "install the scikit-learn of constraints.txt" in str(caught.value)
    assert "\n" not in str(caught.value)
