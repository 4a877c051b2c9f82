"""What a folder of photographs costs: a second epoch over decoding anew, and `zoo data` with nothing remembered.

    python benchmarks/image_folder.py [FOLDER] [--rounds 9]

Reading: every photo of the training split as the uint8 tensor that a preparation takes, from the memory-mapped store
that the first epoch wrote (`split.raw`, then `zoo_core.data.decoding.decode`), and from its file by PIL alone
(`Image.open`, `convert`, a numpy array). Both in turn and in one shuffled order, in one process with one thread; a row
is the median over the rounds of the CPU time of the process for each photo, the ratio that of the rounds' own ratios.
Then `zoo data` as a command of its own, each time with an empty ZOO_CACHE. Exits with 1 where a gate is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from PIL import Image

from zoo_core.data.decoding import decode
from zoo_tasks.folders import ImageFolder

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "flowers5_128"
GATE = 0.1
GATE_SECONDS = 5.0


def main() -> int:
    """Prints both tables; 0 if both gates are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=PHOTOS, help="of class folders of photographs")
    parser.add_argument("--rounds", type=int, default=9, help="of each, in turn")
    options = parser.parse_args()
    ratio = reading(options.folder, options.rounds)
    seconds = looking(options.folder, options.rounds)
    return 0 if ratio <= GATE and seconds <= GATE_SECONDS else 1


def reading(folder: Path, rounds: int) -> float:
    """The median ratio of reading from the store to decoding with PIL; prints a row for each way."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ZOO_CACHE"] = cache
        split = ImageFolder(path=str(folder), unreadable="skip").open(None).splits["train"]
        order = np.random.default_rng(0).permutation(split.num).tolist()  # as an epoch that is shuffled
        files = [str(folder / split.ids[position]) for position in order]

        def from_store() -> None:
            for position in order:
                decode("image", split.raw(position))

        def by_pil() -> None:
            for file in files:
                with Image.open(file) as picture:
                    np.asarray(picture.convert("RGB"))

        def from_files() -> None:
            for file in files:
                decode("image", file)

        ways: dict[str, Callable[[], None]] = {
            "PIL alone": by_pil,
            "zoo, from the files": from_files,
            "zoo, second epoch": from_store,
        }
        for way in ways.values():  # pages, imports
            way()
        costs: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                start = time.process_time()
                way()
                costs[name].append((time.process_time() - start) / split.num * 1e6)
    print(f"{f'{split.num:,} photos':22}{'us a photo':>12}{'over PIL alone':>16}{'lowest':>9}{'highest':>9}")
    ratios = {
        name: [cost / own for cost, own in zip(found, costs["PIL alone"], strict=True)] for name, found in costs.items()
    }
    for name, found in ratios.items():
        shown = f"{statistics.median(found):16.3f}{min(found):9.3f}{max(found):9.3f}"
        print(f"{name:22}{statistics.median(costs[name]):12.1f}{shown}", flush=True)
    return statistics.median(ratios["zoo, second epoch"])


def looking(folder: Path, rounds: int) -> float:
    """The median wall seconds of `zoo data` with an empty cache folder; prints them and the CPU seconds."""
    wall, used = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            before, start = os.times(), time.perf_counter()
            environment = {**os.environ, "ZOO_CACHE": cache}
            words = [sys.executable, "-m", "zoo_core.cli", "data", str(folder)]
            subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=True)
            wall.append(time.perf_counter() - start)
            after = os.times()
            used.append(after.children_user + after.children_system - before.children_user - before.children_system)
    print(f"\n{'zoo data, nothing remembered':30}{'median s':>10}{'lowest':>9}{'highest':>9}")
    for name, found in {"wall": wall, "CPU time of the process": used}.items():
        print(f"{name:30}{statistics.median(found):10.2f}{min(found):9.2f}{max(found):9.2f}")
    return statistics.median(wall)


if __name__ == "__main__":
    sys.exit(main())
