"""Preparations that backbones of several plugins share: an image resized and normalised, a row of a table."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zoo_core.errors import UsageError

__all__ = ["ImagePreparation", "TablePreparation"]


def _digest(value: Any) -> str:
    return hashlib.sha256(repr((type(value).__name__, sorted(asdict(value).items()))).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class ImagePreparation:
    """uint8 [C, H, W] -> resized to a square, three channels, then normalised with the weights' own mean and std.

    size: side in pixels. mean, std: per channel, in units of 0 to 1. One channel is repeated to three.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @property
    def digest(self) -> str:
        return _digest(self)

    @property
    def random(self) -> bool:
        return False

    def prepare(self, examples: Sequence[Tensor]) -> list[Mapping[str, Tensor]]:
        """Resizes examples of one size together; `pixel_values` is uint8 [1 or 3, size, size]."""
        prepared: list[Mapping[str, Tensor] | None] = [None] * len(examples)
        by_shape: dict[torch.Size, list[int]] = {}
        for position, image in enumerate(examples):
            by_shape.setdefault(image.shape, []).append(position)
        for positions in by_shape.values():
            resized = self._resize(torch.stack([examples[position] for position in positions]))
            for position, image in zip(positions, resized.unbind(), strict=True):
                prepared[position] = {"pixel_values": image}
        return [example for example in prepared if example is not None]

    def collate(self, prepared: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        images = [example["pixel_values"] for example in prepared]
        if len({image.shape[0] for image in images}) > 1:
            images = [image.expand(3, -1, -1) for image in images]
        return {"pixel_values": torch.stack(images)}

    def normalise(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """uint8 [B, 1 or 3, H, W] -> float32 [B, 3, H, W]."""
        x = inputs["pixel_values"]
        mean = torch.tensor(self.mean, device=x.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=x.device).view(3, 1, 1)
        return {"pixel_values": (x.float() / 255 - mean) / std}

    def dummy(self, batch_size: int) -> dict[str, Tensor]:
        return {"pixel_values": torch.zeros(batch_size, 3, self.size, self.size)}

    def _resize(self, images_BCHW: Tensor) -> Tensor:
        if images_BCHW.shape[-2:] == (self.size, self.size):
            return images_BCHW
        resized = nn.functional.interpolate(
            images_BCHW.float(),
            size=(self.size, self.size),
            mode=self.interpolation,
            antialias=True,
            align_corners=False,
        )
        return resized.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class TablePreparation:
    """A row of numbers -> `numeric` float32 [N].

    max_columns: most columns that the backbone takes; a wider row is refused.
    """

    max_columns: int

    @property
    def digest(self) -> str:
        return _digest(self)

    @property
    def random(self) -> bool:
        return False

    def prepare(self, examples: Sequence[Any]) -> list[Mapping[str, Tensor]]:
        return [{"numeric": self._row(example)} for example in examples]

    def _row(self, example: Any) -> Tensor:
        try:
            given = example.numpy() if isinstance(example, Tensor) else example
            row = np.array(given, dtype=np.float32)  # a copy: the task's own may be read-only
        except (TypeError, ValueError) as error:
            raise UsageError(f"a row holds numbers: {error}") from error
        if row.ndim != 1 or not 1 <= len(row) <= self.max_columns:
            raise UsageError(f"a row has shape {list(row.shape)}; allowed: [N] with N up to {self.max_columns}")
        if not np.isfinite(row).all():
            raise UsageError(f"column {int(np.isfinite(row).argmin())} of a row is not finite; fill in what is missing")
        return torch.from_numpy(row)

    def collate(self, prepared: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        rows = [example["numeric"] for example in prepared]
        widths = sorted({len(row) for row in rows})
        if len(widths) > 1:
            raise UsageError(f"rows have {widths[0]} and {widths[-1]} columns; all rows of a table have the same")
        return {"numeric": torch.stack(rows)}

    def normalise(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(inputs)

    def dummy(self, batch_size: int) -> dict[str, Tensor]:
        return {"numeric": torch.zeros(batch_size, self.max_columns)}
