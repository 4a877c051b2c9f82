"""CPU time of a whole `zoo bench` of one tiny trial, fork server and worker included: what a bench costs at least.

    python benchmarks/fixed_cost.py [--rounds 5]

User plus system time, least and median over rounds after one that does not count, and of the main process alone; wall
time would measure whoever else uses the machine. Each round has a store of its own. Exits with 1 if a gate is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

GATES_SECONDS = {"closed form": 5.0, "by gradient": 6.0}  # of the least; the second one tries three rates
BENCH = ("-m", "zoo_core.cli", "bench", "--device", "cpu")
GRID = ("--task", "digits(shots=5)", "--backbones", "starter/convnet-nano", "--adapters", "probe", "--seeds", "1")
TRIALS = {"closed form": ("--heads", "ncm"), "by gradient": ("--heads", "linear", "--epochs", "1")}
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main() -> int:
    """Prints the table; 0 if the gate holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each trial, at least 3")
    rounds = max(3, parser.parse_args().rounds)
    adopt_orphans()
    print(f"Python {sys.version.split()[0]}, CPU seconds, {rounds} rounds\n")
    print(f"{'one trial':14}{'least':>7}{'median':>8}{'main':>7}{'gate':>6}")
    missed = 0
    for name, words in TRIALS.items():
        mains, totals = zip(*[cpu_seconds(words) for _ in range(rounds + 1)][1:], strict=True)
        gate = GATES_SECONDS[name]
        missed += min(totals) > gate
        verdict = "" if min(totals) <= gate else "  missed"
        row = f"{min(totals):7.2f}{statistics.median(totals):8.2f}{min(mains):7.2f}"
        print(f"{name:14}{row}{gate:6.1f}{verdict}")
    return 1 if missed else 0


def cpu_seconds(words: tuple[str, ...]) -> tuple[float, float]:
    """Of a bench with these words, in an empty folder: of its main process, and of all of its processes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ZOO_", "XDG_"))}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *BENCH, *GRID, *words, "--out", str(Path(folder) / "run")]
        env = kept | {"HOME": folder, "ZOO_CACHE": folder}
        return cpu_seconds_of(command, env=env, cwd=folder)


def adopt_orphans() -> None:
    """From now on a fork server that outlives its parent for a moment is our child, so that its time is counted too."""
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def cpu_seconds_of(
    command: Sequence[str], *, env: Mapping[str, str], cwd: str, codes: Sequence[int] = (0,)
) -> tuple[float, float]:
    """Runs a command that must end with one of these codes. CPU seconds of its main process, and of all of its."""
    main = subprocess.Popen(command, env=env, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    of_main = total = 0.0
    while True:
        try:
            pid, status, used = os.wait4(-1, 0)
        except ChildProcessError:
            return of_main, total
        total += used.ru_utime + used.ru_stime
        if pid == main.pid:
            main.returncode = os.waitstatus_to_exitcode(status)
            of_main = used.ru_utime + used.ru_stime
            assert main.returncode in codes, command


if __name__ == "__main__":
    sys.exit(main())
