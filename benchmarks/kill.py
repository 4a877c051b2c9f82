"""Kills a bench at random instants, lets the same command go on, and compares the results with an undisturbed run's.

    .venv/bin/python benchmarks/kill.py                  ten kills on the starter suite scaled down, about two minutes
    .venv/bin/python benchmarks/kill.py --kills 20 --trials 204 --workers 1
    .venv/bin/python benchmarks/kill.py --kills 40 --workers 4
    .venv/bin/python benchmarks/kill.py --halving        and what waits at a rung goes on

Every second kill ends the whole process group at once, the others the parent alone; then no process of it may remain.
Everything but what is timed must be the same: each trial once, scores, what validation chose, counts of parameters. The
undisturbed run has another number of workers. Trials share work in groups of up to a sixth of all, and a group that is
interrupted is run whole again: after a kill as many may be unfinished, some of their trials stored and others not, as
there are workers. Prints a line for each kill and exits with 1 when something differs, or more groups were torn.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMED = frozenset(
    {"train_seconds", "training", "inference", "peak_memory_bytes", "created_at", "shared", "after_seconds", "work"}
)
GRID = (
    *("--task", "digits(shots=2)"),
    *("--backbones", "starter/convnet-nano,starter/convnet-nano(weights=random),starter/vit-nano"),
    *("--adapters", "probe,partial(n=2),norm,probe+ncm"),
    *("--epochs", "2", "--device", "cpu"),
)
GONE_SECONDS = 10.0  # processes that outlive their parent by more than this are orphans


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill: how long after the start, who was killed, results before and after, how long processes remained.

    torn: groups that are run again although some of their trials are stored.
    """

    seconds: float
    whole_group: bool
    before: int
    after: int
    torn: int
    gone_seconds: float


def command(grid: Sequence[str], out: Path, workers: int) -> list[str]:
    """`zoo bench` on a grid given by flags."""
    return [sys.executable, "-m", "zoo_core.cli", "bench", *grid, "--out", str(out), "--workers", str(workers)]


def results(out: Path) -> list[dict[str, Any]]:
    """The whole lines of a run."""
    path = out / "results.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def lasting(out: Path) -> dict[str, dict[str, Any]]:
    """By digest, what must be the same in every run. Raises ValueError when a trial has two results."""
    rows = results(out)
    found = {row["digest"]: {key: value for key, value in row.items() if key not in TIMED} for row in rows}
    if len(found) != len(rows):
        raise ValueError(f"{len(rows)} results of {len(found)} trials in {out}")
    return found


def differences(one: Path, other: Path) -> list[str]:
    """The trials in which two runs differ, each with what differs."""
    first, second = lasting(one), lasting(other)
    found = [f"only in one run: {digest}" for digest in sorted(first.keys() ^ second.keys())]
    for digest in sorted(first.keys() & second.keys()):
        keys = [key for key in first[digest] if first[digest][key] != second[digest].get(key)]
        found += [f"{first[digest]['trial']}: {key}" for key in keys]
    return found


def num_torn(out: Path) -> int:
    """How many groups have some of their trials stored, and not all."""
    found = Counter((row["shared"]["group"], row["shared"]["size"]) for row in results(out) if row["shared"])
    return sum(num < size for (_, size), num in found.items())


def kill_once(
    words: Sequence[str], out: Path, *, seconds: float, after_results: int, whole_group: bool, **options: Any
) -> Kill | None:
    """Starts a bench and kills it, `seconds` after it has written that many more results; None if it ended before."""
    before = len(results(out))
    began = time.monotonic()
    process = subprocess.Popen(
        words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    )
    while len(results(out)) < before + after_results and process.poll() is None:
        time.sleep(0.02)
    time.sleep(seconds)
    if process.poll() is not None:
        return None
    instant = time.monotonic() - began
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    return Kill(
        seconds=instant,
        whole_group=whole_group,
        before=before,
        after=len(results(out)),
        torn=num_torn(out),
        gone_seconds=seconds_until_gone(process.pid),
    )


def seconds_until_gone(session: int) -> float:
    """How long it takes until no process of a session is left. Raises TimeoutError naming those that stay."""
    began = time.monotonic()
    while left := processes_of(session):
        if time.monotonic() - began > GONE_SECONDS:
            raise TimeoutError(f"processes {left} outlive their parent")
        time.sleep(0.02)
    return time.monotonic() - began


def processes_of(session: int) -> list[int]:
    """Living processes of a session, by /proc, zombies left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(") ")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def kill_often(
    words: Sequence[str], out: Path, *, kills: int, seed: int, spread: int = 1, **options: Any
) -> list[Kill]:
    """Kills a run that often, at instants from its start to the middle of a trial, and then lets it end.

    spread: of the results between two kills, none to twice as many.
    """
    rng = random.Random(seed)
    done: list[Kill] = []
    for number in range(kills):
        after_results = spread * rng.choice([0, 1, 1, 2])
        seconds = rng.uniform(0.1, 6) if after_results == 0 else rng.uniform(0, 0.5)
        kill = kill_once(
            words, out, seconds=seconds, after_results=after_results, whole_group=number % 2 == 0, **options
        )
        if kill is None:
            break
        done.append(kill)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    return done


def main() -> int:
    """Prints the table of kills, and whether the results are the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=36, help="a multiple of 12")
    parser.add_argument("--seed", type=int, default=0, help="of the random instants")
    parser.add_argument("--halving", action="store_true", help="of eight epochs, with rungs after 1, 2 and 4")
    asked = parser.parse_args()
    grid = (*GRID, "--seeds", str(asked.trials // 12), *(("--epochs", "8", "--halving") if asked.halving else ()))
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        began = time.monotonic()
        subprocess.run(
            command(grid, whole, asked.workers + 1),
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seconds = time.monotonic() - began
        print(f"undisturbed, {asked.workers + 1} workers: {len(results(whole))} results in {seconds:.0f} s")
        began = time.monotonic()
        kills = kill_often(
            command(grid, killed, asked.workers),
            killed,
            kills=asked.kills,
            seed=asked.seed,
            spread=max(1, asked.trials // (2 * asked.kills)),
        )
        print("kill  after s  who        results  torn groups  gone after s")
        for number, kill in enumerate(kills, 1):
            who = "group" if kill.whole_group else "parent"
            rows = f"{kill.before} to {kill.after}"
            print(f"{number:4}  {kill.seconds:7.1f}  {who:6}  {rows:>10}  {kill.torn:11}  {kill.gone_seconds:12.2f}")
        seconds = time.monotonic() - began
        print(f"killed {len(kills)} times, {asked.workers} workers: {len(results(killed))} results in {seconds:.0f} s")
        found = differences(whole, killed)
        torn = max((kill.torn for kill in kills), default=0)
    for line in found:
        print(f"differs: {line}")
    if len(kills) < asked.kills:
        print(f"the run ended before kill {len(kills) + 1}; nothing is shown about the rest")
    print(f"at most {torn} groups torn by a kill, allowed: {asked.workers}")
    print(f"{len(found)} differences" if found else "identical")
    return 1 if found or len(kills) < asked.kills or torn > asked.workers else 0


if __name__ == "__main__":
    sys.exit(main())
