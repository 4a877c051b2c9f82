"""Which trainable tensors a loss can reach: passes of dummy inputs in training, and a walk over the graph they leave.

The graph tells, not values: a factor of a product whose other factor is zero at the start has a gradient of zero, and
is reached; so is what joins in a later phase.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch, Target
from zoo_core.data.randomness import seeded
from zoo_core.model.learner import Learner
from zoo_core.toolkit.stages import dummy_inputs

__all__ = ["unreached"]

FEW, MORE = 2, 8  # examples of the first pass, and of each later one
PASSES = 32  # a module that half of the passes skip, or one of eight experts, is met in some of them


def unreached(learner: Learner, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those that neither the predictions nor a term of the objective depends on in training, in their order.

    The learner is left as it was: a copy that shares all parameters makes the passes, since statistics and counters
    move in training. What the first pass does not reach may be skipped or routed around at random, so more passes with
    other inputs are made before anything is called unreached.
    """
    left = list(parameters)
    with torch.enable_grad(), seeded(0, "reach"):
        copied = copy.deepcopy(learner, {id(parameter): parameter for parameter in learner.parameters()}).train()
        for number in range(PASSES):
            inputs = dummy_inputs(copied.backbone, MORE if number else FEW)
            if number:
                inputs = {name: x + torch.randn_like(x) if x.is_floating_point() else x for name, x in inputs.items()}
            output = copied(inputs)
            target = _target(copied.target, output.predictions)
            batch = Batch(inputs=inputs, target=target, ids=tuple(map(str, range(len(target)))))
            terms = {} if copied.objective is None else copied.objective(output, batch)
            left = _without(left, [output.predictions, *terms.values()])
            if not left:
                break
    return left


def _without(parameters: Iterable[nn.Parameter], roots: Iterable[Tensor]) -> list[nn.Parameter]:
    found = _leaves(list(roots))
    return [parameter for parameter in parameters if id(parameter) not in found]


def _target(target: Target, predictions: Tensor) -> Tensor:
    """A target that predictions of this shape are compared with: each class or label in turn."""
    *shape, size = predictions.shape
    classes = torch.arange(math.prod(shape), device=predictions.device).view(shape) % size
    if target.kind in ("classes", "token_classes"):
        return classes
    return torch.nn.functional.one_hot(classes, size).float()


def _leaves(roots: Sequence[Tensor]) -> set[int]:
    """Identities of the tensors at the ends of the graph that leads to these."""
    found: set[int] = {id(root) for root in roots if root.is_leaf}
    open_nodes = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen = set(open_nodes)
    while open_nodes:
        node = open_nodes.pop()
        variable = getattr(node, "variable", None)  # of the nodes that gather a leaf's gradient
        if variable is not None:
            found.add(id(variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                open_nodes.append(following)
    return found
