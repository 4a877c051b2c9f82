"""The tensors of many learners of one shape, stacked, one forward pass of all of them, and one update.

Learners are rows. What trains in them, and whatever else differs between them, is stacked, [R, ...]; what is equal is
there once. Rows come in S blocks of K: the rows of a block see the same batch, as learning rates of one seed do, so
what only the batch decides is computed once for a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from zoo_core.model.learner import Learner
from zoo_core.training.gradient_trainer import moving

__all__ = ["RowAdamW", "Stacked", "layout", "tensors_of"]

OBJECTIVE = "objective."  # begins the names of what is no part of a forward pass
BETAS, EPS = (0.9, 0.999), 1e-8  # of torch.optim.AdamW, which trains one alone


class Stacked:
    """Learners of one shape as rows. trained: leaves, [R, ...] by name. rest: what else differs, and no gradient moves.

    The learner of the first row lends its modules, and what is equal in all of them. No learner is changed.
    No tensor that is stacked has two names.
    """

    def __init__(self, learners: Sequence[Learner], *, num_blocks: int) -> None:
        self.learner = learners[0]
        self._num_blocks = num_blocks
        known = {id(learner): tensors_of(learner) for learner in {id(each): each for each in learners}.values()}
        states = [known[id(learner)] for learner in learners]
        names = [name for name, x in states[0].items() if x.requires_grad]
        self.trained = {name: _stack([state[name] for state in states]).requires_grad_() for name in names}
        held = moving(self.learner).keys()
        rest = [name for name in states[0] if name not in self.trained and (name in held or _differs(name, states))]
        self.rest = {name: _stack([state[name] for state in states]) for name in rest}
        self._moving = tuple(held)

    @property
    def num(self) -> int:
        return len(next(iter(self.trained.values())))

    def predictions(self, tensors: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        """float [R, B, ...] of inputs, [S, B, ...] each. tensors: those of `trained` and of `rest`, or others so."""

        def one(tensors: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(self.learner, tensors, (inputs,), tie_weights=False).predictions
            return found

        tensors, given = dict(tensors), dict(inputs)
        several = self._num_blocks > 1
        in_blocks = self.num > self._num_blocks or not several
        vectorised = one
        if in_blocks:
            vectorised = vmap(vectorised, in_dims=(0, None), randomness="error")
        if several:
            vectorised = vmap(vectorised, in_dims=(0, 0), randomness="error")
        if several and in_blocks:
            tensors = {name: x.unflatten(0, (self._num_blocks, -1)) for name, x in tensors.items()}
        elif not several:
            given = {name: x[0] for name, x in given.items()}
        with _Rowwise(num_levels=several + in_blocks):
            found = vectorised(tensors, given)
        return found.flatten(0, 1) if several and in_blocks else found

    def weights(self, row: int) -> dict[str, Tensor]:
        """A copy of what moves in a row, by the names that it has in its learner."""
        own = self.trained | self.rest
        return {name: own[name][row].detach().clone() for name in self._moving}


class RowAdamW:
    """AdamW that moves each row at its own rate, its gradient clipped by its own norm, as GradientTrainer does alone.

    Source: Loshchilov & Hutter 2019, algorithm 2, by the kernel of torch.optim.AdamW(fused=True).
    """

    def __init__(self, stacked: Stacked, rates: Sequence[float], *, weight_decay: float, clip: float) -> None:
        self._clip = clip
        self._step = torch.zeros((), device=next(iter(stacked.trained.values())).device)
        moments = [{name: torch.zeros_like(x) for name, x in stacked.trained.items()} for _ in range(2)]
        own, mean, square = (_rows_of(table) for table in (stacked.trained, *moments))
        names = {id(x): name for name, x in tensors_of(stacked.learner).items()}
        self._groups: list[_Group] = []
        for group in stacked.learner.parameter_groups(1.0, weight_decay):
            for rate in sorted(set(rates)):  # a call takes longer than the work of a small row
                rows = [row for row, each in enumerate(rates) if each == rate]
                places = [(names[id(one)], row) for one in group["params"] for row in rows]
                self._groups.append(
                    _Group(
                        rate=rate * group["lr"],
                        weight_decay=group["weight_decay"],
                        places=places,
                        states=[[table[name][row] for name, row in places] for table in (own, mean, square)],
                    )
                )

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], share: float) -> None:
        """gradients: [R, ...] by name, which it may change. share: of the rates, that of the schedule."""
        gradients = {name: x.contiguous() for name, x in gradients.items()}  # the kernel walks through memory
        norms_NR = torch.stack([torch.linalg.vector_norm(x.flatten(1), dim=1) for x in gradients.values()])
        factors_R = (self._clip / (torch.linalg.vector_norm(norms_NR, dim=0) + 1e-6)).clamp(max=1.0)
        for gradient in gradients.values():
            gradient.mul_(factors_R.view(-1, *[1] * (gradient.ndim - 1)))
        self._step += 1
        found = _rows_of(gradients)
        for group in self._groups:
            own, mean, square = group.states
            torch._fused_adamw_(
                own,
                [found[name][row] for name, row in group.places],
                mean,
                square,
                [],
                [self._step] * len(own),
                lr=group.rate * share,
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=group.weight_decay,
                eps=EPS,
                amsgrad=False,
                maximize=False,
            )


@dataclass(frozen=True, kw_only=True)
class _Group:
    """What moves at one rate with one decay. places: name and row of each tensor. states: these, and two moments."""

    rate: float
    weight_decay: float
    places: list[tuple[str, int]]
    states: list[list[Tensor]]


class _Rowwise(TorchFunctionMode):
    """While open, linear layers and attention are computed for all rows in one call where vmap would take longer.

    num_levels: of vmap, one inside the other.
    """

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self._num_levels = num_levels

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is nn.functional.linear:
            return _linear(*args, **kwargs)
        if function is nn.functional.scaled_dot_product_attention:
            return _attention(self._num_levels, *args, **kwargs)
        return function(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002 - torch's name
    found: Tensor = _Linear.apply(input, weight, bias)
    return found


def _attention(
    num_levels: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if dropout_p:
        raise RuntimeError("attention drops some of its weights")
    options = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    found: Tensor = _Attention.apply(query, key, value, attn_mask, options, num_levels)
    return found


class _Linear(torch.autograd.Function):
    """A linear layer whose weights are rows is W x^T, which takes a third of the time of x W^T, vmap's own."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What no row has a part in, so that no gradient is asked for."""
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, int]:
        x, weight = _first(x, in_dims[0]), _first(weight, in_dims[1])
        bias = None if bias is None else _first(bias, in_dims[2])
        if in_dims[1] is None:
            found = nn.functional.linear(x, weight, bias if in_dims[2] is None else None)
            if bias is None or in_dims[2] is None:
                return found, 0
            bias = bias.view(len(bias), *[1] * (found.ndim - (1 if in_dims[0] is None else 2)), -1)
            return found + bias.to(found.dtype), 0
        shape = x.shape[:-1] if in_dims[0] is None else x.shape[1:-1]
        if in_dims[0] is None:
            found = (weight.flatten(0, 1) @ x.flatten(0, -2).mT).unflatten(0, weight.shape[:2]).mT
        elif x.ndim == 3:
            found = torch.bmm(weight, x.mT).mT
        else:
            found = torch.bmm(x.flatten(1, -2), weight.mT)
        if bias is not None:
            found = found + (bias if in_dims[2] is None else bias.unsqueeze(1)).to(found.dtype)
        return found.unflatten(1, shape), 0


class _Attention(torch.autograd.Function):
    """Attention of rows as that of so many more examples, by the kernel that serves one alone."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: Mapping[str, Any], levels: int
    ) -> Tensor:
        """What no row has a part in, so that no gradient is asked for."""
        return nn.functional.scaled_dot_product_attention(query, key, value, mask, **options)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: Mapping[str, Any],
        levels: int,
    ) -> tuple[Tensor, int]:
        num = info.batch_size
        given = [_first(x, dim) for x, dim in zip((query, key, value), in_dims, strict=False)]
        wide = [x if dim is not None else x.expand(num, *x.shape) for x, dim in zip(given, in_dims, strict=False)]
        if mask is not None:
            mask = _first(mask, in_dims[3])
            mask = (mask if in_dims[3] is not None else mask.expand(num, *mask.shape)).expand(
                *wide[0].shape[:2], *mask.shape[-3:]
            )
            mask = mask.flatten(0, 1)
        flat = [x.flatten(0, 1) for x in wide]
        if levels > 1:
            found = _Attention.apply(*flat, mask, options, levels - 1)
        else:
            found = nn.functional.scaled_dot_product_attention(flat[0], flat[1], flat[2], mask, **options)
        return found.unflatten(0, wide[0].shape[:2]), 0


def _rows_of(table: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    return {name: x.detach().unbind(0) for name, x in table.items()}


def _first(x: Tensor, dim: int | None) -> Tensor:
    return x if dim is None else x.movedim(dim, 0)


def tensors_of(learner: Learner) -> dict[str, Tensor]:
    """Parameters and buffers of backbone and heads, by the names that they have in the learner."""
    named = (*learner.named_parameters(), *learner.named_buffers())
    return {name: x for name, x in named if not name.startswith(OBJECTIVE)}


def layout(learner: Learner) -> list[tuple[str, torch.Size, torch.dtype, bool]]:
    """What two learners must have in common in order to be rows."""
    return [(name, x.shape, x.dtype, x.requires_grad) for name, x in tensors_of(learner).items()]


def _differs(name: str, states: Sequence[Mapping[str, Tensor]]) -> bool:
    first = states[0][name]
    others = [state[name] for state in states]
    return any(x.data_ptr() != first.data_ptr() and not torch.equal(x, first) for x in others)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([x.detach() for x in tensors]).contiguous()  # as gradients will be, see RowAdamW
