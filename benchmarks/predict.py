"""Peak memory of `zoo predict` and `zoo embed` on 10,000 pictures over that on 1,000, which should be about one.

    python benchmarks/predict.py [--num 10000] [--num-workers 2]

Pictures are generated, 64 to 128 pixels a side, in a temporary folder; the model is a fit of a moment. The peak is the
kernel's high-water mark of resident memory of the command or of its largest worker process, whichever is larger. Exits
with 1 where a ratio is above the gate.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

GATE = 1.2
ZOO = (sys.executable, "-m", "zoo_core.cli")


def main() -> int:
    """Prints the table; 0 if every ratio is within the gate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=10_000, help="pictures of the large case; a tenth in the small one")
    parser.add_argument("--num-workers", type=int, default=2, help="worker processes in the rows that have some")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few, many = folder / "few", folder / "many"
        make_pictures(few, options.num // 10)
        make_pictures(many, options.num)
        run = str(folder / "run")
        fit = ("fit", "starter/convnet-nano+ncm", "--task", "digits(shots=3)", "--out", run, "--device", "cpu")
        subprocess.run([*ZOO, *fit], check=True, capture_output=True)
        workers = ("--num-workers", str(options.num_workers))
        cases: dict[str, tuple[str, tuple[str, ...]]] = {
            "predict": ("predict", ("--format", "jsonl")),
            f"predict, {options.num_workers} workers": ("predict", ("--format", "jsonl", *workers)),
            "embed to npy": ("embed", ("--out", str(folder / "f.npy"))),
            "embed to parquet": ("embed", ("--out", str(folder / "f.parquet"))),
        }
        print(f"{'':22}{f'{options.num // 10:,} MiB':>12}{f'{options.num:,} MiB':>12}{'ratio':>8}{'pictures/s':>12}")
        missed = 0
        for case, (command, flags) in cases.items():
            small, _ = peak_mib((command, run, str(few), *flags, "--device", "cpu"))
            large, seconds = peak_mib((command, run, str(many), *flags, "--device", "cpu"))
            missed += large > GATE * small
            print(f"{case:22}{small:12.0f}{large:12.0f}{large / small:8.3f}{options.num / seconds:12.0f}", flush=True)
    return 1 if missed else 0


def make_pictures(folder: Path, num: int) -> None:
    """Noise of 64 to 128 pixels a side as PNG, in folders of 1,000."""
    rng = np.random.default_rng(0)
    for number in range(num):
        path = folder / f"{number // 1000:02}" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(64, 129, size=2)
        Image.fromarray(rng.integers(0, 255, size=(height, width, 3)).astype(np.uint8)).save(path, compress_level=1)


def peak_mib(words: Sequence[str]) -> tuple[float, float]:
    """The largest resident memory of a command and of its own worker processes, in MiB, and its seconds."""
    measure = (
        "import resource, subprocess, sys\n"
        "code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(code)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", measure, *ZOO, *words], check=True, capture_output=True, text=True)
    return int(done.stdout) / 1024, time.monotonic() - start


if __name__ == "__main__":
    sys.exit(main())
