"""What sharing saves: probes through `zoo bench` with their work shared, over the same command with --no-share.

    python benchmarks/sharing.py digits [--rounds 2]      starter/vit-nano on digits: all 24 probes both ways
    python benchmarks/sharing.py probes [--rounds 1]      MobileNetV2 at 224 px on 600 photographs of flowers

24 probes are 4 learning rates x 6 seeds, of 10 epochs. Processor seconds of all processes of a command, the least of
its rounds, each with an empty ZOO_CACHE and one worker. Of `probes` one trial of one rate is run with --no-share, and
what it takes beyond the fixed cost of a bench is counted 24 times. Prints whether scores and choices of the trials that
were run both ways are equal. Exits with 1 if they are not, or a gate is missed. The photographs and weights of `probes`
are of ../shared/data; without them it is skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "flowers5_128"
GATES = {"digits": 0.10, "probes": 0.04}
PROBES = ("--adapters", "probe", "--epochs", "10", "--workers", "1", "--device", "cpu")
ALL = ("--num-rates", "4", "--seeds", "6")
NUM_PROBES = 24


def main() -> int:
    """Prints the table; 0 if the gate holds and nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(GATES))
    parser.add_argument("--rounds", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.what == "probes" and not PHOTOGRAPHS.is_dir():
        print(f"skipped: {PHOTOGRAPHS} is not there")
        return 0
    sys.path[:0] = [str(ROOT)]
    from benchmarks.fixed_cost import adopt_orphans
    from benchmarks.tasks import mobilenet_folder

    adopt_orphans()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        if chosen.what == "digits":
            grid = ("--task", "digits", "--backbones", "starter/vit-nano", *PROBES)
            alone = ALL
        else:
            weights = mobilenet_folder(here / "weights")
            task = f'flowers5(path="{PHOTOGRAPHS}",limit=600)'
            grid = ("--task", task, "--backbones", f'timm(files="{weights}")', *PROBES)
            alone = ("--num-rates", "1", "--seeds", "1")
        shared = [run((*grid, *ALL), here / f"shared-{number}") for number in range(chosen.rounds)]
        apart = [run((*grid, *alone, "--no-share"), here / f"alone-{number}") for number in range(chosen.rounds)]
        fixed = 0.0 if alone == ALL else min(run((*grid[:2], *FIXED), here / f"fixed-{n}")[0] for n in range(3))
        both = run((*grid, *alone), here / "both") if alone != ALL else shared[0]
    least, other = min(seconds for seconds, _ in shared), min(seconds for seconds, _ in apart)
    whole = other if alone == ALL else fixed + NUM_PROBES * (other - fixed)
    ratio = least / whole
    how = "" if alone == ALL else f" (one probe took {other:.1f}, of which {fixed:.1f} are the fixed cost)"
    print(f"{chosen.what}: {NUM_PROBES} probes shared {least:.1f} s, with --no-share {whole:.1f} s{how}")
    print(f"ratio {ratio:.3f}, gate {GATES[chosen.what]:.2f}; processor seconds, {chosen.rounds} rounds")
    differ = [digest for digest, row in apart[0][1].items() if row != both[1][digest]]
    print(f"{len(apart[0][1])} trials both ways, scores and choices of {len(differ)} differ")
    return 1 if differ or ratio > GATES[chosen.what] else 0


FIXED = (
    "--backbones",
    "starter/convnet-nano",
    "--adapters",
    "probe",
    "--heads",
    "ncm",
    "--seeds",
    "1",
    "--device",
    "cpu",
)


def run(words: Sequence[str], out: Path) -> tuple[float, dict[str, Any]]:
    """The processor seconds of a bench with a store of its own, and score and choice of each trial by its digest."""
    from benchmarks.fixed_cost import cpu_seconds_of

    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ZOO_", "XDG_"))}
    command = [sys.executable, "-m", "zoo_core.cli", "bench", *words, "--out", str(out)]
    env = kept | {"HOME": str(out.parent), "ZOO_CACHE": str(out.with_suffix(".cache"))}
    _, total = cpu_seconds_of(command, env=env, cwd=str(out.parent))
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    return total, {row["digest"]: (row["score"], row["chosen"]) for row in rows}


if __name__ == "__main__":
    sys.exit(main())
