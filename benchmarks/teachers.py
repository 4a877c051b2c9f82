"""What a teacher costs an epoch: live, and read from a filled store, over the same epoch without one.

    python benchmarks/teachers.py [digits flowers grid] [--rounds 15]

digits: vit-nano fitted on the digits teaches convnet-nano, strongly augmented. flowers: MobileNetV2 at 224 px teaches
MobileNetV1 0.25 at 128 px features of 240 photographs. Epochs are interleaved, and the least of the rounds counts, in
seconds of processor time. Gates: a filled store at most 1.10 of plain; live at most 1.10 of plain and the teacher's own
pass, with its preparation, together.
grid: a bench of three rates, two students and two losses, augmented, on two seeds: what teachers made over what was
used. Exits with 1 if a gate is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
BIG, SMALL, PHOTOS = "starter/vit-nano+full", "starter/convnet-nano+full", 240
MOBILENET = 'hf(files="../shared/data/weights/mobilenet_v1_0.25_128-hf")+full'
MOBILENET_V2 = 'timm(files="../shared/data/weights/mobilenetv2_100.coral_in1k")'
GATE = 1.10


@dataclass(frozen=True, kw_only=True)
class Case:
    """A student with its teacher on a task."""

    spec: str
    task: str
    augment: str


def main() -> int:
    """Prints the seconds of each case and the shares of the grid; 0 if no gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=("digits", "flowers", "grid"), metavar="CASE")
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "real")]
    os.chdir(ROOT)
    import torch

    torch.set_num_threads(1)
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZOO_CACHE"] = str(Path(folder, "cache"))
        run = taught_once(Path(folder, "big"))
        cases = {
            "digits": Case(spec=f"{SMALL}+distill(teacher={run})", task="digits", augment="strong"),
            "flowers": Case(
                spec=f"{MOBILENET}+distill-features(teacher={json.dumps(MOBILENET_V2)})",
                task=f'flowers(files="../shared/data/flowers5_128",limit={PHOTOS})',
                augment="none",
            ),
        }
        for name in asked.cases:
            if name == "grid":
                missed += grid(Path(folder), run)
            elif name == "flowers" and not SHARED.is_dir():
                print("flowers: skipped, ../shared/data is not there")
            else:
                missed += compared(name, cases[name], asked.rounds)
    return min(missed, 1)


def taught_once(folder: Path) -> str:
    """The teacher of the digits, as a spec names it."""
    import zoo_core

    zoo_core.fit(BIG, task="digits", budget=zoo_core.Budget(epochs=2, num_rates=1), out=folder)
    return json.dumps(str(folder))


def compared(name: str, case: Case, rounds: int) -> int:
    """Prints the least seconds of each kind of epoch; the number of gates that are missed."""
    epochs = dict(kinds(case))
    seconds: dict[str, list[float]] = {kind: [] for kind in epochs}
    for _ in range(rounds):
        for kind, epoch in epochs.items():
            started = time.process_time()
            epoch()
            seconds[kind].append(time.process_time() - started)
    least = {kind: min(found) for kind, found in seconds.items()}
    alone = least["teacher's pass and loading"] - least["loading"]
    filled, live = least["filled"] / least["plain"], least["live"] / (least["plain"] + alone)
    print(f"{name}, least of {rounds} rounds: " + ", ".join(f"{kind} {value:.3f} s" for kind, value in least.items()))
    print(f"{name}: filled over plain {filled:.3f}, live over plain and pass {live:.3f} (gates {GATE})", flush=True)
    return (filled > GATE) + (live > GATE)


def kinds(case: Case) -> Iterator[tuple[str, Callable[[], None]]]:
    """The kinds of epoch that are compared, by name: the student's with and without a teacher, and loading alone."""
    import torch

    import zoo_core
    from zoo_core.benchmark.loaders import open_task, training_loader
    from zoo_core.benchmark.teaching import replay_of
    from zoo_core.data.splits import carve
    from zoo_core.files.fetch import pin_plan
    from zoo_core.model.build import build
    from zoo_core.model.replay import Passes, Replay

    plan = pin_plan(zoo_core.resolve(case.spec, task=case.task, budget=zoo_core.Budget(augment=case.augment)))
    plain_plan = pin_plan(
        zoo_core.resolve(case.spec.rpartition("+")[0], task=case.task, budget=zoo_core.Budget(augment=case.augment))
    )
    assert plan.task is not None
    device = torch.device("cpu")
    splits = carve(open_task(plan), seed=0, **plan.task.common)
    learner = build(plan, target=splits.target)
    alone = build(plain_plan, target=splits.target)
    stored = replay_of(plan, learner, splits.train, device, Passes(), role="train")
    assert stored is not None
    assert learner.teachers is not None
    now = Replay(learner.teachers, {}, stored.rows, Passes())

    def loader(beside: Replay | None) -> Any:
        return training_loader(plan, learner, splits.train, splits.target, device, 0, beside)

    def trains(model: Any, batches: Any) -> Callable[[], None]:
        optimiser = torch.optim.AdamW(model.parameter_groups(1e-4))

        def epoch() -> None:
            model.train()
            for batch in batches.epoch(0):
                loss = model.loss(model(batch.inputs), batch)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

        return epoch

    def loads(batches: Any) -> Callable[[], None]:
        def epoch() -> None:
            for _ in batches.epoch(0):
                pass

        return epoch

    for warm in (loader(stored), loader(None)):
        loads(warm)()  # fills the store
    yield "plain", trains(alone, loader(None))
    yield "filled", trains(learner, loader(stored))
    yield "live", trains(learner, loader(now))
    yield "loading", loads(loader(None))
    yield "teacher's pass and loading", loads(loader(now))


def grid(folder: Path, run: str) -> int:
    """Prints what the teachers of a bench made over what was used; 1 if a view was made twice."""
    import zoo_core
    from zoo_core.benchmark.grid import suite_from

    table: Mapping[str, Any] = {
        "tasks": ["digits(limit=300)"],
        "backbones": ["starter/convnet-nano", "starter/vit-nano"],
        "adapters": [f"full+distill(teacher={run})", f"full+distill(teacher={run},form=dist)"],
        "seeds": 2,
        "budget": {"epochs": 3, "num_rates": 3, "augment": "light"},
    }
    rows = zoo_core.bench(suite_from(table, name="grid"), out=folder / "grid")
    told = [row.teachers for row in rows if row.teachers is not None]
    made, saved = (sum(int(each[name]) for each in told) for name in ("made", "saved"))
    once = 2 * 3 * 300  # seeds, epochs and examples: each view of each example of each seed
    print(f"grid: {len(rows)} trials made {made} outputs of the teacher and used {made + saved}; once is {once}")
    return int(made > once)


if __name__ == "__main__":
    sys.exit(main())
