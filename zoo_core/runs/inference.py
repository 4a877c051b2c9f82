"""Passes any number of items through a model, in their order and with little memory: predictions or features.

Items are read and prepared a batch at a time, in worker processes if requested, while the model works on the batch
before. An item that cannot be used is returned as a SkippedItem in its place, and the others are processed.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from zoo_core._process.import_path import same_path
from zoo_core.contracts import Backbone, Features, Modality, Preparation, Raw, Target, as_backbone
from zoo_core.data.decoding import decode
from zoo_core.data.token_labels import by_word
from zoo_core.errors import IncompatibleError, UsageError, ZooError
from zoo_core.model.learner import Learner
from zoo_core.toolkit.features import channels_first, masked_mean
from zoo_core.toolkit.stages import capture, stage_modules
from zoo_core.training.timing import INFERENCE_BATCH

__all__ = [
    "POOLS",
    "Embedding",
    "Item",
    "Pool",
    "Prediction",
    "SkippedItem",
    "Word",
    "embedded",
    "predicted",
    "split_words",
]

Found = TypeVar("Found")
Pool = Literal["own", "mean"]
POOLS: tuple[Pool, ...] = ("own", "mean")

# A number or word with what joins its parts (U.N., don't, 3.5, first-round); an ideograph; any other sign alone.
WORD = re.compile(r"[\u3400-\u9fff]|(?:[^\W\u3400-\u9fff](?:[-'.,](?=[^\W\u3400-\u9fff]))?)+(?:(?<=\.\w)\.)?|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class Word:
    """One word of a text: the characters from start up to, not including, end."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Item:
    """What is to be looked at: raw as `zoo_core.data.decoding.decode` takes it, a path included, which is read late.

    words: where those of a raw list of words stand in their text; empty: joined by single spaces.
    """

    name: str
    raw: Raw
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SkippedItem:
    """An item that could not be used, and why."""

    item: str
    error: ZooError


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one item.

    labels: the likeliest class (classes), those with a score above one half (multilabel), or all names (regression).
    scores: one for each output, in the order of the target.
    For token classes, labels, scores and words have one entry for each word: its likeliest class, the probability of
    that class, and its place in the text.
    """

    item: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """One item's features, float32 [D] on the CPU."""

    item: str
    features: Tensor


def predicted(
    learner: Learner,
    items: Iterable[Item | SkippedItem],
    *,
    device: str = "cpu",
    batch_size: int = INFERENCE_BATCH,
    num_workers: int = 0,
) -> Generator[Prediction | SkippedItem, None, None]:
    """One prediction for each item, or its failure, in the order given. Failures among the items are passed through.

    items: consumed as needed, a few batches ahead if there are worker processes.
    """
    target = learner.target
    names = target.names or tuple(str(index) for index in range(target.size or 0))
    learner.to(device).eval()
    ready = _ready(learner.source, items, batch_size, num_workers, needs_words=target.kind == "token_classes")
    for rows, inputs in ready:
        found = _predictions(learner, rows, _normalised(learner.source, inputs, device), names) if inputs else []
        yield from _in_place(rows, found)


def embedded(
    model: Learner | nn.Module,
    items: Iterable[Item | SkippedItem],
    *,
    pool: Pool = "own",
    stage: int | None = None,
    device: str = "cpu",
    batch_size: int = INFERENCE_BATCH,
    num_workers: int = 0,
) -> Generator[Embedding | SkippedItem, None, None]:
    """The features of each item, or its failure, in the order given.

    model: a learner, whose backbone is used as its adapters changed it, or a backbone alone. pool: `own` for the
    backbone's pooling, or the mean over real tokens or positions. stage: the mean of the output of this stage, counted
    from 1.
    Raises UsageError for a stage that does not exist.
    """
    backbone = model.backbone if isinstance(model, Learner) else model
    source = as_backbone(backbone)
    if pool not in POOLS:
        raise UsageError(f"unknown pool {pool!r}; there are {', '.join(POOLS)}")
    if stage is not None and not 1 <= stage <= len(source.stages):
        raise UsageError(f"stage {stage}: the backbone has {len(source.stages)} stages; allowed: 1 to the last")
    backbone.to(device).eval()
    for rows, inputs in _ready(source, items, batch_size, num_workers, needs_words=False):
        found: list[Embedding] = []
        if inputs:
            x_BD = _features(backbone, _normalised(source, inputs, device), pool, stage)
            usable = [row for row in rows if isinstance(row, Item)]
            found = [Embedding(item=row.name, features=x_D) for row, x_D in zip(usable, x_BD, strict=True)]
        yield from _in_place(rows, found)


def split_words(text: str) -> tuple[Word, ...]:
    """The words of a text and where they stand: signs are words of their own, as in the corpora of token classes.

    A sign inside a word belongs to it (U.N., don't, 3.5), and each ideograph is a word.
    """
    return tuple(Word(text=found.group(), start=found.start(), end=found.end()) for found in WORD.finditer(text))


# -- items -> prepared batches --------------------------------------------------------------------------------------

Row = Item | SkippedItem
Prepared = tuple[tuple[Row, ...], dict[str, Tensor]]  # rows without what was raw; inputs of those that are items


def _ready(
    source: Backbone, items: Iterable[Row], batch_size: int, num_workers: int, *, needs_words: bool
) -> Iterator[Prepared]:
    """Collated batches on the CPU, and the rows that they belong to; no inputs where all rows are failures."""
    preparing = _Preparing(source.modality, source.preparation, needs_words)
    batches = _batches(items, batch_size)
    if not num_workers:
        for batch in batches:
            yield preparing[batch]
        return
    loader = DataLoader(
        preparing,
        sampler=batches,  # drawn from as workers become free, so that the items need not fit into memory
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator(),  # else it draws the workers' seeds from the caller's
        worker_init_fn=_leave_interrupts,
    )
    with same_path():
        ahead = iter(loader)
    yield from ahead


def _leave_interrupts(worker: int) -> None:
    """A Ctrl-C is for the main process, which ends the others; here it would only print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _batches(items: Iterable[Row], size: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass(frozen=True)
class _Preparing(Dataset[Prepared]):
    """Prepared batches by the items themselves: `preparing[items]`. It pickles into worker processes."""

    modality: Modality
    preparation: Preparation
    needs_words: bool

    def __getitem__(self, items: Sequence[Row]) -> Prepared:
        # Pictures and sounds one by one: 64 photos of 12 megapixels at once would take 2 GiB.
        at_once = len(items) if self.modality in ("text", "table") else 1
        rows: list[Row] = []
        prepared: list[Mapping[str, Tensor]] = []
        for start in range(0, len(items), at_once):
            for row, example in self._some(items[start : start + at_once]):
                rows.append(row)
                if example is not None:
                    prepared.append(example)
        try:
            return tuple(rows), self.preparation.collate(prepared) if prepared else {}
        except ZooError as error:  # what does not go together, as rows of different width
            return tuple(_failed(row, error) for row in rows), {}

    def _some(self, items: Sequence[Row]) -> list[tuple[Row, Mapping[str, Tensor] | None]]:
        """Each row, and what was prepared of it; all at once, one by one only where one of them fails."""
        usable = [item for item in items if isinstance(item, Item)]
        try:
            decoded = [self._decoded(item) for item in usable]
            examples = iter(self.preparation.prepare(decoded) if decoded else [])
        except ZooError as error:
            if len(items) == 1:
                return [(_failed(items[0], error), None)]
            return [pair for item in items for pair in self._some([item])]
        return [(_without_raw(item), next(examples)) if isinstance(item, Item) else (item, None) for item in items]

    def _decoded(self, item: Item) -> object:
        example = decode(self.modality, item.raw)
        if self.needs_words and not isinstance(example, list):
            raise UsageError('token classes are predicted for lists of words, as [["Anna", "sleeps"]]; split the texts')
        return example


def _failed(row: Row, error: ZooError) -> SkippedItem:
    return SkippedItem(item=row.name, error=error) if isinstance(row, Item) else row


def _without_raw(item: Item) -> Item:
    """The item without what a worker process would send back; of a list of words, where they stand."""
    words = item.words or (_places(item.raw) if isinstance(item.raw, list) else ())
    return Item(name=item.name, raw=None, words=words)


def _places(texts: Sequence[object]) -> tuple[Word, ...]:
    """Where words stand when they are joined by single spaces; nothing for a list of anything else."""
    words, start = [], 0
    for text in texts:
        if not isinstance(text, str):
            return ()
        words.append(Word(text=text, start=start, end=start + len(text)))
        start += len(text) + 1
    return tuple(words)


# -- prepared batches -> what was asked for -------------------------------------------------------------------------


def _normalised(source: Backbone, inputs: Mapping[str, Tensor], device: str) -> dict[str, Tensor]:
    return source.preparation.normalise({name: x.to(device) for name, x in inputs.items()})


def _in_place(rows: Iterable[Row], found: Iterable[Found]) -> Iterator[Found | SkippedItem]:
    results = iter(found)
    for row in rows:
        yield row if isinstance(row, SkippedItem) else next(results)


def _predictions(
    learner: Learner, rows: Sequence[Row], inputs: Mapping[str, Tensor], names: Sequence[str]
) -> list[Prediction]:
    usable = [row for row in rows if isinstance(row, Item)]
    target = learner.target
    with torch.inference_mode():
        scores = _scores(target, learner(inputs).predictions)
        if target.kind == "token_classes":
            scores = by_word(scores, inputs["word_ids"], max(len(row.words) for row in usable), target)
            best, chosen = scores.softmax(-1).max(-1)
            pairs = zip(usable, best.tolist(), chosen.tolist(), strict=True)
            return [_of_words(row, names, *found) for row, *found in pairs]
    return [
        Prediction(item=row.name, labels=_labels(target, names, found), scores=tuple(found))
        for row, found in zip(usable, scores.tolist(), strict=True)
    ]


def _of_words(row: Item, names: Sequence[str], best: Sequence[float], chosen: Sequence[int]) -> Prediction:
    num = len(row.words)
    labels = tuple(names[tag] for tag in chosen[:num])
    return Prediction(item=row.name, labels=labels, scores=tuple(best[:num]), words=row.words)


def _scores(target: Target, predictions: Tensor) -> Tensor:
    if target.kind == "classes":
        return predictions.softmax(-1)
    return predictions.sigmoid() if target.kind == "multilabel" else predictions


def _labels(target: Target, names: Sequence[str], row: Sequence[float]) -> tuple[str, ...]:
    if target.kind == "classes":
        return (names[max(range(len(row)), key=row.__getitem__)],)
    return tuple(name for name, score in zip(names, row, strict=True) if target.kind == "regression" or score > 0.5)


def _features(backbone: nn.Module, inputs: Mapping[str, Tensor], pool: Pool, stage: int | None) -> Tensor:
    """float32 [B, D] on the CPU."""
    source = as_backbone(backbone)
    wanted = [] if stage is None else [stage - 1]
    with torch.inference_mode(), capture(backbone, wanted) as states:
        features = source(inputs)
        if stage is not None:
            x_BD = _mean_state(states[stage - 1], stage_modules(backbone)[stage - 1], features)
        elif features.kind == "pooled":
            x_BD = features.x
        else:
            x_BD = source.pool(features) if pool == "own" else masked_mean(features)
    return x_BD.float().cpu()


def _mean_state(state: Tensor, stage: nn.Module, features: Features) -> Tensor:
    """The mean of a stage's state over real tokens [B, T, D], or positions [B, D, H, W] or [B, H, W, D].

    Raises IncompatibleError for a state of another form.
    """
    if state.ndim == 2:
        return state
    if state.ndim == 3:
        mask = features.mask
        if mask is not None and mask.shape != state.shape[:2]:
            raise IncompatibleError(
                f"{state.shape[1]} tokens leave this stage and {mask.shape[1]} the backbone, so it is not known which "
                "are real; leave the stage out, or take a later one"
            )
        return masked_mean(Features(kind="tokens", x=state, mask=mask))
    if state.ndim != 4:
        raise IncompatibleError(f"a state of shape {list(state.shape)} leaves this stage; allowed: tokens or a map")
    return state.mean(dim=(2, 3) if channels_first(state, stage) else (1, 2))
