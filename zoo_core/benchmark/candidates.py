"""The candidates of one trial, a learning rate each: those in progress, those that halving stopped, and the best.

Without halving each is fitted to its end, one after the other. With it a fit pauses at each rung, the better half of
the rates goes on, and what goes on continues as if it had not paused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from zoo_core.benchmark.halving import better_half
from zoo_core.benchmark.start import Start
from zoo_core.errors import DivergedError
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Plan
from zoo_core.training.fit import Fitted
from zoo_core.training.gradient_trainer import moving
from zoo_core.training.progress import FitProgress
from zoo_core.training.snapshots import SaveSnapshot, Snapshot

__all__ = ["Candidates", "Chosen", "Waiting"]

LETTERS = "abcde"  # of the candidates, in the names of their parts in a snapshot


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The learner that validation picked, how it was fitted, and the validation score of every candidate.

    refusal: why it was not fitted on features that its group has in common. how: see Result.shared. rungs, num_epochs:
    as of `Waiting`.
    """

    learner: Learner
    fitted: Fitted
    train_seconds: float
    candidates: tuple[dict[str, Any], ...]
    best: int
    refusal: str = ""
    how: str = "alone"
    rungs: tuple[dict[str, Any], ...] = ()
    num_epochs: int = 0


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A trial that waits at a rung until it is decided whether it goes on.

    rungs: for each that it has reached its `epochs`, the validation `score` of its best candidate there, and the
    `learning_rate` of that one. num_epochs: those trained so far, of all candidates together.
    """

    learner: Learner
    train_seconds: float
    rungs: tuple[dict[str, Any], ...]
    num_epochs: int


@dataclass(frozen=True, kw_only=True)
class _Best:
    """The best candidate so far. worth: its validation score, where higher is better. weights: what training moved."""

    worth: float
    index: int
    weights: Mapping[str, Tensor]
    fitted: Fitted


@dataclass(kw_only=True)
class Candidates:
    """The candidates of a trial in progress. `restore` takes what `state` returns.

    running: those that are not stopped, the one nearest the middle of the grid first. num_done: of them in this leg.
    leg: the part of the way from one rung to the next, from 0; the last one ends where the budget does.
    """

    plan: Plan
    candidates: list[dict[str, Any]]
    running: list[int]
    num_done: int = 0
    leg: int = 0
    rungs: list[dict[str, Any]] = field(default_factory=list)
    paused: dict[int, Snapshot] = field(default_factory=dict)
    best: _Best | None = None
    diverged: str | None = None
    began: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, plan: Plan) -> Candidates:
        num = max(1, len(plan.learning_rates))
        order = sorted(range(num), key=lambda index: abs(index - num // 2))
        return cls(plan=plan, candidates=[{} for _ in range(num)], running=order)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @property
    def _ends(self) -> tuple[int, ...]:
        """The epochs at which legs end; a closed form has one leg."""
        budget = self.plan.budget
        return (*(budget.rungs if self.plan.learning_rates else ()), budget.epochs)

    @property
    def _is_last_leg(self) -> bool:
        return self.leg == len(self._ends) - 1

    def has_left(self, until: int | None) -> bool:
        """Whether there is something to fit. until: the rung, in epochs, behind which nothing is wanted now."""
        return self.num_done < len(self.running) and (until is None or self._ends[self.leg] <= until)

    def fit_next(
        self,
        start: Start,
        progress: Callable[[FitProgress], None],
        under_way: Snapshot | None,
        save_snapshot: SaveSnapshot,
    ) -> None:
        """Fits the next candidate to the end of the leg, whose end comes with its last one.

        One that diverges is done too.
        """
        index = self.running[self.num_done]
        rate = self.plan.learning_rates[index] if self.plan.learning_rates else None
        state = under_way or self.paused.get(index)
        self.candidates[index] = {"learning_rate": rate, "validation_score": None}
        try:
            if self._is_last_leg:
                fitted, found = start.fit(rate, progress, state, save_snapshot)
                self._weigh(start.learner, index, fitted, found)
            else:
                paused, found = start.pause(rate, self.leg, progress, state, save_snapshot)
                self.candidates[index]["validation_score"] = found
                if paused is not None:
                    self.paused[index] = paused
        except DivergedError as error:
            self.diverged = str(error)
        self.num_done += 1
        if self.num_done == len(self.running) and not self._is_last_leg:
            self._halve()

    def _halve(self) -> None:
        """Ends a leg before the last: the better half of the running candidates goes on."""
        scores = {index: self.candidates[index]["validation_score"] for index in self.running}
        worths = {index: None if found is None else self._worth(found) for index, found in scores.items()}
        going_on, epochs = better_half(worths), self._ends[self.leg]
        for index in self.running:
            if index not in going_on:
                self.paused.pop(index, None)
                self.candidates[index] |= {} if worths[index] is None else {"stopped_after": epochs}
        if going_on:
            best = max(going_on, key=lambda index: worths[index] or 0.0)
            rate = self.candidates[best]["learning_rate"]
            self.rungs.append({"epochs": epochs, "score": scores[best], "learning_rate": rate})
        self.running, self.num_done, self.leg = list(going_on), 0, self.leg + 1

    def _worth(self, found: float) -> float:
        """A validation score as one where more is better."""
        assert self.plan.metric is not None, "a trial has a task, and that a metric"
        return found if self.plan.metric.recipe.higher_is_better else -found

    def _weigh(self, learner: Learner, index: int, fitted: Fitted, found: float) -> None:
        """Takes a fitted candidate with its validation score into account; of equal ones the first stays."""
        self.paused.pop(index, None)
        self.candidates[index]["validation_score"] = found
        if self.plan.budget.keep == "best" and fitted.epoch is not None:
            self.candidates[index] |= {"epoch": fitted.epoch, "epochs": len(fitted.losses)}
        worth = self._worth(found)
        if self.best is None or worth > self.best.worth:
            weights = {name: tensor.clone() for name, tensor in moving(learner).items()}
            self.best = _Best(worth=worth, index=index, weights=weights, fitted=fitted)

    def chosen(self, start: Start) -> Chosen:
        """The best candidate, its weights in the learner. Raises DivergedError where there is none."""
        if self.best is None:
            assert self.diverged is not None, "there is at least one candidate"
            raise DivergedError(self.diverged, self.rungs)
        start.learner.eval()  # a fit that diverged left it in training mode
        start.learner.load_delta({**start.delta, **self.best.weights})
        return Chosen(
            learner=start.learner,
            fitted=self.best.fitted,
            train_seconds=self.seconds + sum(end.seconds for end in start.rows.values()),
            candidates=tuple(self.candidates),
            best=self.best.index,
            refusal=start.refusal,
            how=start.how,
            rungs=tuple(self.rungs),
            num_epochs=len(self.candidates) * self.plan.budget.epochs if start.rows else self._num_epochs,
        )

    def waiting(self, start: Start) -> Waiting:
        """The trial at its rung. Raises DivergedError where no candidate is left."""
        if not self.running:
            assert self.diverged is not None, "the better half of candidates with scores goes on"
            raise DivergedError(self.diverged, self.rungs)
        return Waiting(
            learner=start.learner,
            train_seconds=self.seconds,
            rungs=tuple(self.rungs),
            num_epochs=self._num_epochs,
        )

    @property
    def _num_epochs(self) -> int:
        """The epochs that candidates were trained so far, where halving alone ends one early."""
        is_over = self.num_done == len(self.running)
        so_far = self.plan.budget.epochs if is_over else self._ends[self.leg - 1]
        return sum(candidate.get("stopped_after", so_far) for candidate in self.candidates)

    def state(self, under_way: Snapshot | None = None) -> Snapshot:
        """The candidates done, the best of them, those that are paused, and the one under way."""
        values: dict[str, Any] = {
            "candidates": self.candidates,
            "num_done": self.num_done,
            "diverged": self.diverged,
            "seconds": self.seconds,
            "fit": None if under_way is None else under_way.values,
        }
        parts = {} if under_way is None else {f"fit-{name}": part for name, part in under_way.parts.items()}
        if self.best is not None:
            values["best"] = {
                "worth": self.best.worth,
                "index": self.best.index,
                "fitted": asdict(self.best.fitted),
            }
            parts["chosen"] = self.best.weights
        if self.plan.budget.rungs:
            values |= {"running": self.running, "leg": self.leg, "rungs": self.rungs}
            values["paused"] = {LETTERS[index]: paused.values for index, paused in self.paused.items()}
            for index, paused in self.paused.items():
                parts |= {f"paused-{LETTERS[index]}-{name}": part for name, part in paused.parts.items()}
        return Snapshot(values=values, parts=parts)

    def restore(self, state: Snapshot) -> Snapshot | None:
        """Takes a state over; gives that of the candidate under way, if there is one."""
        values, parts = state.values, state.parts
        self.candidates, self.num_done = list(values["candidates"]), values["num_done"]
        self.diverged = values["diverged"]
        self.began -= values["seconds"]
        if self.plan.budget.rungs:
            self.running, self.leg, self.rungs = values["running"], values["leg"], values["rungs"]
            self.paused = {
                LETTERS.index(letter): _part_of(state, f"paused-{letter}-", held)
                for letter, held in values["paused"].items()
            }
        if "best" in values:
            best = dict(values["best"])
            fitted = Fitted(**best.pop("fitted") | {"losses": tuple(values["best"]["fitted"]["losses"])})
            self.best = _Best(**best, weights=parts["chosen"], fitted=fitted)
        return None if values["fit"] is None else _part_of(state, "fit-", values["fit"])


def _part_of(state: Snapshot, prefix: str, values: Mapping[str, Any]) -> Snapshot:
    """A snapshot that is a part of another one."""
    parts = {name.removeprefix(prefix): part for name, part in state.parts.items() if name.startswith(prefix)}
    return Snapshot(values=values, parts=parts)
