"""What the files of a run are called, and whether a folder has some. Stored and published runs rely on the names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from zoo_core.errors import UsageError

__all__ = [
    "DELTA",
    "LOCK",
    "MODEL_FILES",
    "RESULTS",
    "RUN",
    "RUN_FILES",
    "UNDECIDED",
    "UNFINISHED",
    "WAITING",
    "refuse_held",
]

RUN = "run.json"  # what a fitted model was built from; written after the delta, so that a torn save holds no model
DELTA = "delta.safetensors"  # what a fitted model holds beyond its base
LOCK = "zoo.lock"  # what it was made with; also the lock of a user's own in any folder
RESULTS = "results.jsonl"  # of a fit one row, of a bench one for each trial
UNFINISHED = "unfinished"  # the folder with the states of a fit under way
UNDECIDED = "undecided.jsonl"  # of a bench under way, rows of trials of which halving has not decided yet
WAITING = "waiting"  # the folder with what such trials go on from, each in one of its own

MODEL_FILES = (RUN, DELTA, LOCK)  # without one of which nothing can be loaded
RUN_FILES = (*MODEL_FILES, RESULTS)  # of a fitted model; one that `zoo_core.save` stored has no results


def refuse_held(folder: Path, names: Iterable[str] = RUN_FILES) -> None:
    """Raises UsageError if a folder that is to hold a new run has files of one."""
    held = [name for name in names if (folder / name).exists()]
    if held:
        raise UsageError(f"{folder} already holds a run ({held[0]}); give --out a new folder, or remove that one")
