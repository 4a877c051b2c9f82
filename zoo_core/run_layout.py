"""What the files of a run's folder are called. Stored runs, published ones and whatever stands on them rely on it."""

from __future__ import annotations

__all__ = ["DELTA", "LOCK", "MODEL_FILES", "RESULTS", "RUN", "RUN_FILES", "UNFINISHED"]

RUN = "run.json"  # what a fitted model was built from; written after the delta, so that a torn save holds no model
DELTA = "delta.safetensors"  # what a fitted model holds beyond its base
LOCK = "zoo.lock"  # what it was made with; also the lock of a user's own in any folder
RESULTS = "results.jsonl"  # of a fit one row, of a bench one for each trial
UNFINISHED = "unfinished"  # the folder with the states of a fit under way

MODEL_FILES = (RUN, DELTA, LOCK)  # without one of which nothing can be loaded
RUN_FILES = (*MODEL_FILES, RESULTS)  # of a fitted model; one that `zoo_core.save` stored has no results
