"""Seven real sets fitted from their files, from pre-trained and random weights, into results/tasks-*.jsonl.

    python benchmarks/tasks.py [flowers sst2 conll2003 fsdd adult zh-waimai fashion-mnist] [--workers 2]
    python benchmarks/tasks.py --weights        lays out below runs/weights what the suites name, and runs nothing
    python benchmarks/tasks.py --summary        one table of what is stored

Each set is one command once the weights are there, from the folder of the repository:

    zoo bench benchmarks/suites/tasks-sst2.toml

The sets are of ../shared/data, all-MiniLM-L6-v2 comes from its package, MobileNetV2 of ../shared/data is told to look
at 128 pixels, the spectrogram transformer has a configuration and no weights, and what fashion-mnist starts from is
fitted on mnist before. A run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
WEIGHTS = ROOT / "runs" / "weights"
SUITES = ("flowers", "sst2", "conll2003", "fsdd", "adult", "zh-waimai", "fashion-mnist")
METHODS = ("probe", "full", "lora")
SEEDS = 3
SOURCE = ("starter/convnet-nano(weights=random)+full", 'mnist(path="../shared/data/mnist")', "runs/source")
FRAMES, BINS = 64, 64
SPECTROGRAM = {
    "model_type": "audio-spectrogram-transformer",
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "patch_size": 16,
    "frequency_stride": 8,
    "time_stride": 8,
    "max_length": FRAMES,
    "num_mel_bins": BINS,
}


def main() -> int:
    """Runs the suites asked for; 0 if every trial ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", default=SUITES, metavar="SUITE", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--weights", action="store_true", help="lay out the weights and stop")
    parser.add_argument("--summary", action="store_true", help="print the table and stop")
    chosen = parser.parse_args()
    if chosen.summary:
        print(summary())
        return 0
    if not SHARED.is_dir():
        print("skipped: ../shared/data is not there")
        return 0
    lay_out()
    failed = 0
    for suite in () if chosen.weights else chosen.suites:
        if suite == "fashion-mnist" and not (ROOT / SOURCE[-1]).is_dir():
            spec, task, out = SOURCE
            zoo("fit", spec, "--task", task, "--epochs", "5", "--num-rates", "1", "--threads", "1", "--out", out)
        run = Path("runs") / f"tasks-{suite}"
        words = ["bench", f"benchmarks/suites/tasks-{suite}.toml", "--out", str(run), "--workers", str(chosen.workers)]
        failed += zoo(*words)
        shutil.copy(ROOT / run / "results.jsonl", ROOT / "benchmarks" / "results" / f"{run.name}.jsonl")
    return min(failed, 1)


def zoo(*words: str) -> int:
    """The exit code of a command, run in the folder of the repository."""
    return subprocess.run([sys.executable, "-m", "zoo_core.cli", *words], cwd=ROOT, check=False).returncode


def lay_out() -> None:
    """The folders that the suites name, where they are not there yet."""
    mobilenet_folder(WEIGHTS / "mobilenetv2_100-128")
    minilm = WEIGHTS / "all-MiniLM-L6-v2"
    if not minilm.is_dir():
        sys.path[:0] = [str(ROOT)]
        from benchmarks.sentiment import model_folder

        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(model_folder(Path(folder)), minilm)
    spectrogram = WEIGHTS / "ast-tiny"
    spectrogram.mkdir(parents=True, exist_ok=True)
    extractor = {"sampling_rate": 16000, "max_length": FRAMES, "num_mel_bins": BINS}
    _write(spectrogram / "config.json", SPECTROGRAM)
    _write(spectrogram / "preprocessor_config.json", extractor)


def mobilenet_folder(folder: Path) -> Path:
    """MobileNetV2 of ../shared/data as a folder whose configuration asks for pictures of 128 pixels, not of 224."""
    source = SHARED / "weights" / "mobilenetv2_100.coral_in1k"
    table = json.loads((source / "config.json").read_text(encoding="utf-8"))
    table["pretrained_cfg"] |= {"input_size": [3, 128, 128], "pool_size": [4, 4], "crop_pct": 1.0}
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", table)
    shutil.copy(source / "model.safetensors", folder)
    return folder


def _write(path: Path, table: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def summary() -> str:
    """Of each set and method the score in % from pre-trained and from random weights, and what the former gains."""
    lines = ["| task | method | pre-trained | from scratch | gain |", "|---|---|---|---|---|"]
    for suite in SUITES:
        scores = stored(suite)
        for method in dict.fromkeys(method for method, _ in scores):
            pair = [scores.get((method, weights), []) for weights in ("pretrained", "random")]
            means = [statistics.mean(scores) for scores in pair if len(scores) >= SEEDS]
            gain = f"{means[0] - means[1]:+.1f}" if len(means) == 2 else ""
            lines.append(f"| {suite} | `{method}` | {cell(pair[0])} | {cell(pair[1])} | {gain} |")
    return "\n".join(lines)


def stored(suite: str) -> dict[tuple[str, str], list[float]]:
    """Scores in % by method and weights; `run(...)` counts as pre-trained."""
    path = ROOT / "benchmarks" / "results" / f"tasks-{suite}.jsonl"
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found: dict[tuple[str, str], list[float]] = {}
    for row in sorted(rows, key=lambda row: (METHODS.index(row["adapters"]), row["head"])):
        method = row["adapters"] if row["head"] == "linear" else f"{row['adapters']}+{row['head']}"
        if row["status"] == "ok":
            found.setdefault((method, row["weights"]), []).append(100 * row["score"])
    return found


def cell(scores: list[float]) -> str:
    """Mean and deviation over seeds; nothing where a run has not come to its last seed."""
    if len(scores) < SEEDS:
        return ""
    return f"{statistics.mean(scores):.1f} +- {statistics.stdev(scores):.1f}"


if __name__ == "__main__":
    sys.exit(main())
