"""Checks of what an adapter changes, and of what training moves.

Each check returns None, or why there was nothing to check, and raises ConformanceError for a broken promise.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch, Change
from zoo_core.model.learner import Learner
from zoo_core.testing.comparing import ConformanceError, changed, equal, expect_same, outputs_of, plain_name, train
from zoo_core.testing.subject import Subject, forked_rng, perturb, wake
from zoo_core.toolkit.features import convert
from zoo_core.toolkit.stages import boundary

__all__ = [
    "changes_what_it_says",
    "exact_at_start",
    "first_stage",
    "frozen_stays",
    "gradients_arrive",
    "learns",
    "trains_in_its_mode",
]

_FEW = 16  # examples to learn
_ENOUGH = 0.01  # of the squared distance
_LINEAR = 1e-9  # likewise; a map that is linear leaves some 1e-20, a prefix of three on three blocks 3e-6


def exact_at_start(subject: Subject) -> str | None:
    """Before the first step, the outputs are bit for bit those of the base."""
    inexact = [part.name for part in subject.plan.adapters if not part.fact("exact_at_start")]
    if inexact:
        return f"{', '.join(inexact)} declares that it changes the outputs from the start"
    inputs = subject.batch().inputs
    before, after = outputs_of(subject.plain, inputs), outputs_of(subject.built, inputs)
    expect_same(before, after, "before the first step the outputs are not the base's")
    return None


def first_stage(subject: Subject) -> str | None:
    """Whatever the adapter has learned, the input of its `first_stage` is the same as in the base."""
    num_stages = len(subject.built.source.stages)
    first = min((part.fact("first_stage")(num_stages) for part in subject.plan.adapters), default=num_stages)
    if first == 0:
        return "it changes the network from its first stage on"
    learner, inputs = changed(subject), subject.batch().inputs
    if first >= num_stages:
        before, after = (outputs_of(each, inputs)["features"] for each in (subject.plain, learner))
    else:
        with torch.no_grad():
            before, after = (boundary(each.backbone, inputs, first) for each in (subject.plain, learner))
    if not equal(before, after):
        raise ConformanceError(f"first_stage says {first} of {num_stages}, and what enters that stage changes")
    return None


def changes_what_it_says(subject: Subject) -> str | None:
    """What trains is of the kinds in `changes`; an optimiser gets exactly that, and nothing frozen."""
    learner = subject.built
    added = learner.added()
    trainable = dict(learner.trainable())
    opened = [name for name in trainable if name.startswith("backbone.") and name not in added]
    of_head = {name for name, _ in (*learner.named_parameters(), *learner.named_buffers()) if name.startswith("heads.")}
    plain = {name for name, _ in (*subject.plain.named_parameters(), *subject.plain.named_buffers())}
    kinds: dict[Change, list[str]] = {"base": opened, "added": [*added, *sorted(of_head - plain)]}
    for kind, found in kinds.items():
        if found and kind not in subject.changes:
            raise ConformanceError(f"`changes` lacks {kind!r}, and it has {len(found)} such tensors, {found[0]} first")
    for kind, found in kinds.items():
        if kind in subject.changes and not found:
            raise ConformanceError(f"`changes` names {kind!r}, and it has no such tensor")
    grouped = [id(parameter) for group in learner.parameter_groups(1e-3) for parameter in group["params"]]
    if sorted(grouped) != sorted(id(parameter) for parameter in trainable.values()):
        raise ConformanceError(f"parameter_groups holds {len(grouped)} tensors, and {len(trainable)} train")
    return None


def frozen_stays(subject: Subject) -> str | None:
    """Frozen tensors keep every bit through steps with weight decay, momentum and clipping, statistics included."""
    learner, batch = subject.learner(), subject.batch()
    before = {name: tensor.clone() for name, tensor in _frozen(learner).items()}
    parameters = [parameter for _, parameter in learner.trainable()]
    train(learner, batch, torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1), 5)
    train(learner, batch, torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=0.1), 2)
    now = _frozen(learner)
    moved = [name for name, tensor in before.items() if not equal(now[name], tensor)]
    if moved:
        raise ConformanceError(f"{len(moved)} frozen tensors moved during training, {moved[0]} first")
    return None


def _frozen(learner: Learner) -> dict[str, Tensor]:
    """The tensors that must not move, including buffers that are in no state_dict."""
    found = dict(learner.frozen())
    for path, module in learner.backbone.named_modules():
        if not _trains(module):
            names = module._non_persistent_buffers_set
            found |= {
                f"backbone.{path}.{name}": buffer for name in names if (buffer := module._buffers[name]) is not None
            }
    return found


def _trains(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and all(parameter.requires_grad for parameter in parameters)


def gradients_arrive(subject: Subject) -> str | None:
    """Within two steps a non-zero gradient reaches every trainable tensor that the backbone uses at all."""
    learner, batch = subject.learner(), subject.batch()
    _wake_base(learner)
    wanted = dict(learner.trainable())
    missing = set(wanted)
    optimiser = torch.optim.AdamW(wanted.values(), lr=1e-2)
    for _ in range(2):
        train(learner, batch, optimiser, 1)
        missing = {name for name in missing if not _has_gradient(wanted[name])}
    if missing - learner.added().keys():
        unused = _unused(subject.base(), batch)
        missing = {name for name in missing if plain_name(name) not in unused}
    if missing:
        raise ConformanceError(f"no gradient reaches {len(missing)} of {len(wanted)} tensors, {min(missing)} first")
    return None


def _wake_base(learner: Learner) -> None:
    added = learner.added()
    wake(parameter for name, parameter in learner.named_parameters() if name not in added)


def _unused(base: Learner, batch: Batch) -> set[str]:
    """The names of the tensors that get no gradient even if all of the base trains."""
    wake(base.parameters())
    base.requires_grad_(True)
    base.train()
    with forked_rng("training"):
        base.loss(base(batch.inputs), batch).backward()
    return {name for name, parameter in base.named_parameters() if not _has_gradient(parameter)}


def _has_gradient(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


def trains_in_its_mode(subject: Subject) -> str | None:
    """A module is in training mode exactly if everything in it trains, also below a module that is not."""
    learner = subject.learner()
    inside = nn.ModuleDict({"learner": learner})
    for mode, said in ((False, "building"), (True, "train()"), (False, "eval()")):
        if said != "building":
            inside.train(mode)
        for name, module in learner.named_modules():
            if not name.startswith("backbone"):
                continue
            if next(module.parameters(), None) is not None and module.training != (mode and _trains(module)):
                found = "training" if module.training else "evaluation"
                raise ConformanceError(f"after {said} {name} is in {found} mode")
    inputs = subject.batch().inputs
    expect_same(outputs_of(learner, inputs), outputs_of(learner, inputs), "two passes in evaluation mode differ")
    return None


def learns(subject: Subject) -> str | None:
    """Training can move the features to where no linear head could, and it gets there from the start.

    The goal: the features for other values of what trains, which are no linear map of the frozen features. Training has
    to cover nine tenths of the distance, on a few examples. It runs in evaluation mode with L-BFGS in float64, which
    needs no learning rate, because networks and methods differ by orders of magnitude in how far a step moves the
    features.
    """
    if not subject.changes & {"base", "added"}:
        return "it trains nothing beside the head"
    inputs = subject.batch(max(48, 3 * subject.built.source.features.width("pooled"))).inputs
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    other, learner = subject.learner(), subject.learner()
    for each in (other, learner):
        _wake_base(each)
    perturb(parameter for _, parameter in other.trainable())
    with torch.no_grad():
        target, start = (_features(each.double().eval(), inputs) for each in (other, learner))
    distance = (start - target).square().sum()
    if not distance > 0:
        raise ConformanceError("what it trains moves no feature")
    if _least_distance(start, target) < _LINEAR * distance:
        raise ConformanceError("it changes the features as any linear head can")
    inputs, target = {name: x[:_FEW] for name, x in inputs.items()}, target[:_FEW]
    distance = (start[:_FEW] - target).square().sum()
    trained = [parameter for _, parameter in learner.trainable()]
    optimiser = torch.optim.LBFGS(trained, max_iter=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        left = (_features(learner, inputs) - target).square().sum() / distance
        left.backward()
        for parameter in trained:
            if parameter.grad is not None:
                parameter.grad = parameter.grad.contiguous()  # LBFGS takes no gradient that lies channels last
        return left.detach()

    left = 1.0
    for _ in range(10):
        optimiser.step(closure)
        left = float(closure())
        if left < _ENOUGH:
            return None
    raise ConformanceError(f"training leaves {left:.3f} of the squared distance to other features; allowed: {_ENOUGH}")


def _least_distance(start: Tensor, target: Tensor) -> float:
    """The squared distance that the best linear map of features and a constant leaves to the others."""
    start = torch.cat([start, torch.ones_like(start[:, :1])], dim=1)
    best = torch.linalg.lstsq(start, target, driver="gelsd").solution
    return float((start @ best - target).square().sum())


def _features(learner: Learner, inputs: Mapping[str, Tensor]) -> Tensor:
    return convert(learner.backbone(inputs), "pooled", learner.source.pool).x
