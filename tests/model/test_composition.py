"""Every ordered pair of native adapters on four kinds of backbones: refused in one line, or both act and keep the laws.

What order is meant, and what it means, stands in the tables here:
- what only delays, weighs, regularises or averages comes after what trains;
- dora takes the weight of a layer as the layer's own, so it comes first there and shares it with no other update of it;
- NOT_COMMUTING: pairs that change the same outputs by a product and by a sum, which act in the order of the spec.
All other pairs commute: with the same values the outputs are the same in both orders.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import NamedTuple

import pytest
import torch

from tests.model.test_adapters_everywhere import CHAINS, attempt, expected_refusal, native
from tests.tiny import tiny  # noqa: F401 -- a fixture
from zoo_core.testing.comparing import distance, outputs_of
from zoo_core.testing.conformance import QUICK, Subject, check_adapter
from zoo_core.testing.subject import perturb

BACKBONES = ("vit-nano", "convnet-nano", "bert", "swin")
FOLLOWERS = ("bss", "gradual-unfreeze", "l2sp", "layer-decay", "lp-ft", "wise")
ADDING = ("bottleneck", "dora", "ia3", "lora", "prefix", "prompt", "ssf")


class Row(NamedTuple):
    """These adapters first and those second are refused on these backbones, with `reason` in the line."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    reason: str
    backbones: tuple[str, ...] = BACKBONES


REFUSED = (
    Row(FOLLOWERS, native(), "nothing of the backbone trains yet"),
    Row(("probe",), FOLLOWERS, "nothing of the backbone trains yet"),
    Row(ADDING, ("l2sp", "wise"), "of the backbone only added tensors train"),
    Row(("dora", "ia3", "lora", "ssf"), ("dora",), "dora takes the weight there as the layer's own"),
    Row(("dora",), ("lora",), "dora takes the weight there as the layer's own"),
    Row(("full", "norm"), ("wise",), "batch norms move their statistics", ("vit-nano", "convnet-nano")),
    Row(("partial",), ("wise",), "batch norms move their statistics", ("convnet-nano",)),
)

# Pairs whose outputs depend on the order, since both act on the outputs of the same layers.
NOT_COMMUTING = (
    {"bottleneck", "ssf"},  # Up is scaled too, or not
    {"ia3", "lora"},  # the update is scaled too, or not
    {"ia3", "ssf"},  # the shift is scaled too, or not
    {"lora", "ssf"},
)

# Pairs of each mechanism, which run by default: an update of weights, a module at a stage, keys and values, tokens,
# what opens the base, the objective, a phase.
MECHANISMS = ("bitfit", "bottleneck", "full", "l2sp", "lora", "lp-ft", "prefix", "prompt", "ssf")
LAWS = ("changes-what-it-says", "frozen-stays", "gradients-arrive", "holds-its-delta", "switches")

Pair = Callable[[str, str, str], Subject | None]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """A pass through networks this small takes less than threads take to wait for one another."""
    torch.set_num_threads(1)


def written(name: str) -> str:
    """An adapter by itself: of a chain the last part."""
    return CHAINS.get(name, (name,))[0].rpartition("+")[2]


def expected_reasons(backbone: str, first: str, second: str) -> list[str]:
    """Why the pair is refused, one reason or several of which one is told; none: it is built."""
    alone = [expected_refusal(backbone, written(name)) for name in (first, second)]
    together = [
        row.reason for row in REFUSED if first in row.first and second in row.second and backbone in row.backbones
    ]
    return [reason for reason in (*alone, *together) if reason is not None]


@pytest.fixture(scope="module")
def pair(tiny: Callable[[str], str]) -> Pair:  # noqa: F811
    """The subject of two adapters on a backbone; None where they are refused as expected."""
    plain: dict[str, Subject] = {}

    def build(backbone: str, first: str, second: str) -> Subject | None:
        if backbone not in plain:
            plain[backbone] = Subject(f"{tiny(backbone)}+probe")
        subject, refusal = attempt(f"{tiny(backbone)}+{written(first)}+{written(second)}", plain[backbone])
        expected = expected_reasons(backbone, first, second)
        if refusal is None:
            assert not expected, f"{first}+{second} is built, and refusals are expected: {expected}"
        else:
            assert any(reason in refusal for reason in expected), f"{first}+{second}: {refusal}"
            assert "\n" not in refusal
        return subject

    return build


def commute(one: Subject, other: Subject) -> bool:
    """Whether two orders of the same adapters give the same outputs with the same values."""
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in one.batch().inputs.items()}
    learner, swapped = one.learner().double(), other.learner().double()
    perturb(parameter for _, parameter in learner.trainable())
    swapped.load_delta(learner.delta())
    expected = outputs_of(learner, inputs)
    largest = max(float(x.abs().max()) for x in expected.values())
    return distance(expected, outputs_of(swapped, inputs)) <= 1e-10 * largest  # sums in another order round otherwise


def check_pair(pair: Pair, backbone: str, first: str, second: str) -> None:
    """Both orders of two adapters, or one adapter twice."""
    orders = [(first, second), (second, first)] if first != second else [(first, first)]
    subjects = [subject for order in orders if (subject := pair(backbone, *order)) is not None]
    for subject in subjects:
        for report in check_adapter(subject, checks=[check for check in QUICK if str(check) in LAWS]):
            assert report.outcome in ("passed", "nothing to check"), report
    if len(subjects) == 2:
        assert commute(*subjects) == ({first, second} not in NOT_COMMUTING), (backbone, first, second)


@pytest.mark.parametrize(("first", "second"), list(combinations_with_replacement(MECHANISMS, 2)))
def test_a_pair_is_refused_as_expected_or_keeps_the_laws_in_both_orders(pair: Pair, first: str, second: str) -> None:
    check_pair(pair, "bert", first, second)


@pytest.mark.exhaustive
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("first", native())
def test_every_pair_does_so_on_every_backbone(pair: Pair, backbone: str, first: str) -> None:
    for second in native():
        if first <= second:
            check_pair(pair, backbone, first, second)


def test_a_wrong_table_is_noticed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "NOT_COMMUTING", ())
    with pytest.raises(AssertionError, match="'lora', 'ssf'"):
        check_pair(pair, "bert", "lora", "ssf")
    monkeypatch.setattr(sys.modules[__name__], "REFUSED", ())
    with pytest.raises(AssertionError, match=r"lora\+dora: dora:"):
        pair("bert", "lora", "dora")
