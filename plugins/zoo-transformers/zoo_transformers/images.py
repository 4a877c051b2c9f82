"""preprocessor_config.json of an image model as the core's ImagePreparation, read by a schema of ours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from zoo_core.errors import IncompatibleError, IntegrityError
from zoo_core.toolkit.preparations import ImagePreparation
from zoo_transformers.configuration import read_json

__all__ = ["image_preparation"]

RESAMPLE: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


def image_preparation(path: Path) -> ImagePreparation:
    """How a repository prepares its images.

    Raises IncompatibleError for a way that gives no fixed size or that ImagePreparation has not, IntegrityError for
    values of the wrong kind.
    """
    table = read_json(path)
    resample = table.get("resample", 2)
    if type(resample) is not int or resample not in RESAMPLE:
        raise IncompatibleError(f"{path} resizes with filter {resample!r}; hf reads 2 (bilinear) and 3 (bicubic)")
    factor = table.get("rescale_factor", 1 / 255)
    if table.get("do_rescale", True) is not True or type(factor) is not float or abs(factor * 255 - 1) > 1e-4:
        raise IncompatibleError(f"{path} does not scale pixels to 0 to 1; hf reads rescale_factor 1/255")
    mean, std = (0.0,) * 3, (1.0,) * 3
    if table.get("do_normalize", True):
        mean, std = _channels(path, table, "image_mean"), _channels(path, table, "image_std")
    size, crop_pct, crop_mode = _sides(path, table)
    return ImagePreparation(
        size=size,
        mean=mean,
        std=std,
        interpolation=RESAMPLE[resample],
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        crop_offset="first",
    )


def _sides(
    path: Path, table: dict[str, Any]
) -> tuple[int | tuple[int, int], float, Literal["squash", "center", "border"]]:
    """Height and width of what the model sees, the share that the crop keeps, and how the picture is resized to it."""
    size = table.get("size")
    crops = table.get("do_center_crop", False) is True
    if isinstance(size, int):  # older files; those that crop meant the shorter side
        size = {"shortest_edge": size} if crops else {"height": size, "width": size}
    if table.get("do_resize", True) is not True or not isinstance(size, dict):
        raise IncompatibleError(f"{path} names no size that pictures are resized to; hf needs one")
    if crops:
        crop = table.get("crop_size")
        height, width = _pair(path, {"height": crop, "width": crop} if isinstance(crop, int) else crop)
        if "shortest_edge" in size:
            return _side(height, width), _share(height, _whole(path, size["shortest_edge"])), "center"
        resized, _ = _pair(path, size)
        return _side(height, width), _share(height, resized), "squash"
    if "height" not in size:
        raise IncompatibleError(f"{path} keeps the shape of pictures without a crop ({size}); hf needs a fixed size")
    return _side(*_pair(path, size)), 1.0, "squash"


def _side(height: int, width: int) -> int | tuple[int, int]:
    return height if height == width else (height, width)


def _share(kept: int, resized: int) -> float:
    """kept / resized, such that kept divided by it is not below resized."""
    share = kept / resized
    return share if math.floor(kept / share) == resized else math.nextafter(share, 0)


def _pair(path: Path, sides: Any) -> tuple[int, int]:
    if not isinstance(sides, dict):
        raise IntegrityError(f"{path}: a size is a table of height and width, found {sides!r:.60}")
    return _whole(path, sides.get("height")), _whole(path, sides.get("width"))


def _whole(path: Path, value: Any) -> int:
    if type(value) is not int or not 0 < value < 10_000:
        raise IntegrityError(f"{path}: a side is a whole number of pixels, found {value!r:.60}")
    return value


def _channels(path: Path, table: dict[str, Any], key: str) -> tuple[float, float, float]:
    found = table.get(key)
    if not isinstance(found, list) or len(found) != 3 or not all(type(value) in (int, float) for value in found):
        raise IntegrityError(f"{path}: {key} is a list of three numbers, found {found!r:.60}")
    red, green, blue = map(float, found)
    return red, green, blue
