"""More than ten adapters compared by `zoo bench` on three real tasks, into results/methods-*.jsonl.

    python benchmarks/methods.py [digits flowers trec] [--workers 2]
    python benchmarks/methods.py --summary

The suites are benchmarks/suites/methods-*.toml; from the folder of the repository `zoo bench SUITE` runs one of them
too. Data and the weights of MobileNet are of ../shared/data, read by the plugin in tests/real; all-MiniLM-L6-v2
comes from a Hub on this machine. A run that was interrupted goes on. --summary prints one table of what is stored.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SUITES = ("digits", "flowers", "trec")


def main() -> int:
    """Runs the suites asked for, prints their tables; 0 if every trial ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", default=SUITES, metavar="SUITE", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--summary", action="store_true", help="run nothing")
    chosen = parser.parse_args()
    if chosen.summary:
        print(summary())
        return 0
    if not (ROOT.parent / "shared" / "data").is_dir():
        print("skipped: ../shared/data is not there")
        return 0
    sys.path[:0] = [str(ROOT)]
    from benchmarks.sentiment import NAME, model_folder
    from tests.hub_server import HubServer

    failed = 0
    with tempfile.TemporaryDirectory() as folder, HubServer() as hub:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "real")}
        if "trec" in chosen.suites:
            hub.add(NAME, model_folder(Path(folder)))
            environment |= hub.environment(Path(folder) / "huggingface")
        for suite in chosen.suites:
            run = Path("runs") / f"methods-{suite}"
            words = ("bench", f"benchmarks/suites/methods-{suite}.toml", "--out", str(run))
            command = [sys.executable, "-m", "zoo_core.cli", *words, "--workers", str(chosen.workers)]
            failed += subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
            shutil.copy(ROOT / run / "results.jsonl", ROOT / "benchmarks" / "results" / f"{run.name}.jsonl")
    return min(failed, 1)


def summary() -> str:
    """Of each adapter on each task: mean and deviation of the accuracy in %, and what it trains besides the head."""
    found: dict[str, dict[str, str]] = {}
    for suite in SUITES:
        by_adapter: dict[str, list[dict[str, Any]]] = {}
        for line in (ROOT / "benchmarks" / "results" / f"methods-{suite}.jsonl").read_text().splitlines():
            row = json.loads(line)
            by_adapter.setdefault(row["adapters"], []).append(row)
        head = by_adapter["probe"][0]["num_trainable"]
        for adapter, rows in by_adapter.items():
            if any(row["status"] != "ok" for row in rows):
                cell = rows[0]["status"]
            else:
                scores = [100 * row["score"] for row in rows]
                trained = rows[0]["num_trainable"] - head
                cell = f"{statistics.mean(scores):.1f} +- {statistics.stdev(scores):.1f}, {trained:,}"
            found.setdefault(adapter.replace("(r=4)", ""), {})[suite] = cell
    lines = [f"| adapter | {' | '.join(SUITES)} |", f"|---|{'---|' * len(SUITES)}"]
    lines += [f"| `{name}` | {' | '.join(cells.get(suite, '') for suite in SUITES)} |" for name, cells in found.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
