"""What halving saves and whether it finds the same: one suite through `zoo bench`, with and without --halving.

    python benchmarks/halving.py [--seeds 3] [--epochs 8] [--limit 200]

starter/vit-nano and starter/convnet-nano on 200 photographs of flowers of ../shared/data, or on 200 digits where those
are not: probes with two heads, the last stage, norms, and all of it. Processor seconds of all processes of a command,
each with an empty ZOO_CACHE and one worker. Prints the first of both tables, and exits with 1 if the winner with
halving is not within the interval of the winner without, or no time was saved.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "flowers5_128"
BACKBONES = "starter/vit-nano,starter/convnet-nano"
ADAPTERS = "probe,probe+mlp,partial(n=1),norm,full"


def main() -> int:
    """Prints the comparison; 0 if both find the same winner and halving is the cheaper one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--limit", type=int, default=200)
    chosen = parser.parse_args()
    sys.path[:0] = [str(ROOT)]
    from benchmarks.fixed_cost import adopt_orphans, cpu_seconds_of
    from zoo_core.results.effort import lines_of
    from zoo_core.results.ranking import Row, report_of
    from zoo_core.results.store import read

    adopt_orphans()
    flowers = f'flowers5(path="{PHOTOGRAPHS}",limit={chosen.limit})'
    task = flowers if PHOTOGRAPHS.is_dir() else f"digits(limit={chosen.limit})"
    words = ["--task", task, "--backbones", BACKBONES, "--adapters", ADAPTERS, "--seeds", str(chosen.seeds)]
    words += ["--epochs", str(chosen.epochs), "--device", "cpu", "--workers", "1"]
    seconds: dict[str, float] = {}
    rows: dict[str, tuple[Row, ...]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, more in (("whole", []), ("halving", ["--halving"])):
            out = Path(folder, name)
            kept = {key: value for key, value in os.environ.items() if not key.startswith(("ZOO_", "XDG_"))}
            command = [sys.executable, "-m", "zoo_core.cli", "bench", *words, *more, "--out", str(out)]
            env = kept | {"HOME": folder, "ZOO_CACHE": str(out.with_suffix(".cache"))}
            _, seconds[name] = cpu_seconds_of(command, env=env, cwd=folder)
            report = report_of(read(out / "results.jsonl"))
            rows[name] = report.rows
            print(f"{name}: {seconds[name]:.1f} s; {'; '.join(lines_of(report.effort))}", flush=True)
    best, found = rows["whole"][0], rows["halving"][0]
    place = next(row for row in rows["whole"] if row.spec == found.spec)
    reach = best.score.half_width or 0.0
    print(f"ratio {seconds['halving'] / seconds['whole']:.3f}; processor seconds")
    print(f"whole:   {best.spec} {best.score.mean:.4f} ± {reach:.4f}, of {len(rows['whole'])} combinations")
    print(f"halving: {found.spec} {found.score.mean:.4f}, place {place.rank} of the whole grid, {place.score.mean:.4f}")
    is_within = best.score.mean - place.score.mean <= reach
    return 0 if is_within and seconds["halving"] < seconds["whole"] else 1


if __name__ == "__main__":
    sys.exit(main())
