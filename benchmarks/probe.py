"""A hand-written torch loop against zoo, for the same linear probe: same weights, data, seed, budget.

    python benchmarks/probe.py [--rounds 5] [--threads 1]

Rounds are paired and interleaved. Prints the accuracy of both for each seed, and the median of the rounds' ratios of
training rates (examples per second of the whole loop, loading included). Gate: the ratio is at least 0.95.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

import zoo_core
import zoo_starter
from zoo_core.benchmark.loaders import open_task
from zoo_core.benchmark.trial import choose
from zoo_core.data.splits import carve
from zoo_starter.digits_split import split_digits
from zoo_starter.networks import ConvNetNano

RATE, EPOCHS, BATCH, DECAY, CLIP, WARMUP = 1e-2, 10, 32, 0.05, 1.0, 0.1
GATE = 0.95


def by_hand(seed: int) -> tuple[float, float]:
    """Test accuracy and examples per second of a probe as a practitioner writes it."""
    torch.manual_seed(seed)
    digits = load_digits()
    pixels = torch.from_numpy(digits.images / 16 * 255).round().to(torch.uint8).float()[:, None]
    pixels = nn.functional.interpolate(pixels, size=(32, 32), mode="bilinear", antialias=True, align_corners=False)
    x_all, y_all = pixels.round().to(torch.uint8), torch.from_numpy(digits.target)
    parts = {name: torch.from_numpy(rows) for name, rows in split_digits(digits.target).items()}
    network = ConvNetNano()
    network.load_state_dict(load_file(Path(zoo_starter.__file__).parent / "weights" / "convnet-nano.safetensors"))
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    head = nn.Linear(ConvNetNano.dim, 10)
    optimiser = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    train = parts["train"]
    num_batches = math.ceil(len(train) / BATCH)
    num_steps = num_batches * EPOCHS
    rising = round(num_steps * WARMUP)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / (num_steps - rising)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, share)

    def features(rows: Tensor) -> Tensor:
        x = (x_all[rows].float() / 255 - 0.25) / 0.32
        with torch.no_grad():
            map_BDHW: Tensor = network(x.expand(-1, 3, -1, -1))
        return map_BDHW.mean((2, 3))

    started, seen = time.perf_counter(), 0
    for _ in range(EPOCHS):
        for rows in train[torch.randperm(len(train))].split(BATCH):
            loss = nn.functional.cross_entropy(head(features(rows)), y_all[rows])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), CLIP)
            optimiser.step()
            schedule.step()
            seen += len(rows)
    rate = seen / (time.perf_counter() - started)
    with torch.no_grad():
        right = head(features(parts["test"])).argmax(1) == y_all[parts["test"]]
    return float(right.double().mean()), rate


def by_zoo(seed: int) -> tuple[float, float]:
    """The same through zoo, with one learning rate, so that there is one fit."""
    budget = zoo_core.Budget(epochs=EPOCHS, batch_size=BATCH, num_rates=1, weight_decay=DECAY, clip=CLIP, warmup=WARMUP)
    plan = zoo_core.resolve("starter/convnet-nano+probe+linear", task="digits", budget=budget, seed=seed)
    assert plan.learning_rates == (RATE,), plan.learning_rates
    data = open_task(plan)
    splits = carve(data, seed=seed)
    chosen = choose(plan, splits.train, splits.val, splits.target, device=torch.device("cpu"))
    seen = splits.train.num * EPOCHS
    test = splits.test
    found = zoo_core.predict(chosen.learner, [test.raw(index) for index in range(test.num)])
    right = [int(one.labels[0]) == label for one, label in zip(found, test.targets, strict=True)]
    return sum(right) / len(right), seen / chosen.fitted.seconds


def main() -> int:
    """Prints the table; exit code 1 when the gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    by_hand(0), by_zoo(0)  # warm-up
    ratios, accuracies = [], []
    print("seed  accuracy by hand  accuracy by zoo  examples/s by hand  by zoo  ratio")
    for seed in range(arguments.rounds):
        pair = [by_hand, by_zoo] if seed % 2 == 0 else [by_zoo, by_hand]
        measured = {function: function(seed) for function in pair}
        hand, ours = measured[by_hand], measured[by_zoo]
        ratios.append(ours[1] / hand[1])
        accuracies.append((hand[0], ours[0]))
        print(f"{seed:4}  {hand[0]:16.4f}  {ours[0]:15.4f}  {hand[1]:18.0f}  {ours[1]:6.0f}  {ratios[-1]:.3f}")
    means = [statistics.mean(column) for column in zip(*accuracies, strict=True)]
    spreads = [statistics.stdev(column) for column in zip(*accuracies, strict=True)]
    ratio = statistics.median(ratios)
    print(f"accuracy by hand {means[0]:.4f} +- {spreads[0]:.4f}, by zoo {means[1]:.4f} +- {spreads[1]:.4f}")
    print(f"training rate, zoo over hand: median {ratio:.3f} of {len(ratios)} pairs, gate {GATE}")
    print(f"torch {torch.__version__}, {arguments.threads} threads, cpu")
    return int(ratio < GATE)


if __name__ == "__main__":
    sys.exit(main())
