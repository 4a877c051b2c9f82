"""A step of many rows as the plain list of operations that it consists of.

Modules, hooks, torch.func and autograd decide anew in every step what to compute, and decide the same. That takes
longer than the work of small rows. Here they are asked once for each shape of inputs: what they call, the backward pass
among it, is recorded as a graph of torch.fx, and later steps are its code, with the same result.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["WORTH", "RecordedStep", "Step"]

Tensors: TypeAlias = Mapping[str, Tensor]
Step: TypeAlias = Callable[[Tensors, Tensors, Tensors, Tensor], tuple[Tensor, dict[str, Tensor]]]
Batch: TypeAlias = tuple[Tensors, Tensor]  # inputs and target

WORTH = 40  # steps of one shape: to record one takes as long as some 15, and a replay about half of one
DEPENDS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)  # on values, which a record does not see
OUTSIDE = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.data_ptr, Tensor.__dlpack__)  # and no operation tells


class RecordedStep:
    """A step that is recorded for a shape of its inputs once that is worth it, and replayed from then on.

    The step is a function of trained tensors, of others, which it may write into, of inputs and of a target; it gives
    losses and gradients. All else that it reads is taken as it is when it is recorded, tensors by reference.
    """

    def __init__(self, step: Step, *, is_same: Callable[[Tensor, Tensor], bool]) -> None:
        """is_same: whether a number of a replay is that of the step. Where one is not, that shape is not replayed."""
        self._step, self._is_same = step, is_same
        self._met: Counter[Hashable] = Counter()
        self._records: dict[Hashable, _Record | None] = {}
        self._last: dict[Hashable, Batch] = {}

    def __call__(
        self, trained: Tensors, rest: Tensors, inputs: Tensors, target: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        shape = _shape(inputs, target)
        self._met[shape] += 1
        if self._met[shape] == WORTH - 1:
            self._last[shape] = inputs, target
        elif self._met[shape] == WORTH and shape not in self._records:
            self.record(trained, rest, (inputs, target), self._last.pop(shape))
        record = self._records.get(shape)
        return (self._step if record is None else record)(trained, rest, inputs, target)

    def record(self, trained: Tensors, rest: Tensors, batch: Batch, other: Batch) -> None:
        """Records a step of this batch now, for those of its shape to come. The tensors are as before.

        other: a batch of the same shape on which the record is tried, with other weights, since what Python makes of
        values is not recorded.
        """
        shape = _shape(*batch)
        own, recorded, replayed = ({name: x.clone() for name, x in rest.items()} for _ in range(3))
        self._records[shape] = None
        try:
            record = _Record(self._step, trained, recorded, *batch)
            moved = _moved(trained)
            found = record(moved, replayed, *other)
        except Exception:  # noqa: BLE001, whatever cannot be recorded: its steps are taken as they are
            return
        wanted = self._step(moved, own, *other)
        pairs = [(wanted[0], found[0]), *((wanted[1][name], found[1][name]) for name in trained)]
        pairs += [(own[name], replayed[name]) for name in own]
        if _shape(*other) == shape and all(self._is_same(one, other) for one, other in pairs):
            self._records[shape] = record


class _Record:
    """The operations of one step, in their order, as a function of its tensors."""

    def __init__(self, step: Step, trained: Tensors, rest: Tensors, inputs: Tensors, target: Tensor) -> None:
        given = [*trained.values(), *rest.values(), *inputs.values(), target]
        with _NoValues(), _Recorder(given) as recorder:
            losses, gradients = step(trained, rest, inputs, target)
        self._constants = recorder.constants
        self._replay = recorder.function([losses, *gradients.values()])

    def __call__(
        self, trained: Tensors, rest: Tensors, inputs: Tensors, target: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        given = (*trained.values(), *rest.values(), *inputs.values(), target)
        with torch.no_grad():
            losses, *gradients = self._replay(*given, *self._constants)
        return losses, dict(zip(trained, gradients, strict=True))


class _NoValues(TorchFunctionMode):
    """While open, what hands values to Python and calls no operation raises."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function in OUTSIDE:
            raise RuntimeError(f"{function} depends on values")
        return function(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    """While open, notes each operation in a graph. constants: the tensors that it met and nothing recorded made."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.constants: list[Tensor] = []
        self._graph = fx.Graph()
        self._nodes = WeakTensorKeyDictionary()  # a step keeps no more in memory than it does unrecorded
        self._inputs: list[fx.Node] = []
        for x in given:
            self._nodes[x] = self._input()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(tag in function.tags for tag in DEPENDS):
            raise RuntimeError(f"{function} depends on values")
        kwargs = kwargs or {}
        node = self._graph.call_function(function, *tree_map(self._node, (args, dict(kwargs))))
        found = function(*args, **kwargs)
        if isinstance(found, Tensor):
            self._nodes[found] = node
        elif isinstance(found, list | tuple):
            for place, x in enumerate(found):
                if isinstance(x, Tensor):
                    self._nodes[x] = self._graph.call_function(operator.getitem, (node, place))
        return found

    def function(self, results: Sequence[Tensor]) -> Callable[..., Any]:
        """What computes the results of the given tensors and of the constants, in this order."""
        self._graph.output([self._node(x) for x in results])
        return fx.GraphModule(nn.Module(), self._graph).forward

    def _node(self, value: Any) -> Any:
        """What stands for a value in the graph: a node for a tensor, else the value."""
        if not isinstance(value, Tensor):
            return value
        if value not in self._nodes:
            self.constants.append(value)
            self._nodes[value] = self._input()
        return self._nodes[value]

    def _input(self) -> fx.Node:
        """A new argument of the function, after those that it has."""
        with self._graph.inserting_after(self._inputs[-1] if self._inputs else None):
            self._inputs.append(self._graph.placeholder(f"x{len(self._inputs)}"))
        return self._inputs[-1]


def _moved(trained: Tensors) -> dict[str, Tensor]:
    """Other weights of the same size."""
    draw, found = torch.Generator().manual_seed(0), dict[str, Tensor]()
    for name, x in trained.items():
        noise = torch.randn(x.shape, generator=draw).to(x)
        found[name] = (x.detach() + (0.1 + x.detach().abs().mean()) * noise).requires_grad_()
    return found


def _shape(inputs: Tensors, target: Tensor) -> Hashable:
    return (*((name, x.shape, x.dtype) for name, x in inputs.items()), target.shape, target.dtype)
