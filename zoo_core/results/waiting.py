"""Tells which trials of a bench wait until halving decides, from the rows that lie in the run's folder. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from zoo_core.errors import NotFoundError
from zoo_core.results.store import Result, latest, read
from zoo_core.run_layout import UNDECIDED

__all__ = ["num_epochs_text", "undecided_in", "waiting_text"]


def undecided_in(folder: Path) -> dict[str, Result]:
    """The rows that trials of a bench have left at rungs, by digest; of some of them there may be a result since.

    Raises AccessError, and IntegrityError if they are damaged.
    """
    try:
        return latest(read(folder / UNDECIDED))
    except NotFoundError:
        return {}


def waiting_text(rows: Iterable[Result]) -> str:
    """How many trials wait, and how far each has come; empty if none does. Those on features have run to their end."""
    reached = Counter((row.status != "stopped", row.rungs[-1]["epochs"] if row.rungs else 0) for row in rows)
    ahead = sum(num for (is_ahead, _), num in reached.items() if is_ahead)
    parts = [f"{num} after {num_epochs_text(at)}" for (is_ahead, at), num in sorted(reached.items()) if not is_ahead]
    parts += [f"{ahead} on shared features, which ran to the end at once"] if ahead else []
    num = reached.total()
    return f"{num} trial{' waits' if num == 1 else 's wait'} until halving decides: {', '.join(parts)}" if num else ""


def num_epochs_text(num: int) -> str:
    """So many epochs, in words."""
    return "1 epoch" if num == 1 else f"{num} epochs"
