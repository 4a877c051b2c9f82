"""A bench with halving: who is stopped, what the others end with, and what becomes of it when states are lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zoo_core.benchmark.provenance import without_score
from zoo_core.benchmark.rounds import Rounds
from zoo_core.benchmark.start import Start
from zoo_core.benchmark.workers import attempt_group
from zoo_core.errors import DivergedError
from zoo_core.plan.plan import Budget, Plan, pinned, reseeded
from zoo_core.results.store import Result
from zoo_core.run_layout import UNDECIDED, WAITING

HALVING = Budget(epochs=4, num_rates=2, halving=True)  # rungs after 1 and 2 epochs
SPECS = (
    *("nasty/tokens", "nasty/tokens+full", "nasty/tokens+partial(n=1)", "nasty/tokens+partial(n=1)+mlp"),
    "nasty/tokens+probe+ncm",
)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def grid(nasty: Any) -> Callable[[Budget], list[Plan]]:
    def plans(budget: Budget) -> list[Plan]:
        firsts = [pinned(nasty.resolve(spec, budget=budget), {}) for spec in SPECS]
        return [reseeded(first, seed) for first in firsts for seed in (0, 1)]

    return plans


def bench(
    plans: Sequence[Plan], folder: Path, *, share: bool = True, after: Callable[[int], None] = lambda number: None
) -> dict[str, Result]:
    """What a bench does, in this process: its rows by digest. after: is called after the trials of each round."""
    known: dict[str, Result] = {}
    folder.mkdir(exist_ok=True)
    missing = frozenset(plan.digest or "" for plan in plans)

    def begin() -> Rounds:
        return Rounds(plans, folder, known, missing - known.keys(), share=share)

    def close(result: Result) -> None:
        assert result.digest not in known
        known[result.digest] = result
        rounds.forget(result.digest)

    rounds = begin()
    for number in range(len(list(rounds))):
        for now in list(rounds)[: number + 1]:  # whoever goes on with a run begins with its first round
            for group in rounds.groups(now):
                given = {at: plans[at] for at in group.positions}
                for at, result in attempt_group(group, given, device="cpu", leg=rounds.leg(now)):
                    if rounds.is_wanted(plans[at]) and not rounds.waits(plans[at], result, now):
                        close(rounds.with_rungs(result))
            if now.number == number + 1:
                after(now.number)
            for result in rounds.decided(now):
                close(result)
        rounds = begin()
    return known


def outcome(rows: dict[str, Result]) -> dict[str, Any]:
    return {
        digest: (
            row.status,
            row.score,
            row.stopped and (row.stopped["rung"], row.stopped["score"]),
            list(row.rungs or ()),
        )
        for digest, row in rows.items()
    }


def test_the_better_half_goes_on_and_ends_as_without_halving(grid: Any, tmp_path: Path) -> None:
    plans, whole = grid(HALVING), grid(replace(HALVING, halving=False))
    found = bench(plans, tmp_path / "halving")
    ended = [found[plan.digest or ""].status == "ok" for plan in plans]
    without = bench([plan for plan, is_ended in zip(whole, ended, strict=True) if is_ended], tmp_path / "whole")
    assert {row.status for row in found.values()} == {"ok", "stopped"}
    assert all(row.shared is not None for row in found.values())
    for plan, other in zip(plans, whole, strict=True):
        row = found[plan.digest or ""]
        if row.status == "stopped":
            assert row.stopped is not None
            assert (row.score, row.chosen, row.num_examples) == (None, None, 0)
            assert row.reason == row.stopped["reason"]
            assert row.rungs is not None
            assert row.stopped["score"] == row.rungs[-1]["score"]
            assert len(row.rungs) == row.stopped["rung"]
            continue
        full = without[other.digest or ""]
        assert row.chosen is not None
        assert full.chosen is not None
        kept = [each for each in row.chosen["candidates"] if "stopped_after" not in each]
        assert kept
        assert all(each in full.chosen["candidates"] for each in kept)
        if row.chosen["learning_rate"] == full.chosen["learning_rate"]:
            assert (row.score, row.num_trainable) == (full.score, full.num_trainable)
    closed = [found[plan.digest or ""] for plan in plans if not plan.learning_rates]
    assert [row.status for row in closed] == ["ok", "ok"]
    stopped = {row.adapters + row.head for row in found.values() if row.status == "stopped"}
    assert not stopped & {row.adapters + row.head for row in found.values() if row.status == "ok"}  # all seeds alike
    assert not (tmp_path / "halving" / UNDECIDED).exists()
    assert not (tmp_path / "halving" / WAITING).exists()


@pytest.mark.slow
def test_what_is_stopped_does_not_depend_on_sharing(grid: Any, tmp_path: Path) -> None:
    plans = grid(HALVING)
    together, apart = (bench(plans, tmp_path / str(share), share=share) for share in (True, False))
    assert {digest: row.status for digest, row in together.items()} == {
        digest: row.status for digest, row in apart.items()
    }
    assert {digest: row.score for digest, row in together.items()} == {
        digest: row.score for digest, row in apart.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["states", "rows", "both", "damaged"])
def test_what_is_lost_while_trials_wait_is_computed_again_to_the_same_rows(
    grid: Any, tmp_path: Path, lost: str
) -> None:
    plans = grid(HALVING)
    undisturbed = bench(plans, tmp_path / "undisturbed")
    folder = tmp_path / "disturbed"

    def lose(number: int) -> None:
        if number > 1:
            return
        if lost in ("states", "both"):
            shutil.rmtree(folder / WAITING)
        if lost in ("rows", "both"):
            (folder / UNDECIDED).unlink()
        if lost == "damaged":
            for file in (folder / WAITING).rglob("*.safetensors"):
                file.write_bytes(b"nothing")
            (folder / UNDECIDED).write_text("{}\n")

    assert outcome(bench(plans, folder, after=lose)) == outcome(undisturbed)


def reached(plan: Plan, worth: float, rungs: int = 1) -> Result:
    """A trial that waits at a rung, with the same validation score at each before."""
    found = [{"epochs": number, "score": worth, "learning_rate": 0.1} for number in range(1, rungs + 1)]
    return replace(without_score(plan, "it waits", device="cpu", threads=1, status="stopped"), rungs=found)


def test_what_trials_of_another_grid_wait_for_in_the_same_folder_stays(grid: Any, tmp_path: Path) -> None:
    ours, theirs = grid(HALVING)[:2], grid(HALVING)[2:3]
    rounds = Rounds(ours, tmp_path, {}, frozenset(plan.digest for plan in ours), share=False)
    now = next(iter(rounds))
    leg = rounds.leg(now)
    assert leg is not None
    for plan in ours:
        assert rounds.waits(plan, replace(reached(plan, 0.5), after_seconds=7.0), now)
        (Path(leg.folder) / (plan.digest or "")).mkdir()
    other = Rounds(theirs, tmp_path, {}, frozenset(plan.digest for plan in theirs), share=False)
    other.forget(theirs[0].digest or "")
    again = Rounds(ours, tmp_path, {}, frozenset(plan.digest for plan in ours), share=False)
    assert (again.num_waiting, again.seconds) == (2, 7.0)
    assert {folder.name for folder in (tmp_path / WAITING).iterdir()} == {plan.digest for plan in ours}
    done = {plan.digest or "": reached(plan, 0.5) for plan in ours}
    Rounds(ours, tmp_path, done, frozenset(), share=False)  # as after a kill before the last state was removed
    assert list(tmp_path.iterdir()) == []


def test_seeds_that_come_later_are_stopped_where_others_of_their_combination_were(grid: Any, tmp_path: Path) -> None:
    plans = grid(HALVING)[:8]  # four combinations with two seeds each
    firsts, later = plans[0::2], plans[1::2]
    known: dict[str, Result] = {}

    def decided(some: Sequence[Plan], *scores: float) -> dict[str, str]:
        rounds = Rounds(plans, tmp_path, known, frozenset(plan.digest or "" for plan in some), share=False)
        now = next(iter(rounds))
        for plan, score in zip(some, scores, strict=True):
            assert rounds.waits(plan, reached(plan, score), now)
        return {row.digest: known.setdefault(row.digest, row).reason or "" for row in rounds.decided(now)}

    assert decided(firsts, 0.1, 0.2, 0.3, 0.4).keys() == {plan.digest for plan in firsts[:2]}
    for plan, score in zip(firsts[2:], (0.3, 0.4), strict=True):
        known[plan.digest or ""] = replace(reached(plan, score), status="ok", score=score)
    found = decided(later, 0.9, 0.1, 0.3, 0.4)  # the first one's mean is the best now
    assert found.keys() == {plan.digest for plan in later[:2]}
    assert found[later[0].digest or ""] == ("other seeds of its combination were stopped before, after 1 of 4 epochs")


def test_a_failure_behind_a_rung_counts_there_for_whoever_goes_on_with_the_run(grid: Any, tmp_path: Path) -> None:
    plans = grid(HALVING)[:8]  # four combinations with rates, of which the first two go on
    worth = dict(zip((plan.digest or "" for plan in plans), (0.2, 0.9, 0.5, 0.5, 0.4, 0.4, 0.3, 0.3), strict=True))
    missing = frozenset(worth)
    known: dict[str, Result] = {}

    def reach(plan: Plan, rungs: int) -> Result:
        return reached(plan, worth[plan.digest or ""], rungs)

    def end(rounds: Rounds, result: Result) -> None:
        known[result.digest] = rounds.with_rungs(result)
        rounds.forget(result.digest)

    rounds = Rounds(plans, tmp_path, known, missing, share=False)
    first, second = list(rounds)[:2]
    for plan in plans:
        assert rounds.waits(plan, reach(plan, 1), first)
    for result in rounds.decided(first):
        end(rounds, result)
    assert known.keys() == {plan.digest for plan in plans[4:]}
    broken = without_score(plans[1], "it broke", device="cpu", threads=1)  # behind the first rung
    assert rounds.is_wanted(plans[1])
    assert not rounds.waits(plans[1], broken, second)
    end(rounds, broken)
    for plan in (plans[0], plans[2], plans[3]):
        assert rounds.waits(plan, reach(plan, 2), second)
    again = Rounds(plans, tmp_path, known, missing - known.keys(), share=False)
    assert again.decided(first) == []
    assert again.decided(second) == rounds.decided(second) == []


@pytest.mark.parametrize("share", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_diverges_behind_the_rung_that_stops_it_is_stopped_with_and_without_sharing(
    grid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    plans = [plan for plan in grid(HALVING) if plan.learning_rates and "+full" not in str(plan.trial)]
    heads = {plan.digest for plan in plans if not plan.adapters}
    pause = Start.pause

    def badly(self: Start, *given: Any) -> Any:
        paused, found = pause(self, *given)
        return paused, found if self.plan.adapters else found - 10

    def diverge(self: Start, *given: Any) -> Any:
        raise DivergedError("late")

    monkeypatch.setattr(Start, "pause", badly)
    monkeypatch.setattr(Start, "fit", diverge)
    found = bench(plans, tmp_path / "run", share=share)
    assert {digest: (row.status, len(row.rungs or ())) for digest, row in found.items()} == {
        plan.digest: ("stopped", 1) if plan.digest in heads else ("failed", 2) for plan in plans
    }
