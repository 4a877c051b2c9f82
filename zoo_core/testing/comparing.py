"""What the checks of the conformance kit compare: outputs bit for bit, or within a tolerance; and one way to train."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from zoo_core.contracts import Batch
from zoo_core.errors import IncompatibleError
from zoo_core.model.learner import Learner
from zoo_core.testing.subject import Subject, forked_rng, perturb

__all__ = [
    "ConformanceError",
    "changed",
    "distance",
    "equal",
    "expect_refusal",
    "expect_same",
    "num_hooks",
    "outputs_of",
    "plain_name",
    "train",
]


class ConformanceError(AssertionError):
    """An adapter does not keep what every adapter promises."""


@torch.no_grad()
def outputs_of(learner: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Predictions and features of one pass."""
    output = learner(inputs)
    return {"predictions": output.predictions, "features": output.features.x}


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape and kind of numbers, and bits; two that are not numbers are equal."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def expect_same(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Raises ConformanceError, which begins with `what`, unless all are equal bit for bit."""
    for name, tensor in expected.items():
        if not equal(tensor, found[name]):
            raise ConformanceError(f"{what}: {name} differ by {distance({name: tensor}, found):.2g}")


def distance(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """The largest difference of two sets of tensors of the same shapes; infinite if shapes differ."""
    if any(tensor.shape != found[name].shape for name, tensor in expected.items()):
        return float("inf")
    return max(float((tensor.double() - found[name].double()).abs().max()) for name, tensor in expected.items())


def changed(subject: Subject, *, seed: int = 1, dtype: torch.dtype = torch.float32) -> Learner:
    """A learner whose trained values are no longer those of the start, in evaluation mode."""
    learner = subject.learner().to(dtype)
    perturb((parameter for _, parameter in learner.trainable()), seed=seed)
    return learner


def train(learner: Learner, batch: Batch, optimiser: torch.optim.Optimizer, num_steps: int) -> None:
    """Steps on one batch, gradients clipped at norm 1; the learner stays in training mode, with its last gradients."""
    learner.train()
    with forked_rng("training"):
        for _ in range(num_steps):
            optimiser.zero_grad(set_to_none=True)
            learner.loss(learner(batch.inputs), batch).backward()
            nn.utils.clip_grad_norm_([p for _, p in learner.trainable()], 1.0)
            optimiser.step()


def plain_name(name: str) -> str:
    """The name that a tensor of the base has, also where a parametrisation moved it."""
    return name.replace(".parametrizations.", ".").removesuffix(".original")


def num_hooks(module: nn.Module) -> int:
    """How many hooks a module and all beneath it have."""
    return sum(
        len(hooks)
        for each in module.modules()
        for name, hooks in vars(each).items()
        if name.endswith("_hooks") and isinstance(hooks, dict)
    )


def expect_refusal(call: Callable[[], object], what: str) -> None:
    """Raises ConformanceError unless the call raises IncompatibleError with a message of one line."""
    try:
        call()
    except IncompatibleError as error:
        if len(str(error).splitlines()) == 1:
            return
        raise ConformanceError(f"{what} is refused in {len(str(error).splitlines())} lines, not in one") from error
    raise ConformanceError(f"{what} is not refused")
