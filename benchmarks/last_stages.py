"""What a step of training the last stages costs from stored states, over a loop that computes the whole backbone.

    python benchmarks/last_stages.py [--pairs 7]

partial(n=1) of MobileNetV2 at 224 px on photographs of flowers, of which it trains the last block, and of
starter/vit-nano on digits, of whose four stages it trains one. The loop is written by hand: batches of prepared inputs,
what is frozen in evaluation mode, AdamW, the norm of gradients clipped. Both get their inputs from memory. Processor
time of one thread for an epoch of steps, in interleaved pairs; prints the median ratio and the spread of each, and the
largest difference of a loss in the first epoch. Exits with 1 if a gate is missed. The photographs and weights are of
../shared/data; without them MobileNetV2 is skipped.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
RATE, CLIP, DECAY, BATCH = 1e-3, 1.0, 0.05, 32


def main() -> int:
    """Prints the table; 0 if no gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    chosen = parser.parse_args()
    cases = [("vit-nano, one of four stages", "starter/vit-nano", "digits(limit=320)", 0.70)]
    if SHARED.is_dir():
        weights = SHARED / "weights" / "mobilenetv2_100.coral_in1k"
        photographs = f'flowers5(path="{SHARED / "flowers5_128"}",limit=160)'
        cases.append(("MobileNetV2, the last block", f'timm(files="{weights}")', photographs, 0.30))
    else:
        print(f"skipped: {SHARED} is not there")
    missed = False
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ZOO_CACHE"] = cache
        for what, backbone, task, gate in cases:
            ratios, worst, spent = compared(f"{backbone}+partial(n=1)", task, chosen.pairs)
            median = statistics.median(ratios)
            missed = missed or median > gate
            print(
                f"{what}: median {median:.3f} of {len(ratios)} pairs, {min(ratios):.3f} to {max(ratios):.3f} "
                f"(gate {gate}); {1e3 * spent[0]:.1f} and {1e3 * spent[1]:.1f} ms a step; losses differ by {worst:.1e}"
            )
    return int(missed)


def compared(spec: str, task: str, pairs: int) -> tuple[list[float], float, tuple[float, float]]:
    """The ratios of pairs, the largest difference of a loss, and the median seconds of a step both ways."""
    import torch

    torch.set_num_threads(1)
    from zoo_core.benchmark.groups import plan_groups
    from zoo_core.benchmark.sharing import SharedWork
    from zoo_core.benchmark.start import started
    from zoo_core.files.fetch import pin_plan
    from zoo_core.model.replay import Passes
    from zoo_core.plan.plan import Budget
    from zoo_core.plan.resolve import resolve

    cpu = torch.device("cpu")
    plan = pin_plan(resolve(spec, task=task, budget=Budget(batch_size=BATCH, num_rates=1)))
    (group,) = plan_groups([plan])
    shared = SharedWork(group, [plan], device=cpu)
    shared.fill()
    splits = shared.splits(plan)
    parts = (splits.train, splits.val, splits.target)
    ours = started(plan, *parts, cpu, 0, None, Passes(), shared)
    theirs = started(plan, *parts, cpu, 0, None, Passes(), None)
    assert ours.how == "stages", ours.refusal
    ways = [steps(ours.learner, ours.fitting), steps(theirs.learner, theirs.fitting)]
    losses = [next(way) for way in ways]
    worst = max(abs(one - other) for one, other in zip(losses[0][1], losses[1][1], strict=True))
    times = [[next(way)[0] for way in ways] for _ in range(pairs)]
    medians = [statistics.median(each) for each in zip(*times, strict=True)]
    return [mine / other for mine, other in times], worst, (medians[0], medians[1])


def steps(learner: Any, loader: Any) -> Iterator[tuple[float, list[float]]]:
    """For each epoch the processor seconds of a step, and the losses. The first epoch fills what is kept."""
    import torch

    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY)
    for epoch in range(1_000_000):
        losses, spent = [], 0.0
        began = time.process_time()
        for batch in loader.epoch(epoch):
            learner.train()
            loss = learner.loss(learner(batch.inputs), batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, CLIP)
            optimizer.step()
            losses.append(float(loss.detach()))
        spent = time.process_time() - began
        yield spent / len(losses), losses


if __name__ == "__main__":
    sys.exit(main())
