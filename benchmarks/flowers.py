"""A fine-tuning script written by hand against `zoo fit`: photographs of flowers, the last blocks of MobileNetV2.

    python benchmarks/flowers.py [--rounds 3] [--epochs 3] [--limit 800] [--threads 2]

Both are whole processes, from import to a stored model that was scored on test, on the same examples, at one learning
rate: benchmarks/flowers_by_hand.py, and zoo fit 'timm(files=...)+partial(n=2)'. Rounds are paired and interleaved, one
seed each, which also draws the training examples. zoo begins with an empty ZOO_CACHE, so it decodes all photographs in
the first round. Prints both accuracies and the ratios of wall time and of processor time, zoo over the script; gate:
the median of the latter is at most 1. Data and weights are of ../shared/data; without them it is skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
PHOTOGRAPHS = SHARED / "flowers5_128"
GATE = 1.0


def main() -> int:
    """Prints the table; exit code 1 when the gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, default=800, help="photographs to train on")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    if not PHOTOGRAPHS.is_dir():
        print(f"skipped: {PHOTOGRAPHS} is not there")
        return 0
    sys.path[:0] = [str(ROOT)]
    from benchmarks.tasks import mobilenet_folder

    ratios: dict[str, list[float]] = {"wall": [], "processor": []}
    tests: dict[str, list[float]] = {"hand": [], "zoo": []}
    print("seed  test by hand  by zoo  seconds by hand  by zoo  ratio  processor seconds by hand  by zoo  ratio")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        os.environ["ZOO_CACHE"] = str(here / "cache")
        weights = mobilenet_folder(here / "weights")
        for seed in range(chosen.rounds):
            spec = f'timm(files="{weights}")+partial(n=2)'
            task = f'flowers5(path="{PHOTOGRAPHS}",limit={chosen.limit})'
            rate = write_split(spec, task, seed, here)
            common = ["--epochs", str(chosen.epochs), "--seed", str(seed), "--threads", str(chosen.threads)]
            script = [sys.executable, str(ROOT / "benchmarks" / "flowers_by_hand.py"), str(PHOTOGRAPHS), str(weights)]
            script += [str(here / "split.csv"), "--rate", str(rate), *common, "--out", str(here / f"hand-{seed}")]
            fit = [sys.executable, "-m", "zoo_core.cli", "fit", spec, "--task", task, *common, "--augment", "light"]
            fit += ["--num-rates", "1", "--batch-size", "32", "--out", str(here / f"zoo-{seed}")]
            commands = {"hand": script, "zoo": fit}
            order = ("hand", "zoo") if seed % 2 == 0 else ("zoo", "hand")
            found = {name: timed(commands[name], here) for name in order}
            hand, zoo = found["hand"], found["zoo"]
            tests["hand"].append(json.loads(hand.printed.splitlines()[-1])["test"])
            stored = (here / f"zoo-{seed}" / "results.jsonl").read_text(encoding="utf-8").splitlines()[-1]
            tests["zoo"].append(json.loads(stored)["score"])
            ratios["wall"].append(zoo.wall / hand.wall)
            ratios["processor"].append(zoo.processor / hand.processor)
            print(
                f"{seed:4}  {tests['hand'][-1]:12.4f}  {tests['zoo'][-1]:6.4f}  {hand.wall:15.1f}  {zoo.wall:6.1f}  "
                f"{ratios['wall'][-1]:5.3f}  {hand.processor:25.1f}  {zoo.processor:6.1f}  "
                f"{ratios['processor'][-1]:5.3f}",
                flush=True,
            )
    for name, scores in tests.items():
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        print(f"accuracy by {name} {100 * statistics.mean(scores):.1f} +- {100 * spread:.1f} %")
    for name, values in ratios.items():
        print(f"{name} time, zoo over the script: median {statistics.median(values):.3f} of {len(values)} pairs")
    return int(statistics.median(ratios["processor"]) > GATE)


def write_split(spec: str, task: str, seed: int, folder: Path) -> float:
    """Writes which photograph is in which split of a seed, split.csv in the folder; the rate that zoo would take."""
    code = (
        "import csv, sys, zoo_core\n"
        "from zoo_core.data.splits import carve\n"
        "from zoo_core.files.fetch import pin_plan\n"
        "from zoo_core.benchmark.loaders import open_task\n"
        "spec, task, seed, out = sys.argv[1:]\n"
        "plan = pin_plan(zoo_core.resolve(spec, task=task, seed=int(seed), budget=zoo_core.Budget(num_rates=1)))\n"
        "splits = carve(open_task(plan), seed=plan.seed, **plan.task.common)\n"
        "rows = [(item, name) for name in ('train', 'val', 'test') for item in getattr(splits, name).ids]\n"
        "csv.writer(open(out, 'w', newline='')).writerows([('item', 'split'), *rows])\n"
        "print(*plan.learning_rates)\n"
    )
    words = [sys.executable, "-c", code, spec, task, str(seed), str(folder / "split.csv")]
    elsewhere = {**os.environ, "ZOO_CACHE": str(folder / "not-timed")}
    return float(subprocess.run(words, env=elsewhere, stdout=subprocess.PIPE, text=True, check=True).stdout)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What a command took, in seconds, of the clock and of all processors, and its standard output."""

    wall: float
    processor: float
    printed: str


def timed(command: list[str], folder: Path) -> Timed:
    """Runs a command; ends the benchmark where it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Timed(wall=wall, processor=processor, printed=done.stdout)


if __name__ == "__main__":
    sys.exit(main())
