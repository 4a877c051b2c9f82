"""What a bench did not have to compute, and how soon it had something to compare: from stored rows alone. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from zoo_core.results.store import Result

__all__ = ["Effort", "effort_of", "lines_of"]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The work of the trials that tell of it.

    num_trials: those. num_passes: of an example through a backbone, if each trial trained every learning rate for every
    epoch by itself. by_sharing, by_halving: the shares of these that were not made, as features were made once, and as
    halving stopped what would have asked for them. All four are None, or 0, where no row tells.
    first_comparison_seconds: from the start of the bench until two combinations had a row on one task, scored or
    stopped; None where rows do not tell.
    """

    num_trials: int
    num_passes: int
    by_sharing: float | None
    by_halving: float | None
    first_comparison_seconds: float | None


def effort_of(results: Iterable[Result]) -> Effort:
    """The effort behind rows of one run."""
    rows = [row for row in results if row.superseded is None and row.status in ("ok", "stopped")]
    works = [row.work for row in rows if row.work is not None]
    num_passes, trained, passed = (sum(work[name] for work in works) for name in ("all", "trained", "passed"))
    return Effort(
        num_trials=len(works),
        num_passes=num_passes,
        by_sharing=(trained - passed) / num_passes if num_passes else None,
        by_halving=(num_passes - trained) / num_passes if num_passes else None,
        first_comparison_seconds=_first_comparison(rows),
    )


def lines_of(effort: Effort) -> Iterator[str]:
    """The effort for people; nothing of what no row tells."""
    if effort.by_sharing is not None and effort.by_halving is not None:
        removed, shares = effort.by_sharing + effort.by_halving, (effort.by_sharing, effort.by_halving)
        parts = [f"{share:.1%} by {how}" for share, how in zip(shares, ("sharing", "halving"), strict=True) if share]
        because = f" ({', '.join(parts)})" if len(parts) > 1 else f" ({parts[0].partition(' ')[2]})" if parts else ""
        yield f"work removed: {removed:.1%} of {effort.num_passes:,} passes of an example{because}"
    if effort.first_comparison_seconds is not None:
        yield f"time to first comparison: {effort.first_comparison_seconds:.3g} s"


def _first_comparison(rows: Iterable[Result]) -> float | None:
    firsts: dict[str, dict[tuple[str, ...], float]] = {}
    for row in rows:
        if row.after_seconds is not None:
            known = firsts.setdefault(row.task, {})
            combination = (row.backbone, row.adapters, row.head, row.weights)
            known[combination] = min(row.after_seconds, known.get(combination, row.after_seconds))
    seconds = [sorted(known.values())[1] for known in firsts.values() if len(known) > 1]
    return min(seconds, default=None)
