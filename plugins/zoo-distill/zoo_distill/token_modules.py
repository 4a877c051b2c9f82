"""The torch half of distillation_token.py: the token, the head of two, and the objective that teaches the second.

Axes: B batch, T tokens, D width, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch, ClosedForm, Extendable, Features, Learner, Output, Target
from zoo_core.errors import RefusedError
from zoo_core.toolkit.sites import free_name
from zoo_core.toolkit.stages import stage_modules
from zoo_distill.logit_losses import softmax_kl
from zoo_distill.taught_objective import TaughtObjective, upcast

__all__ = ["DistillationToken", "TokenDistillation", "TwoHeads", "add_token"]

SMALL = 0.02  # the deviation that DeiT draws token and heads with


class LastPass:
    """What the last pass in evaluation mode made of the token, float [B, D], until the head takes it.

    It belongs to a pass, so copies and pickles have none.
    """

    def __init__(self) -> None:
        self.state: Tensor | None = None

    def __reduce__(self) -> tuple[type[LastPass], tuple[()]]:
        return (LastPass, ())

    def take(self) -> Tensor:
        state, self.state = self.state, None
        assert state is not None, "the backbone has made a pass before its head is called"
        return state


class DistillationToken(nn.Module):
    """The learned token, float [1, D]. start: its place among the tokens of each stage."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, dim), std=SMALL))
        self.start = 0
        self.last_pass = LastPass()

    def forward(self) -> Tensor:
        self.last_pass.state = None
        return self.token

    def keep(self, stage: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A hook behind the last stage. While training, the objective reads the stage itself."""
        if not self.training:
            self.last_pass.state = self.read(output[0] if isinstance(output, tuple) else output)

    def read(self, state_BTD: Tensor) -> Tensor:
        """The token among those that leave the last stage, float [B, D]."""
        return state_BTD[:, self.start].clone()


class TwoHeads(nn.Module):
    """The head, and in evaluation mode the mean of its logits and those of the token's own head."""

    def __init__(self, head: nn.Module, token_head: nn.Module, token: DistillationToken) -> None:
        super().__init__()
        self.head = head
        self.token_head = token_head
        self._token = (token,)  # in a tuple: it is a module of the backbone

    def forward(self, features: Features) -> Tensor:
        logits: Tensor = self.head(features)
        return logits if self.training else (logits + self.of_token(self._token[0].last_pass.take())) / 2

    def of_token(self, state_BD: Tensor) -> Tensor:
        """The logits of the token's own head, float [B, C]."""
        logits: Tensor = self.token_head(state_BD)
        return logits


class TokenDistillation(TaughtObjective):
    """(1 - alpha) * the terms of another objective + alpha * that of the token's logits; see DistillToken.

    temperature: of the KL; None: the cross-entropy with the teacher's likeliest class. stage: the index of the last.
    """

    def __init__(
        self,
        objective: nn.Module,
        *,
        of: str,
        alpha: float,
        temperature: float | None,
        stage: int,
        token: DistillationToken,
        head: TwoHeads,
    ) -> None:
        super().__init__(objective, of=of, name="distill_token")
        self.stages = (stage,)
        self.alpha = alpha
        self.temperature = temperature
        self._model = (head, token)  # in a tuple, so that torch does not register them

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        head, token = self._model
        given = self.given(batch)
        assert given.predictions is not None, "the recipe asks for predictions, and a plan without is refused"
        student = upcast(head.of_token(token.read(output.stages[self.stages[0]])))
        teacher = given.predictions.to(student.dtype)
        if self.temperature is None:
            label = teacher.argmax(dim=-1)
            label = label if given.columns is None else label.new_tensor(given.columns)[label]
            distance = nn.functional.cross_entropy(student, label)
        else:
            student = student if given.columns is None else student[:, list(given.columns)]
            distance = softmax_kl(student, teacher, self.temperature).mean()
        labelled: dict[str, Tensor] = self.objective(output, batch)
        return self.joined({name: (1 - self.alpha) * x for name, x in labelled.items()}, self.alpha * distance)

    def own_items(self, batch: Batch) -> Tensor:
        return torch.tensor(float(len(batch)))


def add_token(learner: Learner, target: Target) -> tuple[DistillationToken, TwoHeads]:
    """Adds the token to the backbone, registered as `distill_token`, and its head around the learner's; returns both.

    Raises RefusedError where the backbone takes no tokens, or the head is not trained by gradient.
    """
    backbone = learner.backbone
    if not isinstance(backbone, Extendable):
        raise RefusedError("distill-token: the backbone has no `extend`, so no learned token can stand among its own")
    if any(isinstance(module, ClosedForm) for module in learner.head.modules()):
        raise RefusedError("distill-token: the head is fitted in closed form, and the token's is trained; take linear")
    assert target.size is not None, "a learner is built when it is known"
    dim, like = learner.source.features.dim, next(backbone.parameters())
    token = DistillationToken(dim).to(like)
    try:
        token.start = backbone.extend(token, 1)
    except RefusedError as error:
        raise RefusedError(f"distill-token: {error}") from None
    backbone.add_module(free_name(backbone, "distill_token"), token)
    stage_modules(backbone)[-1].register_forward_hook(token.keep)
    linear = nn.Linear(dim, target.size)
    nn.init.trunc_normal_(linear.weight, std=SMALL)
    nn.init.zeros_(linear.bias)
    token_head = nn.Sequential(nn.LayerNorm(dim), linear).to(like)
    old = next(learner.head.parameters(), None)
    if old is not None:
        learner.set_scale(token_head.parameters(), learner.scale_of(old))
    head = TwoHeads(learner.head, token_head, token)
    learner.head = head
    return token, head
