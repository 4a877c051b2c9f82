"""Checks that an adapter runs wherever its backbone does: merged, compiled, in bfloat16, with checkpointing.

Each check returns None, or why there was nothing to check, and raises ConformanceError for a broken promise. What the
backbone alone cannot do (compile in one graph, run in bfloat16) is not expected of the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo_core.contracts import Batch, as_backbone
from zoo_core.errors import ZooError
from zoo_core.model.learner import Learner
from zoo_core.model.objective import needs_of
from zoo_core.testing.comparing import (
    ConformanceError,
    changed,
    distance,
    expect_refusal,
    expect_same,
    num_hooks,
    outputs_of,
)
from zoo_core.testing.subject import Subject, forked_rng

__all__ = ["checkpoints", "compiles", "merges", "runs_in_bfloat16"]

_FLOAT64 = 1e-10  # of the largest output: folding rounds each weight once, and the layers behind it add that up
_FLOAT32 = 1e-5
_COMPILED = 1e-5  # a compiled pass adds in another order


def merges(subject: Subject) -> str | None:
    """The merged learner has the base's keys and shapes and the same outputs, or merging is refused in one line."""
    fixed = [part.name for part in subject.plan.adapters if not part.fact("mergeable")]
    if fixed:
        expect_refusal(changed(subject).merge, f"merging {fixed[0]}, which says that it cannot be merged,")
        return None
    _merged(subject, torch.float64)
    merged = _merged(subject, torch.float32)
    shapes = [{name: x.shape for name, x in each.backbone.state_dict().items()} for each in (subject.plain, merged)]
    if shapes[0] != shapes[1]:
        name, shape = min(shapes[0].items() ^ shapes[1].items())
        raise ConformanceError(f"merged, it has other keys or shapes than the base: {name} {list(shape)}")
    if num_hooks(merged.backbone) != num_hooks(subject.plain.backbone):
        raise ConformanceError("merged, it has hooks that the base does not have")
    return None


def _merged(subject: Subject, dtype: torch.dtype) -> Learner:
    """The merged copy of a changed learner, after checking that its outputs are the same."""
    inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in subject.batch().inputs.items()}
    learner = changed(subject, dtype=dtype)
    before = outputs_of(learner, inputs)
    merged = learner.merge()
    expect_same(before, outputs_of(learner, inputs), "merging a copy changes the original")
    after = outputs_of(merged, inputs)
    largest = max(float(x.abs().max()) for x in before.values())
    allowed = _FLOAT64 * largest if dtype == torch.float64 else _FLOAT32 * max(1.0, largest)
    found = distance(before, after)
    if not found <= allowed:
        raise ConformanceError(f"merged in {dtype} it differs by {found:.2g}, allowed: {allowed:.2g}")
    return merged


def compiles(subject: Subject, backend: str = "aot_eager") -> str | None:
    """torch.compile compiles it in one graph if it does so for the base, and outputs agree within 1e-5.

    Where an objective reads hidden states or projections, they are read between graphs.
    """
    learner, inputs = changed(subject), subject.batch().inputs
    before = outputs_of(learner, inputs)
    try:
        _compiled(subject.base(), inputs, backend)
    except Exception as error:  # noqa: BLE001, whatever a compiler raises
        return f"the backbone alone does not compile in one graph: {_line(error)}"
    try:
        needs = needs_of(learner.objective)
        after = _compiled(learner, inputs, backend, whole=not (needs.stages or needs.sites))
    except Exception as error:
        raise ConformanceError(f"the backbone compiles in one graph, with it not: {_line(error)}") from error
    allowed = _COMPILED * max(1.0, *(float(x.abs().max()) for x in before.values()))
    if not distance(before, after) <= allowed:
        raise ConformanceError(f"compiled it differs by {distance(before, after):.2g}, allowed {allowed:.2g}")
    return None


def _compiled(learner: Learner, inputs: Mapping[str, Tensor], backend: str, *, whole: bool = True) -> dict[str, Tensor]:
    """The outputs of a compiled learner. whole: in one graph, or it raises what the compiler says."""
    torch.compiler.reset()
    try:
        return outputs_of(torch.compile(learner, fullgraph=whole, backend=backend), inputs)  # type: ignore[arg-type]
    finally:
        torch.compiler.reset()


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def runs_in_bfloat16(subject: Subject) -> str | None:
    """With autocast to bfloat16, loss and gradients are finite if the base's are, and weights keep their dtype."""
    batch = subject.batch()
    base, learner = subject.base(), subject.learner()
    base.requires_grad_(True)
    try:
        finite = _mixed_step(base, batch)
    except (RuntimeError, ZooError) as error:
        return f"the backbone alone does not run in bfloat16: {_line(error)}"
    if not finite:
        return "the backbone alone gives no finite loss in bfloat16"
    kinds = {name: parameter.dtype for name, parameter in learner.named_parameters()}
    try:
        finite = _mixed_step(learner, batch)
    except (RuntimeError, ZooError) as error:
        raise ConformanceError(f"it does not run in bfloat16: {_line(error)}") from error
    if not finite:
        raise ConformanceError("in bfloat16 its loss or a gradient is not finite")
    if any(parameter.dtype != kinds[name] for name, parameter in learner.named_parameters()):
        raise ConformanceError("a step in bfloat16 changes the type of its parameters")
    return None


def _mixed_step(learner: Learner, batch: Batch) -> bool:
    learner.train()
    with forked_rng("bfloat16"), torch.autocast("cpu", torch.bfloat16):
        loss = learner.loss(learner(batch.inputs), batch)
    loss.backward()
    gradients = [parameter.grad for parameter in learner.parameters() if parameter.grad is not None]
    return bool(loss.isfinite()) and all(bool(gradient.isfinite().all()) for gradient in gradients)


class _Checkpointed(nn.Module):
    """A stage that computes its activations again for the backward pass, including its hooks."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.stage, *args, use_reentrant=False, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("stage"), name)


def checkpoints(subject: Subject) -> str | None:
    """With every stage checkpointed, loss and gradients stay the same."""
    batch = subject.batch()
    plain, saving = changed(subject), changed(subject)
    backbone = saving.backbone
    parameters = dict(saving.named_parameters())
    for path in as_backbone(backbone).stages:
        parent, _, name = path.rpartition(".")
        setattr(backbone.get_submodule(parent), name, _Checkpointed(backbone.get_submodule(path)))
    results = []
    for learner, named in ((plain, dict(plain.named_parameters())), (saving, parameters)):
        learner.train()
        with forked_rng("checkpoints"):
            loss = learner.loss(learner(batch.inputs), batch)
        loss.backward()
        results.append({"loss": loss.detach()} | {key: p.grad for key, p in named.items() if p.grad is not None})
    one, other = results
    if one.keys() != other.keys():
        raise ConformanceError(f"with checkpointing a gradient is there or not: {min(one.keys() ^ other.keys())}")
    for name, tensor in one.items():
        allowed = 1e-5 * max(1.0, float(tensor.abs().max()))
        if not distance({name: tensor}, other) <= allowed:
            raise ConformanceError(f"with checkpointing {name} differs by {distance({name: tensor}, other):.2g}")
    return None
