"""What it costs to know that a folder of pictures is as it was: a bench does so before it calls a row done.

    python benchmarks/content_check.py [--pictures 100000] [--rounds 5]

Makes that many different JPEG files of 64 x 64 pixels in class folders of 1,000 each, and looks at them as a plan does
(`zoo_core.files.folders.look` of an image folder's source): the first look hashes every file, the later ones find
nothing changed. In turn with each later look, the least that a check by stat can cost in Python: `os.scandir` through
the folders and `os.stat` of each file. Then one picture is rewritten, and a look must tell. Wall time and CPU time of
the process; medians with the smallest and largest. Exits with 1 if the change is not seen.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

PER_CLASS = 1000


def main() -> int:
    """Prints a row for each way; 0 if the change was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5, help="of the later looks, each beside a bare stat")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        os.environ["ZOO_CACHE"] = str(Path(made, "cache"))
        folder = Path(made, "pictures")
        size = _write(folder, options.pictures)
        print(f"{options.pictures:,} JPEG files, {size / 1e6:,.0f} MB", flush=True)
        time.sleep(0.1)  # longer than zoo_core.files.hashing.RACY_NS: what was just written is not remembered
        return _measured(folder, options.rounds)


def _write(folder: Path, num: int) -> int:
    noise, size = np.random.default_rng(0), 0
    for number in range(num):
        place = folder / f"class{number // PER_CLASS:03}"
        if number % PER_CLASS == 0:
            place.mkdir(parents=True)
        small = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(small).resize((64, 64)).save(stream, "jpeg")
        (place / f"{number:06}.jpg").write_bytes(stream.getvalue())
        size += stream.tell()
    return size


def _measured(folder: Path, rounds: int) -> int:
    from zoo_core.files.folders import look
    from zoo_tasks.folders import ImageFolder

    source = ImageFolder(path=str(folder)).source()
    assert source is not None
    contents: list[str] = []

    def looked() -> None:
        found = look(source)
        contents.append(found.content_of(found.files))

    first = _timed(looked)
    pairs = [(_timed(looked), _timed(lambda: _bare(folder))) for _ in range(rounds)]
    later, bare = ([pair[which] for pair in pairs] for which in (0, 1))
    _row("first look, every file hashed", [first])
    _row("later look, nothing changed", later)
    _row("bare scandir and stat", bare)
    ratios = [one[1] / other[1] for one, other in pairs]
    print(
        f"later look over bare stat, CPU time: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    changed = next(folder.rglob("*.jpg"))
    changed.write_bytes(changed.read_bytes()[::-1])
    looked()
    seen = len(set(contents[:-1])) == 1 and contents[-1] != contents[0]
    print(f"one picture rewritten: {'seen' if seen else 'NOT seen'}")
    return 0 if seen else 1


def _bare(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            os.stat(os.path.join(place, name))  # noqa: PTH116, PTH118 - the least that it can cost


def _timed(call: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the wall, and of the CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def _row(name: str, seconds: list[tuple[float, float]]) -> None:
    wall, cpu = zip(*seconds, strict=True)
    print(
        f"{name:32} {statistics.median(wall):6.2f} s ({min(wall):.2f} to {max(wall):.2f}), "
        f"CPU {statistics.median(cpu):6.2f} s ({min(cpu):.2f} to {max(cpu):.2f})",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
