"""How far a fit is, as one process tells another. No torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FitProgress"]


@dataclass(frozen=True, kw_only=True)
class FitProgress:
    """The progress of a fit after a step.

    step: of num_steps in all. loss: of this step. examples_per_second: in this epoch.
    """

    step: int
    num_steps: int
    loss: float
    examples_per_second: float
