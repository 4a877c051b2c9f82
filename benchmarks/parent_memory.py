"""Peak memory of the main process of a bench with 100 and with 1,000 tiny trials: what it holds for each.

    python benchmarks/parent_memory.py

Trials are seeds of a head in closed form on features that they share. The main process plans them, tells of them and
stores their results. Resident memory in MiB; exits with 1 if a trial more takes more than 32 KiB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

GRID = ("--task", "digits(shots=5)", "--backbones", "starter/convnet-nano", "--adapters", "probe", "--heads", "ncm")
NUM_TRIALS = (100, 1000)
GATE_KIB = 32  # a plan and the row of its result, both of which the table needs


def main() -> int:
    """Prints both peaks and what a trial takes; 0 if the gate holds."""
    few, many = (peak_kib(num) for num in NUM_TRIALS)
    each = (many - few) / (NUM_TRIALS[1] - NUM_TRIALS[0])
    for num, peak in zip(NUM_TRIALS, (few, many), strict=True):
        print(f"{num:5} trials: {peak / 1024:.0f} MiB")
    print(f"a trial more: {each:.1f} KiB (gate {GATE_KIB}{', missed' if each > GATE_KIB else ''})")
    return int(each > GATE_KIB)


def peak_kib(num: int) -> int:
    """The largest resident memory of the main process, its children not counted."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ZOO_", "XDG_"))}
    with tempfile.TemporaryDirectory() as folder:
        words = ("-m", "zoo_core.cli", "bench", "--device", "cpu", "--workers", "1", *GRID, "--seeds", str(num))
        command = [sys.executable, *words, "--out", str(Path(folder) / "run")]
        env = kept | {"HOME": folder, "ZOO_CACHE": folder}
        bench = subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(bench.pid, 0)
        bench.returncode = os.waitstatus_to_exitcode(status)
        assert bench.returncode == 0, command
        return used.ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
