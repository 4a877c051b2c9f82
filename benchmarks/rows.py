"""What training as rows of one computation saves, over the same trained one after the other.

Processor seconds of this process on one thread, the least of paired rounds. Setting up is counted, building is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import zoo_core
from zoo_core._process.malloc import keep_freed
from zoo_core.benchmark.loaders import open_task, training_loader
from zoo_core.data.splits import carve
from zoo_core.model.build import build, build_backbone
from zoo_core.model.given_features import X
from zoo_core.training.gradient_trainer import GradientTrainer, moving, put
from zoo_core.training.rows import Row, train_rows

__all__ = ["heads"]

NUM_RATES, SEEDS = 4, 6
HEADS = (  # backbone whose width features have, head, gate
    ("starter/vit-nano", "linear", 0.10),
    ("starter/vit-nano", "mlp", 0.20),
    ("timm/mobilenetv2_100(weights=random)", "linear", 0.10),
    ("timm/mobilenetv2_100(weights=random)", "mlp(hidden_dim=64)", None),
    ("timm/mobilenetv2_100(weights=random)", "mlp", None),  # its arithmetic alone is a third of one after the other
)


def heads(rounds: int) -> int:
    """Prints the ratio of each head; 1 if a gate is missed, or weights differ by more than float32 rounds."""
    keep_freed()  # as the processes of a bench
    torch.set_num_threads(1)
    missed = 0
    for backbone, head, gate in HEADS:
        together, alone = _trained(backbone, head)
        spent: dict[str, list[float]] = {"together": [], "alone": []}
        ends = {}
        for name, train in rounds * (("together", together), ("alone", alone)):
            began = time.process_time()
            ends[name] = train()
            spent[name].append(time.process_time() - began)
        ours, theirs = min(spent["together"]), min(spent["alone"])
        gap = float((ends["together"] - ends["alone"]).abs().max())
        is_missed = (gate is not None and ours / theirs > gate) or gap > 1e-4
        missed += is_missed
        told = "no gate" if gate is None else f"gate {gate:.2f}"
        print(
            f"24 heads {head} on features of {backbone.partition('(')[0]}: together {ours:.2f} s, one after the other "
            f"{theirs:.2f} s, ratio {ours / theirs:.3f} ({told}{', missed' if is_missed else ''}); "
            f"largest difference of a weight {gap:.1e}",
            flush=True,
        )
    return min(missed, 1)


def _trained(backbone: str, head: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Two ways to train 4 rates x 6 seeds for 10 epochs on 600 made up features; each gives all weights, [24, P]."""
    budget = zoo_core.Budget(epochs=10, num_rates=NUM_RATES, keep="last")
    plans = [
        zoo_core.resolve(f"{backbone}+probe+{head}", task="digits(limit=600)", seed=seed, budget=budget)
        for seed in range(SEEDS)
    ]
    data, cpu, frozen, rows = open_task(plans[0]), torch.device("cpu"), build_backbone(plans[0]), []
    for plan in plans:
        assert plan.task is not None, "it was named"
        splits = carve(data, seed=plan.seed, **plan.task.common)
        learner = build(plan, target=splits.target, backbone=frozen)
        plain = training_loader(plan, learner, splits.train, splits.target, cpu, 0)
        draw = torch.Generator().manual_seed(plan.seed)
        dim = learner.source.features.width("pooled")
        table = 0.2 * torch.randn(10, dim, generator=draw)[plain.targets] + torch.randn(plain.num, dim, generator=draw)
        loader = plain.of_stored(
            lambda _, positions, table=table: {X: table.index_select(0, torch.as_tensor(positions))}
        )
        rows += [Row(learner=learner, loader=loader, learning_rate=rate) for rate in plan.learning_rates]

    def together() -> Tensor:
        ends = train_rows(rows, budget=budget, validate=lambda *_: 0.0)
        return torch.stack([_flat(end.weights or {}) for end in ends])

    def alone() -> Tensor:
        found = []
        for place, row in enumerate(rows):
            before = {name: x.clone() for name, x in moving(row.learner).items()}
            trainer = GradientTrainer(
                row.learner, row.loader, budget=budget, learning_rate=row.learning_rate, seed=place // NUM_RATES
            )
            trainer.run(None, lambda _: None)
            found.append(_flat(moving(row.learner)))
            put(moving(row.learner), before)
        return torch.stack(found)

    return together, alone


def _flat(weights: Mapping[str, Any]) -> Tensor:
    return torch.cat([weights[name].detach().flatten() for name in sorted(weights) if name.startswith("heads.")])
