"""The conformance kit: checks that a plugin's own tests run, one for each promise that every adapter makes.

The test file of a plugin looks like this, for each backbone that matters to it:

    import pytest
    from zoo_core.testing.conformance import CHECKS, Subject

    @pytest.fixture(scope="module")
    def subject():
        return Subject("starter/vit-nano+surgical(n=2)")

    @pytest.mark.parametrize("check", CHECKS, ids=str)
    def test_surgical_conforms(check, subject):
        check(subject)

A check raises a one-line ConformanceError if the promise is broken. Otherwise it returns None, or the reason why there
was nothing to check. CHECKS holds all checks. Those marked `slow` take seconds (a compiler, a new process, a training),
and QUICK holds the others. A subject builds its learner once and hands out copies, so use one per test module.

Without pytest, `check_adapter("starter/vit-nano+surgical(n=2)")` returns one ConformanceReport for each check. If
building raises RefusedError, because the adapter makes no sense on the backbone, there is a single report that says
`refused`.

An adapter may give other outputs than the base before the first step. Prefix tuning does, because its keys of zeros
take a share of the attention. Such an adapter declares `exact_at_start: ClassVar[bool] = False`, as a property if it
depends on an argument. An adapter that cannot be folded into weights has `mergeable = False`, and `learner.merge()`
says so. A trainable tensor that
gets no gradient within two steps is a mistake, also under an option that is rarely used.

An adapter that learns from a teacher is checked with one. For features, name a tiny backbone in its spec. For
predictions, store a learner of the target, trained or not, and name the folder:

    zoo_core.save(zoo_core.load("starter/convnet-nano", classes=["a", "b", "c"]), folder)
    Subject(f'starter/vit-nano+full+mine(teacher="{folder}")')

The examples of the subject are prepared for the teacher too, and `learner.loss` asks it.

Give the subject backbones of the kinds that your users have: transformers with fused and with separate projections, and
a convolutional network with batch norms. Tiny ones are enough. `timm(files="DIR", weights=random)` reads a config.json
with the sizes, and the kit perturbs random weights whose residual branches start at zero. The kit checks what all
adapters have in common. The formula, the parameter count and the merged weights of your adapter need tests of their
own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from zoo_core.errors import RefusedError
from zoo_core.plan.plan import Plan
from zoo_core.testing import execution, laws, roundtrips
from zoo_core.testing.comparing import ConformanceError
from zoo_core.testing.subject import Subject

__all__ = ["CHECKS", "QUICK", "Check", "ConformanceError", "ConformanceReport", "Subject", "check_adapter"]


@dataclass(frozen=True)
class Check:
    """One promise. str() gives its name, and the docstring of its function says what is promised."""

    function: Callable[[Subject], str | None]
    slow: bool = False

    def __str__(self) -> str:
        return self.function.__name__.replace("_", "-")

    def __call__(self, subject: Subject) -> str | None:
        """Returns None, or why there was nothing to check.

        Raises ConformanceError, and what building the subject raises.
        """
        return self.function(subject)


CHECKS: tuple[Check, ...] = (
    Check(laws.exact_at_start),
    Check(laws.first_stage),
    Check(laws.changes_what_it_says),
    Check(laws.frozen_stays),
    Check(laws.gradients_arrive),
    Check(laws.trains_in_its_mode),
    Check(laws.learns, slow=True),
    Check(roundtrips.holds_its_delta),
    Check(roundtrips.refuses_other_deltas),
    Check(roundtrips.loads_in_a_new_process, slow=True),
    Check(roundtrips.switches),
    Check(roundtrips.copies),
    Check(roundtrips.repeats),
    Check(roundtrips.leaves_no_hooks),
    Check(execution.merges),
    Check(execution.compiles, slow=True),
    Check(execution.runs_in_bfloat16),
    Check(execution.checkpoints),
)
"""All promises, in the order in which they are checked."""

QUICK: tuple[Check, ...] = tuple(check for check in CHECKS if not check.slow)
"""Those of CHECKS that take less than a second."""


@dataclass(frozen=True, kw_only=True)
class ConformanceReport:
    """The outcome of one check.

    reason: why it failed, was refused, or had nothing to check; otherwise empty.
    """

    subject: str
    check: str
    outcome: Literal["passed", "failed", "refused", "nothing to check"]
    reason: str = ""


def check_adapter(spec: str | Plan | Subject, *, checks: Sequence[Check] = CHECKS) -> list[ConformanceReport]:
    """Runs the checks and returns a report for each, in their order. A refused spec gives a single report.

    spec: with one adapter or a chain of them, as text or as a plan, or a subject with examples of its own.
    Raises SpecError, NotFoundError or UsageError for a wrong spec.
    """
    try:
        subject = spec if isinstance(spec, Subject) else Subject(spec)
        subject.built  # noqa: B018, what is refused is refused here
    except RefusedError as error:
        return [ConformanceReport(subject=_spec_text(spec), check="building", outcome="refused", reason=str(error))]
    return [_report(check, subject) for check in checks]


def _report(check: Check, subject: Subject) -> ConformanceReport:
    try:
        reason = check(subject)
    except RefusedError as error:
        return ConformanceReport(subject=str(subject), check=str(check), outcome="refused", reason=str(error))
    except Exception as error:  # noqa: BLE001, whatever an adapter's own code raises is a failure of the adapter
        told = str(error) if isinstance(error, ConformanceError) else f"{type(error).__name__}: {error}"
        return ConformanceReport(subject=str(subject), check=str(check), outcome="failed", reason=told.splitlines()[0])
    outcome: Literal["passed", "nothing to check"] = "nothing to check" if reason else "passed"
    return ConformanceReport(subject=str(subject), check=str(check), outcome=outcome, reason=reason or "")


def _spec_text(spec: str | Plan | Subject) -> str:
    return str(spec.spec) if isinstance(spec, Plan) else str(spec)
