"""The recipes of what is no part of a spec: how a task or features are scored, examples varied, what a path stands for.

Like all recipes they are frozen, keyword-only dataclasses that an entry point names, and their fields are the arguments
that a user may write. Their groups are `zoo.metrics`, `zoo.augmentations`, `zoo.readers` and `zoo.scores`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from zoo_core.contracts.values import Target
from zoo_core.contracts.vocabulary import Modality, TargetKind

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AugmentationRecipe", "MetricRecipe", "ReaderRecipe", "ScoreRecipe"]


class MetricRecipe(Protocol):
    """What predictions of a whole split are worth, as one number. A task names it, with arguments if it has any.

    targets: the kinds of target that it is for. higher_is_better: of two scores the larger is the better one.
    """

    version: ClassVar[int]
    targets: ClassVar[frozenset[TargetKind]]
    higher_is_better: ClassVar[bool]

    def score(self, predictions: Tensor, truth: Tensor, target: Target) -> float:
        """The score of a split.

        predictions: float32 [N, C] on the CPU, logits of classes and labels; of token classes [N, W, C], of words.
        truth: int64 [N], float32 [N, C], or of token classes int64 [N, W] with -100 where there is no word.
        target: the kind, the size and the names of the outputs.
        A number that is not finite says that the metric is not defined on these examples.
        """
        ...


class AugmentationRecipe(Protocol):
    """A random change of one decoded example before the backbone's preparation; only training examples are changed.

    modalities: of the examples that it changes. targets: the kinds of target that stay true when it has changed one.
    """

    version: ClassVar[int]
    modalities: ClassVar[frozenset[Modality]]
    targets: ClassVar[frozenset[TargetKind]]

    def augment(self, example: Any) -> Any:
        """The changed example, of the same type; the one that was given stays as it is.

        example: a picture as uint8 [C, H, W] with C 1 or 3, a text as str or as a list of its words, a sound as
        {"array": float32 [N], "sampling_rate": Hz}, a row of a table as its task gives it.
        It draws by torch alone and without a generator of its own: each example draws from (seed, epoch, id), whatever
        batch or process it is prepared in.
        """
        ...


class ReaderRecipe(Protocol):
    """What a path stands for where a task is expected.

    suffixes: of files that it reads, in lower case and with their dot; it also reads a folder that holds such files.
    below: of files that it reads wherever they lie below a folder, as pictures in a folder for each class.
    names: of files by which it knows a folder of whose files no suffix tells anything.
    """

    version: ClassVar[int]
    suffixes: ClassVar[frozenset[str]]
    below: ClassVar[frozenset[str]]
    names: ClassVar[frozenset[str]]

    def task(self, path: Path, files: Sequence[str]) -> str | None:
        """The task that the path stands for, as a part of a spec without its `path`, which is added; None: no task.

        path: a file or a folder. files: names of the file itself, or of those in the folder that told of this reader.
        It looks at names alone, or at the first bytes of a file: it is asked whenever a command is given a path.
        """
        ...


class ScoreRecipe(Protocol):
    """How well features of a frozen backbone suit a target, told without training; `zoo rank` orders backbones by it.

    targets: the kinds of target that it is for. Higher is better.
    """

    version: ClassVar[int]
    targets: ClassVar[frozenset[TargetKind]]

    def judge(self, features: Tensor, truth: Tensor, target: Target) -> Tensor:
        """What each example says, float [N], or one number for all of them, float [].

        features: float64 [N, D] on the CPU, finite and not all equal; not to be changed.
        truth: int64 [N] (classes), or float64 [N, C], 0 or 1 (multilabel) or finite (regression).
        target: the kind, the size and the names of the outputs.
        [N]: the score is the mean, as a share of examples that were predicted rightly. Nothing that is learned may
        predict the example that it was learned from. Its interval comes from the spread of these values.
        []: the score is this number. Its interval comes from more calls, each on nine tenths of the examples, so it
        must mean the same for any number of them.
        Two calls give the same; what is not finite says that the score is not defined on these examples.
        """
        ...
