"""A recorded step: what it replays is what it would compute, and what a record cannot see is computed each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from zoo_core.training.recorded_step import WORTH, RecordedStep

NUM_ROWS, BATCH, DIM = 3, 4, 5


class Net(nn.Module):
    """A linear layer after a batch norm, whose statistics move."""

    def __init__(self, more: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.norm, self.linear, self.more = nn.BatchNorm1d(DIM), nn.Linear(DIM, 2), more

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.linear(self.norm(self.more(x)))
        return found


class Counted:
    """The step of a network's rows, and how often it was asked for."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.num = net, 0

    def __call__(
        self, trained: Mapping[str, Tensor], rest: Mapping[str, Tensor], inputs: Mapping[str, Tensor], target: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.num += 1

        def one(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
            found: Tensor = functional_call(self.net, tensors, (x,))
            return found

        found = vmap(one, in_dims=(0, None))({**trained, **rest}, inputs["x"])
        losses = (found - target).square().mean((1, 2))
        return losses.detach(), dict(zip(trained, torch.autograd.grad(losses.sum(), [*trained.values()]), strict=True))


def tensors(net: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    stacked = {
        name: torch.stack([x + torch.rand(x.shape, generator=draw) if x.is_floating_point() else x] * NUM_ROWS)
        for name, x in {**dict(net.named_parameters()), **dict(net.named_buffers())}.items()
    }
    trained = {name: stacked.pop(name).detach().requires_grad_() for name, _ in net.named_parameters()}
    return trained, {name: x.detach() for name, x in stacked.items()}


def batch(number: int, size: int = BATCH) -> tuple[dict[str, Tensor], Tensor]:
    draw = torch.Generator().manual_seed(number)
    return {"x": torch.randn(size, DIM, generator=draw)}, torch.randn(NUM_ROWS, size, 2, generator=draw)


def run(step: Callable[..., tuple[Tensor, dict[str, Tensor]]], net: nn.Module, num: int) -> list[Tensor]:
    """All that the steps give and leave behind."""
    trained, rest = tensors(net)
    found: list[Tensor] = []
    for number in range(num):
        inputs, target = batch(number, BATCH if number % 7 else BATCH + 1)
        losses, gradients = step(trained, rest, inputs, target)
        found += [losses, *gradients.values(), *(x.clone() for x in rest.values())]
    return found


def test_a_replay_is_bit_for_bit_the_step_with_what_it_writes() -> None:
    net, num = Net(), 2 * WORTH
    alone, counted = Counted(net), Counted(net)
    recorded = RecordedStep(counted, is_same=torch.equal)
    for one, other in zip(run(alone, net, num), run(recorded, net, num), strict=True):
        assert torch.equal(one, other)
    assert counted.num < num - WORTH / 2  # the steps of the shape that is met most are replayed


def of_the_call(x: Tensor) -> Tensor:
    """Another number in each call, which only Python knows of."""
    of_the_call.__dict__["num"] = of_the_call.__dict__.get("num", 0) + 1
    return x.mul(of_the_call.__dict__["num"])


def of_values(x: Tensor) -> Tensor:
    return x * 2 if float(x.detach().abs().max()) > 2 else x


def of_a_list(x: Tensor) -> Tensor:
    """Something rare, which the batches that a record is tried on need not show."""
    return x * 2 if max(x.detach().flatten().tolist()) > 100 else x


@pytest.mark.parametrize(
    "more", [of_the_call, of_values, of_a_list], ids=["a count of calls", "the size of a value", "a list of values"]
)
def test_what_a_record_does_not_see_is_computed_each_time(more: Callable[[Tensor], Tensor]) -> None:
    net = Net()
    net.norm.eval()
    inputs, target = batch(0)

    class Outside(Counted):
        def __call__(self, trained, rest, inputs, target):  # type: ignore[no-untyped-def]
            return super().__call__(trained, rest, {"x": more(inputs["x"])}, target)

    counted = Outside(net)
    recorded, (trained, rest) = RecordedStep(counted, is_same=torch.equal), tensors(net)
    recorded.record(trained, rest, (inputs, target), batch(1))
    before = counted.num
    for number in range(3):
        recorded(trained, rest, *batch(number))
    assert counted.num == before + 3


class Pruned(torch.autograd.Function):
    """Leaves out the smaller half of weights, which its rule for vmap looks at past torch."""

    @staticmethod
    def forward(weight: Tensor) -> Tensor:
        return weight

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: object) -> None: ...

    @staticmethod
    def vmap(info: object, in_dims: tuple[int], weight: Tensor) -> tuple[Tensor, int]:
        keeps = torch.from_numpy(np.abs(weight.detach().numpy()) > np.median(np.abs(weight.detach().numpy())))
        return weight * keeps, 0


def test_a_record_is_tried_with_other_weights() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(DIM, 2)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, Pruned.apply(self.linear.weight), self.linear.bias)

    counted = Counted(net := Net())
    recorded, (trained, rest) = RecordedStep(counted, is_same=torch.equal), tensors(net)
    recorded.record(trained, rest, batch(0), batch(1))
    before = counted.num
    recorded(trained, rest, *batch(2))
    assert counted.num == before + 1
