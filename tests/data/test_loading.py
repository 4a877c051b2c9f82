from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from zoo_core.benchmark.progress import TrialProgress
from zoo_core.benchmark.trial import run_trial
from zoo_core.contracts import Batch, Preparation, Split, Target
from zoo_core.data.augmentation import Augment
from zoo_core.data.decoding import decode
from zoo_core.data.loader import Loader
from zoo_core.data.randomness import derive_seed
from zoo_core.data.splits import Subset, carve, rows_of
from zoo_core.errors import NotFoundError, RefusedError, UsageError
from zoo_core.plan.plan import Budget
from zoo_core.registry.registry import registry
from zoo_core.spec.parser import parse_part
from zoo_core.testing.recipes import toy_plan
from zoo_core.testing.toys import ToyBackbone, ToySplit, ToyTask
from zoo_core.toolkit.preparations import ImagePreparation

CLASSES = Target(kind="classes", names=("left", "middle", "right"))
PREPARATION = ImagePreparation(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Data:
    """A task of given splits."""

    splits: Mapping[str, Split]
    target: Target = CLASSES


def split_of(labels: Sequence[int], groups: Sequence[int] | None = None) -> ToySplit:
    x = np.random.default_rng(0).integers(0, 256, size=(len(labels), 8, 8)).astype(np.uint8)
    return ToySplit(x, np.asarray(labels, dtype=np.int64), None if groups is None else np.asarray(groups))


OF_PICTURES = ("none", "flip", "light", "strong")


def named(augment: str) -> Augment | None:
    return None if augment == "none" else Augment(registry().bind(parse_part(augment), "augmentation"))


def loader_of(split: Split, preparation: Preparation = PREPARATION, *, augment: str = "none", **more: Any) -> Loader:
    given: dict[str, Any] = {"modality": "image", "target": CLASSES, "batch_size": 7, "shuffled": True} | more
    return Loader(split, preparation=preparation, augment=named(augment), **given)


def same(one: Batch, other: Batch) -> bool:
    return (
        one.ids == other.ids
        and torch.equal(one.target, other.target)
        and one.inputs.keys() == other.inputs.keys()
        and all(torch.equal(x, other.inputs[name]) for name, x in one.inputs.items())
    )


# -- seeds ----------------------------------------------------------------------------------------------------------


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert derive_seed("order", 0, 1) == 6998642760411335394


def test_a_seed_depends_on_every_part_and_where_it_begins() -> None:
    assert len({derive_seed(*parts) for parts in (("ab",), ("a", "b"), ("b", "a"), ("ab", 0), ("ab", ""))}) == 5


# -- carving --------------------------------------------------------------------------------------------------------


@given(counts=st.lists(st.integers(3, 40), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_validation_holds_each_class_in_proportion_and_nothing_of_train(counts: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    train = split_of(np.random.default_rng(seed).permutation(labels).tolist())
    found = carve(Data({"train": train, "test": train}), seed=seed)
    assert sorted([*found.train.ids, *found.val.ids]) == sorted(train.ids)
    held = Counter(found.val.targets.tolist())
    assert held == {label: round(0.2 * count) for label, count in enumerate(counts)}


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 7)), min_size=2, max_size=60))
def test_validation_never_divides_a_group_nor_takes_the_last_of_a_class(rows: list[tuple[int, int]]) -> None:
    train = split_of([label for label, _ in rows], [group for _, group in rows])
    try:
        found = carve(Data({"train": train, "test": train}), seed=0)
    except RefusedError:
        return  # too few groups
    assert found.train.groups is not None
    assert found.val.groups is not None
    assert not set(found.train.groups) & set(found.val.groups)
    assert set(found.train.targets) == {label for label, _ in rows}
    assert found.train.num + found.val.num == len(rows)


def test_a_class_with_one_group_stays_in_train() -> None:
    train = split_of([0] * 20 + [1] * 10, [*range(20), *[99] * 10])
    found = carve(Data({"train": train, "test": train}), seed=0)
    assert Counter(found.train.targets.tolist()) == {0: 16, 1: 10}


def test_groups_are_held_out_by_their_share() -> None:
    train = split_of([0, 1] * 100, np.repeat(np.arange(40), 5).tolist())
    held = Counter(carve(Data({"train": train, "test": train}), seed=0).val.targets.tolist())
    assert all(abs(count - 20) <= 5 for count in held.values()), "a fifth of a hundred, up to a group"


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_other_targets_are_held_out_by_their_number(kind: Any) -> None:
    data = ToyTask(num=50, target=Target(kind=kind, size=2))
    splits = {name: split for name, split in data.splits.items() if name != "val"}
    found = carve(Data(splits, data.target), seed=0)
    assert (found.train.num, found.val.num) == (40, 10)
    assert found.val.targets.shape == (10, 2)


def test_validation_depends_on_the_task_alone() -> None:
    train = split_of([0, 1, 2] * 20)
    carved = [carve(Data({"train": train, "test": train}), seed=seed, shots=shots) for seed, shots in ((0, 2), (7, 5))]
    assert carved[0].val.ids == carved[1].val.ids


def test_a_tasks_own_validation_split_is_kept() -> None:
    data = ToyTask()
    found = carve(data, seed=0, shots=2)
    assert found.val is data.splits["val"]
    assert found.test is data.splits["test"]


def test_too_few_examples_to_carve_are_refused() -> None:
    train = split_of([0, 1, 2])
    with pytest.raises(RefusedError, match="3 training examples are too few"):
        carve(Data({"train": train, "test": train}), seed=0)


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_missing_split_is_named(missing: str) -> None:
    splits = {name: split for name, split in ToyTask().splits.items() if name != missing}
    with pytest.raises(UsageError, match=f"no {missing} split"):
        carve(Data(splits), seed=0)


@given(shots=st.integers(1, 12), seed=st.integers(0, 99))
def test_shots_are_examples_of_each_class(shots: int, seed: int) -> None:
    data = Data({"train": split_of([0] * 30 + [1] * 20 + [2] * 15), "test": split_of([0])})
    found = carve(data, seed=seed, shots=shots)
    assert Counter(found.train.targets.tolist()) == {0: shots, 1: shots, 2: shots}
    assert not set(found.train.ids) & set(found.val.ids)
    assert carve(data, seed=seed, shots=shots).train.ids == found.train.ids


@pytest.mark.parametrize("draw", [{"shots": 3}, {"limit": 9}])
def test_each_seed_draws_other_examples(draw: dict[str, Any]) -> None:
    drawn = {tuple(carve(ToyTask(), seed=seed, **draw).train.ids) for seed in range(5)}
    assert len(drawn) == 5


def test_more_shots_than_examples_are_refused_and_the_class_named() -> None:
    with pytest.raises(RefusedError, match="shots=21, and class left has 20 training examples"):
        carve(ToyTask(), seed=0, shots=21)


def test_shots_of_values_are_refused() -> None:
    with pytest.raises(RefusedError, match="use limit=N"):
        carve(ToyTask(target=Target(kind="regression", size=1)), seed=0, shots=1)


@pytest.mark.parametrize(("limit", "num"), [(1, 1), (59, 59), (60, 60), (100, 60)])
def test_a_limit_leaves_at_most_so_many_in_train(limit: int, num: int) -> None:
    found = carve(ToyTask(), seed=0, limit=limit)
    assert found.train.num == num
    assert (found.val.num, found.test.num) == (60, 60)


def test_a_subset_of_a_subset_asks_for_ids_once() -> None:
    asked = []

    class Counting(ToySplit):
        @property
        def ids(self) -> Sequence[str]:
            asked.append(1)
            return [f"row {index}" for index in range(self.num)]

    split = Counting(np.zeros((20, 8, 8), np.uint8), np.arange(20))
    subset = Subset(Subset(split, np.arange(19, -1, -1)), np.array([3, 5]))
    assert subset.ids == ["row 16", "row 14"]
    assert subset.targets.tolist() == [16, 14]
    assert len(asked) == 1


def test_rows_of_subsets_are_those_of_the_tasks_own_split() -> None:
    split = split_of(range(20))
    root, rows = rows_of(split)
    assert root is split
    assert rows.tolist() == list(range(20))
    subset = Subset(Subset(split, np.arange(19, -1, -1)), np.array([3, 5]))
    root, rows = rows_of(subset)
    assert root is split
    assert (rows.dtype, rows.tolist()) == (np.int64, [16, 14])
    assert [root.ids[row] for row in rows] == list(subset.ids)


# -- the test split -------------------------------------------------------------------------------------------------


class Touched(Exception):  # noqa: N818
    """Somebody looked at the split."""


@dataclass(frozen=True)
class Untouchable:
    """A split that raises when anything of it is read."""

    @property
    def num(self) -> int:
        raise Touched

    @property
    def targets(self) -> Any:
        raise Touched

    @property
    def groups(self) -> Any:
        raise Touched

    @property
    def ids(self) -> Sequence[str]:
        raise Touched

    def raw(self, index: int) -> Any:
        raise Touched


@pytest.mark.parametrize("own_validation", [True, False])
def test_the_test_split_is_not_touched_before_the_choice(own_validation: bool) -> None:
    splits = dict(ToyTask().splits) | {"test": Untouchable()}
    if not own_validation:
        del splits["val"]
    seen: list[TrialProgress] = []
    plan = toy_plan(learning_rates=(1e-3, 1e-2, 1e-1), budget=Budget(epochs=2, patience=1, batch_size=20))
    with pytest.raises(Touched):
        run_trial(plan, data=Data(splits), report=seen.append)
    assert seen[-1].candidate == seen[-1].num_candidates == 3
    assert seen[-1].progress.step == seen[-1].progress.num_steps, "all candidates were fitted by then"


def test_touching_an_untouchable_split_is_seen() -> None:
    with pytest.raises(Touched):
        carve(Data({"train": Untouchable(), "test": Untouchable()}), seed=0)
    with pytest.raises(Touched):
        run_trial(toy_plan(), data=Data(dict(ToyTask().splits) | {"val": Untouchable()}))


# -- decoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "channels"),
    [
        (np.full((4, 5), 7, np.uint8), 1),
        (np.full((4, 5, 1), 7, np.uint8), 1),
        (np.full((4, 5, 3), 7, np.uint8), 3),
        (np.full((4, 5, 4), 7, np.uint8), 3),
        (torch.full((4, 5, 3), 7, dtype=torch.uint8), 3),
        (Image.new("L", (5, 4), 7), 1),
        (Image.new("RGB", (5, 4), (7, 7, 7)), 3),
        (Image.new("RGBA", (5, 4), (7, 7, 7, 0)), 3),
        (Image.new("LA", (5, 4), (7, 0)), 3),
        (Image.new("RGB", (5, 4), (7, 7, 7)).convert("P", palette=Image.Palette.ADAPTIVE), 3),
        (Image.fromarray(np.full((4, 5), 7 * 257, np.uint16)), 1),
    ],
)
def test_an_image_becomes_bytes_with_channels_first(raw: Any, channels: int) -> None:
    found = decode("image", raw)
    assert found.shape == (channels, 4, 5)
    assert found.dtype == torch.uint8
    assert found.unique().tolist() == [7]


def test_an_image_may_be_the_path_of_one(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    Image.new("L", (5, 4), 7).save(file)
    for path in (file, str(file)):
        assert decode("image", path).unique().tolist() == [7]
    with pytest.raises(NotFoundError, match="no file"):
        decode("image", tmp_path / "y.png")


def test_decoding_copies() -> None:
    raw = np.zeros((4, 4), np.uint8)
    decode("image", raw).fill_(9)
    assert raw.max() == 0


def test_a_read_only_image_is_decoded() -> None:
    raw = np.arange(16, dtype=np.uint8).reshape(4, 4)
    raw.flags.writeable = False
    assert decode("image", raw).flatten().tolist() == list(range(16))


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (np.zeros((4, 4), np.float32), r"found float32 \[4, 4\]"),
        (np.zeros(4, np.uint8), r"found uint8 \[4\]"),
        (np.zeros((3, 4, 5), np.uint8), "1, 3 or 4 channels, found 5"),
        ([[0.5]], r"found float64 \[1, 1\]"),
    ],
)
def test_what_is_no_image_is_told(raw: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        decode("image", raw)


def test_a_row_of_a_table_is_handed_on() -> None:
    raw = [1.0, 2.0]
    assert decode("table", raw) is raw


@pytest.mark.parametrize(("raw", "decoded"), [("a b", "a b"), ("", ""), (["a", "b"], ["a", "b"])])
def test_a_text_is_a_str_or_a_list_of_words(raw: Any, decoded: Any) -> None:
    assert decode("text", raw) == decoded


@pytest.mark.parametrize("raw", [None, 3, b"bytes", [], ["a", 3], {"text": "a"}])
def test_what_is_no_text_is_told(raw: Any) -> None:
    with pytest.raises(UsageError, match="a text is a str, or a list of words, found"):
        decode("text", raw)


def test_a_pair_of_texts_is_not_taken_for_words() -> None:
    with pytest.raises(UsageError, match="pairs of texts are not read, found"):
        decode("text", ("a premise", "a hypothesis"))


def test_a_sound_is_one_channel_with_its_rate() -> None:
    found = decode("audio", {"array": np.zeros(4, np.float64), "sampling_rate": 8000, "path": "x.wav"})
    assert found.keys() == {"array", "sampling_rate"}
    assert found["array"].dtype == np.float32


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (np.zeros(4, np.float32), "found ndarray"),
        ({"array": np.zeros(4, np.float32)}, "found dict"),
        ({"array": np.zeros((4, 2), np.float32), "sampling_rate": 8000}, r"found float32 \[4, 2\]"),
        ({"array": np.zeros(4, np.int16), "sampling_rate": 8000}, r"found int16 \[4\]"),
        ({"array": np.zeros(0, np.float32), "sampling_rate": 8000}, r"found float32 \[0\]"),
        ({"array": np.zeros(4, np.float32), "sampling_rate": 0}, "whole number of Hz, found 0"),
        ({"array": np.array([0, np.nan, 1]), "sampling_rate": 8000}, "sample 1 of a sound is not finite"),
    ],
)
def test_what_is_no_sound_is_told(raw: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        decode("audio", raw)


# -- order ----------------------------------------------------------------------------------------------------------


@given(num=st.integers(1, 40), batch_size=st.integers(2, 9), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_sees_each_example_once_but_a_last_one_alone(num: int, batch_size: int, seed: int, epoch: int) -> None:
    loader = loader_of(split_of([0] * num), batch_size=batch_size, seed=seed)
    batches = list(loader.epoch(epoch))
    ids = [name for batch in batches for name in batch.ids]
    dropped = num % batch_size == 1 and num > 1
    assert len(set(ids)) == len(ids) == num - dropped
    assert len(batches) == loader.num_batches
    assert all(len(batch) > 1 or num == 1 for batch in batches)


@given(num=st.integers(1, 40), batch_size=st.integers(2, 9))
def test_validation_sees_all_examples_in_order(num: int, batch_size: int) -> None:
    loader = loader_of(split_of([0] * num), batch_size=batch_size, shuffled=False)
    assert [name for batch in loader.epoch() for name in batch.ids] == [str(index) for index in range(num)]


def test_the_order_follows_from_seed_epoch_and_number_alone() -> None:
    def order(labels: list[int], seed: int = 0, epoch: int = 0) -> list[str]:
        torch.rand(seed + 3)  # the caller's own draws
        return [name for batch in loader_of(split_of(labels), seed=seed).epoch(epoch) for name in batch.ids]

    first = order([0] * 30)
    assert order([1] * 30) == first
    assert order([0] * 30, seed=1) != first
    assert order([0] * 30, epoch=1) != first


def test_a_batch_holds_the_targets_of_its_ids() -> None:
    split = split_of([0, 1, 2] * 9)
    for batch in loader_of(split).epoch():
        assert batch.target.tolist() == [int(split.targets[int(name)]) for name in batch.ids]
        for name, x in zip(batch.ids, batch.inputs["pixel_values"], strict=True):
            expected = torch.from_numpy(split.x[int(name)]).float() / 255 * 2 - 1
            torch.testing.assert_close(x, expected.expand(3, -1, -1), rtol=0, atol=1e-6)  # float32, other order


# -- what is drawn --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noisy:
    """A preparation that draws: the picture plus noise."""

    plain: ImagePreparation = PREPARATION
    random: bool = True
    digest: str = "noisy"

    def prepare(self, examples: Sequence[Any]) -> list[Mapping[str, Tensor]]:
        return [
            {name: x + torch.randint(0, 100, x.shape, dtype=torch.uint8) for name, x in example.items()}
            for example in self.plain.prepare(examples)
        ]

    def collate(self, prepared: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return self.plain.collate(prepared)

    def normalise(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.plain.normalise(inputs)

    def dummy(self, batch_size: int) -> dict[str, Tensor]:
        return self.plain.dummy(batch_size)


DRAWING = [("light", PREPARATION), ("strong", PREPARATION), ("none", Noisy()), ("strong", Noisy())]


def by_id(loader: Loader, epoch: int = 0) -> dict[str, Tensor]:
    return {
        name: x
        for batch in loader.epoch(epoch)
        for name, x in zip(batch.ids, batch.inputs["pixel_values"], strict=True)
    }


@pytest.mark.parametrize(("augment", "preparation"), DRAWING)
def test_what_is_drawn_follows_from_seed_epoch_and_id_alone(augment: str, preparation: Preparation) -> None:
    split = split_of([0] * 12)
    first = by_id(loader_of(split, preparation, augment=augment, seed=3), epoch=1)
    torch.rand(5)  # the caller's own draws
    other_batches = loader_of(split, preparation, augment=augment, seed=3, batch_size=5, shuffled=False)
    again = by_id(other_batches, epoch=1)
    assert all(torch.equal(x, again[name]) for name, x in first.items())
    subset = Subset(split, np.array([4, 7]))
    alone = by_id(loader_of(subset, preparation, augment=augment, seed=3), epoch=1)
    assert all(torch.equal(x, first[name]) for name, x in alone.items())
    for seed, epoch in ((3, 2), (4, 1)):
        other = by_id(loader_of(split, preparation, augment=augment, seed=seed), epoch=epoch)
        assert sum(torch.equal(x, other[name]) for name, x in first.items()) <= 2


@pytest.mark.parametrize(("augment", "preparation"), DRAWING)
def test_two_equal_pictures_are_changed_differently(augment: str, preparation: Preparation) -> None:
    x = np.repeat(np.arange(64, dtype=np.uint8).reshape(1, 8, 8) * 4, 8, axis=0)
    found = by_id(loader_of(ToySplit(x, np.zeros(8, np.int64)), preparation, augment=augment))
    assert len({x.numpy().tobytes() for x in found.values()}) >= 6


@pytest.mark.parametrize(("augment", "preparation"), [("none", PREPARATION), *DRAWING])
def test_preparing_leaves_the_callers_draws_alone(augment: str, preparation: Preparation) -> None:
    before = torch.get_rng_state()
    list(loader_of(split_of([0] * 12), preparation, augment=augment).epoch())
    assert torch.equal(torch.get_rng_state(), before)


def test_drawing_leaves_other_devices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reseeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    torch.manual_seed(0)
    assert reseeded == [0], "seeding torch as a whole is seen"
    list(loader_of(split_of([0] * 12), Noisy(), augment="light").epoch())
    assert reseeded == [0]


def test_augmentation_changes_pictures_and_none_does_not() -> None:
    split = split_of([0] * 12)
    plain = by_id(loader_of(split, shuffled=False))
    for augment in OF_PICTURES:
        found = by_id(loader_of(split, augment=augment))
        kept = sum(torch.equal(x, plain[name]) for name, x in found.items())
        assert kept == 12 if augment == "none" else kept < 12


def test_augmentation_keeps_size_and_type() -> None:
    for augment in OF_PICTURES:
        for raw in (np.zeros((9, 7), np.uint8), np.zeros((9, 7, 3), np.uint8)):
            split = ToySplit(np.stack([raw] * 4), np.zeros(4, np.int64))
            loader = loader_of(split, ImagePreparation(size=6, mean=(0, 0, 0), std=(1, 1, 1)), augment=augment)
            assert next(iter(loader.epoch())).inputs["pixel_values"].shape == (4, 3, 6, 6)


def inputs_seen(augment: str) -> dict[bool, list[Tensor]]:
    """What the backbone is given in a trial, by whether gradients are on."""
    seen: dict[bool, list[Tensor]] = {True: [], False: []}

    def note(module: nn.Module, args: Any) -> None:
        if isinstance(module, ToyBackbone) and not args[0]["pixel_values"].is_meta:  # what build looks at first
            seen[torch.is_grad_enabled()].append(args[0]["pixel_values"])

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        run_trial(toy_plan(budget=Budget(epochs=1, augment=augment)))
    finally:
        handle.remove()
    return seen


def test_training_is_augmented_and_validation_and_test_are_not() -> None:
    plain = inputs_seen("none")
    for augment in ("light", "strong"):
        found = inputs_seen(augment)
        assert not any(torch.equal(one, other) for one, other in zip(plain[True], found[True], strict=True))
        scored = min(len(plain[False]), len(found[False]))  # the inference rate is measured with as many as it takes
        assert scored >= 3, "a dummy pass, validation and test"
        assert all(torch.equal(plain[False][place], found[False][place]) for place in range(scored))


# -- keeping and workers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Logged(ToySplit):
    """Notes which examples were read."""

    read: list[int] = field(default_factory=list)

    def raw(self, index: int) -> Any:
        self.read.append(index)
        return super().raw(index)


@pytest.mark.parametrize(("augment", "times"), [("none", 1), ("light", 3)])
def test_an_example_is_read_once_unless_something_is_drawn(augment: str, times: int) -> None:
    split = Logged(split_of([0] * 12).x, np.zeros(12, np.int64))
    loader = loader_of(split, augment=augment)
    for epoch in range(3):
        list(loader.epoch(epoch))
    assert Counter(split.read) == dict.fromkeys(range(12), times)


def test_kept_examples_are_those_prepared_anew() -> None:
    split = split_of([0, 1, 2] * 4)
    loader = loader_of(split)
    list(loader.epoch(0))
    fresh = loader_of(split)
    assert all(same(one, other) for one, other in zip(loader.epoch(1), fresh.epoch(1), strict=True))


def test_an_example_that_one_epoch_dropped_is_prepared_in_the_next() -> None:
    split = split_of([0] * 13)  # batches of 4, and one example left over, another in each epoch
    loader = loader_of(split, shuffled=True, batch_size=4)
    seen = [{one for batch in loader.epoch(epoch) for one in batch.ids} for epoch in range(4)]
    assert {len(epoch) for epoch in seen} == {12}
    assert set().union(*seen) == set(split.ids)


@pytest.mark.parametrize("num_kept", [0, 5])
def test_little_memory_changes_no_number(monkeypatch: pytest.MonkeyPatch, num_kept: int) -> None:
    split = split_of([0, 1, 2] * 4)
    usual = [list(loader_of(split).epoch(epoch)) for epoch in range(2)]
    monkeypatch.setattr("zoo_core.data.loader.KEEP_BYTES", num_kept * 64)
    loader = loader_of(split)
    for epoch in range(2):
        assert all(same(one, other) for one, other in zip(loader.epoch(epoch), usual[epoch], strict=True))


def test_pictures_of_several_sizes_are_batched() -> None:
    @dataclass(frozen=True)
    class Ragged(ToySplit):
        def raw(self, index: int) -> Any:
            return self.x[index, : 4 + index % 3]

    split = Ragged(split_of([0] * 12).x, np.zeros(12, np.int64))
    loader = loader_of(split, shuffled=False)
    first, again = by_id(loader), by_id(loader)
    assert all(torch.equal(x, again[name]) for name, x in first.items())
    alone = by_id(loader_of(split, shuffled=False, batch_size=2))
    assert all(torch.equal(x, alone[name]) for name, x in first.items())


@pytest.mark.parametrize(("augment", "preparation"), [("none", PREPARATION), ("strong", Noisy())])
def test_workers_change_neither_order_nor_numbers_nor_the_callers_draws(augment: str, preparation: Preparation) -> None:
    split = split_of([0, 1, 2] * 7)
    here = loader_of(split, preparation, augment=augment)
    there = loader_of(split, preparation, augment=augment, num_workers=2)
    before = torch.get_rng_state()
    for epoch in range(2):
        assert all(same(one, other) for one, other in zip(here.epoch(epoch), there.epoch(epoch), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_wrong_with_an_example_is_told_in_one_line(num_workers: int) -> None:
    split = ToySplit(np.zeros((4, 8, 8), np.float32), np.zeros(4, np.int64))
    with pytest.raises(UsageError) as caught:
        list(loader_of(split, num_workers=num_workers).epoch())
    assert str(caught.value) == "an image is uint8 [H, W] or [H, W, C], found float32 [8, 8]"


@pytest.mark.parametrize("augment", OF_PICTURES)
def test_a_loader_is_sent_to_a_worker_small_and_whole(augment: str) -> None:
    loader = loader_of(split_of([0, 1, 2] * 4), augment=augment)
    empty = len(pickle.dumps(loader._prepared))
    wanted = list(loader.epoch())
    sent = pickle.dumps(loader._prepared)
    assert len(sent) == empty, "what is kept is not sent"
    loader._prepared = pickle.loads(sent)
    assert all(same(one, other) for one, other in zip(wanted, loader.epoch(), strict=True))


# -- targets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dtype", "shape"), [("classes", torch.int64, (60,)), ("multilabel", torch.float32, (60, 3))]
)
def test_targets_have_the_type_of_the_contract(kind: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    data = ToyTask(target=Target(kind=kind, size=3))
    found = loader_of(data.splits["train"], target=data.target).targets
    assert (found.dtype, found.shape) == (dtype, shape)


def test_targets_are_not_the_tasks_own_memory() -> None:
    split = split_of([0, 1, 2])
    loader_of(split).targets.zero_()
    assert split.targets.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("kind", "targets", "told"),
    [
        ("regression", np.zeros(4, np.float32), r"of shape \[4, 3\], found \[4\]"),
        ("regression", np.zeros((4, 2), np.float32), r"of shape \[4, 3\], found \[4, 2\]"),
        ("regression", np.array([[0, 0, 0]] * 3 + [[0, np.nan, 0]], np.float32), "finite, found nan in example 3"),
        ("multilabel", np.full((4, 3), 0.5, np.float32), "0 or 1, found 0.5 in example 0"),
        ("classes", np.array([0, 1, 2, 3]), "whole numbers from 0 to 2, found 3 in example 3"),
        ("classes", np.array([0, -100, 2, 1]), "found -100 in example 1"),
        ("classes", np.zeros((4, 1), np.int64), r"of shape \[4\], found \[4, 1\]"),
    ],
)
def test_targets_that_break_the_contract_are_told(kind: Any, targets: Any, told: str) -> None:
    split = ToySplit(np.zeros((4, 8, 8), np.uint8), targets)
    with pytest.raises(UsageError, match=told):
        loader_of(split, target=Target(kind=kind, size=3))


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(RefusedError, match="no examples"):
        loader_of(split_of([]))
