"""What a teacher is worth on three real tasks: students with and without one, at equal epochs, into results/distill.

    python benchmarks/distill.py [text flowers cifar]
    python benchmarks/distill.py --summary

text: all-MiniLM-L6-v2 fitted on the sentences of SST-2 teaches its own first two layers, of which 400 sentences have
labels. flowers: MobileNetV2 probed with five labelled photographs of each kind teaches MobileNetV1 0.25. cifar: the
published ResNet-56 (93.39 % on CIFAR-10) teaches a ResNet-20 from random weights on 2,000 pictures.
Each student is fitted at several numbers of epochs. Validation chooses one of three learning rates on seed 0, and the
other seeds take that one; the last epoch is scored on the test split, once. The gain of an arm is the mean over seeds
of its score less that of the control with the same seed and epochs, with the 95 % interval of Student's t.
Data and weights are of ../shared/data; what was stored is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / "results" / "distill"
SEEDS = range(5)
T_95 = 2.776  # of Student's t with four degrees of freedom


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is done with the student. adapters: with {teacher} where its run goes. task: of the student.

    longer: times as many epochs, for a control that makes as many steps; it is made for the fewest epochs alone.
    """

    name: str
    adapters: str
    task: str
    longer: int = 1


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """teacher: its spec, or the folder of a run where it needs no fit; with {seed}, one for each seed."""

    teacher: str
    teacher_task: str
    teacher_epochs: int
    student: str
    arms: tuple[Arm, ...]
    epochs: tuple[int, ...]
    batch_size: int = 16
    augment: str = "none"
    each_seed: bool = False
    teacher_rates: int = 1


MINILM = "runs/weights/all-MiniLM-L6-v2"
SST2 = 'real-sst2(files="../shared/data/sst2"{more})'
FLOWERS = 'flowers(files="../shared/data/flowers5_128",evaluated=400{more})'
CIFAR = 'npz(path="../shared/data/cifar10",pattern="{split}_small.npz",limit=2000)'
NAMES = ("text", "flowers", "cifar")
EXPERIMENTS: Mapping[str, Experiment] = {
    "text": Experiment(
        teacher=f'hf(files="{MINILM}",max_length=32)+full',
        teacher_task=SST2.format(more=""),
        teacher_epochs=2,
        student=f'hf(files="{MINILM}",max_length=32,until=2)+partial(n=2)',
        arms=(
            Arm(name="control", adapters="", task=SST2.format(more=",limit=400")),
            Arm(name="control, as many steps", adapters="", task=SST2.format(more=",limit=400"), longer=17),
            Arm(name="kd, labelled", adapters="+distill(teacher={teacher})", task=SST2.format(more=",limit=400")),
            Arm(
                name="kd, the rest unlabelled",
                adapters="+distill(teacher={teacher})",
                task=SST2.format(more=",limit=400,rest=unlabelled"),
            ),
        ),
        epochs=(1, 2),
    ),
    "flowers": Experiment(
        teacher='timm(files="../shared/data/weights/mobilenetv2_100.coral_in1k")+probe',
        teacher_task=FLOWERS.format(more=",shots=5"),
        teacher_epochs=10,
        student='hf(files="../shared/data/weights/mobilenet_v1_0.25_128-hf")+full',
        arms=(
            Arm(name="control", adapters="", task=FLOWERS.format(more=",shots=5")),
            Arm(name="control, as many steps", adapters="", task=FLOWERS.format(more=",shots=5"), longer=80),
            Arm(name="kd, labelled", adapters="+distill(teacher={teacher})", task=FLOWERS.format(more=",shots=5")),
            Arm(
                name="kd, the rest unlabelled",
                adapters="+distill(teacher={teacher})",
                task=FLOWERS.format(more=",shots=5,rest=unlabelled"),
            ),
        ),
        epochs=(1, 2),
        each_seed=True,
    ),
    "cifar": Experiment(
        teacher="runs/cifar10-resnet56",
        teacher_task="",
        teacher_epochs=0,
        student="cifar-resnet/resnet20(weights=random)+full",
        arms=(
            Arm(name="control", adapters="", task=CIFAR),
            Arm(name="kd", adapters="+distill(teacher={teacher},alpha=0.9,T=4)", task=CIFAR),
            Arm(name="kd, the defaults", adapters="+distill(teacher={teacher})", task=CIFAR),
        ),
        epochs=(4, 8),
        batch_size=32,
        augment="light",
    ),
}


def main() -> int:
    """Runs the experiments asked for, prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--summary", action="store_true", help="run nothing")
    asked = parser.parse_args()
    if asked.summary or not SHARED.is_dir():
        print("\n\n".join(summary(name) for name in NAMES if stored(name)))
        return 0
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "real")]
    os.chdir(ROOT)
    prepare()
    for name in asked.experiments:
        for _ in rows_of(name, EXPERIMENTS[name]):
            pass
        print(summary(name))
    return 0


def prepare() -> None:
    """What the experiments read that is not of ../shared/data: MiniLM, the example as if installed, its stored run."""
    import torch

    from benchmarks import cifar
    from benchmarks.sentiment import model_folder

    torch.set_num_threads(1)
    if not Path(MINILM).is_dir():
        with tempfile.TemporaryDirectory() as folder:
            Path(MINILM).parent.mkdir(parents=True, exist_ok=True)
            model_folder(Path(folder)).rename(MINILM)
    if not Path("runs/cifar10-resnet56").is_dir():
        cifar.main()
    cifar.install(cifar.EXAMPLE, cifar.INSTALLED)
    sys.path[:0] = [str(cifar.EXAMPLE), str(cifar.INSTALLED)]


def rows_of(name: str, experiment: Experiment) -> Iterator[dict[str, Any]]:
    """Every fit that is not stored yet, stored as it ends."""
    known = {(row["arm"], row["epochs"], row["seed"]): row for row in stored(name)}
    for arm in experiment.arms:
        for epochs in experiment.epochs if arm.longer == 1 else experiment.epochs[:1]:
            rate = None
            for seed in SEEDS:
                row = known.get((arm.name, epochs, seed))
                if row is None:
                    row = fitted(name, experiment, arm, epochs, seed, rate)
                    with (RESULTS / f"{name}.jsonl").open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(f"{name}: {arm.name}, {epochs} epochs, seed {seed}: {row['score']:.4f}", flush=True)
                    yield row
                rate = row["chosen"]["learning_rate"] if seed == SEEDS[0] else rate


def fitted(name: str, experiment: Experiment, arm: Arm, epochs: int, seed: int, rate: float | None) -> dict[str, Any]:
    """The result of a student. rate: that seed 0 has chosen; None: three are tried."""
    import zoo_core

    teacher = teacher_of(name, experiment, seed)
    budget = zoo_core.Budget(
        epochs=epochs * arm.longer,
        batch_size=experiment.batch_size,
        num_rates=3,
        augment=experiment.augment,
        keep="last",
    )
    spec = experiment.student + arm.adapters.format(teacher=json.dumps(teacher))
    plan = zoo_core.resolve(spec, task=arm.task, budget=budget, seed=seed)
    if rate is not None:
        plan = replace(plan, learning_rates=(rate,))
    _, result = zoo_core.fit(plan)
    return {"arm": arm.name, "epochs": epochs, **asdict(result)}


def teacher_of(name: str, experiment: Experiment, seed: int) -> str:
    """The folder of the teacher's run, which is fitted where it is not there."""
    import zoo_core

    if not experiment.teacher_task:
        return experiment.teacher
    number = seed if experiment.each_seed else 0
    folder = f"runs/distill-{name}-teacher-{number}"
    if not Path(folder, "run.json").is_file():
        budget = zoo_core.Budget(
            epochs=experiment.teacher_epochs, batch_size=experiment.batch_size, num_rates=experiment.teacher_rates
        )
        _, result = zoo_core.fit(
            experiment.teacher, task=experiment.teacher_task, budget=budget, seed=number, out=folder
        )
        print(f"{name}: teacher {number}: {result.score:.4f}", flush=True)
    return folder


def stored(name: str) -> list[dict[str, Any]]:
    """The rows that are stored of an experiment."""
    file = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def summary(name: str) -> str:
    """Markdown: a row for each arm and number of epochs, with its gain over the control."""
    scores: dict[tuple[str, int], dict[int, float]] = {}
    for row in stored(name):
        scores.setdefault((row["arm"], row["epochs"]), {})[row["seed"]] = row["score"]
    lines = [f"| {name} | epochs | accuracy, % | gain, points |", "|---|---|---|---|"]
    for (arm, epochs), found in scores.items():
        shown = f"{100 * statistics.mean(found.values()):.1f} ± {100 * spread(list(found.values())):.1f}"
        control = scores.get(("control", epochs), {})
        gains = [100 * (score - control[seed]) for seed, score in found.items() if seed in control]
        gain = "" if arm == "control" or len(gains) < 2 else f"{statistics.mean(gains):+.1f} ± {interval(gains):.1f}"
        lines.append(f"| {arm} | {epochs} | {shown} | {gain} |")
    return "\n".join(lines)


def spread(values: list[float]) -> float:
    """The standard deviation over seeds."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def interval(gains: list[float]) -> float:
    """Half the 95 % interval of a mean of five."""
    return float(T_95 * statistics.stdev(gains) / len(gains) ** 0.5)


if __name__ == "__main__":
    sys.exit(main())
