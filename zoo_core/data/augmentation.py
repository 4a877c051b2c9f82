"""What is done to a decoded example at random before it is prepared: the core's own augmentations, and how any runs.

The recipes are light; torch is imported where they draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from zoo_core.contracts import Modality, TargetKind
from zoo_core.registry.bind import Bound
from zoo_core.registry.recipe_checks import broken, plugin_call

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Augment", "Flip", "Light", "Strong", "WordDropout"]

PICTURES: frozenset[Modality] = frozenset({"image"})
TEXTS: frozenset[Modality] = frozenset({"text"})
# Targets of an example, and not of its words.
OF_WHOLE: frozenset[TargetKind] = frozenset({"classes", "multilabel", "regression"})


@dataclass(frozen=True)
class Augment:
    """An augmentation as a loader calls it, for one decoded example. It pickles into worker processes."""

    part: Bound

    def __call__(self, example: Any) -> Any:
        """The changed example. Raises PluginError, which names the augmentation, for whatever goes wrong in it."""
        with plugin_call(self.part):
            found = self.part.recipe.augment(example)
        if not isinstance(found, type(example)):
            raise broken(self.part, f"augment turned {type(example).__name__} into {type(found).__name__}")
        return found


@dataclass(frozen=True, kw_only=True)
class Light:
    """A random crop of 60 to 100 % of a picture's area. No mirror images: a mirrored digit or letter is another one."""

    version: ClassVar[int] = 1
    modalities: ClassVar[frozenset[Modality]] = PICTURES
    targets: ClassVar[frozenset[TargetKind]] = OF_WHOLE

    def augment(self, example: Tensor) -> Tensor:
        from torchvision.transforms import v2  # half a second to import, and most trials do not augment

        size = (int(example.shape[-2]), int(example.shape[-1]))
        cropped: Tensor = v2.RandomResizedCrop(size, scale=(0.6, 1.0), antialias=True)(example)
        return cropped


@dataclass(frozen=True, kw_only=True)
class Strong:
    """The crop of light, then TrivialAugmentWide and random erasing.

    Source: Mueller & Hutter 2021 (TrivialAugment); Zhong et al. 2017 (random erasing).
    """

    version: ClassVar[int] = 1
    modalities: ClassVar[frozenset[Modality]] = PICTURES
    targets: ClassVar[frozenset[TargetKind]] = OF_WHOLE

    def augment(self, example: Tensor) -> Tensor:
        from torchvision.transforms import v2  # see Light

        found: Tensor = v2.RandomErasing(p=0.25)(v2.TrivialAugmentWide()(Light().augment(example)))
        return found


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A picture or its mirror image, left and right exchanged. Not for digits and letters.

    p: share of the pictures that are mirrored.
    """

    p: float = 0.5

    version: ClassVar[int] = 1
    modalities: ClassVar[frozenset[Modality]] = PICTURES
    targets: ClassVar[frozenset[TargetKind]] = OF_WHOLE

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p is a share, 0 to 1, found {self.p}")

    def augment(self, example: Tensor) -> Tensor:
        import torch

        return example.flip(-1) if float(torch.rand(())) < self.p else example


@dataclass(frozen=True, kw_only=True)
class WordDropout:
    """A text without some of its words, which white space parts; one word is always left.

    p: share of the words that are left out.
    Source: Wei & Zou 2019 (EDA), random deletion.
    """

    p: float = 0.1

    version: ClassVar[int] = 1
    modalities: ClassVar[frozenset[Modality]] = TEXTS
    targets: ClassVar[frozenset[TargetKind]] = OF_WHOLE  # the classes of words would belong to words that are gone

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise ValueError(f"p is a share, 0 or more and less than 1, found {self.p}")

    def augment(self, example: str | list[str]) -> str | list[str]:
        import torch

        words = example.split() if isinstance(example, str) else example
        if len(words) < 2:
            return example
        kept = torch.rand(len(words)) >= self.p
        if not kept.any():
            kept[torch.randint(len(words), ())] = True
        if kept.all():
            return example  # with the white space that it has
        found = [word for word, stays in zip(words, kept.tolist(), strict=True) if stays]
        return " ".join(found) if isinstance(example, str) else found
