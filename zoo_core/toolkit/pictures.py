"""Pictures as people have them, files and PIL's objects of every mode, to pixels of 8 bits in grey or colour."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from zoo_core.errors import AccessError, NotFoundError, UsageError

__all__ = ["open_picture", "pixels"]

_ORIENTATION = 0x0112  # the EXIF tag; PIL's own exif_transpose also writes the data anew, and fails where they are odd


def open_picture(file: str | Path) -> Any:
    """The pixels of a file, as `pixels` gives them.

    Raises NotFoundError, AccessError, and UsageError for what is no picture or a damaged one.
    """
    from PIL import Image  # not needed by tasks whose examples are arrays

    try:
        with Image.open(file) as picture:
            return pixels(picture, label=str(file))
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {file}") from error
    except PermissionError as error:
        raise AccessError(f"{file} may not be read; change its rights") from error
    # PIL raises all of these for damaged files, by format and by what is damaged.
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise UsageError(f"{file} is not a picture that can be read: {error}") from error


def pixels(picture: Any, *, label: str = "a picture") -> np.ndarray[Any, Any]:
    """uint8 [H, W] or [H, W, 3] of a PIL picture, the way up that its EXIF data say.

    16 bits of grey are scaled to 8, where PIL would clip them.
    label: what errors call it. Raises UsageError for pixels of 32 bits, and what PIL raises for a damaged file.
    """
    picture.load()  # so that what is damaged is found here: PIL looks for EXIF data by loading, and only once
    picture = _upright(picture)
    if picture.mode.startswith("I;16"):
        return ((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8)
    if picture.mode in ("I", "F"):
        raise UsageError(f"{label} has pixels of 32 bits, whose range is unknown; save it with 8 or 16 bits")
    if isinstance(picture.info.get("transparency"), bytes):  # of a palette; PIL warns of what convert would do to it
        picture = picture.convert("RGBA")
    return np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))


def _upright(picture: Any) -> Any:
    """The picture turned as its EXIF orientation says; EXIF data that cannot be read turn nothing."""
    from PIL import Image

    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error):
        return picture
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return picture.transpose(turns[orientation]) if orientation in turns else picture
