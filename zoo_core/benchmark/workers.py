"""The process of a worker: it takes groups of plans from a pipe, runs their trials, and sends results back.

It ends when its parent does, however that ends.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from zoo_core import errors
from zoo_core._process.malloc import keep_freed, keeping_large_blocks
from zoo_core.benchmark.groups import Group
from zoo_core.benchmark.halving import ONE_BY_ONE, Leg
from zoo_core.benchmark.progress import TrialProgress
from zoo_core.benchmark.provenance import explained, without_score
from zoo_core.benchmark.sharing import MEMORY_ERRORS, NOT_MADE, SharedWork, combination_of
from zoo_core.benchmark.together import train_together
from zoo_core.benchmark.trial import run_trial
from zoo_core.errors import DivergedError, IntegrityError, RefusedError, UsageError, ZooError
from zoo_core.plan.plan import Plan
from zoo_core.registry.local_plugins import load_again
from zoo_core.registry.trust import trusting
from zoo_core.results.store import Result, Status
from zoo_core.training.rows import NotTogether
from zoo_core.training.snapshots import UnfinishedFit

__all__ = ["attempt", "attempt_group", "work"]

ALONE = {"size": 1, "how": "alone", "own_seconds": None, "pass_seconds": 0.0, "step_seconds": None}
REPORT_SECONDS = 0.2

_log = logging.getLogger(__name__)


def attempt(
    plan: Plan,
    *,
    device: str,
    report: Callable[[TrialProgress], None] = lambda _: None,
    shared: SharedWork | None = None,
    leg: Leg | None = None,
) -> Result:
    """The result of a trial. If anything goes wrong in it, that is a result too, with its reason.

    leg: how far it goes now, and from where; None for a trial that waits nowhere.
    """

    def without(reason: str, status: Status = "failed") -> Result:
        return without_score(plan, reason, device=device, threads=torch.get_num_threads(), status=status)

    try:
        given: dict[str, Any] = {"device": device, "report": report, "shared": shared}
        if leg is not None and plan.learning_rates:
            given |= {"unfinished": _place(plan, leg, device), "until": leg.until}
        return run_trial(plan, **given)[0]
    except RefusedError as error:  # a check that needed the data or the built backbone
        return without(str(error), status="refused")
    except DivergedError as error:  # on features it may come to that in the first round, and have a score at rungs
        return replace(without(str(error)), rungs=error.rungs or None)
    except ZooError as error:
        return without(str(error) or type(error).__name__)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - one trial's failure is a row, not the end of the suite
        return without(explained(error, MEMORY_ERRORS))


def _place(plan: Plan, leg: Leg, device: str) -> UnfinishedFit:
    """Where a trial waits. What cannot be read of it is removed, and computed again."""
    identity = {"digest": plan.digest, "device": torch.device(device).type, "torch": torch.__version__}

    def tell(reason: str) -> None:
        _log.warning("%s; if %s goes on, it trains again from its beginning", reason, plan.trial)

    place = UnfinishedFit(Path(leg.folder) / str(plan.digest), identity, on_lost=tell)
    try:
        place.begin()
    except (IntegrityError, UsageError) as error:
        tell(str(error))
        shutil.rmtree(place.folder, ignore_errors=True)
        place.begin()
    return place


def attempt_group(
    group: Group,
    plans: Mapping[int, Plan],
    *,
    device: str,
    report: Callable[[int, TrialProgress], None] = lambda position, progress: None,
    leg: Leg | None = None,
) -> Iterator[tuple[int, Result]]:
    """The results of the trials of a group, by position, as they end; trials that differ in their seed train together.

    What cannot be shared for whatever reason is not, and the results say so.
    leg: how far trials go. Those that train on features of their group go to their end: to pause costs more than heads.
    """
    if group.alone:
        for position, plan in plans.items():
            told = {**ALONE, "group": group.id, "reason": group.alone}
            result = attempt(plan, device=device, report=partial(report, position), leg=leg)
            yield position, replace(result, shared=told)
        return
    first = next(iter(plans))
    try:
        shared = SharedWork(group, list(plans.values()), device=torch.device(device))
        with keeping_large_blocks():
            shared.fill(partial(report, first))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - each of its trials says what is wrong with it
        reason = f"{NOT_MADE}: {explained(error, MEMORY_ERRORS)}"
        for position, plan in plans.items():
            told = {**ALONE, "group": group.id, "reason": reason}
            result = attempt(plan, device=device, report=partial(report, position), leg=leg)
            yield position, replace(result, shared=told)
        return
    combinations: dict[str, list[int]] = {}
    for position, plan in plans.items():
        combinations.setdefault(combination_of(plan), []).append(position)
    for combination, positions in combinations.items():
        some = [plans[position] for position in positions]
        try:
            if group.shape == "rows" and leg is not None:
                raise NotTogether(ONE_BY_ONE)
            if group.shape == "rows" and group.apart:
                raise NotTogether(group.apart)
            train_together(some, shared, device=torch.device(device), report=partial(report, positions[0]))
        except NotTogether as error:
            shared.apart[combination] = str(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - each of its trials says what is wrong with it
            shared.apart[combination] = explained(error, MEMORY_ERRORS)
        for position in positions:
            tell = partial(report, position)
            yield position, attempt(plans[position], device=device, report=tell, shared=shared, leg=leg)


def work(
    pipe: Connection,
    environment: Mapping[str, str],
    device: str,
    threads: int,
    files: Mapping[str, bytes],
    core: str,
    trust: frozenset[str],
) -> None:
    """Runs what comes through the pipe until the other end closes it. The whole life of a worker.

    environment, threads: what this process has from now on. files, trust: the unpublished plugins of the parent, and
    whom it trusts. core: the file of the parent's zoo_core.errors; no other zoo-core may run its plans.
    """
    gc.freeze()  # what the fork server imported is no garbage, and a search of it would copy its pages
    gc.enable()
    _end_with_parent()
    os.environ.clear()  # what the fork server began with may have changed since: a token, a cache folder
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches us too; the parent ends us
    os.dup2(2, 1)  # what a plugin prints is no part of the table
    torch.set_num_threads(threads)
    keep_freed()
    last = 0.0

    def report(position: int, trial: TrialProgress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_SECONDS:
            last = now
            pipe.send((position, trial))

    with contextlib.suppress(EOFError, BrokenPipeError), trusting(*trust):
        while True:
            group, messages, leg = pipe.recv()
            plans: dict[int, Plan] = {}
            for position, message in messages.items():
                if errors.__file__ != core:  # before Python 3.13 a preload sees nothing that a program put on its path
                    reason = f"its process has the zoo-core of {errors.__file__}, not {core}; put that on PYTHONPATH"
                    pipe.send((position, reason))
                    continue
                try:
                    load_again(files)
                    plans[position] = pickle.loads(message)  # noqa: S301 - our own parent's bytes
                except Exception as error:  # noqa: BLE001 - it imports the plan's plugins; one that breaks fails alone
                    reason = f"its plan cannot be read in a process: {explained(error, MEMORY_ERRORS)}"
                    pipe.send((position, reason))
            if plans:
                for told in attempt_group(group, plans, device=device, report=report, leg=leg):
                    pipe.send(told)


def _end_with_parent() -> None:
    """Ends this process as soon as its parent is gone, killed or not, whatever this process is doing."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by multiprocessing"

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
