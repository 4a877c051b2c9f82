"""Takes a grid from rung to rung: who runs in a round, who is stopped after it, and who waits meanwhile. No torch.

A round brings every trial that still runs to the next rung, and then validation decides within each task. The last
round ends where trials end; without halving it is the only one. What waits lies in two places of the run's folder: its
row in UNDECIDED, and in WAITING what its fit goes on from. Either may be lost, by a kill or by hand: the trial is then
computed again, and ends in the same row.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zoo_core.benchmark.groups import Group, plan_groups
from zoo_core.benchmark.halving import Decision, Leg, decide
from zoo_core.errors import IntegrityError
from zoo_core.plan.plan import Plan
from zoo_core.results.store import UNMEASURED, Result, append
from zoo_core.results.waiting import undecided_in
from zoo_core.run_layout import UNDECIDED, WAITING

__all__ = ["Round", "Rounds"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Round:
    """number: from 1. until: the rung at which it ends, in epochs; None for the last round."""

    number: int
    until: int | None


class Rounds:
    """The rounds of a grid in the folder of its run. Only the process that owns the run has one."""

    def __init__(
        self, plans: Sequence[Plan], folder: Path, known: Mapping[str, Result], missing: frozenset[str], *, share: bool
    ) -> None:
        """known: stored results by digest, which grow. missing: the digests of what is to be run."""
        self._plans, self._known, self._left = plans, known, set(missing)
        self._rows, self._states = folder / UNDECIDED, folder / WAITING
        self._groups = plan_groups(plans, share=share)
        held = _held(folder).items()  # what failed and is stored is here to be tried again, if at all
        self._held = {digest: row for digest, row in held if row.status != "failed" or digest not in known}
        if not self._left:  # a kill may have come before the last state was removed
            self._tidy()

    @property
    def seconds(self) -> float:
        """How long the run had taken when the last of what is held was told of."""
        return max((row.after_seconds or 0.0 for row in self._held.values()), default=0.0)

    @property
    def num_waiting(self) -> int:
        """Of how many trials that are to be run something is held."""
        return len(self._left & self._held.keys())

    def __iter__(self) -> Iterator[Round]:
        rungs = self._plans[0].budget.rungs
        for number, until in enumerate((*rungs, None), start=1):
            yield Round(number=number, until=until)

    def leg(self, now: Round) -> Leg | None:
        """What workers are told of the round; None where trials run from their beginning to their end."""
        if not self._plans[0].budget.rungs or not self._left:
            return None
        self._states.mkdir(exist_ok=True)
        return Leg(until=now.until, folder=str(self._states))

    def groups(self, now: Round) -> list[Group]:
        """The groups of a round: whole where a trial has not begun, else those of their trials that have waited."""
        lacking = {at for at, plan in enumerate(self._plans) if _key(plan) in self._left and not self._is_at(plan, now)}
        fresh = {at for at in lacking if _key(self._plans[at]) not in self._held}
        found = []
        for group in self._groups:
            is_whole = not fresh.isdisjoint(group.positions)
            positions = group.positions if is_whole else tuple(at for at in group.positions if at in lacking)
            if positions:
                found.append(replace(group, positions=positions))
        return found

    def is_wanted(self, plan: Plan) -> bool:
        """Whether a result of this trial is news: a group runs whole for the sake of one trial that has not begun."""
        held = self._held.get(_key(plan))
        return _key(plan) in self._left and (held is None or held.status == "stopped")

    def waits(self, plan: Plan, result: Result, now: Round) -> bool:
        """Takes a result that is not decided yet. What has failed, or has no learning rate, is decided.

        What failed in a group that runs to its end at once is ahead: a rung may stop it before it comes to that.
        """
        is_ahead = result.status == "failed" and len(result.rungs or ()) >= now.number
        if now.until is None or not plan.learning_rates or not (result.status in ("ok", "stopped") or is_ahead):
            return False
        append(self._rows, result)
        self._held[_key(plan)] = result
        return True

    def with_rungs(self, result: Result) -> Result:
        """A result with the rungs that its trial had reached, should it have failed behind them.

        They took part in what was decided there, and whoever goes on with the run decides there again.
        """
        held = self._held.get(result.digest)
        return result if held is None or result.status != "failed" else replace(result, rungs=held.rungs)

    def decided(self, now: Round) -> list[Result]:
        """The rows that are decided once a round is over: what halving stops, and before the last round what is done.

        In groups that share features, trials run to their end at once, and are stopped all the same.
        """
        if now.until is None:
            return []
        tasks: dict[str, list[Plan]] = {}
        for plan in self._plans:
            assert plan.task is not None, "a trial has a task"
            tasks.setdefault(str(plan.task.canonical()), []).append(plan)
        found = [row for plans in tasks.values() for row in self._stopped(plans, now)]
        if now.number == len(self._plans[0].budget.rungs):
            stopped = {row.digest for row in found}
            left = (_key(plan) for plan in self._plans if _key(plan) in self._left - stopped)
            found += [
                self._held[digest] for digest in left if digest in self._held and self._held[digest].status != "stopped"
            ]
        return found

    def forget(self, digest: str) -> None:
        """A row is stored, so nothing is kept of what the trial went on from."""
        self._left.discard(digest)
        self._held.pop(digest, None)
        shutil.rmtree(self._states / digest, ignore_errors=True)
        if not self._left:
            self._tidy()

    def _tidy(self) -> None:
        """Removes what nobody waits for any more. What trials of another grid wait for in this folder stays."""
        own = {_key(plan) for plan in self._plans} | {str(plan.trial) for plan in self._plans}
        others = [row for row in self._held.values() if not {row.digest, row.trial} & own]
        others = [row for row in others if row.digest not in self._known]
        self._rows.unlink(missing_ok=True)
        for row in others:
            append(self._rows, row)
        kept = {row.digest for row in others}
        for folder in self._states.iterdir() if self._states.is_dir() else ():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        if not kept:
            shutil.rmtree(self._states, ignore_errors=True)

    def _is_at(self, plan: Plan, now: Round) -> bool:
        row = self._held.get(_key(plan))
        return row is not None and (
            row.status != "stopped" or (now.until is not None and len(row.rungs or ()) >= now.number)
        )

    def _stopped(self, plans: Sequence[Plan], now: Round) -> Iterator[Result]:
        """The rows of those trials of one task that do not go on.

        What has a finished trial is stopped no more. What has a trial that was stopped here in an earlier call does not
        go on with seeds that came later, whatever their scores: all seeds of a combination have one fate.
        """
        scores: dict[str, list[float | None]] = {}
        running: dict[str, list[Result]] = {}
        finished: set[str] = set()
        halted: set[str] = set()
        for plan in plans:
            row = self._held.get(_key(plan)) if _key(plan) in self._left else self._known.get(_key(plan))
            if row is None or row.status == "refused":
                continue
            if row.status == "failed" and len(row.rungs or ()) < now.number:
                continue
            if row.stopped is not None and row.stopped["rung"] < now.number:
                continue
            combination = plan.combination or ""
            scores.setdefault(combination, []).append(_worth(row, now))
            if _key(plan) in self._left:
                running.setdefault(combination, []).append(row)
            elif row.status == "ok":
                finished.add(combination)
            elif row.stopped is not None and row.stopped["rung"] == now.number:
                halted.add(combination)
        found, epochs = decide(scores), self._plans[0].budget.epochs
        for combination, rows in running.items():
            if combination in finished or combination in found.going_on - halted:
                continue
            reason = f"other seeds of its combination were stopped before, after {now.until} of {epochs} epochs"
            if combination not in found.going_on:
                reason = _reason(rows, now, found, combination, scores, epochs)
            yield from (_stopped(row, now, reason) for row in rows)


def _held(folder: Path) -> dict[str, Result]:
    try:
        return undecided_in(folder)
    except IntegrityError as error:
        _log.warning("%s; what had waited in it runs again", error)
        (folder / UNDECIDED).unlink()
        return {}


def _worth(row: Result, now: Round) -> float | None:
    """The validation score of a trial at a rung, where more is better; one without rungs has that of its end."""
    assert row.chosen is not None or row.rungs, "a trial that runs has a validation score"
    reached = list(row.rungs or ())
    score = reached[now.number - 1]["score"] if len(reached) >= now.number else (row.chosen or {})["validation_score"]
    return None if score is None else float(score) if row.higher_is_better else -float(score)


def _reason(
    rows: Sequence[Result],
    now: Round,
    found: Decision,
    combination: str,
    scores: Mapping[str, Sequence[float | None]],
    epochs: int,
) -> str:
    metric, sign, num = rows[0].metric, 1 if rows[0].higher_is_better else -1, len(scores[combination])
    mean, bound = found.means.get(combination), found.bound
    said = "none" if mean is None else f"{sign * mean:.4g}" + (f" on average over {num} seeds" if num > 1 else "")
    return (
        f"after {now.until} of {epochs} epochs its {metric} on validation, {said}, is not among the better "
        f"{len(found.going_on)} of {len(scores)} combinations"
        + ("" if bound is None else f": {sign * bound:.4g} or better")
    )


def _stopped(row: Result, now: Round, reason: str) -> Result:
    """The row of a trial that is stopped at a rung, whatever else was computed of it: of the test split nothing."""
    rungs = list(row.rungs or ())[: now.number]
    kept = ("num_trainable", "num_parameters", "train_seconds")
    stopped = {"rung": now.number, "epochs": now.until, "score": rungs[-1]["score"], "reason": reason}
    unmeasured = {name: value for name, value in UNMEASURED.items() if name not in kept}
    return replace(row, **unmeasured, status="stopped", reason=reason, stopped=stopped, rungs=rungs)


def _key(plan: Plan) -> str:
    assert plan.digest is not None, "a grid holds pinned plans"
    return plan.digest
