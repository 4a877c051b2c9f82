"""TaskData -> batches: draw and carve the splits, decode, augment, prepare, collate, normalise on the device.

The order of examples is a function of (seed, epoch, num) alone, and what augmentation draws one of (seed, epoch, id).
Where neither augmentation nor preparation draws anything, each example is prepared once and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo_core.contracts import Batch, Modality, Preparation, Raw, Split, Target, TaskData
from zoo_core.draws import draw_seed, example_draws
from zoo_core.errors import RefusedError, UsageError, ZooError
from zoo_core.pictures import open_picture, pixels
from zoo_core.processes import same_path
from zoo_core.sounds import open_sound
from zoo_core.words import IGNORED, on_tokens, word_targets

__all__ = ["AUGMENTATIONS", "Loader", "Splits", "Subset", "augmentation", "carve", "decode"]

AUGMENTATIONS = ("none", "light", "strong")
KEEP_BYTES = 2**30  # prepared examples kept in memory for each loader; beyond, they are prepared again each epoch
VALIDATION_SHARE = 0.2  # of the training split, where a task brings no validation split of its own


@dataclass(frozen=True)
class Subset:
    """Some examples of a split, in a given order. index: int64 [num] into the split."""

    split: Split
    index: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def num(self) -> int:
        return len(self.index)

    @property
    def targets(self) -> Any:
        found = self.split.targets
        if isinstance(found, list | tuple):  # of token classes one list for each example, of any length
            return [found[int(i)] for i in self.index]
        return np.asarray(found)[self.index]

    @property
    def groups(self) -> Any | None:
        return None if self.split.groups is None else np.asarray(self.split.groups)[self.index]

    @property
    def ids(self) -> Sequence[str]:
        ids = self.split.ids
        return [ids[int(i)] for i in self.index]

    def raw(self, index: int) -> Raw:
        return self.split.raw(int(self.index[index]))


@dataclass(frozen=True)
class Splits:
    """What a trial may see: train to fit, val to choose, and test, which is opened once, after the choice."""

    target: Target
    train: Split
    val: Split
    test: Split


def carve(data: TaskData, *, seed: int, shots: int | None = None, limit: int | None = None) -> Splits:
    """The splits of a trial: validation carved from train where the task brings none, then shots or limit drawn.

    shots: examples for each class that stay in train (classes only). limit: examples that stay in train.
    Both are drawn anew for each seed; the validation split depends on the task alone. Groups are never divided.
    """
    for name in ("train", "test"):
        if name not in data.splits:
            raise UsageError(f"the task has no {name} split; it has {', '.join(data.splits)}")
    train: Split = data.splits["train"]
    if "val" in data.splits:
        val: Split = data.splits["val"]
    else:
        kept, held = _held_out(train, data.target)
        train, val = Subset(train, kept), Subset(train, held)
    rng = np.random.default_rng(draw_seed("draw", seed))
    if shots is not None:
        train = Subset(train, _shots(train, data.target, shots, rng))
    if limit is not None and limit < train.num:
        train = Subset(train, np.sort(rng.permutation(train.num)[:limit]))
    return Splits(data.target, train, val, data.splits["test"])


def _held_out(train: Split, target: Target) -> tuple[Any, Any]:
    """Indices kept and held out: whole groups, each class by its share as nearly as groups allow.

    A group that holds the last examples of a class stays in train.
    """
    rng = np.random.default_rng(draw_seed("validation", train.num))
    groups = np.arange(train.num) if train.groups is None else np.unique(train.groups, return_inverse=True)[1]
    labels = np.zeros(train.num, dtype=np.int64)
    if target.kind == "classes":
        labels = np.unique(train.targets, return_inverse=True)[1]
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])  # rows of each group
    left = np.bincount(labels)  # examples of each class that are still in train
    wanted = left - np.round(VALIDATION_SHARE * left).astype(np.int64)
    held = np.zeros(train.num, dtype=bool)
    for label in range(len(left)):
        for group in rng.permutation(np.unique(groups[labels == label])):
            if left[label] <= wanted[label]:
                break
            rows = members[group]
            classes, counts = np.unique(labels[rows], return_counts=True)
            if not held[rows[0]] and (left[classes] > counts).all():
                held[rows] = True
                left[classes] -= counts
    if held.all() or not held.any():
        raise RefusedError(f"{train.num} training examples are too few to carve a validation split from")
    return np.flatnonzero(~held), np.flatnonzero(held)


def _shots(train: Split, target: Target, shots: int, rng: np.random.Generator) -> Any:
    if target.kind != "classes":
        raise RefusedError(f"shots={shots} needs classes and the target is {target.kind}; use limit=N")
    labels = np.asarray(train.targets)
    drawn = []
    for label in np.unique(labels):
        index = np.flatnonzero(labels == label)
        if len(index) < shots:
            name = target.names[label] if target.names else label
            raise RefusedError(f"shots={shots}, and class {name} has {len(index)} training examples")
        drawn.append(rng.permutation(index)[:shots])
    return np.sort(np.concatenate(drawn))


# -- one example: decode, augment -----------------------------------------------------------------------------------


def decode(modality: Modality, raw: Raw) -> Any:
    """A raw example in its modality's own form: an image as uint8 [C, H, W] with C 1 or 3; a table's row as it is.

    A text is a str, or a list of its words; a sound is {"array": float32 [N], "sampling_rate": Hz}, one channel, and
    may come as the path of a file, as `open_sound` reads them.
    An image may come as the path of a file, a PIL picture, or a uint8 array or tensor [H, W], [H, W, C]; alpha is
    dropped. The result is a copy: what is done to it leaves the task's own bytes alone.
    """
    if modality == "text":
        return _text(raw)
    if modality == "audio":
        return _sound(raw)
    if modality != "image":
        return raw
    array = raw.numpy() if isinstance(raw, Tensor) else np.asarray(_pixels(raw))
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise UsageError(f"an image is uint8 [H, W] or [H, W, C], found {array.dtype} {list(array.shape)}")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] not in (1, 3, 4):
        raise UsageError(f"an image has 1, 3 or 4 channels, found {array.shape[2]} as its last axis")
    if array.shape[2] == 4:
        array = array[:, :, :3]
    return torch.from_numpy(np.array(array, order="C").transpose(2, 0, 1))


def _text(raw: Raw) -> str | list[str]:
    if isinstance(raw, str):
        return raw
    if isinstance(raw, tuple):
        raise UsageError(f"a text is a str, or a list of words; pairs of texts are not read, found {raw!r:.60}")
    if not isinstance(raw, list) or not raw or not all(isinstance(word, str) for word in raw):
        raise UsageError(f"a text is a str, or a list of words, found {type(raw).__name__} {raw!r:.60}")
    return raw


def _sound(raw: Raw) -> dict[str, Any]:
    if isinstance(raw, str | Path):
        raw = open_sound(raw)
    if not isinstance(raw, Mapping) or not {"array", "sampling_rate"} <= raw.keys():
        raise UsageError(f'a sound is {{"array": float32 [N], "sampling_rate": Hz}}, found {type(raw).__name__}')
    array, rate = np.asarray(raw["array"]), raw["sampling_rate"]
    if array.ndim != 1 or not len(array) or array.dtype.kind != "f":
        raise UsageError(f"a sound is float [N], one channel of -1 to 1, found {array.dtype} {list(array.shape)}")
    if not isinstance(rate, int) or rate <= 0:
        raise UsageError(f"a sampling rate is a whole number of Hz, found {rate!r:.60}")
    if not np.isfinite(array).all():
        raise UsageError(f"sample {int(np.isfinite(array).argmin())} of a sound is not finite")
    return {"array": array.astype(np.float32), "sampling_rate": rate}


def _pixels(raw: Raw) -> Any:
    """Of a path or a PIL picture its pixels, of anything else itself."""
    if isinstance(raw, np.ndarray):
        return raw
    if isinstance(raw, str | Path):
        return open_picture(raw)
    from PIL import Image  # not needed by tasks whose examples are arrays

    return pixels(raw) if isinstance(raw, Image.Image) else raw


def augmentation(name: str, modality: Modality) -> Callable[[Tensor], Tensor] | None:
    """What a name of AUGMENTATIONS does to one image. It pickles into worker processes."""
    if name not in AUGMENTATIONS:
        raise UsageError(f"unknown augmentation {name!r}; there are {', '.join(AUGMENTATIONS)}")
    if name == "none":
        return None
    if modality != "image":
        raise RefusedError(f"augment={name} is for images, and the task is {modality}; use augment=none")
    return _light if name == "light" else _strong


def _light(image: Tensor) -> Tensor:
    """A random crop of 60 to 100 % of the area. No mirror images: a mirrored digit or letter is another one."""
    from torchvision.transforms import v2  # half a second to import, and most trials do not augment

    size = (int(image.shape[-2]), int(image.shape[-1]))
    cropped: Tensor = v2.RandomResizedCrop(size, scale=(0.6, 1.0), antialias=True)(image)
    return cropped


def _strong(image: Tensor) -> Tensor:
    """The crop of light, then TrivialAugmentWide and random erasing.

    Source: Mueller & Hutter 2021 (TrivialAugment); Zhong et al. 2017 (random erasing).
    """
    from torchvision.transforms import v2  # see _light

    found: Tensor = v2.RandomErasing(p=0.25)(v2.TrivialAugmentWide()(_light(image)))
    return found


# -- batches --------------------------------------------------------------------------------------------------------


@dataclass
class _Prepared(Dataset[Batch | ZooError]):
    """Batches by lists of positions: `prepared[(epoch, positions)]`, on the CPU and before normalisation."""

    split: Split
    ids: Sequence[str]
    modality: Modality
    preparation: Preparation
    targets: Tensor
    augment: Callable[[Tensor], Tensor] | None
    seed: int
    tags_words: bool = False  # whether the targets are of words, int64 [num, W]
    kept: dict[int, Mapping[str, Tensor]] = field(default_factory=dict)
    kept_bytes: int = 0
    whole: dict[str, Tensor] | None = None

    def __getitem__(self, key: tuple[int, Sequence[int]]) -> Batch | ZooError:
        """A batch, or what is wrong with it: raised in a worker process, its one line would come with a traceback."""
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
        """Prepared once and kept, where nothing is drawn; in one tensor for all as soon as none is missing."""
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
        """Puts all examples into one tensor for each input, where their shapes agree and none is missing."""
        if len(self.kept) < self.split.num:
            return
        examples = [self.kept[position] for position in range(self.split.num)]
        shapes = {tuple((name, x.shape) for name, x in sorted(example.items())) for example in examples}
        if len(shapes) == 1:
            self.whole = self.preparation.collate(examples)
            self.kept.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept: a worker process is sent little, and keeps its own."""
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
        """One example's own random numbers, whichever batch, process and thread it is prepared in."""
        return example_draws(purpose, self.seed, epoch, self.ids[position])


def _checked_targets(split: Split, target: Target) -> Tensor:
    """The targets of a split: int64 [num] (classes), or float32 [num, C], 0 or 1 (labels) or finite (values).

    Of token classes int64 [num, W], of the words, see `word_targets`.

    Raises UsageError for others: a column [num] would be broadcast to [num, num] by a loss, in silence.
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
        "labels": ("0 or 1", np.isin(found, (0, 1))),
        "values": ("finite", np.isfinite(found)),
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
        augment: str = "none",
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
            augment=augmentation(augment, modality),
            seed=seed,
            tags_words=target.kind == "token_classes",
        )
        self._num_workers = num_workers

    @property
    def num_batches(self) -> int:
        """Batches of one epoch."""
        return len(self._order(0))

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, counted from 0."""
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
        """A collated batch moved and normalised."""
        inputs = {name: x.to(self.device, non_blocking=True) for name, x in batch.inputs.items()}
        return Batch(
            inputs=self.preparation.normalise(inputs),
            target=batch.target.to(self.device, non_blocking=True),
            ids=batch.ids,
        )

    def _order(self, epoch: int) -> list[list[int]]:
        order = list(range(self.num))
        if self.shuffled:
            order = np.random.default_rng(draw_seed("order", self.seed, epoch)).permutation(self.num).tolist()
        batches = [order[start : start + self.batch_size] for start in range(0, self.num, self.batch_size)]
        if self.shuffled and len(batches) > 1 and len(batches[-1]) == 1:
            batches.pop()
        return batches
