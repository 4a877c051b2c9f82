"""Which trainable tensors a loss can reach: one pass of dummy inputs, and a walk over the graph that it leaves.

The graph tells, not values: a factor of a product whose other factor is zero at the start has a gradient of zero, and
is reached; so is what joins in a later phase.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch, Target
from zoo_core.data.randomness import seeded
from zoo_core.model.learner import Learner
from zoo_core.toolkit.stages import dummy_inputs

__all__ = ["unreached"]


def unreached(learner: Learner, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those that neither the predictions nor a term of the objective depends on, in their order.

    The learner is in evaluation mode, and is left as it was. What its predictions do not reach there is looked for in
    training mode and in the objective: in a copy, since statistics move, that shares all parameters.
    """
    left = list(parameters)
    with torch.enable_grad(), seeded(0, "reach"):
        left = _without(left, [learner(dummy_inputs(learner.backbone, 1)).predictions])
        if left:
            copied = copy.deepcopy(learner, {id(parameter): parameter for parameter in learner.parameters()}).train()
            inputs = dummy_inputs(copied.backbone, 2)
            output = copied(inputs)
            batch = Batch(inputs=inputs, target=_target(copied.target, output.predictions), ids=("0", "1"))
            terms = {} if copied.objective is None else copied.objective(output, batch)
            left = _without(left, [output.predictions, *terms.values()])
    return left


def _without(parameters: Iterable[nn.Parameter], roots: Iterable[Tensor]) -> list[nn.Parameter]:
    found = _leaves(list(roots))
    return [parameter for parameter in parameters if id(parameter) not in found]


def _target(target: Target, predictions: Tensor) -> Tensor:
    """A target that predictions of this shape are compared with."""
    if target.kind in ("classes", "token_classes"):
        return torch.zeros(predictions.shape[:-1], dtype=torch.int64, device=predictions.device)
    return torch.zeros_like(predictions, dtype=torch.float32)


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
