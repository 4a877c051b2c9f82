"""One suite on real data and real weights, with its work shared and with --no-share: the same table, and its price.

    python benchmarks/sharing_suite.py [shared alone]     runs benchmarks/suites/sharing.toml so, and compares
    python benchmarks/sharing_suite.py --summary          compares what is stored, and runs nothing
    python benchmarks/sharing_suite.py --rounding         what rounding alone does to `partial` on photographs, whose
                                                          batch norms train: --no-share by one and two threads

TREC's questions on all-MiniLM-L6-v2 and photographs of flowers on MobileNetV2 at 128 px: six methods, five seeds. A
part of both sets is laid out below runs/data, 600 questions and 120 photographs of each kind, since a run with
--no-share would take hours. Each run has one worker and one thread, and begins with an empty ZOO_CACHE. Rows and
seconds, of the clock and of the processors of all processes, go to results/sharing; rows that say that texts do not go
with pictures are left out. Exits with 1 if a trial failed, or the tables differ, in scores or in their order.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
SUITE = Path("benchmarks") / "suites" / "sharing.toml"
STORED = ROOT / "benchmarks" / "results" / "sharing"
QUESTIONS = {"TREC.train.all": 400, "TREC.test.all": 200}
PHOTOGRAPHS = 120  # of each kind
WAYS: Mapping[str, tuple[str, ...]] = {"shared": (), "alone": ("--no-share",)}


def main() -> int:
    """Runs what is asked for; 0 if both tables are the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", default=tuple(WAYS), metavar="WAY", help=f"of {', '.join(WAYS)}")
    parser.add_argument("--summary", action="store_true", help="run nothing")
    parser.add_argument("--rounding", action="store_true", help="instead, compare one thread with two")
    asked = parser.parse_args()
    if not asked.summary:
        if not SHARED.is_dir():
            print("skipped: ../shared/data is not there")
            return 0
        sys.path[:0] = [str(ROOT)]
        from benchmarks.fixed_cost import adopt_orphans
        from benchmarks.tasks import lay_out

        adopt_orphans()
        lay_out()
        lay_out_parts()
        if asked.rounding:
            return rounding()
        for way in asked.ways:
            run(way)
    if not all((STORED / f"suite-{way}.jsonl").is_file() for way in WAYS):
        print("not compared: one of the two is not stored yet")
        return 0
    return compare()


def lay_out_parts() -> None:
    """The parts of both sets that the suite names."""
    trec, flowers = ROOT / "runs" / "data" / "trec", ROOT / "runs" / "data" / "flowers5"
    trec.mkdir(parents=True, exist_ok=True)
    for name, num in QUESTIONS.items():
        lines = (SHARED / "trec" / name).read_bytes().splitlines(keepends=True)
        (trec / name).write_bytes(b"".join(lines[:num]))
    for kind in sorted(path for path in (SHARED / "flowers5_128").iterdir() if path.is_dir()):
        (flowers / kind.name).mkdir(parents=True, exist_ok=True)
        for path in islice(sorted(kind.glob("*.jpg")), PHOTOGRAPHS):
            shutil.copy(path, flowers / kind.name)


def rounding() -> int:
    """Prints how many scores of the same trials, nothing shared, are others by two threads than by one."""
    grid: tuple[str, ...] = (
        "--task",
        'flowers5(path="runs/data/flowers5",limit=100)',
        "--adapters",
        "partial(n=1)+linear",
    )
    grid += ("--backbones", 'timm(files="runs/weights/mobilenetv2_100-128")', "--seeds", "5", "--num-rates", "2")
    grid += ("--epochs", "4", "--batch-size", "16", "--no-share", "--threads")
    one, two = ({row["seed"]: row for row in bench((*grid, threads))[0]} for threads in ("1", "2"))
    for seed, row in one.items():
        print(f"seed {seed}: {row['score']:.4f} by one thread, {two[seed]['score']:.4f} by two")
    print(f"{sum(row['score'] != two[seed]['score'] for seed, row in one.items())} of {len(one)} scores differ")
    return 0


def bench(words: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The rows of a bench that were not refused, and what it took."""
    from benchmarks.fixed_cost import cpu_seconds_of

    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ZOO_", "XDG_", "MALLOC_"))}
    with tempfile.TemporaryDirectory() as folder:
        env = kept | {"HOME": folder, "ZOO_CACHE": f"{folder}/cache"}
        began = time.perf_counter()
        command = [sys.executable, "-m", "zoo_core.cli", "bench", *words, "--workers", "1", "--device", "cpu"]
        command += ["--out", f"{folder}/run"]
        _, cpu = cpu_seconds_of(command, env=env, cwd=str(ROOT), codes=(0, 1))  # 1: a trial failed; its row says why
        seconds = {"wall_seconds": time.perf_counter() - began, "cpu_seconds": cpu}
        lines = Path(folder, "run", "results.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["status"] != "refused"], seconds


def run(way: str) -> None:
    """Runs the suite so, and stores its rows and what it took."""
    rows, seconds = bench((str(SUITE), *WAYS[way]))
    STORED.mkdir(parents=True, exist_ok=True)
    stored = "".join(
        json.dumps(row, separators=(",", ":")) + "\n" for row in sorted(rows, key=lambda row: row["trial"])
    )
    (STORED / f"suite-{way}.jsonl").write_text(stored, encoding="utf-8")
    (STORED / f"suite-{way}.json").write_text(json.dumps(seconds) + "\n", encoding="utf-8")
    print(f"{way}: {len(rows)} trials, {seconds['cpu_seconds']:.0f} processor seconds", flush=True)


def compare() -> int:
    """Prints what both ways found and took; 0 if no trial failed and both tables are the same."""
    shared, alone = (stored(way) for way in WAYS)
    seconds = [json.loads((STORED / f"suite-{way}.json").read_text(encoding="utf-8")) for way in WAYS]
    failed = [row for rows in (shared, alone) for row in rows.values() if row["status"] != "ok"]
    for row in failed:
        print(f"failed: {row['trial']}: {row['reason']}")
    if shared.keys() != alone.keys():
        print(f"they ran different trials: {len(shared)} and {len(alone)}")
        return 1
    differ = {
        name: [trial for trial, row in shared.items() if value(row) != value(alone[trial])]
        for name, value in {"scores": _score, "choices": _choice, "lists of candidates": _candidates}.items()
    }
    print(f"{len(shared)} trials; differ: " + ", ".join(f"{len(found)} {name}" for name, found in differ.items()))
    for trial in sorted({trial for found in differ.values() for trial in found}):
        print(f"  {trial}: {shared[trial]['score']} shared, {alone[trial]['score']} alone")
    print("\n| task | method | shared | alone |\n|---|---|---|---|")
    tables = [table(rows) for rows in (shared, alone)]
    for key, cell in tables[0].items():
        print(f"| {key[0]} | `{key[1]}` | {cell} | {tables[1][key]} |")
    for name in ("cpu_seconds", "wall_seconds"):
        ours, theirs = (one[name] for one in seconds)
        print(f"{name}: {ours:.0f} shared, {theirs:.0f} alone, ratio {ours / theirs:.3f}")
    hows = Counter(row["shared"]["how"] for row in shared.values() if row["shared"])
    print("shared: " + ", ".join(f"{how} {num}" for how, num in hows.most_common()))
    return 1 if failed or list(tables[0].items()) != list(tables[1].items()) else 0


def stored(way: str) -> dict[str, dict[str, Any]]:
    """The rows that are stored, by trial."""
    lines = (STORED / f"suite-{way}.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["trial"]: row for row in map(json.loads, lines)}


def table(rows: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Score in % with its deviation over seeds by task and method, ordered as a report: the best of a task first."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows.values():
        method = row["adapters"] if row["head"] == "linear" else f"{row['adapters']}+{row['head']}"
        found.setdefault((row["task"].partition("(")[0], method), []).append(100 * (row["score"] or 0.0))
    order = sorted(found, key=lambda key: (key[0], -statistics.mean(found[key]), key[1]))
    return {key: f"{statistics.mean(found[key]):.1f} +- {statistics.stdev(found[key]):.1f}" for key in order}


def _score(row: Mapping[str, Any]) -> Any:
    return row["score"]


def _choice(row: Mapping[str, Any]) -> Any:
    return row["chosen"] and row["chosen"].get("learning_rate")


def _candidates(row: Mapping[str, Any]) -> Any:
    return row["chosen"] and row["chosen"].get("candidates")


if __name__ == "__main__":
    sys.exit(main())
