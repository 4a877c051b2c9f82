"""Makes batches of a split: decoded, augmented, prepared and collated, then normalised on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo_core._process.import_path import same_path
from zoo_core.contracts import Batch, Modality, Preparation, Split, Target
from zoo_core.data.augmentation import Augment
from zoo_core.data.decoding import decode
from zoo_core.data.randomness import derive_seed, example_rng
from zoo_core.data.token_labels import IGNORED, on_tokens, word_targets
from zoo_core.errors import RefusedError, UsageError, ZooError

__all__ = [
    "Loader",
]
KEEP_BYTES = 2**30  # prepared examples kept in memory for each loader; beyond, they are prepared again each epoch


# -- batches --------------------------------------------------------------------------------------------------------


@dataclass
class _Prepared(Dataset[Batch | ZooError]):
    """Batches by epoch and positions: `prepared[(epoch, positions)]`, on the CPU and before normalisation."""

    split: Split
    ids: Sequence[str]
    modality: Modality
    preparation: Preparation
    targets: Tensor
    augment: Augment | None
    seed: int
    tags_words: bool = False  # whether the targets are of words, int64 [num, W]
    kept: dict[int, Mapping[str, Tensor]] = field(default_factory=dict)
    kept_bytes: int = 0
    whole: dict[str, Tensor] | None = None

    def __getitem__(self, key: tuple[int, Sequence[int]]) -> Batch | ZooError:
        """A batch, or the error, returned and not raised: from a worker process it would come with a traceback."""
        epoch, positions = key
        index = torch.as_tensor(positions)
        try:
            inputs = self._inputs(epoch, positions, index)
            target = self._aligned(self.targets[index], inputs) if self.tags_words else self.targets[index]
        except ZooError as error:
            return error
        ids = tuple(self.ids[position] for position in positions)
        return Batch(inputs=inputs, target=target, ids=ids)

    def _aligned(self, target_BW: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        if "word_ids" not in inputs:
            raise RefusedError(
                "token classes need a backbone whose preparation tells words apart (word_ids); "
                f"this one gives {', '.join(inputs)}"
            )
        return on_tokens(target_BW, inputs["word_ids"])

    def _inputs(self, epoch: int, positions: Sequence[int], index: Tensor) -> dict[str, Tensor]:
        """Prepared once and kept if nothing is drawn; moved into one tensor for all examples when none is missing."""
        if self.augment is not None or self.preparation.random:
            return self.preparation.collate(self._prepare(epoch, positions))
        if self.whole is not None:
            return {name: x.index_select(0, index) for name, x in self.whole.items()}
        missing = [position for position in positions if position not in self.kept]
        fresh = dict(zip(missing, self._prepare(epoch, missing), strict=True))
        found = [self.kept[position] if position in self.kept else fresh[position] for position in positions]
        if fresh and self.kept_bytes < KEEP_BYTES:
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

    def _prepare(self, epoch: int, positions: Sequence[int]) -> list[Mapping[str, Tensor]]:
        examples = [decode(self.modality, self.split.raw(position)) for position in positions]
        if self.tags_words:
            for example, position in zip(examples, positions, strict=True):
                self._check_words(example, position)
        if self.augment is not None:
            for place, position in enumerate(positions):
                with self._draws("augment", epoch, position):
                    examples[place] = self.augment(examples[place])
        if not self.preparation.random:
            return self.preparation.prepare(examples) if examples else []
        prepared: list[Mapping[str, Tensor]] = []
        for example, position in zip(examples, positions, strict=True):
            with self._draws("prepare", epoch, position):
                prepared += self.preparation.prepare([example])
        return prepared

    def _check_words(self, example: Any, position: int) -> None:
        num_tags = int((self.targets[position] != IGNORED).sum())
        num_words = len(example) if isinstance(example, list) else 0
        if num_words != num_tags:
            found = f"{num_words} words" if num_words else f"{type(example).__name__}, not a list of words,"
            raise UsageError(f"example {self.ids[position]} has {found} and {num_tags} tags; each word has one")

    def _draws(self, purpose: str, epoch: int, position: int) -> AbstractContextManager[None]:
        """Random numbers of one example, the same in whichever batch, process and thread it is prepared."""
        return example_rng(purpose, self.seed, epoch, self.ids[position])


def _checked_targets(split: Split, target: Target) -> Tensor:
    """The targets of a split: int64 [num] (classes), or float32 [num, C], 0 or 1 (multilabel) or finite (regression).

    For token classes int64 [num, W], one for each word, see `word_targets`.
    Raises UsageError for others. A loss would silently broadcast a column [num] to [num, num].
    """
    assert target.size is not None, "data that was opened knows its outputs"
    if target.kind == "token_classes":
        return word_targets(split.targets, target, split.ids)
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
        self.targets = _checked_targets(split, target)
        self._prepared = _Prepared(
            split=split,
            ids=split.ids,
            modality=modality,
            preparation=preparation,
            targets=self.targets,
            augment=augment,
            seed=seed,
            tags_words=target.kind == "token_classes",
        )
        self._num_workers = num_workers

    @property
    def num_batches(self) -> int:
        """The number of batches in one epoch."""
        return len(self._order(0))

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, which is counted from 0."""
        keys = [(epoch, positions) for positions in self._order(epoch)]
        ahead: Iterable[Batch | ZooError] = (self._prepared[key] for key in keys)
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
        for batch in ahead:
            if isinstance(batch, ZooError):
                raise batch
            yield self.on_device(batch)

    def on_device(self, batch: Batch) -> Batch:
        """A collated batch, moved to the device and normalised."""
        inputs = {name: x.to(self.device, non_blocking=True) for name, x in batch.inputs.items()}
        return Batch(
            inputs=self.preparation.normalise(inputs),
            target=batch.target.to(self.device, non_blocking=True),
            ids=batch.ids,
        )

    def _order(self, epoch: int) -> list[list[int]]:
        order = list(range(self.num))
        if self.shuffled:
            order = np.random.default_rng(derive_seed("order", self.seed, epoch)).permutation(self.num).tolist()
        batches = [order[start : start + self.batch_size] for start in range(0, self.num, self.batch_size)]
        if self.shuffled and len(batches) > 1 and len(batches[-1]) == 1:
            batches.pop()
        return batches
