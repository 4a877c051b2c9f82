"""Sounds as people have them, AIFF, FLAC, MP3, OGG and WAV files, to samples of -1 to 1 in one channel.

libsndfile decodes them. It takes a file that ends early, or has a hole, for a short one; what it logs tells that.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from zoo_core.errors import AccessError, NotFoundError, UsageError

__all__ = ["open_sound"]

_FORMATS = ("AIFF", "FLAC", "MP3", "OGG", "WAV", "WAVEX")  # of the 25 that libsndfile would find in a file
_CONVERT = (
    "AIFF, FLAC, MP3, OGG and WAV are read; other formats are to be converted, as with `ffmpeg -i FILE FILE.flac`"
)
_UNRECOGNISED = 1  # libsndfile's number of that error
# A chunk of samples that is longer than the file, but for the length of a program that cannot go back to its header.
_CUT = re.compile(r"(?:data|SSND) : (?!4294967295 )(\d+) \(should be (\d+)\)")
_HOLE = re.compile(r"^Ogg ?: (.*(?:Junk after|without an End-Of-Stream|Skipped|hole).*)$", re.MULTILINE)
_MP3_FRAME = re.compile(rb"\xff[\xe2-\xfb]")  # how each frame of one begins
_MP3_SAMPLES = 1152  # of one frame; a length that the file does not tell is guessed, to within a frame


def open_sound(file: str | Path) -> dict[str, Any]:
    """{"array": float32 [N], "sampling_rate": Hz} of a sound file; several channels become their mean.

    What the file holds decides its format, not its name. Raises NotFoundError, AccessError, and UsageError for what is
    no sound or a damaged one, and for an MP3 of variable bit rate in which no Xing header tells its length.
    """
    try:
        content = Path(file).read_bytes()
        rate, array = _decoded(content)
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {file}") from error
    except PermissionError as error:
        raise AccessError(f"{file} may not be read; change its rights") from error
    except soundfile.LibsndfileError as error:
        reason = _CONVERT if error.code == _UNRECOGNISED else error.error_string.rstrip(".")
        raise UsageError(f"{file} is not a sound that can be read: {reason}") from error
    except (OSError, ValueError, MemoryError) as error:  # memory for as many samples as a damaged header promises
        raise UsageError(f"{file} is not a sound that can be read: {error}") from error
    return {"array": array, "sampling_rate": rate}


def _decoded(content: bytes) -> tuple[int, np.ndarray[Any, np.dtype[np.float32]]]:
    """Rate and samples. Raises LibsndfileError and ValueError for what is no sound."""
    stream = io.BytesIO(content)
    with soundfile.SoundFile(stream) as sound:
        if sound.format not in _FORMATS:
            raise ValueError(f"it holds {sound.format_info}; {_CONVERT}")
        samples = sound.read(dtype="float64", always_2d=True)  # a row for each, a column for each channel
        log = sound.extra_info
        if cut := _CUT.search(log):
            raise ValueError(f"truncated, {cut[2]} of {cut[1]} bytes of samples")
        if hole := _HOLE.search(log):
            raise ValueError(f"truncated or damaged, {hole[1].rstrip('.')}")
        if len(samples) < sound.frames - (_MP3_SAMPLES if sound.format == "MP3" else 0):
            raise ValueError(f"truncated, {len(samples)} of {sound.frames} samples")
        if sound.format == "MP3" and _MP3_FRAME.search(content, stream.tell()):
            raise ValueError("an MP3 of variable bit rate that does not tell its length; convert it, as with `ffmpeg`")
        if not samples.size:
            raise ValueError("a sound without samples")
        return sound.samplerate, samples.mean(axis=1).astype(np.float32)
