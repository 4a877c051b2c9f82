"""Every native adapter on every kind of backbone: it is refused with the reason that stands here, or it conforms.

The adapters are those that the registry has, so a new one joins by itself, with its default arguments and every check;
a refusal that no row of REFUSALS expects fails, and so does an expected one that is gone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from itertools import product
from typing import NamedTuple

import pytest
import torch

from tests.tiny import NAMES, tiny  # noqa: F401 -- a fixture
from zoo_core.errors import RefusedError
from zoo_core.testing.conformance import CHECKS, QUICK, Check, Subject, check_adapter

NATIVE = "zoo-adapters"

# How an adapter is written on small backbones; the first way is the usual one. What is not here: by its name alone.
# What only delays, weighs or regularises is written behind what trains.
CHAINS: dict[str, tuple[str, ...]] = {
    "bottleneck": (
        *("bottleneck(r=4)", "bottleneck(r=4,preset=houlsby)", "bottleneck(r=4,preset=parallel)"),
        *("bottleneck(r=4,preset=adapter-plus)", "bottleneck(r=4,init=houlsby)"),
    ),
    "bss": ("full+bss",),
    "dora": ("dora(r=2)",),
    "gradual-unfreeze": ("full+gradual-unfreeze",),
    "l2sp": ("full+l2sp",),
    "layer-decay": ("full+layer-decay",),
    "lora": ("lora(r=2)", "lora(r=2,rslora=true)", "lora(r=2,init=pissa)"),
    "lp-ft": ("full+lp-ft",),
    "partial": ("partial(n=1)",),
    "prefix": ("prefix(length=3)", "prefix(length=3,form=mlp)", "prefix(length=3,form=gated)"),
    "prompt": ("prompt(length=3)", "prompt(length=3,deep=true)"),
    "wise": ("bitfit+wise", "full+wise"),
}


class Refusal(NamedTuple):
    """A chain that starts with `chain` is refused on these backbones, with `reason` in its line."""

    chain: str
    backbones: Sequence[str]
    reason: str


CONVOLUTIONAL = ("convnet-nano", "resnet", "convnext", "efficientnet")
REFUSALS = (
    Refusal("bitfit", ("modernbert",), "the backbone has no biases"),
    Refusal("bottleneck(r=4", CONVOLUTIONAL, "adapter bottleneck works on"),
    Refusal("bottleneck(r=4,preset=houlsby)", ("mlp-nano",), "bottleneck works on attn.out and mlp.out"),
    Refusal("bottleneck(r=4,preset=adapter-plus)", ("swin",), "whose last axis is not known to be its width"),
    Refusal("full+wise", ("vit-nano", *CONVOLUTIONAL[:2], "efficientnet"), "batch norms move their statistics"),
    Refusal("ia3", CONVOLUTIONAL, "adapter ia3 works on"),
    Refusal("ia3", ("beit",), "reads the weight of model.blocks.0.attn.qkv without calling it"),
    Refusal("prefix", ("convnet-nano", "mlp-nano"), "adapter prefix needs the attention seam"),
    Refusal("prefix", ("resnet", "convnext", "efficientnet"), "adapter prefix works on attn.k and attn.v"),
    Refusal("prefix", ("swin",), "calls fused attention (scaled_dot_product_attention) 0 times"),
    Refusal("prompt", (*CONVOLUTIONAL, "mlp-nano", "swin"), "adapter prompt works on tokens"),
    Refusal("prompt", ("beit",), "a learned token has no place"),
    Refusal("prompt", ("modernbert", "wav2vec2"), "not every token would see the learned ones"),
)
# What a backbone refuses only when it is asked to merge, by chain and backbone.
UNMERGED: dict[tuple[str, str], str] = {}

EVERY_CHECK_ON = ("vit", "convnext")  # a transformer with fused projections, and a network without attention
SLOW_CHECKS_ON = ("vit", "convnext", "bert", "gpt2")
CHEAP = tuple(check for check in QUICK if str(check) in ("exact-at-start", "first-stage", "changes-what-it-says"))


def native() -> tuple[str, ...]:
    """The names of the adapters that the distribution of native ones publishes here."""
    found = entry_points(group="zoo.adapters")
    return tuple(sorted(each.name for each in found if each.dist is not None and each.dist.name == NATIVE))


def chains(name: str) -> tuple[str, ...]:
    return CHAINS.get(name, (name,))


USUAL = tuple(chains(name)[0] for name in native())
EVERY = tuple(chain for name in native() for chain in chains(name))
OTHERS = tuple(chain for chain in EVERY if chain not in USUAL)


def expected_refusal(backbone: str, chain: str) -> str | None:
    """The most particular row that expects a refusal: that with the longest chain."""
    rows = [row for row in REFUSALS if chain.startswith(row.chain) and backbone in row.backbones]
    return max(rows, key=lambda row: len(row.chain)).reason if rows else None


Build = Callable[[str, str], Subject | None]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """A pass through networks this small takes less than threads take to wait for one another."""
    torch.set_num_threads(1)


def attempt(spec: str, like: Subject) -> tuple[Subject | None, str | None]:
    """The subject of a spec, or why it is refused."""
    try:
        subject = Subject(spec, like=like)
        _ = subject.built
    except RefusedError as error:
        return None, str(error)
    return subject, None


@pytest.fixture(scope="module")
def built(tiny: Callable[[str], str]) -> Build:  # noqa: F811
    """The subject of a backbone and a chain; None where that is refused as REFUSALS says. All share plain backbones."""
    plain: dict[str, Subject] = {}

    def build(backbone: str, chain: str) -> Subject | None:
        if backbone not in plain:
            plain[backbone] = Subject(f"{tiny(backbone)}+probe")
        subject, refusal = attempt(f"{tiny(backbone)}+{chain}", plain[backbone])
        expected = expected_refusal(backbone, chain)
        if expected is None:
            assert refusal is None, f"a refusal that no row expects: {refusal}"
        else:
            assert refusal is not None, f"it is built, and a row expects that it is refused: {expected}"
            assert expected in refusal
            assert "\n" not in refusal
        return subject

    return build


def check_cell(build: Build, backbone: str, chain: str, checks: Sequence[Check]) -> None:
    subject = build(backbone, chain)
    if subject is None:
        return
    for report in check_adapter(subject, checks=checks):
        if (chain, backbone) in UNMERGED and report.check == "merges":
            assert report.outcome == "refused"
            assert UNMERGED[chain, backbone] in report.reason
        else:
            assert report.outcome in ("passed", "nothing to check"), report


@pytest.mark.parametrize(
    ("backbone", "chain"), list(product([name for name in NAMES if name != EVERY_CHECK_ON[0]], USUAL))
)
def test_it_is_refused_as_expected_or_built_exactly(built: Build, backbone: str, chain: str) -> None:
    check_cell(built, backbone, chain, CHEAP)


@pytest.mark.parametrize(
    ("backbone", "chain"),
    [
        pytest.param(backbone, chain, marks=pytest.mark.slow if backbone != EVERY_CHECK_ON[0] else ())
        for backbone, chain in product(EVERY_CHECK_ON, USUAL)
    ],
)
def test_it_conforms(built: Build, backbone: str, chain: str) -> None:
    check_cell(built, backbone, chain, QUICK)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("backbone", "chain"), list(product(NAMES, EVERY)))
def test_it_conforms_everywhere(built: Build, backbone: str, chain: str) -> None:
    if backbone not in EVERY_CHECK_ON or chain not in USUAL:
        check_cell(built, backbone, chain, QUICK)


@pytest.mark.exhaustive
@pytest.mark.parametrize("check", [check for check in CHECKS if check.slow], ids=str)
@pytest.mark.parametrize(("backbone", "chain"), list(product(SLOW_CHECKS_ON, USUAL)))
def test_it_conforms_to_what_takes_long(built: Build, backbone: str, chain: str, check: Check) -> None:
    check_cell(built, backbone, chain, [check])


def test_every_row_names_what_there_is() -> None:
    for row in REFUSALS:
        assert set(row.backbones) <= set(NAMES)
        assert any(chain.startswith(row.chain) for chain in EVERY), row
    assert set(CHAINS) <= set(native())


def test_an_adapter_that_stands_nowhere_is_checked_by_its_name_alone() -> None:
    assert chains("not-yet-written") == ("not-yet-written",)


def test_a_refusal_that_no_row_expects_fails_and_so_does_one_that_is_gone(
    built: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "REFUSALS", (Refusal("full", ("convnext",), "it makes no sense"),))
    with pytest.raises(AssertionError, match="a refusal that no row expects: adapter ia3 works on"):
        built("convnext", "ia3")
    with pytest.raises(AssertionError, match="a row expects that it is refused: it makes no sense"):
        built("convnext", "full")
