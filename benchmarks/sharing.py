"""What sharing work saves: whole commands of `zoo bench` over --no-share, over a script by hand, over a naive loop.

    python benchmarks/sharing.py digits    24 probes of starter/vit-nano on digits, over --no-share
    python benchmarks/sharing.py probes    24 probes of MobileNetV2 at 224 px, over sharing_by_hand.py, its naive loop
                                           and --no-share; 600 photographs to train on, 200 to validate, 200 to test
    python benchmarks/sharing.py mixed     36 fits of vit-nano on digits, of 24 probes, 4 last blocks and 8 lora, and
                                           the same with halving
    python benchmarks/sharing.py starter   the starter suite, the clock on the wall
    python benchmarks/sharing.py heads     24 heads as rows of one computation, see benchmarks/rows.py
    python benchmarks/sharing.py lora      8 lora as rows, over zoo one after the other and over peft, see there too

24 probes are 4 learning rates x 6 seeds, of 10 epochs. Processor seconds of all processes of a command, one thread, the
least of --rounds, interleaved, each with an empty ZOO_CACHE and one worker, two for starter. In `probes` all four have
batches of 64 for frozen features and malloc told to keep what is freed, MALLOC_MMAP_MAX_=0 and a large
MALLOC_TRIM_THRESHOLD_; what zoo needs by itself is printed too. The naive loop is scaled from two probes of one epoch,
of which the lesser counts, and --no-share from a trial of two rates in one and in three epochs: of all other probes
nothing but the epochs counts. Prints whether scores and choices of the trials that were run both ways are equal. Exits
with 1 if they are not, or a gate is missed. --store writes benchmarks/results/sharing. The photographs and weights are
of ../shared/data; without them `probes` is skipped.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
STORED = ROOT / "benchmarks" / "results" / "sharing"
SPLITS = {"train": 120, "val": 40, "test": 40}  # photographs of each of five kinds
RATES, SEEDS, EPOCHS = 4, 6, 10
PROBES = ("--adapters", "probe", "--heads", "linear", "--num-rates", str(RATES), "--seeds", str(SEEDS))
ONE_WORKER = ("--workers", "1", "--device", "cpu")
DIGITS = ("--task", "digits", "--backbones", "starter/vit-nano", "--epochs", str(EPOCHS), *ONE_WORKER)
MIXED = (
    "probe+linear,probe+linear(dropout=0.1),probe+mlp(hidden_dim=64),probe+mlp(hidden_dim=128),probe+mlp,"
    "probe+attention-pool,partial(n=1)+linear,lora(r=4)+linear,lora(r=8)+linear"
)
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a command took, in seconds of the processors and of the clock, and the rows that it stored."""

    cpu: float
    wall: float = 0.0
    rows: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What took how long over what else, and what may not be exceeded. how: what else is to be said of it."""

    what: str
    ours: Ran
    theirs: Ran
    gate: float
    by: Literal["cpu", "wall"] = "cpu"
    how: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        ours, theirs = ((one.wall if self.by == "wall" else one.cpu) for one in (self.ours, self.theirs))
        return ours / theirs


def main() -> int:
    """Prints the figures; 0 if no gate is missed and nothing differs."""
    cases = {"digits": digits, "mixed": mixed, "probes": probes, "starter": starter}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted({*cases, "heads", "lora"}))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--store", action="store_true", help="write benchmarks/results/sharing")
    chosen = parser.parse_args()
    if chosen.what in ("heads", "lora"):
        sys.path[:0] = [str(ROOT)]
        from benchmarks import rows

        return (rows.heads if chosen.what == "heads" else rows.adapters)(chosen.rounds)
    if chosen.what == "probes" and not SHARED.is_dir():
        print(f"skipped: {SHARED} is not there")
        return 0
    sys.path[:0] = [str(ROOT)]
    from benchmarks.fixed_cost import adopt_orphans

    adopt_orphans()
    with tempfile.TemporaryDirectory() as folder:
        figures, differ = cases[chosen.what](Path(folder), chosen.rounds)
    for each in figures:
        verdict = "" if each.ratio <= each.gate else ", missed"
        walls = f"; the clock {each.ours.wall:.1f} and {each.theirs.wall:.1f} s" if each.theirs.wall else ""
        print(
            f"{each.what}: {each.ratio:.4f} by {each.by} (gate {each.gate:g}{verdict}); processor seconds "
            f"{each.ours.cpu:.1f} and {each.theirs.cpu:.1f}{walls}"
        )
    if chosen.store:
        store(chosen.what, figures, chosen.rounds, differ)
    return 1 if differ or any(each.ratio > each.gate for each in figures) else 0


def digits(here: Path, rounds: int) -> tuple[list[Figure], int]:
    """All 24 probes both ways."""
    return both_ways(here, rounds, (*DIGITS, *PROBES), "24 probes of vit-nano, shared over --no-share", 0.10)


def mixed(here: Path, rounds: int) -> tuple[list[Figure], int]:
    """Nine methods, two seeds and two learning rates: six heads of a probe, the last block, lora of two ranks."""
    words = (*DIGITS, "--adapters", MIXED, "--num-rates", "2", "--seeds", "2")
    (shared,), differ = both_ways(here, rounds, words, "36 fits of vit-nano, shared over --no-share", 0.45)
    halved = least([bench(here, (*words, "--halving")) for _ in range(rounds)])
    ours, theirs = best(halved), best(shared.ours)
    print(f"with halving {ours} wins, without {theirs}")
    halving = Figure(what="the same with halving, over --no-share", ours=halved, theirs=shared.theirs, gate=0.25)
    return [shared, halving], differ


def best(ran: Ran) -> str:
    """The combination with the best validation score on average over its seeds."""
    scores: dict[str, list[float]] = {}
    for row in ran.rows:
        if row["status"] == "ok":
            scores.setdefault(f"{row['adapters']}+{row['head']}", []).append(row["chosen"]["validation_score"])
    name, found = max(scores.items(), key=lambda each: statistics.mean(each[1]))
    return f"{name} ({statistics.mean(found):.4f} on validation)"


def starter(here: Path, rounds: int) -> tuple[list[Figure], int]:
    """What `make bench` runs, by two workers."""
    words = ("--workers", "2", "--device", "cpu")
    return both_ways(here, rounds, words, "the starter suite, shared over --no-share", 0.65, by="wall")


def both_ways(
    here: Path, rounds: int, words: Sequence[str], what: str, gate: float, by: Literal["cpu", "wall"] = "cpu"
) -> tuple[list[Figure], int]:
    """A bench over itself with --no-share, and how many of its trials differ."""
    ways = {"shared": (), "alone": ("--no-share",)}
    found: dict[str, list[Ran]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, more in ways.items():
            found[way].append(bench(here, (*words, *more)))
    shared, alone = (least(runs) for runs in found.values())
    return [Figure(what=what, ours=shared, theirs=alone, gate=gate, by=by)], differing(shared, alone)


def probes(here: Path, rounds: int) -> tuple[list[Figure], int]:
    """Whole commands by zoo and by hand; the naive loop and --no-share scaled."""
    lay_out(here)
    grid = ("--task", 'image-folder(path="flowers")', "--backbones", 'timm(files="weights")', *ONE_WORKER)
    found: dict[str, list[Ran]] = {"shared": [], "hand": []}
    for _ in range(rounds):
        found["shared"].append(bench(here, (*grid, *PROBES, "--epochs", str(EPOCHS)), MALLOC))
        found["hand"].append(by_hand(here, "--seeds", str(SEEDS), "--epochs", str(EPOCHS)))
    shared, hand = (least(runs) for runs in found.values())
    plain = least([bench(here, (*grid, *PROBES, "--epochs", str(EPOCHS))) for _ in range(rounds)])
    print(f"zoo with nothing said of malloc: {plain.cpu:.1f} processor seconds, the clock {plain.wall:.1f} s")
    differ = differing(plain, shared)
    ours = statistics.mean(row["score"] for row in shared.rows)
    theirs = statistics.mean(hand.rows[0]["test"])
    print(f"test accuracy by zoo {100 * ours:.1f} %, by hand {100 * theirs:.1f} %")

    two = by_hand(here, "--naive", "--rates", "0.01", "--seeds", "2", "--epochs", "1").rows[0]
    epochs, scorings = two["seconds"]["epochs"], two["seconds"]["scorings"]
    naive = two["setup"] + RATES * SEEDS * (EPOCHS * min(epochs) + min(scorings))
    print(f"naive loop: {min(epochs):.2f} s an epoch, {min(scorings):.2f} s to validate: scaled to {naive:.0f} s")

    few = (*grid, "--adapters", "probe", "--heads", "linear", "--num-rates", "2", "--seeds", "1", "--epochs")
    short, long = (bench(here, (*few, num, "--no-share"), MALLOC) for num in ("1", "3"))
    epoch = (long.cpu - short.cpu) / 4
    alone = short.cpu + (RATES * SEEDS * EPOCHS - 2) * epoch
    print(f"--no-share: two rates of one epoch {short.cpu:.1f} s, {epoch:.2f} s an epoch: scaled to {alone:.0f} s")
    differ += differing(bench(here, (*few, "3"), MALLOC), long)
    how = {"malloc": MALLOC, "feature_batch": 64, "cpu_seconds_without_malloc_settings": plain.cpu}
    scores = {"score": ours, "score_by_hand": theirs}
    figure = partial(Figure, ours=shared, how=how | scores)
    return [
        figure(what="24 probes of MobileNetV2, shared over by hand", theirs=hand, gate=1.1),
        figure(what="24 probes of MobileNetV2, shared over the naive loop, scaled", theirs=Ran(cpu=naive), gate=0.015),
        figure(what="24 probes of MobileNetV2, shared over --no-share, scaled", theirs=Ran(cpu=alone), gate=0.04),
    ], differ


def lay_out(here: Path) -> None:
    """The photographs as a folder with splits, and the weights, in a folder."""
    for kind in sorted(path for path in (SHARED / "flowers5_128").iterdir() if path.is_dir()):
        paths = iter(sorted(kind.glob("*.jpg")))
        for split, num in SPLITS.items():
            (here / "flowers" / split / kind.name).mkdir(parents=True)
            for path in islice(paths, num):
                shutil.copy(path, here / "flowers" / split / kind.name)
    shutil.copytree(SHARED / "weights" / "mobilenetv2_100.coral_in1k", here / "weights")


def bench(here: Path, words: Sequence[str], env: Mapping[str, str] | None = None) -> Ran:
    """A bench in a folder, with an empty store."""
    with tempfile.TemporaryDirectory() as fresh:
        command = [sys.executable, "-m", "zoo_core.cli", "bench", *words, "--out", f"{fresh}/run"]
        ran = timed(command, {"ZOO_CACHE": f"{fresh}/cache", **(env or {})}, here)
        lines = Path(fresh, "run", "results.jsonl").read_text(encoding="utf-8").splitlines()
    return Ran(cpu=ran.cpu, wall=ran.wall, rows=[json.loads(line) for line in lines])


def by_hand(here: Path, *words: str) -> Ran:
    """The script by hand, and what it wrote."""
    script = str(ROOT / "benchmarks" / "sharing_by_hand.py")
    ran = timed([sys.executable, script, "flowers", "weights", *words, "--out", "hand.json"], MALLOC, here)
    return Ran(cpu=ran.cpu, wall=ran.wall, rows=[json.loads((here / "hand.json").read_text(encoding="utf-8"))])


def timed(command: Sequence[str], env: Mapping[str, str], here: Path) -> Ran:
    """Runs a command in a folder, the user's own settings of zoo and of malloc left out."""
    from benchmarks.fixed_cost import cpu_seconds_of

    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ZOO_", "XDG_", "MALLOC_"))}
    began = time.perf_counter()
    _, cpu = cpu_seconds_of(command, env={**kept, "HOME": str(here), **env}, cwd=str(here))
    return Ran(cpu=cpu, wall=time.perf_counter() - began)


def least(runs: Sequence[Ran]) -> Ran:
    """The least of processor and of wall time, of whichever rounds, and the rows of the last."""
    return Ran(cpu=min(one.cpu for one in runs), wall=min(one.wall for one in runs), rows=runs[-1].rows)


def differing(shared: Ran, alone: Ran) -> int:
    """Prints how many trials there are, and gives the number of those whose status, score or choice differs."""
    ours, theirs = ({row["trial"]: row for row in one.rows} for one in (shared, alone))
    assert ours.keys() == theirs.keys(), "both ran the same trials"
    differ = [
        trial
        for trial in ours
        if any(ours[trial][name] != theirs[trial][name] for name in ("status", "score", "chosen"))
    ]
    print(f"{len(ours)} trials both ways, scores and choices of {len(differ)} differ")
    for trial in differ:
        print(f"  {trial}: {ours[trial]['score']} shared, {theirs[trial]['score']} alone")
    return len(differ)


def store(name: str, figures: Sequence[Figure], rounds: int, differ: int) -> None:
    """Writes the figures with the device and the versions that made them."""
    STORED.mkdir(parents=True, exist_ok=True)
    lines = []
    for each in figures:
        row = next(row for row in each.ours.rows if row["status"] == "ok")
        seconds = {"cpu_seconds": each.ours.cpu, "over_cpu_seconds": each.theirs.cpu}
        walls = {"wall_seconds": each.ours.wall, "over_wall_seconds": each.theirs.wall} if each.theirs.wall else {}
        told = {
            "what": each.what,
            "ratio": each.ratio,
            "by": each.by,
            "gate": each.gate,
            **seconds,
            **walls,
            **each.how,
        }
        told |= {**each.how, "rounds": rounds, "trials": len(each.ours.rows), "differ": differ}
        told |= {name: row[name] for name in ("device", "threads", "versions")}
        lines.append(json.dumps(told | {"created_at": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n")
    (STORED / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
