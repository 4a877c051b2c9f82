"""How far the forecast of `zoo fit --dry-run` is from what the fit then needs: peak memory and wall time.

    python benchmarks/forecast.py [--threads 1] [--only PATTERN]

Each figure is of a process of its own. Time is from the opened task to the result, imports left out, memory the
kernel's high-water mark, libraries included. Rows whose weights are not in ../shared/data are left out and named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parents[1] / ".." / "shared" / "data" / "weights" / "mobilenetv2_100.coral_in1k"
MOBILE = f'timm(files="{WEIGHTS}")'
TINY = "timm/vit_tiny_patch16_224(weights=random)"
NUM_TESTED = 64  # of the rows with large pictures, whose test split would take most of the time
FEW = {"epochs": 2, "batch_size": 16, "num_rates": 1}
CASES: tuple[tuple[str, str, str, dict[str, Any], bool], ...] = (
    ("convnet-nano+full", "starter/convnet-nano+full", "digits(shots=10)", {"epochs": 10, "batch_size": 16}, False),
    ("vit-nano+partial(n=2)", "starter/vit-nano+partial(n=2)", "digits", {"epochs": 2}, False),
    ("vit-nano+ncm", "starter/vit-nano+ncm", "digits", {}, False),
    ("mlp-nano+full", "starter/mlp-nano(weights=random)+full", "diabetes", {"epochs": 50}, False),
    ("mobilenetv2_100+probe", f"{MOBILE}+probe", "digits(limit=64)", FEW, False),
    ("mobilenetv2_100+full", f"{MOBILE}+full", "digits(limit=64)", FEW, False),
    ("vit_tiny+full", f"{TINY}+full", "digits(limit=64)", FEW, False),
    ("vit_tiny+full, checkpointed", f"{TINY}+full", "digits(limit=64)", FEW, True),
)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--only", default="*", help="a pattern of rows, as 'vit*'")
    parser.add_argument("--worker", nargs=2, metavar=("WHAT", "ROW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        measure(options.worker[0], int(options.worker[1]), options.threads)
        return 0
    print(f"{'':30}{'MiB':>7}{'forecast':>10}{'error':>8}{'seconds':>10}{'forecast':>10}{'error':>8}")
    for row, (name, spec, *_) in enumerate(CASES):
        if not fnmatch(name, options.only):
            continue
        if MOBILE in spec and not WEIGHTS.is_dir():
            print(f"{name:30}left out: no {WEIGHTS.name}")
            continue
        told, real = (process(what, row, options.threads) for what in ("forecast", "fit"))
        mib = [each["bytes"] / 2**20 for each in (real, told)]
        seconds = [each["seconds"] for each in (real, told)]
        errors = [f"{100 * (found[1] / found[0] - 1):+.0f} %" for found in (mib, seconds)]
        print(
            f"{name:30}{mib[0]:7.0f}{mib[1]:10.0f}{errors[0]:>8}{seconds[0]:10.1f}{seconds[1]:10.1f}{errors[1]:>8}",
            flush=True,
        )
    return 0


def process(what: str, row: int, threads: int) -> dict[str, float]:
    """What `measure` prints in a process of its own."""
    words = [sys.executable, __file__, "--threads", str(threads), "--worker", what, str(row)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@dataclass(frozen=True)
class Cut:
    """A task's data with fewer test examples."""

    target: Any
    splits: Any


def measure(what: str, row: int, threads: int) -> None:
    """Prints bytes and seconds of one row: its forecast, or its fit."""
    import time

    import numpy as np
    import torch

    from zoo_core.benchmark.dry_run import dry_run
    from zoo_core.benchmark.loaders import open_task
    from zoo_core.benchmark.trial import run_trial
    from zoo_core.data.splits import Subset
    from zoo_core.files.fetch import pin_plan
    from zoo_core.plan.plan import Budget
    from zoo_core.plan.resolve import resolve
    from zoo_core.training.gradient_trainer import MemoryOptions

    torch.set_num_threads(threads)
    _, spec, task, budget, recomputes = CASES[row]
    plan = pin_plan(resolve(spec, task=task, budget=Budget(**budget).for_fit()))
    memory, data = MemoryOptions(checkpoint_activations=recomputes), open_task(plan)
    if budget is FEW:
        data = Cut(data.target, {**data.splits, "test": Subset(data.splits["test"], np.arange(NUM_TESTED))})
    if what == "forecast":
        found = dry_run(plan, data, memory=memory)
        print(json.dumps({"bytes": found.peak_memory_bytes, "seconds": found.seconds}))
        return
    started = time.perf_counter()
    result, _, _ = run_trial(plan, data=data, memory=memory)
    print(json.dumps({"bytes": result.peak_memory_bytes, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    sys.exit(main())
