"""Sounds as people have them, WAV files, to samples of -1 to 1 in one channel.

By hand and not by the standard library's `wave`, which before Python 3.12 knows neither floats nor the extensible form
that recorders write for 24 bits; other formats need a decoder of their own, which nothing here brings.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from zoo_core.errors import AccessError, NotFoundError, UsageError

__all__ = ["open_sound"]

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
UNKNOWN_SIZE = 0xFFFFFFFF  # what a program writes that cannot go back to its header; the sound lasts to the end
DEPTHS = {PCM: (8, 16, 24, 32), FLOAT: (32, 64)}


def open_sound(file: str | Path) -> dict[str, Any]:
    """{"array": float32 [N], "sampling_rate": Hz} of a WAV file; several channels become their mean.

    Raises NotFoundError, AccessError, and UsageError for what is no WAV file or a damaged one.
    Source: Microsoft & IBM 1991, "Multimedia Programming Interface and Data Specifications 1.0", WAVE; mmreg.h.
    """
    try:
        content = Path(file).read_bytes()
        rate, array = _decoded(content)
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {file}") from error
    except PermissionError as error:
        raise AccessError(f"{file} may not be read; change its rights") from error
    except (OSError, ValueError, struct.error) as error:
        raise UsageError(f"{file} is not a sound that can be read: {error}") from error
    return {"array": array, "sampling_rate": rate}


def _decoded(content: bytes) -> tuple[int, np.ndarray[Any, np.dtype[np.float32]]]:
    """Rate and samples. Raises ValueError and struct.error for what is no sound."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise ValueError("no WAV file; other formats are to be converted, as with `ffmpeg -i FILE FILE.wav`")
    chunks = _chunks(content)
    if b"fmt " not in chunks or b"data" not in chunks:
        raise ValueError("a WAV file without its chunks fmt and data")
    form, channels, rate, _, _, bits = struct.unpack("<HHIIHH", chunks[b"fmt "][:16])
    if form == EXTENSIBLE:
        form = struct.unpack("<H", chunks[b"fmt "][24:26])[0]
    if form not in DEPTHS or bits not in DEPTHS[form] or not channels or not rate:
        raise ValueError(f"format {form} with {bits} bits, {channels} channels at {rate} Hz; allowed: PCM or floats")
    data = chunks[b"data"]
    frame = channels * bits // 8
    data = data[: len(data) // frame * frame]
    if not data:
        raise ValueError("a sound without samples")
    return rate, _samples(data, form, bits).reshape(-1, channels).mean(axis=1).astype(np.float32)


def _chunks(content: bytes) -> dict[bytes, bytes]:
    """The first chunk of each name. Raises ValueError for a file that ends before its samples do."""
    found: dict[bytes, bytes] = {}
    start = 12
    while start + 8 <= len(content):
        name, size = struct.unpack("<4sI", content[start : start + 8])
        chunk = content[start + 8 : start + 8 + size]
        if name == b"data" and len(chunk) < size != UNKNOWN_SIZE:
            raise ValueError(f"truncated, {len(chunk)} of {size} bytes of samples")
        found.setdefault(name, chunk)
        start += 8 + size + size % 2  # chunks begin at even places
    return found


def _samples(data: bytes, form: int, bits: int) -> Any:
    """float64 [frames * channels], of whole numbers over half their range."""
    if form == FLOAT:
        return np.frombuffer(data, dtype=f"<f{bits // 8}").astype(np.float64)
    if bits == 8:  # the only depth without a sign
        return (np.frombuffer(data, dtype=np.uint8).astype(np.float64) - 128) / 128
    if bits == 24:
        padded = np.zeros((len(data) // 3, 4), dtype=np.uint8)
        padded[:, 1:] = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
        return np.frombuffer(padded.tobytes(), dtype="<i4").astype(np.float64) / 2**31
    return np.frombuffer(data, dtype=f"<i{bits // 8}").astype(np.float64) / 2 ** (bits - 1)
