"""Every method keeps what an adapter promises, on a vision transformer, a BERT and a convolutional network."""

from __future__ import annotations

import re

import pytest

from zoo_core.contracts import Target
from zoo_core.errors import RefusedError
from zoo_core.files.fetch import pin_plan
from zoo_core.model.build import build
from zoo_core.model.learner import Learner
from zoo_core.plan.resolve import resolve
from zoo_core.testing import execution
from zoo_core.testing.conformance import CHECKS, QUICK, Check, Subject
from zoo_peft.methods import known_methods

CLASSES = Target(kind="classes", names=("a", "b", "c"))
METHODS = (
    *("peft/lora", "peft/lora(use_dora=true)", "peft/ia3", "peft/loha", "peft/lokr", "peft/oft(r=4)"),
    *("peft/boft", "peft/vera(r=16)", "peft/hra", "peft/miss(r=8)"),
)
CONVOLUTIONAL = ("peft/lora", "peft/lora(use_dora=true)", "peft/ia3", "peft/loha", "peft/lokr")
FITTING = {"c3a": "block_size=16", "vblora": "vector_length=16"}  # arguments with which a method fits a width of 64
FROD = "ignore:Sparse invariant checks are implicitly disabled:UserWarning"  # torch's, of how frod keeps its entries
CHECKED = ("exact-at-start", "frozen-stays", "gradients-arrive", "holds-its-delta", "merges")
SOME = [check for check in QUICK if str(check) in CHECKED]


def built(spec: str) -> Learner:
    return build(pin_plan(resolve(spec, target=CLASSES)))


@pytest.fixture(scope="module")
def vit(request: pytest.FixtureRequest) -> Subject:
    return Subject(f"starter/vit-nano+{request.param}")


@pytest.fixture(scope="module")
def text(request: pytest.FixtureRequest, bert: str) -> Subject:
    return Subject(f"{bert}+{request.param}")


@pytest.fixture(scope="module")
def convolutional(request: pytest.FixtureRequest) -> Subject:
    return Subject(f"starter/convnet-nano+{request.param}")


@pytest.mark.parametrize("check", SOME, ids=str)
@pytest.mark.parametrize("vit", ["peft/lora(use_dora=true)", "peft/oft(r=4)"], indirect=True, ids=str)
def test_a_method_conforms_on_a_vision_transformer(check: Check, vit: Subject) -> None:
    check(vit)


@pytest.mark.parametrize("check", SOME, ids=str)
@pytest.mark.parametrize("text", ["peft/ia3", "peft/vera(r=16)"], indirect=True, ids=str)
def test_a_method_conforms_on_bert(check: Check, text: Subject) -> None:
    check(text)


@pytest.mark.parametrize("check", [check for check in SOME if str(check) != "frozen-stays"], ids=str)
@pytest.mark.parametrize("convolutional", ["peft/lora"], indirect=True, ids=str)
def test_a_method_conforms_on_convolutions(check: Check, convolutional: Subject) -> None:
    check(convolutional)


@pytest.mark.exhaustive
@pytest.mark.parametrize("check", CHECKS, ids=str)
@pytest.mark.parametrize("vit", METHODS, indirect=True, ids=str)
def test_a_method_keeps_every_promise_on_a_vision_transformer(check: Check, vit: Subject) -> None:
    check(vit)


@pytest.mark.exhaustive
@pytest.mark.parametrize("check", CHECKS, ids=str)
@pytest.mark.parametrize("text", METHODS, indirect=True, ids=str)
def test_a_method_keeps_every_promise_on_bert(check: Check, text: Subject) -> None:
    check(text)


@pytest.mark.exhaustive
@pytest.mark.parametrize("check", CHECKS, ids=str)
@pytest.mark.parametrize("convolutional", CONVOLUTIONAL, indirect=True, ids=str)
def test_a_method_keeps_every_promise_on_convolutions(check: Check, convolutional: Subject) -> None:
    check(convolutional)


@pytest.mark.filterwarnings(FROD)
@pytest.mark.parametrize("name", sorted(known_methods()))
def test_every_method_builds_on_bert_or_is_refused_with_a_reason(name: str, bert: str) -> None:
    spec = f"{bert}+peft/{name}({FITTING.get(name, '')})".replace("()", "")
    reason = known_methods()[name].refused
    if reason:
        with pytest.raises(RefusedError, match=re.escape(reason)):
            built(spec)
        return
    learner = built(spec)
    assert learner(learner.source.preparation.dummy(2)).predictions.isfinite().all()
    assert any(parameter.requires_grad for parameter in learner.added().values())


ROUNDED = ("adamss", "c3a", "deft")  # they compute in float32 whatever the weights are
WIDE = ("peft/randlora", "peft/waveft")  # sums of many terms in another order: merged in float32, 1.3e-5 of the output


@pytest.mark.exhaustive
@pytest.mark.filterwarnings(FROD)
@pytest.mark.parametrize("check", QUICK, ids=str)
@pytest.mark.parametrize(
    "text",
    [
        f"peft/{name}({FITTING[name]})" if name in FITTING else f"peft/{name}"
        for name, method in known_methods().items()
        if not method.refused and name not in ROUNDED
    ],
    indirect=True,
    ids=str,
)
def test_a_method_of_the_catalogue_conforms_on_bert(
    check: Check, text: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any(name in str(text) for name in WIDE):
        monkeypatch.setattr(execution, "FLOAT32", 3e-5)
    check(text)
