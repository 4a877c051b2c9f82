"""Finds the trainable tensors that no loss can reach, by training passes with dummy inputs and a walk over the graph.

The autograd graph decides, not the values of gradients. If the other factor of a product is zero at the start, a tensor
has a gradient of zero, and yet the loss reaches it. The same holds for a tensor that only matters in a later phase.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch, Target
from zoo_core.data.randomness import seeded
from zoo_core.data.token_labels import IGNORED
from zoo_core.model.learner import Learner
from zoo_core.toolkit.stages import dummy_inputs

__all__ = ["unreached"]

FEW, MORE = 2, 8  # the number of examples in the first pass, and in each later one
PASSES = 32  # enough to almost surely meet a module that half of the passes skip, or one of eight experts


def unreached(learner: Learner, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters on which neither the predictions nor a term of the objective depends in training, in given order.

    The learner does not change, although statistics and counters are updated in training: the passes are made by a copy
    that shares all parameters. A module may be skipped, or not chosen by a router, at random. So up to PASSES passes
    with different inputs are made before a parameter is called unreached.
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
            if copied.teachers is not None:
                shown = {of: copied.teachers.dummy(of, len(target)) for of in copied.teachers.asked}
                batch = replace(batch, teachers=shown)
            terms = {} if copied.objective is None else copied.objective(output, batch)
            left = _without(left, [output.predictions, *terms.values()])
            if not left:
                break
    return left


def _without(parameters: Iterable[nn.Parameter], roots: Iterable[Tensor]) -> list[nn.Parameter]:
    found = _leaves(list(roots))
    return [parameter for parameter in parameters if id(parameter) not in found]


def _target(target: Target, predictions: Tensor) -> Tensor:
    """A valid target for predictions of this shape, in which the classes or labels take turns."""
    *shape, size = predictions.shape
    if target.kind == "unlabelled":
        return torch.full((len(predictions),), IGNORED)
    classes = torch.arange(math.prod(shape), device=predictions.device).view(shape) % size
    if target.kind in ("classes", "token_classes"):
        return classes
    return torch.nn.functional.one_hot(classes, size).float()


def _leaves(roots: Sequence[Tensor]) -> set[int]:
    """The id() of each leaf tensor of the autograd graphs of these tensors."""
    found: set[int] = {id(root) for root in roots if root.is_leaf}
    open_nodes = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen = set(open_nodes)
    while open_nodes:
        node = open_nodes.pop()
        variable = getattr(node, "variable", None)  # only the nodes that accumulate the gradient of a leaf have one
        if variable is not None:
            found.add(id(variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                open_nodes.append(following)
    return found
