"""Preparations that several plugins share: resizing and normalising pictures, and rows of a table."""

from __future__ import annotations

import hashlib
import math
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
    """Resizes and crops uint8 [C, H, W] to three channels, then normalises with the weights' own mean and std.

    size: the side in pixels, or (height, width). mean, std: per channel, for values of 0 to 1. A single channel is
    repeated three times.
    crop_pct: the share of each side of the resized picture that the central crop keeps.
    crop_mode: how the picture is resized to size / crop_pct. squash: to both sides, whatever its shape. center: so that
    the shorter side fits, and the rest of the longer one is cut off. border: so that the longer side fits, and the rest
    is filled with the mean.
    crop_offset: if the centre lies between two pixels, the crop begins at the even one (torchvision) or at the first
    (transformers).
    Source: timm 1.0.31, timm/data/transforms_factory.py, transforms_imagenet_eval; transformers 5.23,
    image_processing_backends.py, center_crop.
    """

    size: int | tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop_pct: float = 1.0
    crop_mode: Literal["squash", "center", "border"] = "squash"
    crop_offset: Literal["even", "first"] = "even"

    @property
    def digest(self) -> str:
        return _digest(self)

    @property
    def random(self) -> bool:
        return False

    def prepare(self, examples: Sequence[Tensor]) -> list[Mapping[str, Tensor]]:
        """Resizes examples, those of one size together. `pixel_values` is uint8 [1 or 3, height, width]."""
        prepared: list[Mapping[str, Tensor] | None] = [None] * len(examples)
        by_shape: dict[torch.Size, list[int]] = {}
        for position, image in enumerate(examples):
            _check_picture(image)
            by_shape.setdefault(image.shape, []).append(position)
        for positions in by_shape.values():
            resized = self._cropped(self._resized(torch.stack([examples[position] for position in positions])))
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
        return {"pixel_values": torch.zeros(batch_size, 3, *self._size())}

    def _size(self) -> tuple[int, int]:
        """Height and width of what the backbone sees."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width before the crop of a picture of that height and width."""
        scaled = tuple(math.floor(side / self.crop_pct) for side in self._size())
        if self.crop_mode == "squash":
            return scaled[0], scaled[1]
        if self.crop_mode == "center" and scaled[0] == scaled[1]:  # torchvision's way, which rounds down
            short, long = sorted((height, width))
            longer = int(scaled[0] * long / short)
            return (scaled[0], longer) if height <= width else (longer, scaled[0])
        ratios = height / scaled[0], width / scaled[1]
        ratio = min(ratios) if self.crop_mode == "center" else max(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _resized(self, images_BCHW: Tensor) -> Tensor:
        size = self._resized_size(images_BCHW.shape[2], images_BCHW.shape[3])
        if images_BCHW.shape[-2:] == size:
            return images_BCHW
        resized = nn.functional.interpolate(
            images_BCHW.float(), size=size, mode=self.interpolation, antialias=True, align_corners=False
        )
        return resized.round().clamp(0, 255).to(torch.uint8)

    def _cropped(self, images_BCHW: Tensor) -> Tensor:
        """The centre of the pictures; what is smaller is surrounded by the mean (border) or by black."""
        height, width = self._size()
        lacking = [max(0, height - images_BCHW.shape[2]), max(0, width - images_BCHW.shape[3])]
        if any(lacking):
            images_BCHW = self._surrounded(images_BCHW, *lacking)
        over = [found - kept for found, kept in zip(images_BCHW.shape[2:], self._size(), strict=True)]
        top, left = (side // 2 if self.crop_offset == "first" else round(side / 2) for side in over)
        return images_BCHW[:, :, top : top + height, left : left + width]

    def _surrounded(self, images_BCHW: Tensor, rows: int, columns: int) -> Tensor:
        """The pictures with so many more rows and columns; three channels, since each has its own mean."""
        images_BCHW = images_BCHW.expand(-1, 3, -1, -1)
        fill = [round(255 * value) if self.crop_mode == "border" else 0 for value in self.mean]
        batch, _, height, width = images_BCHW.shape
        framed = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1).repeat(batch, 1, height + rows, width + columns)
        framed[:, :, rows // 2 : rows // 2 + height, columns // 2 : columns // 2 + width] = images_BCHW
        return framed


def _check_picture(image: object) -> None:
    """Raises UsageError unless this is a decoded picture. Floats of 0 to 1 would come out black."""
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] in (1, 3):
        return
    found = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
    raise UsageError(
        f"prepare takes uint8 tensors [1 or 3, H, W], found {found}; zoo_core.data.decoding.decode makes them"
    )


@dataclass(frozen=True, kw_only=True)
class TablePreparation:
    """Turns a row of numbers into `numeric`, float32 [N].

    max_columns: the largest number of columns that the backbone takes. A wider row is refused.
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
