"""Adds `transform`, `collate` and `feature_dim` to every backbone, for a training loop of your own.

`transform(train=...)` returns a callable for one raw item, as data sets of torchvision take it. `collate` makes a batch
of its results, as a DataLoader takes it. Both use the backbone's preparation, so no plugin writes them, and both can be
pickled into worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import numpy as np
import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch, Modality, Preparation, Raw, as_backbone
from zoo_core.data.augmentation import Light
from zoo_core.data.decoding import decode
from zoo_core.data.token_labels import IGNORED, on_tokens
from zoo_core.errors import PluginError, UsageError

if TYPE_CHECKING:
    from zoo_core.contracts import LoadedBackbone

__all__ = ["BesideCollate", "BesideTransform", "Collate", "Transform", "Transforms", "with_transforms"]

BESIDE = "\0"  # between a teacher and the name of one of its inputs; no name of a file or an input holds it
NAMES = ("transform", "collate", "feature_dim")
Example = Mapping[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Transform:
    """Turns one raw item into one prepared example, compact (uint8, int64) and without a batch axis.

    A raw item is what `zoo_core.data.decoding.decode` takes: a picture as a path, PIL picture or uint8 array; a text; a
    row of numbers. augment: draws from torch's global generator, which a DataLoader seeds in each worker.
    """

    modality: Modality
    preparation: Preparation
    augment: Callable[[Tensor], Tensor] | None = None

    def __call__(self, raw: Raw) -> Example:
        return self.preparation.prepare([self.example(raw)])[0]

    def example(self, raw: Raw) -> Any:
        """The item decoded, and augmented where it is for training, before any preparation."""
        example = decode(self.modality, raw)
        return example if self.augment is None else self.augment(example)


@dataclass(frozen=True)
class Transforms:
    """`backbone.transform`: returns the transform for training, or the one for everything else."""

    modality: Modality
    preparation: Preparation

    def __call__(self, *, train: bool = False) -> Transform:
        """train: with a random crop of each picture, 60 to 100 % of its area; nothing is drawn for other items."""
        draws = train and self.modality == "image"
        return Transform(self.modality, self.preparation, Light().augment if draws else None)


@dataclass(frozen=True)
class Collate:
    """`backbone.collate`: turns prepared examples into inputs, or (example, target) pairs into a Batch, on the CPU.

    The result is normalised. A target is a whole number (classes), a list of 0 or 1 (multilabel), a list or array of
    numbers (regression), or, for a list of words, the list of their classes. Raises UsageError for any other.
    """

    preparation: Preparation

    @overload
    def __call__(self, items: Sequence[tuple[Example, Any]]) -> Batch: ...
    @overload
    def __call__(self, items: Sequence[Example]) -> dict[str, Tensor]: ...
    def __call__(self, items: Sequence[Any]) -> Batch | dict[str, Tensor]:
        if not items or not all(isinstance(item, tuple | list) for item in items):
            return self._inputs(items)
        inputs = self._inputs([example for example, _ in items])
        return Batch(inputs=inputs, target=_targets([target for _, target in items], inputs))

    def _inputs(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        if not examples or not all(isinstance(example, Mapping) for example in examples):
            found = type(examples[0]).__name__ if examples else "none"
            raise UsageError(f"collate takes what backbone.transform() gives, alone or with a target, found {found}")
        return self.preparation.normalise(self.preparation.collate(examples))


@dataclass(frozen=True)
class BesideTransform:
    """`learner.transform` where teachers look on: the item is decoded and augmented once, and prepared for each.

    preparations: of the teachers, by Teacher.of. What they read is held under names of its own, which collate parts.
    """

    own: Transform
    preparations: Mapping[str, Preparation]

    def __call__(self, raw: Raw) -> Example:
        example = self.own.example(raw)
        found = dict(self.own.preparation.prepare([example])[0])
        for of, preparation in self.preparations.items():
            found |= {f"{of}{BESIDE}{name}": x for name, x in preparation.prepare([example])[0].items()}
        return found


@dataclass(frozen=True)
class BesideCollate:
    """`learner.collate` where teachers look on: a Batch whose `beside` holds what each of them reads."""

    own: Collate
    preparations: Mapping[str, Preparation]

    def __call__(self, items: Sequence[Any]) -> Batch | dict[str, Tensor]:
        if not items or not all(isinstance(item, tuple | list) for item in items):
            inputs: dict[str, Tensor] = self.own([_of(item, "") for item in items])
            return inputs
        batch: Batch = self.own([(_of(example, ""), target) for example, target in items])
        beside = {}
        for of, preparation in self.preparations.items():
            read = [_of(example, f"{of}{BESIDE}") for example, _ in items]
            if all(read):  # else some come of the backbone's own transform, and the loss says that no teacher saw them
                beside[of] = preparation.normalise(preparation.collate(read))
        return replace(batch, beside=beside)


def _of(example: Any, owner: str) -> Any:
    """The part of a prepared example that one network reads. owner: what its names begin with, empty: the student."""
    if not isinstance(example, Mapping):
        return example  # collate says what is wrong with it
    if not owner:
        return {name: x for name, x in example.items() if BESIDE not in name}
    return {name.removeprefix(owner): x for name, x in example.items() if name.startswith(owner)}


def with_transforms(backbone: Module) -> Module:
    """Adds `transform`, `collate` and `feature_dim` to the backbone, and returns it.

    They refer only to its preparation, so that a copy of the backbone has its own. Raises PluginError if the backbone's
    class uses one of these names for something else.
    """
    taken = [name for name in NAMES if name in dir(type(backbone)) or name in backbone._modules]
    if taken:
        raise PluginError(f"{type(backbone).__name__} has a {taken[0]} of its own; zoo-core gives each backbone that")
    source = as_backbone(backbone)
    loaded = cast("LoadedBackbone", backbone)
    loaded.transform = Transforms(source.modality, source.preparation)
    loaded.collate = Collate(source.preparation)
    loaded.feature_dim = source.features.width("pooled")
    return backbone


def _targets(given: Sequence[Any], inputs: Example) -> Tensor:
    """int64 [B] of classes, float32 [B, C] of multilabel and regression, int64 [B, T] of the classes of words."""
    try:
        rows = [x.cpu() if isinstance(x, Tensor) else torch.from_numpy(np.array(x)) for x in given]
        if "word_ids" in inputs and rows[0].ndim == 1 and not rows[0].is_floating_point():
            words_BW = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
            return on_tokens(words_BW.long(), inputs["word_ids"])
        found = torch.stack(rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"targets of a batch are numbers, as many for each example: {error}") from error
    if found.ndim == 0 or found.ndim > 2:
        raise UsageError(f"a target is a number or a list of them, found shape {list(found.shape[1:])}")
    if found.ndim == 1 and not found.is_floating_point():
        return found.long()
    return found.reshape(len(found), -1).float()
