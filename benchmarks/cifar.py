"""The published ResNets for CIFAR-10 as their author's plugin has them, examples/cifar-resnet, scored without training.

    python benchmarks/cifar.py

The example is not installed: runs/examples, put on PYTHONPATH, holds what pip would write of it, and so do other
commands that name it:

    PYTHONPATH=examples/cifar-resnet:runs/examples zoo list 'cifar-resnet/*'

Each network is stored with its own classifier as runs/cifar10-resnetN, by `zoo fit` with a head that is fixed, and
scored by `zoo evaluate` on the 2,000 test pictures of ../shared/data. Published: 91.73 and 93.39 % of all 10,000.
Exits with 1 if a score is further from that than three standard errors of 2,000 pictures.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
EXAMPLE = ROOT / "examples" / "cifar-resnet"
INSTALLED = ROOT / "runs" / "examples"
TASK = 'npz(path="../shared/data/cifar10",pattern="{split}_small.npz")'
PUBLISHED = {"resnet20": 0.9173, "resnet56": 0.9339}


def main() -> int:
    """Prints a row for each network; 0 if both are as published."""
    if not SHARED.is_dir():
        print("skipped: ../shared/data is not there")
        return 0
    install(EXAMPLE, INSTALLED)
    wrong = 0
    for name, published in PUBLISHED.items():
        run = ROOT / "runs" / f"cifar10-{name}"
        if not run.is_dir():
            files = f"../shared/data/weights/cifar10_{name}"
            spec = f'cifar10-{name}(files="{files}")+cifar-resnet-classifier(files="{files}",fixed=true)'
            zoo("fit", spec, "--task", TASK, "--out", str(run.relative_to(ROOT)))
        found = json.loads(zoo("evaluate", str(run.relative_to(ROOT)), "--json"))
        score, num = float(found["score"]), int(found["num_examples"])
        error = math.sqrt(published * (1 - published) / num)
        wrong += abs(score - published) > 3 * error
        print(f"{name}  {score:.2%} of {num} test pictures, published {published:.2%} (standard error {error:.2%})")
    return min(wrong, 1)


def install(project: Path, folder: Path) -> None:
    """Writes the metadata that pip would of a project into a folder, which goes on PYTHONPATH beside the project."""
    told = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    place = folder / f"{told['name'].replace('-', '_')}-{told['version']}.dist-info"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    head = ["Metadata-Version: 2.1", f"Name: {told['name']}", f"Version: {told['version']}"]
    requires = [f"Requires-Dist: {each}" for each in told["dependencies"]]
    (place / "METADATA").write_text("\n".join([*head, *requires]) + "\n", encoding="utf-8")
    lines = [
        line
        for group, names in told["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in names.items()))
    ]
    (place / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def zoo(*words: str) -> str:
    """What a command prints, run in the folder of the repository with the example as if installed."""
    path = os.pathsep.join(map(str, (EXAMPLE, INSTALLED)))
    done = subprocess.run(
        [sys.executable, "-m", "zoo_core.cli", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
