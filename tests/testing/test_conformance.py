"""The conformance kit: an adapter that keeps every promise passes, and each check fails on one that breaks it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zoo_core.contracts import Target
from zoo_core.errors import NotFoundError, UsageError
from zoo_core.registry.catalog import catalog
from zoo_core.registry.registry import registry
from zoo_core.testing.conformance import CHECKS, QUICK, ConformanceError, ConformanceReport, Subject, check_adapter

CROOKED = Path(__file__).parents[1] / "crooked"
NAMED = {str(check): check for check in CHECKS}

# Adapters of tests/crooked, the check that each fails, and what is said of it.
BROKEN = {
    "bfloat16-less": ("runs-in-bfloat16", "it does not run in bfloat16: RuntimeError"),
    "busy": ("leaves-no-hooks", "hooks, and"),
    "cached": ("switches", "given a delta in place of another, it is not the learner that made it"),
    "closed": ("copies", "changing the original changes its deep copy"),
    "copying": ("holds-its-delta", "a copy of the base's blocks.0.conv.weight"),
    "counting": ("checkpoints", "with checkpointing"),
    "deaf": ("gradients-arrive", "no gradient reaches 8 of "),
    "drawn": ("repeats", "building it moves a global random generator"),
    "eager": ("compiles", "the backbone compiles in one graph, with it not"),
    "early": ("exact-at-start", "the outputs are not the base's: predictions differ by"),
    "hoarding": ("leaves-no-hooks", "something keeps a learner alive"),
    "late": ("first-stage", "first_stage says 2 of 3"),
    "lenient": ("refuses-other-deltas", "a delta of another learner is not refused"),
    "misfolded": ("merges", "merged in torch.float64 it differs by"),
    "moving": ("frozen-stays", "4 frozen tensors moved during training, backbone.blocks.0.conv.weight first"),
    "noisy": ("trains-in-its-mode", "two passes in evaluation mode differ"),
    "remembering": ("loads-in-a-new-process", "loaded by a new process it differs"),
    "understated": ("changes-what-it-says", "`changes` lacks 'added', and it has 8 such tensors"),
    "vain": ("learns", "it changes the features as any linear head can"),
    "wakeful": ("trains-in-its-mode", "after train() backbone is in training mode"),
}


@pytest.fixture(scope="module", autouse=True)
def crooked() -> Iterator[None]:
    """The plugin is installed for this module: named in specs here, and found by new processes."""
    sys.path.insert(0, str(CROOKED))
    registry.cache_clear()
    catalog.cache_clear()
    yield
    sys.path.remove(str(CROOKED))
    registry.cache_clear()
    catalog.cache_clear()


def subject_of(adapter: str) -> Subject:
    return Subject(f"crooked-toy+{adapter}")


@pytest.fixture(scope="module")
def straight() -> Subject:
    return subject_of("straight")


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_an_adapter_that_keeps_every_promise_passes(check: object, straight: Subject) -> None:
    assert NAMED[str(check)](straight) in (None, "it changes the network from its first stage on")


@pytest.mark.parametrize(
    "adapter",
    [pytest.param(name, marks=[pytest.mark.slow] if name in ("remembering", "vain") else []) for name in BROKEN],
)
def test_a_broken_promise_is_told_in_one_line(adapter: str) -> None:
    check, message = BROKEN[adapter]
    with pytest.raises(ConformanceError) as caught:
        NAMED[check](subject_of(adapter))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_check_can_fail() -> None:
    assert {check for check, _ in BROKEN.values()} == NAMED.keys()


def test_an_adapter_may_declare_that_it_is_not_exact_at_the_start() -> None:
    said = "declared declares that it changes the outputs from the start"
    assert NAMED["exact-at-start"](subject_of("declared")) == said


def test_one_that_says_it_folds_and_does_not_is_reported_as_refused() -> None:
    (report,) = check_adapter("crooked-toy+unfolded", checks=[NAMED["merges"]])
    assert (report.outcome, report.check) == ("refused", "merges")
    assert "does not fold into plain weights" in report.reason


def test_each_check_is_reported() -> None:
    reports = check_adapter("crooked-toy+early", checks=QUICK)
    assert [report.check for report in reports] == [str(check) for check in QUICK]
    outcomes = {report.check: report.outcome for report in reports}
    assert outcomes.pop("exact-at-start") == "failed"
    assert outcomes.pop("first-stage") == "nothing to check"
    assert set(outcomes.values()) == {"passed"}


def test_a_backbone_on_which_it_makes_no_sense_gives_one_refusal() -> None:
    assert check_adapter("crooked-toy+refusing") == [
        ConformanceReport(
            subject="crooked-toy+refusing",
            check="building",
            outcome="refused",
            reason="the toy has nothing to refuse with",
        )
    ]


def test_a_wrong_spec_is_the_callers_mistake() -> None:
    with pytest.raises(NotFoundError):
        check_adapter("crooked-toy+straigth")
    with pytest.raises(UsageError):
        check_adapter("crooked-toy+straight(r=2)")


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_other_targets_are_checked_too(kind: str) -> None:
    subject = Subject("crooked-toy+straight", target=Target(kind=kind, size=2))  # type: ignore[arg-type]
    assert {report.outcome for report in check_adapter(subject, checks=QUICK)} == {"passed", "nothing to check"}
