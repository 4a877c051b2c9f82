"""How far a trial is, as a worker tells its parent. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from zoo_core.training.progress import FitProgress

__all__ = ["TrialProgress"]


@dataclass(frozen=True, kw_only=True)
class TrialProgress:
    """The progress of a trial: which of the candidates is being fitted, from 1, and how far its fit is.

    candidate: 0 while features are made that all of them are fitted on; `progress` counts examples then.
    num_trials: how many trials of its group what is under way is for.
    """

    candidate: int
    num_candidates: int
    progress: FitProgress
    num_trials: int = 1
