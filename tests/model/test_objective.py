from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo_core.contracts import Batch, Features, Output, Target, TargetKind
from zoo_core.model.objective import BinaryCrossEntropy, CrossEntropy, ScaledHead, SquaredError, default_objective

FEATURES = Features(kind="pooled", x=torch.zeros(1, 1))


def output_of(predictions: Tensor) -> Output:
    return Output(predictions=predictions, features=FEATURES)


def batch_of(target: Tensor) -> Batch:
    return Batch(inputs={}, target=target, ids=tuple(str(index) for index in range(len(target))))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Echo(nn.Module):
    """A head that gives its features, as a linear one of identity."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, features: Features) -> Tensor:
        return features.x * self.gain


@given(num=st.integers(1, 5), size=st.integers(1, 4), seed=st.integers(0, 99))
def test_classes_cost_the_negative_log_of_the_softmax(num: int, size: int, seed: int) -> None:
    logits, target = drawn(seed, num, size), torch.arange(num) % size
    expected = -sum(math.log(math.exp(row[c]) / row.exp().sum()) for row, c in zip(logits, target, strict=True)) / num
    (loss,) = CrossEntropy()(output_of(logits), batch_of(target)).values()
    assert float(loss) == pytest.approx(expected, abs=1e-12)  # rounding of float64


def test_ignored_tokens_cost_nothing() -> None:
    logits, target = drawn(0, 2, 3, 4), torch.tensor([[1, -100, 2], [-100, -100, 0]])
    (loss,) = CrossEntropy()(output_of(logits), batch_of(target)).values()
    real = target != -100
    (expected,) = CrossEntropy()(output_of(logits[real]), batch_of(target[real])).values()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)  # order of a float64 sum


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(num=st.integers(1, 5), size=st.integers(1, 4), seed=st.integers(0, 99))
def test_labels_cost_the_negative_log_of_the_sigmoid(dtype: torch.dtype, num: int, size: int, seed: int) -> None:
    logits, target = drawn(seed, num, size).requires_grad_(), (drawn(seed + 1, num, size) > 0).to(dtype)
    share = 1 / (1 + (-logits.detach()).exp())
    expected = -(target * share.log() + (1 - target) * (1 - share).log()).mean()
    (loss,) = BinaryCrossEntropy()(output_of(logits), batch_of(target)).values()
    torch.testing.assert_close(loss.detach(), expected.double(), rtol=1e-10, atol=1e-12)  # rounding of float64
    loss.backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, (share - target) / (num * size), rtol=1e-10, atol=1e-12)  # the same


def scaled(shift: list[float], scale: list[float]) -> ScaledHead:
    head = ScaledHead(Echo(), len(shift)).double()
    head.shift.copy_(torch.tensor(shift, dtype=torch.float64))
    head.scale.copy_(torch.tensor(scale, dtype=torch.float64))
    return head


@given(num=st.integers(1, 5), seed=st.integers(0, 99))
def test_values_cost_the_squared_error_in_units_of_the_head(num: int, seed: int) -> None:
    head = scaled([1000.0, -3.0], [250.0, 0.01])
    raw, target = drawn(seed, num, 2), drawn(seed + 1, num, 2) * head.scale + head.shift
    predictions = head(Features(kind="pooled", x=raw))
    torch.testing.assert_close(predictions, raw * head.scale + head.shift, rtol=0, atol=0)
    (loss,) = SquaredError(head)(output_of(predictions), batch_of(target)).values()
    expected = (raw - (target - head.shift) / head.scale).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)  # float64, a thousand subtracted and added


def test_values_of_any_unit_train_alike() -> None:
    losses = []
    for unit in (1e-3, 1.0, 1e3):
        head = scaled([5 * unit], [2 * unit])
        predictions = head(Features(kind="pooled", x=drawn(0, 4, 1)))
        target = (drawn(1, 4, 1) * 2 + 5) * unit
        losses.append(float(SquaredError(head)(output_of(predictions), batch_of(target))["squared_error"]))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-9)  # float64, other roundings


def test_the_objective_follows_its_head_into_other_types_and_copies() -> None:
    learner = nn.ModuleDict({"head": ScaledHead(Echo(), 1)})
    head = learner["head"]
    assert isinstance(head, ScaledHead)
    learner["objective"] = SquaredError(head)
    head.scale.fill_(2.0)
    learner.double()
    assert head.scale.dtype == torch.float64
    output, batch = output_of(torch.full((1, 1), 4.0)), batch_of(torch.zeros(1, 1))
    assert float(learner["objective"](output, batch)["squared_error"]) == 4.0
    twin = copy.deepcopy(learner)
    assert isinstance(twin["head"], ScaledHead)
    twin["head"].scale.fill_(4.0)
    assert float(twin["objective"](output, batch)["squared_error"]) == 1.0
    assert float(learner["objective"](output, batch)["squared_error"]) == 4.0


def test_the_objective_owns_no_part_of_the_head() -> None:
    objective = SquaredError(ScaledHead(Echo(), 1))
    assert not list(objective.parameters())
    assert not objective.state_dict()


class Mean(nn.Module):
    """A closed-form head: the mean of the targets."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(1))

    def fit(self, features: Features, target: Tensor) -> None:
        self.value.copy_(target.mean(dim=0))

    def forward(self, features: Features) -> Tensor:
        return self.value.expand(len(features.x), -1)


def test_a_closed_form_head_is_fitted_in_its_own_units() -> None:
    head = ScaledHead(Mean(), 1)
    head.shift.fill_(10.0)
    head.scale.fill_(5.0)
    features = Features(kind="pooled", x=torch.zeros(2, 1))
    head.fit(features, torch.tensor([[20.0], [40.0]]))
    assert head(features).tolist() == [[30.0], [30.0]]
    assert isinstance(head.head, Mean)
    assert head.head.value.tolist() == [4.0]


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("classes", CrossEntropy),
        ("token_classes", CrossEntropy),
        ("multilabel", BinaryCrossEntropy),
        ("regression", SquaredError),
    ],
)
def test_each_target_kind_has_its_loss(kind: TargetKind, objective: type) -> None:
    found = default_objective(Target(kind=kind, size=1), ScaledHead(Echo(), 1))
    assert type(found) is objective
    assert found.stages == ()
