"""Token classes: alignment with tokens and back, entities against seqeval, batches, scores, a head that tags words."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from seqeval.metrics.sequence_labeling import get_entities
from torch import Tensor, nn

from zoo_core.contracts import Features, FeatureSpec, Target
from zoo_core.data.loader import Loader
from zoo_core.data.splits import Subset, carve
from zoo_core.data.token_labels import IGNORED, by_word, entities, on_tokens, word_targets
from zoo_core.errors import RefusedError, UsageError, ZooError
from zoo_core.model.learner import Learner
from zoo_core.model.objective import CrossEntropy
from zoo_core.registry.registry import registry
from zoo_core.spec.parser import Part
from zoo_core.training.metrics import predict
from zoo_core.training.metrics import score as score_with


def score(name: str, predictions: Tensor, truth: Tensor, target: Target) -> float:
    return score_with(registry().bind(Part(name), "metric"), predictions, truth, target)


TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG")
TARGET = Target(kind="token_classes", names=TAGS)
PARTS = Target(kind="token_classes", names=("noun", "verb", "other"))
sentences = st.lists(st.lists(st.sampled_from(TAGS), min_size=1, max_size=9), min_size=1, max_size=6)


def padded(rows: Sequence[Sequence[str]]) -> Tensor:
    return word_targets([[TAGS.index(tag) for tag in row] for row in rows], TARGET, [str(i) for i in range(len(rows))])


# -- entities ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O B-PER I-PER O", {("PER", 1, 2)}),
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("B-PER I-ORG I-ORG", {("PER", 0, 0), ("ORG", 1, 2)}),
        ("I-ORG I-ORG O I-ORG", {("ORG", 0, 1), ("ORG", 3, 3)}),
        ("O O", set()),
        ("B-PER", {("PER", 0, 0)}),
    ],
)
def test_tags_spell_entities(tags: str, found: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == found


@settings(max_examples=300)
@given(tags=st.lists(st.sampled_from(TAGS), max_size=12))
def test_entities_are_those_of_seqeval(tags: list[str]) -> None:
    assert entities(tags) == set(get_entities(tags))


@settings(max_examples=200)
@given(true=sentences, seed=st.integers(0, 999))
def test_entity_f1_is_that_of_seqeval(true: list[list[str]], seed: int) -> None:
    draw = random.Random(seed)
    predicted = [[tag if draw.random() < 0.6 else draw.choice(TAGS) for tag in row] for row in true]
    if not any(tag != "O" for rows in (true, predicted) for row in rows for tag in row):
        return
    target = padded(true)
    logits = nn.functional.one_hot(padded(predicted).clamp(min=0), len(TAGS)).float()
    found = score("entity_f1", logits, target, TARGET)
    assert found == pytest.approx(f1_score(true, predicted, zero_division=0), abs=1e-12)  # float64


def test_entity_f1_without_any_entity_is_not_defined() -> None:
    target = padded([["O", "O"]])
    with pytest.raises(ZooError, match="entity_f1 is not defined on 1 examples"):
        score("entity_f1", nn.functional.one_hot(target, len(TAGS)).float(), target, TARGET)


def test_entity_f1_needs_tags_that_spell_entities() -> None:
    for names, told in ((PARTS.names, "found noun"), (("O", "L-PER"), "found L-PER"), (("B-PER",), "no O among B-PER")):
        target = Target(kind="token_classes", names=names)
        with pytest.raises(UsageError, match=re.escape(told)):
            score("entity_f1", torch.zeros(1, 1, len(names)), torch.zeros(1, 1, dtype=torch.int64), target)


def test_accuracy_counts_words_and_not_sentences() -> None:
    target = padded([["O", "B-PER", "I-PER"], ["O"]])
    logits = nn.functional.one_hot(target.clamp(min=0), len(TAGS)).float()
    logits[0, 0] = torch.tensor([0.0, 9, 0, 0, 0])
    assert score("accuracy", logits, target, TARGET) == 0.75


# -- words and tokens -------------------------------------------------------------------------------------------------


def test_only_the_first_piece_of_a_word_has_a_target() -> None:
    word_ids = torch.tensor([[-1, 0, -1, 1, -1], [-1, 0, 2, -1, -1]])
    target = torch.tensor([[3, 4, IGNORED], [1, 2, 0]])
    assert on_tokens(target, word_ids).tolist() == [[-100, 3, -100, 4, -100], [-100, 1, 0, -100, -100]]


def test_a_word_without_a_place_is_predicted_outside() -> None:
    word_ids = torch.tensor([[-1, 0, -1, 2]])
    logits = torch.randn(1, 4, 5)
    found = by_word(logits, word_ids, 4, TARGET)
    assert torch.equal(found[0, 0], logits[0, 1])
    assert torch.equal(found[0, 2], logits[0, 3])
    assert found[0, [1, 3]].argmax(-1).tolist() == [0, 0]


def test_a_word_without_a_place_is_never_right_where_no_class_is_outside() -> None:
    found = by_word(torch.zeros(1, 1, 3), torch.tensor([[-1]]), 1, PARTS)
    for tag in range(3):
        assert score("accuracy", found, torch.tensor([[tag]]), PARTS) == 0


@pytest.mark.parametrize("tags", [[0, 5], [-1], [], [[0]], ["O"], [0.5]])
def test_tags_that_are_none_are_told_with_their_example(tags: Any) -> None:
    with pytest.raises(UsageError, match=r"whole numbers from 0 to 4, found .* in example b"):
        word_targets([[0], tags], TARGET, ["a", "b"])


# -- batches and a learner --------------------------------------------------------------------------------------------


class Sentences:
    """A split of sentences; a word's tag is its first letter: p a person, q the rest of one, o an organisation."""

    groups = None
    LETTERS = "xpqor"

    def __init__(self, rows: Sequence[str]) -> None:
        self.rows = [row.split() for row in rows]
        self.num = len(rows)
        self.ids = [f"s{index}" for index in range(self.num)]

    @property
    def targets(self) -> list[list[int]]:
        return [[self.LETTERS.index(word[0]) for word in row] for row in self.rows]

    def raw(self, index: int) -> list[str]:
        return self.rows[index]


class Letters:
    """One token for each letter, of at most 12 a sentence; the first letter of a word is its first piece."""

    digest, random = "letters", False

    def prepare(self, examples: Sequence[Sequence[str]]) -> list[Mapping[str, Tensor]]:
        found: list[Mapping[str, Tensor]] = []
        for words in examples:
            letters = torch.tensor([ord(letter) - ord("a") for letter in "".join(words)])
            firsts = [place if not index else -1 for place, word in enumerate(words) for index, _ in enumerate(word)]
            found.append({"input_ids": letters[:12], "word_ids": torch.tensor(firsts[:12])})
        return found

    def collate(self, prepared: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        pad = nn.utils.rnn.pad_sequence
        return {
            name: pad([row[name] for row in prepared], batch_first=True, padding_value=fill)
            for name, fill in (("input_ids", 0), ("word_ids", -1))
        }

    def normalise(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(inputs)

    def dummy(self, batch_size: int) -> dict[str, Tensor]:
        return {"input_ids": torch.zeros(batch_size, 3, dtype=torch.int64)}


class OneHot(nn.Module):
    """Each letter is its own feature."""

    modality, stages, preparation = "text", (), Letters()
    features = FeatureSpec(kind="tokens", dim=26)

    def forward(self, inputs: Mapping[str, Tensor]) -> Features:
        return Features(kind="tokens", x=nn.functional.one_hot(inputs["input_ids"], 26).float())

    def pool(self, features: Features) -> Tensor:
        raise AssertionError("each token is predicted")


ROWS = ("xa pb qc xd", "o", "xx xy ob rc p", "pp qq", "xbcdef p", "o r x")


def loader(rows: Sequence[str], **arguments: Any) -> Loader:
    return Loader(Sentences(rows), modality="text", target=TARGET, preparation=Letters(), batch_size=4, **arguments)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_holds_targets_where_words_begin(num_workers: int) -> None:
    for batch in loader(ROWS, num_workers=num_workers).epoch():
        assert batch.target.shape == batch.inputs["input_ids"].shape
        begins = batch.inputs["word_ids"] >= 0
        assert torch.equal(batch.target != IGNORED, begins)
        for letter, tag in zip(batch.inputs["input_ids"][begins], batch.target[begins], strict=True):
            assert Sentences.LETTERS[tag] == chr(letter + ord("a"))


def test_a_linear_head_tags_every_word_and_misses_those_cut_off() -> None:
    rows = ("xa pb qc xd", "xx xy ob rc p", "pp qq", "o r x", "xxxxxxxxxxxx p")  # the last sentence's p is cut off
    head = nn.Linear(26, len(TAGS))

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = head

        def forward(self, features: Features) -> Tensor:
            found: Tensor = self.out(features.x)
            return found

    torch.manual_seed(0)
    learner = Learner(OneHot(), Head(), "tokens", CrossEntropy(), TARGET)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.3)
    batches = loader(rows)
    for _ in range(30):
        for batch in batches.epoch():
            optimiser.zero_grad()
            learner.loss(learner(batch.inputs), batch).backward()
            optimiser.step()
    predictions, ids = predict(learner, batches)
    assert ids == ("s0", "s1", "s2", "s3", "s4")
    assert predictions.shape == (5, 5, len(TAGS))
    right = predictions.argmax(-1)[batches.targets != IGNORED] == batches.targets[batches.targets != IGNORED]
    assert right.tolist() == [True] * (len(right) - 1) + [False]
    spelt = 1 + 2 + 1 + 1 + 1  # entities of the sentences: the last one's is missed
    assert score("entity_f1", predictions, batches.targets, TARGET) == pytest.approx(2 * (spelt - 1) / (2 * spelt - 1))


def test_tags_and_words_of_different_number_are_told() -> None:
    class Wrong(Sentences):
        @property
        def targets(self) -> list[list[int]]:
            return [[*row, 0] for row in super().targets]

    batches = Loader(Wrong(ROWS), modality="text", target=TARGET, preparation=Letters(), batch_size=4)
    with pytest.raises(UsageError, match="example s0 has 4 words and 5 tags"):
        next(batches.epoch())


def test_a_text_that_is_not_split_into_words_is_told() -> None:
    class Whole(Sentences):
        def raw(self, index: int) -> Any:
            return " ".join(self.rows[index])

    batches = Loader(Whole(ROWS), modality="text", target=TARGET, preparation=Letters(), batch_size=4)
    with pytest.raises(UsageError, match="example s0 has str, not a list of words, and 4 tags"):
        next(batches.epoch())


def test_a_preparation_that_tells_no_words_apart_is_refused() -> None:
    class Deaf(Letters):
        def prepare(self, examples: Sequence[Sequence[str]]) -> list[Mapping[str, Tensor]]:
            return [{"input_ids": row["input_ids"]} for row in super().prepare(examples)]

        def collate(self, prepared: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {"input_ids": nn.utils.rnn.pad_sequence([row["input_ids"] for row in prepared], batch_first=True)}

    batches = Loader(Sentences(ROWS), modality="text", target=TARGET, preparation=Deaf(), batch_size=4)
    with pytest.raises(RefusedError, match="word_ids"):
        next(batches.epoch())


def test_sentences_of_any_length_are_carved_and_drawn() -> None:
    class Data:
        target = TARGET

        def __init__(self) -> None:
            self.splits = {"train": Sentences(ROWS * 4), "test": Sentences(ROWS)}

    splits = carve(Data(), seed=0, limit=5)
    assert splits.train.num == 5
    assert isinstance(splits.train, Subset)
    for index in range(5):
        assert len(splits.train.targets[index]) == len(splits.train.raw(index))
    with pytest.raises(RefusedError, match="use limit=N"):
        carve(Data(), seed=0, shots=1)
