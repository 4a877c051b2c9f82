"""Decodes raw examples into the form of their modality: pixels, samples, text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo_core.contracts import Modality, Raw
from zoo_core.errors import UsageError
from zoo_core.toolkit.pictures import open_picture, pixels
from zoo_core.toolkit.sounds import open_sound

__all__ = [
    "decode",
]


# -- one example: decode, augment -----------------------------------------------------------------------------------


def decode(modality: Modality, raw: Raw) -> Any:
    """A raw example in the form of its modality: an image as uint8 [C, H, W] with C 1 or 3, a table's row as it is.

    A text is a str or a list of its words. A sound is {"array": float32 [N], "sampling_rate": Hz} with one channel, or
    the path of a file, which `open_sound` reads. An image may be the path of a file, a PIL picture, or a uint8 array or
    tensor [H, W] or [H, W, C]; alpha is dropped. The result is a copy, so changes to it do not affect the task's own
    data.
    """
    if modality == "text":
        return _checked_text(raw)
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


def _checked_text(raw: Raw) -> str | list[str]:
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
    """The pixels of a path or a PIL picture. Anything else is returned as it is."""
    if isinstance(raw, np.ndarray):
        return raw
    if isinstance(raw, str | Path):
        return open_picture(raw)
    from PIL import Image  # not needed by tasks whose examples are arrays

    return pixels(raw) if isinstance(raw, Image.Image) else raw
