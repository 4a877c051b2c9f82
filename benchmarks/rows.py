"""What training as rows of one computation saves, over the same trained one after the other.

Processor seconds of this process on one thread, the least of paired rounds. Setting up is counted, building is not.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import zoo_core
from zoo_core._process.malloc import keep_freed
from zoo_core.benchmark.loaders import open_task, training_loader
from zoo_core.contracts import Features
from zoo_core.data.splits import carve
from zoo_core.model.build import build, build_backbone
from zoo_core.model.given_features import X
from zoo_core.training.gradient_trainer import GradientTrainer, moving, put
from zoo_core.training.rows import PAYS, NotTogether, Row, StepSeconds, train_rows

__all__ = ["adapters", "heads"]

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


LORA = "lora(r=8, roles=[attn.out, mlp.in, mlp.out])"  # peft has no part of a fused layer
BATCHES = {2: 0.45, 8: 1.0, 32: 1.0}  # gates over peft


def adapters(rounds: int) -> int:
    """Prints for 8 lora of vit-nano, two rates and four seeds, what a fit takes as rows, alone and by peft's own loop.

    As rows whatever the first step would decide, which is printed too. Returns 1 if a gate over peft is missed; for
    batches of 8 and 32 that of the way that was decided for.
    """
    keep_freed()
    torch.set_num_threads(1)
    missed = 0
    for batch_size, gate in BATCHES.items():
        budget = zoo_core.Budget(epochs=2, batch_size=batch_size, num_rates=2, keep="last")
        spec = f"starter/vit-nano+{LORA}+linear"
        plans = [zoo_core.resolve(spec, task="digits(limit=100)", seed=seed, budget=budget) for seed in range(4)]
        data, frozen, rows = open_task(plans[0]), build_backbone(plans[0]), []
        for plan in plans:
            assert plan.task is not None, "it was named"
            splits = carve(data, seed=plan.seed, **plan.task.common)
            learner = build(plan, target=splits.target, backbone=copy.deepcopy(frozen))
            loader = training_loader(plan, learner, splits.train, splits.target, torch.device("cpu"), 0)
            rows += [Row(learner=learner, loader=loader, learning_rate=rate) for rate in plan.learning_rates]
        ways: dict[str, Callable[[], object]] = {
            "together": partial(train_rows, rows, budget=budget, validate=lambda *_: 0.0),
            "alone": partial(_one_by_one, rows, budget, 2),
            "peft": partial(_by_peft, rows, frozen, budget),
        }
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for name, train in [*ways.items()] * rounds:
            began = time.process_time()
            train()
            spent[name].append(time.process_time() - began)
        together, alone, peft = (min(each) for each in spent.values())
        told: list[StepSeconds] = []
        with suppress(NotTogether):
            train_rows(rows, budget=replace(budget, epochs=1), validate=lambda *_: 0.0, weigh=told.append)
        step = told[0].together / told[0].alone
        decided = together if step < PAYS else alone
        missed += decided / peft > gate
        print(
            f"8 lora at batch {batch_size}: as rows {together:.2f} s, one after the other {alone:.2f} s, by peft "
            f"{peft:.2f} s; rows over peft {together / peft:.2f}, over one after the other {together / alone:.2f}; the "
            f"first step says {step:.2f}, so {decided / peft:.2f} over peft (gate {gate:.2f}"
            f"{', missed' if decided / peft > gate else ''})",
            flush=True,
        )
    return min(missed, 1)


def _by_peft(rows: Sequence[Row], frozen: nn.Module, budget: zoo_core.Budget) -> None:
    """The fits through peft: its model around the plain network, AdamW, the norm of gradients clipped."""
    import peft

    prefix = "network."
    for row in rows:
        changed = [name for name, each in row.learner.backbone.named_modules() if hasattr(each, "lora")]
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=[name.removeprefix(prefix) for name in changed])
        network: Any = copy.deepcopy(frozen).network
        model: Any = peft.get_peft_model(network.requires_grad_(False), config)
        head = copy.deepcopy(row.learner.head)
        trained = [each for each in (*model.parameters(), *head.parameters()) if each.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=row.learning_rate, weight_decay=budget.weight_decay)
        for epoch in range(budget.epochs):
            for batch in row.loader.epoch(epoch):
                x_BTD = model(batch.inputs["pixel_values"])
                predictions = head(Features(kind="pooled", x=x_BTD.mean(1)))
                loss = nn.functional.cross_entropy(predictions, batch.target)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(trained, budget.clip)
                optimizer.step()


def _one_by_one(rows: Sequence[Row], budget: zoo_core.Budget, num_rates: int) -> Tensor:
    """All weights, [R, P], of fits one after the other. The learners are where they were."""
    found = []
    for place, row in enumerate(rows):
        before = {name: x.clone() for name, x in moving(row.learner).items()}
        trainer = GradientTrainer(
            row.learner, row.loader, budget=budget, learning_rate=row.learning_rate, seed=place // num_rates
        )
        trainer.run(None, lambda _: None)
        found.append(_flat(moving(row.learner)))
        put(moving(row.learner), before)
    return torch.stack(found)


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

    return together, partial(_one_by_one, rows, budget, NUM_RATES)


def _flat(weights: Mapping[str, Any]) -> Tensor:
    return torch.cat([weights[name].detach().flatten() for name in sorted(weights) if name.startswith("heads.")])
