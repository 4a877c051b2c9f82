"""More than ten adapters compared by `zoo bench` on three real tasks, into results/methods-*.jsonl.

    python benchmarks/methods.py [digits flowers trec] [--workers 2]
    python benchmarks/methods.py --summary

The suites are benchmarks/suites/methods-*.toml; from the folder of the repository `zoo bench SUITE` runs one of them
too. Data and the weights of MobileNet are of ../shared/data, read by the plugin in tests/real; all-MiniLM-L6-v2
comes from a Hub on this machine. A run that was interrupted goes on. --summary prints two tables of what is stored.
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
    """Two tables: what each adapter reaches and trains on each task, and what it costs there."""
    rows = {suite: by_adapter(suite) for suite in SUITES}
    probes = {suite: rows[suite]["probe"][0]["num_trainable"] for suite in SUITES}
    names = list(dict.fromkeys(name for suite in SUITES for name in rows[suite]))
    reached = {name: [score(rows[suite].get(name), probes[suite]) for suite in SUITES] for name in names}
    costs = {name: [cost(rows[suite].get(name)) for suite in SUITES] for name in names}
    return f"{table(reached)}\n\n{table(costs)}"


def by_adapter(suite: str) -> dict[str, list[dict[str, Any]]]:
    """The stored rows of a suite, one for each seed, by the name of the adapter."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (ROOT / "benchmarks" / "results" / f"methods-{suite}.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["adapters"].replace("(r=4)", ""), []).append(row)
    return found


def score(rows: list[dict[str, Any]] | None, head: int) -> str:
    """Mean and deviation of the accuracy in %, and what is trained besides the head."""
    if not rows:
        return ""
    if any(row["status"] != "ok" for row in rows):
        return str(rows[0]["status"])
    scores = [100 * row["score"] for row in rows]
    return f"{statistics.mean(scores):.1f} +- {statistics.stdev(scores):.1f}, {rows[0]['num_trainable'] - head:,}"


def cost(rows: list[dict[str, Any]] | None) -> str:
    """Examples per second in training and in inference, and MiB at the most: medians over seeds."""
    if not rows or any(row["status"] != "ok" for row in rows):
        return ""
    rates = [
        statistics.median(row[phase]["examples_per_second"] for row in rows) for phase in ("training", "inference")
    ]
    memory = statistics.median(row["peak_memory_bytes"] for row in rows) / 2**20
    return f"{rates[0]:,.0f}, {rates[1]:,.0f}, {memory:,.0f}"


def table(cells: dict[str, list[str]]) -> str:
    """Markdown: a row for each adapter, a column for each task."""
    lines = [f"| adapter | {' | '.join(SUITES)} |", f"|---|{'---|' * len(SUITES)}"]
    return "\n".join(lines + [f"| `{name}` | {' | '.join(row)} |" for name, row in cells.items()])


if __name__ == "__main__":
    sys.exit(main())
