"""Predicts the memory of a step from a pass over a few examples: activations, and what training keeps beside them.

This needs no GPU and no pass of the size in question.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo_core.model.learner import Learner
from zoo_core.toolkit.stages import stage_modules

__all__ = ["Activations", "activations", "available_bytes", "fitting_batch", "state_bytes"]

ROOM = 0.8  # of the memory that is free is used; the rest is for what a pass needs for a moment
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container
USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes per example that a pass keeps for its backward pass.

    all: of all modules. inside: of the stages. largest_stage: of the stage that keeps most. between: of the inputs of
    the stages.
    """

    all: float
    inside: float
    largest_stage: float
    between: float

    def bytes(self, *, recomputes: bool) -> float:
        """Bytes per example of a step. recomputes: whether stages keep only their inputs."""
        return self.all - self.inside + self.between + self.largest_stage if recomputes else self.all


def activations(learner: Learner, step: Callable[[], Tensor], num: int) -> Activations:
    """Measures what the pass of `step`, on this many examples, keeps for its backward pass, without parameters."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*learner.parameters(), *learner.buffers())}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    marks: list[float] = []
    stages: list[float] = []
    entering: list[float] = []

    def before(module: nn.Module, args: Any) -> None:
        marks.append(sum(seen.values()))
        entering.append(sum(x.nbytes for x in args if isinstance(x, Tensor)))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        stages.append(sum(seen.values()) - marks[-1])

    with ExitStack() as stack:
        for module in stage_modules(learner.backbone):
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        kept = step()  # held until it is counted, so that no memory is used twice
    total = sum(seen.values())
    del kept
    return Activations(
        all=total / num,
        inside=sum(stages) / num,
        largest_stage=max(stages, default=0) / num,
        between=sum(entering) / num,
    )


def state_bytes(learner: Learner) -> int:
    """What a step keeps beside weights and activations: the gradients, and two moments of the optimiser."""
    return 3 * sum(parameter.nbytes for _, parameter in learner.trainable())


def available_bytes(device: torch.device) -> int:
    """The free memory of the GPU, or of this machine or container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    known = Path("/proc/meminfo")
    if known.exists():
        rows = dict(line.split(":", 1) for line in known.read_text(encoding="ascii").splitlines())
        found = [int(rows["MemAvailable"].split()[0]) * 1024]
    for limit, used in zip(LIMITS, USED, strict=True):
        if Path(limit).exists() and Path(used).exists() and (text := Path(limit).read_text().strip()).isdecimal():
            found.append(max(0, int(text) - int(Path(used).read_text())))
    return min(found)


def fitting_batch(batch_size: int, *, free: float, for_each: float) -> int:
    """The batch size, halved until the activations fit into this many free bytes; at least 1."""
    size = batch_size
    while size > 1 and size * for_each > ROOM * free:
        size = (size + 1) // 2
    return size
