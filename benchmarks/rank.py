"""`zoo rank`: what it costs over a loop written by hand, and what its picks are worth.

    python benchmarks/rank.py cost [--rounds 5] [--examples 500] [--distinct]
    python benchmarks/rank.py regret [--workers 2] [digits mnist ...]
    python benchmarks/rank.py summary

cost: whole processes, from import to scores with intervals, over one that only embeds the same photographs with timm
(benchmarks/rank_by_hand.py), on eight backbones at 128 pixels with one thread each: five networks, and three depths of
one of them (`until=`), which zoo makes of one pass and the script of timm's own features, a pass each; with --distinct,
eight networks. Rounds are paired and interleaved, and zoo begins each with an empty cache. Gate: the median ratio of
processor time is at most 1.1. One network has weights of ImageNet, the others are random, which takes the same time.

regret: probes with three seeds of every candidate, by zoo bench, into results/rank/TASK.jsonl, and the ranking on the
same training examples into results/rank/TASK.json. summary prints, for each order, the regret in points (the best test
score minus that of the first of the order) and Kendall's tau with the order of test scores.
Data and weights are of ../shared/data; tasks without them are skipped.
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
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "rank"
SHARED = ROOT.parent / "shared" / "data"
PHOTOGRAPHS = SHARED / "flowers5_128"
GATE = 1.1

RANDOM = (  # random weights; small networks, on which whatever stands beside the pass weighs most
    *("mobilenetv3_small_100", "efficientnet_b0", "resnet18", "regnetx_004"),
    *("mobilenetv2_050", "mobilenetv3_large_100", "lcnet_100"),
)
DEPTHS: Mapping[int, int] = {3: 1, 6: 2, 13: 3}  # of MobileNetV2: until, and the level that timm counts there

STARTER = (
    *(f"starter/convnet-nano(until={stage})" for stage in (1, 2, 3)),
    "starter/convnet-nano",
    *(f"starter/vit-nano(until={stage})" for stage in (1, 2, 4)),
    "starter/vit-nano",
)
PHOTOS = (
    *(f'timm(files="runs/weights/mobilenetv2_100-128",until={stage})' for stage in (3, 5, 6)),
    'timm(files="runs/weights/mobilenetv2_100-128")',
    'hf(files="../shared/data/weights/mobilenet_v1_0.25_128-hf",until=7)',
    'hf(files="../shared/data/weights/mobilenet_v1_0.25_128-hf")',
    *("starter/convnet-nano", "starter/vit-nano"),
)
TASKS: Mapping[str, tuple[str, Sequence[str]]] = {
    "digits": ("digits(shots=10)", STARTER),
    "digits-attributes": ("digits-attributes(limit=200)", STARTER),
    "mnist": ('mnist(path="../shared/data/mnist",limit=300)', STARTER),
    "fashion-mnist": ('fashion-mnist(path="../shared/data/fashion_mnist",limit=300)', STARTER),
    "cifar10": ('cifar10(path="../shared/data/cifar10",limit=300)', STARTER),
    "flowers": ('flowers5(path="../shared/data/flowers5_128",shots=20)', PHOTOS),
}
BUDGET = {"epochs": 10, "num_rates": 3}


def main() -> int:
    """Runs what is asked for; exit code 1 if a gate is missed or a trial failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "regret", "summary"])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--distinct", action="store_true", help="eight networks, and no depths of one of them")
    chosen = parser.parse_args()
    sys.path[:0] = [str(ROOT)]
    os.chdir(ROOT)
    if chosen.what == "summary":
        print(summary())
        return 0
    if chosen.what == "cost":
        return cost(chosen.rounds, chosen.examples, distinct=chosen.distinct)
    return max((regret(name, chosen.workers) for name in chosen.tasks or TASKS), default=0)


# --- what it costs ----------------------------------------------------------------------------------------------------


def cost(rounds: int, examples: int, *, distinct: bool) -> int:
    """Prints the ratio of each round and the medians; 1 when the gate is missed."""
    if not PHOTOGRAPHS.is_dir():
        print(f"skipped: {PHOTOGRAPHS} is not there")
        return 0
    from benchmarks.flowers import timed

    ratios: dict[str, list[float]] = {"wall": [], "processor": []}
    print("round  wall s by hand  by zoo  ratio  processor s by hand  by zoo  ratio")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        first, *others = laid_out(here)
        depths = {} if distinct else DEPTHS
        networks = [first, *others[: len(others) - len(depths)]]
        task = f'flowers5(path="{PHOTOGRAPHS}",limit={examples})'
        ids = here / "ids.txt"
        ids.write_text("\n".join(drawn(task)), encoding="utf-8")
        script = [sys.executable, str(ROOT / "benchmarks" / "rank_by_hand.py"), str(PHOTOGRAPHS), str(ids)]
        script += [str(here / "features.pt"), *map(str, networks)]
        script += [*(f"{first}@{level}" for level in depths.values()), "--threads", "1"]
        specs = [f'timm(files="{path}"{"" if has_weights(path) else ",weights=random"})' for path in networks]
        specs += [f'timm(files="{first}",until={until})' for until in depths]
        rank = [sys.executable, "-m", "zoo_core.cli", "rank", "--task", task, "--backbones", ",".join(specs)]
        rank += ["--threads", "1", "--device", "cpu", "--json"]
        printed = ""
        for number in range(rounds):
            os.environ["ZOO_CACHE"] = str(here / f"cache-{number}")
            order = ("hand", "zoo") if number % 2 == 0 else ("zoo", "hand")
            found = {name: timed({"hand": script, "zoo": rank}[name], here) for name in order}
            hand, zoo, printed = found["hand"], found["zoo"], found["zoo"].printed
            ratios["wall"].append(zoo.wall / hand.wall)
            ratios["processor"].append(zoo.processor / hand.processor)
            print(
                f"{number:5}  {hand.wall:14.1f}  {zoo.wall:6.1f}  {ratios['wall'][-1]:5.3f}  {hand.processor:19.1f}  "
                f"{zoo.processor:6.1f}  {ratios['processor'][-1]:5.3f}",
                flush=True,
            )
        rows = json.loads(printed)["rows"]
        assert [row["num_made"] for row in rows] == [examples] * (1 + len(RANDOM)), rows
        for spec, name in [("", first.name), *((f",until={each}", f"{first.name}@{depths[each]}") for each in depths)]:
            largest = difference(f'timm(files="{first}"{spec})', name, task, here / "features.pt")
            print(f"features of {name} differ by at most {largest:.2g} (the largest: 1)")
        again = timed(rank, here)
        print(f"the same command again, from the store: {again.wall:.1f} s, processor {again.processor:.1f} s")
    for name, values in ratios.items():
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(
            f"{name} time, zoo over the loop: median {statistics.median(values):.3f} of {len(values)} pairs, {spread}"
        )
    return int(statistics.median(ratios["processor"]) > GATE)


def laid_out(folder: Path) -> list[Path]:
    """The networks as folders that both read: a configuration for 128 pixels, and weights if there are any."""
    from benchmarks.tasks import mobilenet_folder

    first = mobilenet_folder(folder / "mobilenetv2_100")
    table = json.loads((first / "config.json").read_text(encoding="utf-8"))
    found = [first]
    for name in RANDOM:
        network = folder / name
        network.mkdir()
        own = {key: table["pretrained_cfg"][key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct")}
        config = {"architecture": name, "num_classes": 1000, "pretrained_cfg": own}
        (network / "config.json").write_text(json.dumps(config), encoding="utf-8")
        found.append(network)
    return found


def has_weights(network: Path) -> bool:
    """Whether a folder holds weights."""
    return (network / "model.safetensors").exists()


def drawn(task: str) -> list[str]:
    """The photographs of the training split that `zoo rank` looks at, by their paths in the folder."""
    from zoo_core.benchmark.loaders import open_task
    from zoo_core.data.splits import carve
    from zoo_core.files.fetch import pin_plan
    from zoo_core.plan.resolve import resolve

    plan = pin_plan(resolve("starter/vit-nano", task=task))
    assert plan.task is not None
    return list(carve(open_task(plan), seed=0, **plan.task.common).train.ids)


def difference(spec: str, name: str, task: str, by_hand: Path) -> float:
    """How far the stored features of a backbone are from those of the loop, over the largest of those."""
    import torch

    from zoo_core.benchmark.loaders import open_task
    from zoo_core.data.splits import carve
    from zoo_core.selection.pooled import PooledFeatures
    from zoo_core.selection.rank import shortlisted

    (candidate,) = shortlisted(spec, task=task).candidates
    plan = candidate.plan
    assert plan.task is not None
    split = carve(open_task(plan), seed=0, **plan.task.common).train
    found = PooledFeatures([plan], split, device=torch.device("cpu")).of(plan)
    wanted = torch.load(by_hand, weights_only=True)[name]
    assert not found.num_made, "the command has stored them"
    return float((found.features - wanted).abs().max() / wanted.abs().max())


# --- what its picks are worth -----------------------------------------------------------------------------------------


def regret(name: str, workers: int) -> int:
    """Runs the bench of a task and its ranking, and stores both; 1 if a trial failed."""
    import zoo_core
    from benchmarks.tasks import WEIGHTS, mobilenet_folder
    from zoo_core.benchmark.grid import suite_from

    task, backbones = TASKS[name]
    if "../shared" in task and not SHARED.is_dir():
        print(f"skipped: {SHARED} is not there")
        return 0
    if backbones is PHOTOS:
        mobilenet_folder(WEIGHTS / "mobilenetv2_100-128")
    RESULTS.mkdir(parents=True, exist_ok=True)
    run = Path("runs") / f"rank-{name}"
    suite = suite_from({"tasks": [task], "backbones": list(backbones), "budget": BUDGET}, name=run.name)
    results = zoo_core.bench(suite, out=run, num_workers=workers)
    shutil.copy(run / "results.jsonl", RESULTS / f"{name}.jsonl")
    words = ["rank", "--task", task, "--backbones", ",".join(backbones), "--device", "cpu", "--threads", "1", "--json"]
    done = subprocess.run([sys.executable, "-m", "zoo_core.cli", *words], stdout=subprocess.PIPE, text=True, check=True)
    (RESULTS / f"{name}.json").write_text(done.stdout, encoding="utf-8")
    print(row_of(name))
    return int(any(result.status != "ok" for result in results))


def summary() -> str:
    """The table of all tasks that have been run, and the mean of each column."""
    names = [name for name in TASKS if (RESULTS / f"{name}.json").exists()]
    orders = list(judged(names[0]))
    lines = [f"| task | best, of | {' | '.join(orders)} |", f"|---|---|{'---|' * len(orders)}"]
    lines += [row_of(name) for name in names]
    found = [judged(name) for name in names]
    means = []
    for order in orders:
        points, taus = zip(*(each[order] for each in found), strict=True)
        means.append(f"{statistics.mean(points):.1f}, {statistics.mean(taus):+.2f}")
    return "\n".join([*lines, f"| mean | | {' | '.join(means)} |"])


def row_of(name: str) -> str:
    """A row of the table: the best probe, and of each order the regret in points and tau."""
    scores = measured(name)
    best = max(scores, key=lambda each: scores[each])
    cells = [f"{points:.1f}, {tau:+.2f}" for points, tau in judged(name).values()]
    named = best.replace("../shared/data/weights/", "").replace("runs/weights/", "")
    return f"| {name} | `{named}` {100 * scores[best]:.1f}, {len(scores)} | {' | '.join(cells)} |"


def judged(name: str) -> dict[str, tuple[float, float]]:
    """By order: the regret of its first in points, and Kendall's tau with the test scores."""
    scores, ranking = measured(name), json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in ranking["rows"]}
    orders: dict[str, Callable[[str], float]] = {
        order: lambda each, order=order: rows[each]["scores"][order]["value"]  # type: ignore[misc]
        for order in ranking["scores"]
    }
    orders["size"] = lambda each: rows[each]["num_parameters"]
    best = max(scores.values())
    found = {}
    for order, by in orders.items():
        first = max(scores, key=by)
        pairs = [(by(a) - by(b)) * (scores[a] - scores[b]) for a, b in combinations(scores, 2)]
        tau = sum((pair > 0) - (pair < 0) for pair in pairs) / len(pairs)
        found[order] = (100 * (best - scores[first]), tau)
    return found


def measured(name: str) -> dict[str, float]:
    """The mean test score of each backbone's probe, over seeds."""
    found: dict[str, list[float]] = {}
    for line in (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        if row["score"] is not None:
            found.setdefault(row["trial"].split("+linear ")[0], []).append(row["score"])
    return {each: statistics.mean(scores) for each, scores in found.items()}


if __name__ == "__main__":
    sys.exit(main())
