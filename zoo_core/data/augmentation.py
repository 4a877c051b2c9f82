"""What is done to a decoded example at random before it is prepared."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from zoo_core.contracts import Modality
from zoo_core.errors import RefusedError, UsageError

__all__ = [
    "AUGMENTATIONS",
    "augmentation",
]

AUGMENTATIONS = ("none", "light", "strong")


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
