"""Makes batches of a split: decoded, augmented, prepared and collated, then normalised on the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo_core._process.import_path import same_path
from zoo_core.contracts import Batch, Modality, Preparation, Split, Target, TeacherOutput
from zoo_core.data.augmentation import Augment
from zoo_core.data.decoding import decode
from zoo_core.data.randomness import derive_seed, example_rng
from zoo_core.data.token_labels import IGNORED, on_tokens, word_targets
from zoo_core.errors import RefusedError, UsageError, ZooError

__all__ = ["AS_IT_IS", "Beside", "Loader", "StoredInputs", "drawn_view"]

AS_IT_IS = "as it is"  # the view of examples of which nothing is drawn
KEEP_BYTES = 2**30  # prepared examples kept in memory for each loader; beyond, they are prepared again each epoch


def drawn_view(seed: int, draw: int) -> str:
    """The name of the view of examples that are augmented, by which what a model gave for them is stored."""
    return f"seed {seed}, draw {draw}"


class Beside(Protocol):
    """Frozen models that look at the examples of a loader too; what they give comes with its batches.

    It pickles into worker processes.
    """

    @property
    def names(self) -> tuple[str, ...]: ...
    def begin(self, view: str) -> None:
        """Called in the main process before the batches of a view, so that workers find what they need."""
        ...

    def lacking(self, of: str, view: str, positions: Sequence[int]) -> list[int]:
        """The positions in the split whose outputs are not known yet, as far as can be told without reading them."""
        ...

    def preparation(self, of: str) -> Preparation: ...
    def output(
        self,
        of: str,
        view: str,
        positions: Sequence[int],
        inputs: Callable[[Sequence[int]], Mapping[str, Tensor]],
        word_ids: Tensor | None,
    ) -> TeacherOutput:
        """What the model gives for these positions. inputs: what it reads of some of them, normalised."""
        ...


class StoredInputs(Protocol):
    """What a loader gives in place of prepared inputs, by draw and positions in its split."""

    def __call__(self, draw: int, positions: Sequence[int], /) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class _Item:
    """A batch on its way from a worker, before normalisation. read: for each model beside, whose inputs are in it."""

    batch: Batch
    read: Mapping[str, tuple[int, ...]]


# -- batches --------------------------------------------------------------------------------------------------------


@dataclass
class _Prepared(Dataset[_Item | ZooError]):
    """Batches by draw and positions: `prepared[(draw, positions)]`, on the CPU and before normalisation.

    draw: of the augmentation, the epoch's unless views repeat.
    """

    split: Split
    ids: Sequence[str]
    modality: Modality
    preparation: Preparation
    targets: Tensor
    augment: Augment | None
    seed: int
    tags_words: bool = False  # whether the targets are of words, int64 [num, W]
    keeps: bool = True
    kept: dict[int, Mapping[str, Tensor]] = field(default_factory=dict)
    kept_bytes: int = 0
    whole: dict[str, Tensor] | None = None
    beside: Beside | None = None
    stored: StoredInputs | None = None

    def __getitem__(self, key: tuple[int, Sequence[int]]) -> _Item | ZooError:
        """A batch, or the error, returned and not raised: from a worker process it would come with a traceback."""
        draw, positions = key
        index = torch.as_tensor(positions)
        examples: dict[int, Any] = {}  # each is decoded and augmented once, whoever reads it
        try:
            inputs = self._inputs(draw, positions, index, examples)
            target = self._aligned(self.targets[index], inputs) if self.tags_words else self.targets[index]
            read = {of: self._read(of, draw, positions) for of in self._names}
            beside = {of: self.inputs_beside(of, draw, some, examples) for of, some in read.items() if some}
        except ZooError as error:
            return error
        ids = tuple(map(self.ids.__getitem__, positions))
        return _Item(Batch(inputs=inputs, target=target, ids=ids, beside=beside), read)

    def _read(self, of: str, draw: int, positions: Sequence[int]) -> tuple[int, ...]:
        assert self.beside is not None, "it is one of its names"
        return tuple(self.beside.lacking(of, self.view(draw), positions))

    @property
    def _names(self) -> tuple[str, ...]:
        return () if self.beside is None else self.beside.names

    def view(self, draw: int) -> str:
        """The name of a way in which every example is seen."""
        return AS_IT_IS if self.augment is None else drawn_view(self.seed, draw)

    def inputs_beside(
        self, of: str, draw: int, positions: Sequence[int], examples: dict[int, Any] | None = None
    ) -> dict[str, Tensor]:
        """What a model beside reads of some examples, collated. examples: those that are decoded and augmented."""
        assert self.beside is not None, "it is one of its names"
        preparation = self.beside.preparation(of)
        found = self._examples(draw, positions, {} if examples is None else examples)
        return preparation.collate(self._prepare(preparation, draw, positions, found))

    def _aligned(self, target_BW: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        if "word_ids" not in inputs:
            raise RefusedError(
                "token classes need a backbone whose preparation tells words apart (word_ids); "
                f"this one gives {', '.join(inputs)}"
            )
        return on_tokens(target_BW, inputs["word_ids"])

    def _inputs(
        self, draw: int, positions: Sequence[int], index: Tensor, examples: dict[int, Any]
    ) -> dict[str, Tensor]:
        """Prepared once and kept if nothing is drawn; moved into one tensor for all examples when none is missing."""
        if self.stored is not None:
            return self.stored(draw, positions)
        if self.augment is not None or self.preparation.random:
            found = self._examples(draw, positions, examples)
            return self.preparation.collate(self._prepare(self.preparation, draw, positions, found))
        if self.whole is not None:
            return {name: x.index_select(0, index) for name, x in self.whole.items()}
        missing = [position for position in positions if position not in self.kept]
        decoded = self._examples(draw, missing, examples)
        fresh = dict(zip(missing, self._prepare(self.preparation, draw, missing, decoded), strict=True))
        found = [self.kept[position] if position in self.kept else fresh[position] for position in positions]
        if fresh and self.keeps and self.kept_bytes < KEEP_BYTES:
            self.kept.update(fresh)
            self.kept_bytes += sum(x.nbytes for example in fresh.values() for x in example.values())
            self._join()
        return self.preparation.collate(found)

    def _join(self) -> None:
        """Puts all examples into one tensor for each input, if their shapes agree and none is missing."""
        if len(self.kept) < self.split.num:
            return
        examples = [self.kept[position] for position in range(self.split.num)]
        shapes = {tuple((name, x.shape) for name, x in sorted(example.items())) for example in examples}
        if len(shapes) == 1:
            self.whole = self.preparation.collate(examples)
            self.kept.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept, so that little is sent to a worker process, which keeps its own."""
        return self.__dict__ | {"kept": {}, "kept_bytes": 0, "whole": None}

    def _examples(self, draw: int, positions: Sequence[int], known: dict[int, Any]) -> list[Any]:
        """Decoded and augmented examples; those that are known are taken, the others are added to them."""
        for position in positions:
            if position not in known:
                example = decode(self.modality, self.split.raw(position))
                if self.tags_words:
                    self._check_words(example, position)
                if self.augment is not None:
                    with self._draws("augment", draw, position):
                        example = self.augment(example)
                known[position] = example
        return [known[position] for position in positions]

    def _prepare(
        self, preparation: Preparation, draw: int, positions: Sequence[int], examples: Sequence[Any]
    ) -> list[Mapping[str, Tensor]]:
        if not preparation.random:
            return preparation.prepare(examples) if examples else []
        prepared: list[Mapping[str, Tensor]] = []
        for example, position in zip(examples, positions, strict=True):
            with self._draws("prepare", draw, position):
                prepared += preparation.prepare([example])
        return prepared

    def _check_words(self, example: Any, position: int) -> None:
        num_tags = int((self.targets[position] != IGNORED).sum())
        num_words = len(example) if isinstance(example, list) else 0
        if num_words != num_tags and (num_tags or not num_words):  # without any tag nothing is known of it
            found = f"{num_words} words" if num_words else f"{type(example).__name__}, not a list of words,"
            raise UsageError(f"example {self.ids[position]} has {found} and {num_tags} tags; each word has one")

    def _draws(self, purpose: str, draw: int, position: int) -> AbstractContextManager[None]:
        """Random numbers of one example, the same in whichever batch, process and thread it is prepared."""
        return example_rng(purpose, self.seed, draw, self.ids[position])


def _checked_targets(split: Split, target: Target, may_lack: bool) -> Tensor:
    """The targets of a split: int64 [num] (classes), or float32 [num, C], 0 or 1 (multilabel) or finite (regression).

    For token classes int64 [num, W], one for each word, see `word_targets`.
    may_lack: whether a label may be -100 or NaN, which says that it is not known.
    Raises UsageError for others. A loss would silently broadcast a column [num] to [num, num].
    """
    if target.kind == "unlabelled":
        return torch.full((split.num,), IGNORED)
    assert target.size is not None, "data that was opened knows its outputs"
    if target.kind == "token_classes":
        return word_targets(split.targets, target, split.ids, may_lack=may_lack)
    found = np.array(split.targets)
    shape = (split.num,) if target.kind == "classes" else (split.num, target.size)
    if found.shape != shape:
        raise UsageError(f"{target.kind} of {split.num} examples are of shape {list(shape)}, found {list(found.shape)}")
    allowed = {
        "classes": (f"whole numbers from 0 to {target.size - 1}", np.isin(found, np.arange(target.size))),
        "multilabel": ("0 or 1", np.isin(found, (0, 1))),
        "regression": ("finite", np.isfinite(found)),
    }
    words, right = allowed[target.kind]
    if may_lack:
        right = right | (found == IGNORED if target.kind == "classes" else np.isnan(found.astype(np.float64)))
    if not right.all():
        where = np.argwhere(~right)[0]
        raise UsageError(
            f"{target.kind} are {words}, found {found[tuple(where)]} in example {split.ids[int(where[0])]}"
        )
    return torch.from_numpy(found).to(torch.int64 if target.kind == "classes" else torch.float32)


class Loader:
    """The batches of one split, on a device.

    shuffled: drawn from (seed, epoch) and a last batch of one dropped, for training; else in order and complete.
    augment: what each decoded example goes through, drawn from (seed, epoch, id).
    num_workers: processes that prepare ahead; they change neither order nor numbers.
    views: the number of different draws of the augmentation, which epochs take in turn; None: each draws anew.
    beside: models that look at the same examples; `without_beside` gives the loader without them. may_lack: whether
    labels may be unknown, -100 or NaN.
    """

    def __init__(
        self,
        split: Split,
        *,
        modality: Modality,
        target: Target,
        preparation: Preparation,
        batch_size: int,
        device: torch.device | str = "cpu",
        shuffled: bool = False,
        augment: Augment | None = None,
        seed: int = 0,
        num_workers: int = 0,
        views: int | None = None,
        beside: Beside | None = None,
        may_lack: bool = False,
    ) -> None:
        if not split.num:
            raise RefusedError("a split has no examples")
        self.num = split.num
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.shuffled = shuffled
        self.seed = seed
        self.preparation = preparation
        self.target = target
        self.targets = _checked_targets(split, target, may_lack)
        self._prepared = _Prepared(
            split=split,
            ids=split.ids,
            modality=modality,
            preparation=preparation,
            targets=self.targets,
            augment=augment,
            seed=seed,
            tags_words=target.kind == "token_classes",
            beside=beside,
        )
        self._num_workers = num_workers
        self._views = views

    def without_beside(self) -> Loader:
        """The same batches, which nothing but the learner looks at."""
        found = copy.copy(self)
        found._prepared = replace(self._prepared, beside=None)
        return found

    def of_stored(self, stored: StoredInputs) -> Loader:
        """The same batches in the same order, whose inputs are stored ones instead of prepared examples."""
        found = copy.copy(self)
        found._prepared, found._num_workers = replace(self._prepared, stored=stored), 0
        return found

    @property
    def num_batches(self) -> int:
        """The number of batches in one epoch."""
        return len(self._order(0))

    @property
    def draws(self) -> tuple[int, ...]:
        """The draws of the augmentation that epochs take, if they take them in turn; (0,) if nothing is drawn."""
        return (0,) if self._prepared.augment is None or self._views is None else tuple(range(self._views))

    def _draw(self, epoch: int) -> int:
        """The draw of the augmentation that an epoch takes."""
        return epoch if self._views is None else epoch % self._views

    def view(self, draw: int) -> str:
        """The name of the way in which a draw shows every example, by which what models give for it is stored."""
        return self._prepared.view(draw)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, which is counted from 0."""
        return self._batches(self._draw(epoch), self._order(epoch))

    def seen(self, draw: int, positions: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """Batches of these examples, in their order, as a draw shows them to the learner alone; none of it is kept."""
        parts = [list(positions[start : start + batch_size]) for start in range(0, len(positions), batch_size)]
        found = self.without_beside()
        found._prepared.keeps = False
        return found._batches(draw, parts)

    def _batches(self, draw: int, parts: Sequence[list[int]]) -> Iterator[Batch]:
        keys = [(draw, positions) for positions in parts]
        if self._prepared.beside is not None:
            self._prepared.beside.begin(self._prepared.view(draw))
        ahead: Iterable[_Item | ZooError] = (self._prepared[key] for key in keys)
        if self._num_workers:
            loader = DataLoader(
                self._prepared,
                sampler=keys,
                batch_size=None,
                num_workers=self._num_workers,
                generator=torch.Generator(),  # else it draws the workers' seeds from the caller's
            )
            with same_path():
                ahead = iter(loader)
        for (_, positions), item in zip(keys, ahead, strict=True):
            if isinstance(item, ZooError):
                raise item
            batch = self.on_device(item.batch)
            yield self._taught(batch, item, draw, positions) if self._prepared.beside is not None else batch

    def on_device(self, batch: Batch) -> Batch:
        """A collated batch, moved to the device and normalised."""
        if self._prepared.stored is None:
            inputs = self._normalised(self.preparation, batch.inputs)
        else:
            inputs = {name: x.to(self.device, non_blocking=True) for name, x in batch.inputs.items()}
        return Batch(
            inputs=inputs,
            target=batch.target.to(self.device, non_blocking=True),
            ids=batch.ids,
        )

    def _normalised(self, preparation: Preparation, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return preparation.normalise({name: x.to(self.device, non_blocking=True) for name, x in inputs.items()})

    def _taught(self, batch: Batch, item: _Item, draw: int, positions: Sequence[int]) -> Batch:
        """The batch with what the models beside give for it."""
        beside = self._prepared.beside
        assert beside is not None, "it was asked for"
        given: dict[str, TeacherOutput] = {}
        for of in beside.names:

            def inputs(some: Sequence[int], of: str = of) -> dict[str, Tensor]:
                ready = tuple(some) == item.read[of]  # else a stored row turned out to be damaged, or was stored since
                found = item.batch.beside[of] if ready else self._prepared.inputs_beside(of, draw, some)
                return self._normalised(beside.preparation(of), found)

            view = self._prepared.view(draw)
            found = beside.output(of, view, positions, inputs, batch.inputs.get("word_ids"))
            given[of] = found.each(lambda x: x.to(self.device))  # what was stored comes from the disk
        return replace(batch, teachers=given)

    def _order(self, epoch: int) -> list[list[int]]:
        """The positions in the split of each batch of an epoch."""
        order = list(range(self.num))
        if self.shuffled:
            order = np.random.default_rng(derive_seed("order", self.seed, epoch)).permutation(self.num).tolist()
        batches = [order[start : start + self.batch_size] for start in range(0, self.num, self.batch_size)]
        if self.shuffled and len(batches) > 1 and len(batches[-1]) == 1:
            batches.pop()
        return batches
