"""The torch half of regularisers.py: two objectives around another one, and what is done when training is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch, Learner, MicroBatchable, Output
from zoo_core.errors import RefusedError
from zoo_core.toolkit.features import masked_mean

__all__ = ["Interpolation", "SpectralShrinkage", "StartingPoint", "check_statistics"]


class StartingPoint(nn.Module):
    """The wrapped objective, and half the squared distances: of `held` from where they are now, of `new` from 0.

    Parameters are looked at, not owned: the learner's names of them stay the only ones. Where `held` started is no
    state that anybody stores.
    """

    def __init__(
        self,
        objective: nn.Module,
        held: Sequence[nn.Parameter],
        new: Sequence[nn.Parameter],
        *,
        alpha: float,
        beta: float,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.stages: tuple[int, ...] = objective.stages  # type: ignore[assignment]
        self.alpha = alpha
        self.beta = beta
        self._held = tuple(held)  # in a tuple, so that torch does not register them; a deep copy follows them
        self._new = tuple(new)
        for place, parameter in enumerate(held):
            self.register_buffer(f"start_{place}", parameter.detach().clone(), persistent=False)

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.objective(output, batch)
        pairs = [(parameter, self.get_buffer(f"start_{place}")) for place, parameter in enumerate(self._held)]
        away = torch.stack([(parameter - start).square().sum() for parameter, start in pairs]).sum()
        terms = _with(terms, "l2sp", self.alpha / 2 * away)
        if not self._new:
            return terms
        size = torch.stack([parameter.square().sum() for parameter in self._new]).sum()
        return _with(terms, "l2", self.beta / 2 * size)

    def num_items(self, batch: Batch) -> Tensor | Mapping[str, Tensor] | None:
        """As the wrapped objective says; the distances are the same on every micro-batch."""
        return self.objective.num_items(batch) if isinstance(self.objective, MicroBatchable) else None


class SpectralShrinkage(nn.Module):
    """The wrapped objective, and eta times the squares of the k smallest singular values of the pooled features."""

    def __init__(self, objective: nn.Module, *, eta: float, k: int) -> None:
        super().__init__()
        self.objective = objective
        self.stages: tuple[int, ...] = objective.stages  # type: ignore[assignment]
        self.eta = eta
        self.k = k

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.objective(output, batch)
        features = output.features
        x_BD = features.x if features.kind == "pooled" else masked_mean(features)
        x_BD = x_BD.to(torch.promote_types(x_BD.dtype, torch.float32))
        # Of features that are not finite there are no singular values; the loss itself tells of them.
        sigma = torch.linalg.svdvals(x_BD.nan_to_num(nan=0, posinf=0, neginf=0))
        return _with(terms, "bss", self.eta * sigma[-self.k :].square().sum())


class Interpolation:
    """(1 - alpha) * where the parameters were + alpha * where they are; called with the learner after training."""

    def __init__(self, held: Sequence[nn.Parameter], *, alpha: float) -> None:
        self.alpha = alpha
        self.held = tuple(held)
        self.starts = tuple(parameter.detach().cpu().clone() for parameter in held)

    @torch.no_grad()
    def __call__(self, learner: Learner) -> None:
        check_statistics(learner)  # a later adapter may have opened batch norms
        for parameter, start in zip(self.held, self.starts, strict=True):
            if self.alpha == 0:
                parameter.copy_(start)
            elif self.alpha < 1:
                parameter.copy_(torch.lerp(start.to(parameter), parameter, self.alpha))


def check_statistics(learner: Learner) -> None:
    """Raises RefusedError where a norm of the backbone moves its statistics in training. Modes are put back."""
    mode = learner.training
    learner.train()
    moving = [
        name
        for name, module in learner.backbone.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training and module.track_running_stats
    ]
    learner.train(mode)
    if moving:
        raise RefusedError(
            f"wise: {len(moving)} batch norms move their statistics in training, {moving[0]} first, and no statistics "
            f"fit weights between two networks; use it where they stay frozen: bitfit+wise, or another backbone"
        )


def _with(terms: dict[str, Tensor], name: str, value: Tensor) -> dict[str, Tensor]:
    """The terms with another one, added to what a wrapped objective of the same kind gives under its name."""
    return terms | {name: terms[name] + value if name in terms else value}
