"""Processes that run trials: each has a pipe of its own, so that one that dies costs one trial and is named.

A worker that loses its parent ends. Results leave a worker whole; only the parent writes them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from zoo_core.errors import ZooError
from zoo_core.resolve import Plan
from zoo_core.store import Result
from zoo_core.suites.trial import Report, provenance, run_trial

__all__ = ["Event", "attempt", "run_all", "threads_for"]

REPORT_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Event:
    """News of one plan, by its position: it began, it goes on, or it ended with a result."""

    position: int
    report: Report | None = None
    result: Result | None = None


def threads_for(num_workers: int) -> int:
    """Threads of each worker, so that all together use each processor once."""
    return max(1, len(os.sched_getaffinity(0)) // num_workers)


def attempt(plan: Plan, *, device: str, report: Any = lambda _: None) -> Result:
    """The result of a trial; whatever goes wrong in it is a result too, with its reason."""
    try:
        return run_trial(plan, device=device, report=report)[0]
    except torch.OutOfMemoryError as error:
        reason = f"out of memory: {error}"
    except MemoryError:
        reason = "out of memory"
    except ZooError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - a failure of one trial is a row of the table, not the end of the suite
        reason = f"{type(error).__name__}: {error}"
    return replace(provenance(plan, device), status="failed", reason=reason.splitlines()[0])


def run_all(plans: Sequence[Plan], *, num_workers: int, device: str, threads: int) -> Iterator[Event]:
    """Runs every plan once, some at a time, and yields events as they come; results in order of completion."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zoo_core.suites.workers"])
    waiting = list(enumerate(plans))[::-1]
    running: dict[Connection, tuple[Any, int | None]] = {}
    for _ in range(min(num_workers, len(plans))):
        process, connection = _start(context, device, threads)
        running[connection] = (process, None)
    try:
        for connection in running:
            _give(running, connection, waiting)
        while running:
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                process, position = running[ready]
                try:
                    message = ready.recv()
                except (EOFError, ConnectionResetError):
                    del running[ready]
                    process.join()
                    if position is not None:
                        yield Event(position=position, result=_died(plans[position], device, process.exitcode))
                        if waiting:
                            process, connection = _start(context, device, threads)
                            running[connection] = (process, None)
                            _give(running, connection, waiting)
                    continue
                assert position is not None, "only a worker with a plan speaks"
                if isinstance(message, Result):
                    yield Event(position=position, result=message)
                    _give(running, ready, waiting)
                else:
                    yield Event(position=position, report=message)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _start(context: Any, device: str, threads: int) -> tuple[Any, Connection]:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, device, threads), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _give(running: dict[Connection, tuple[Any, int | None]], to: Connection, waiting: list[tuple[int, Plan]]) -> None:
    """The next plan for a worker; none left: its pipe is told so, and the worker ends."""
    process = running[to][0]
    if not waiting:
        running[to] = (process, None)
        with contextlib.suppress(BrokenPipeError):
            to.send(None)
        return
    position, plan = waiting.pop()
    running[to] = (process, position)
    with contextlib.suppress(BrokenPipeError):  # it died: the next wait says so
        to.send(plan)


def _work(pipe: Connection, device: str, threads: int) -> None:
    torch.set_num_threads(threads)
    last = 0.0

    def report(news: Report) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_SECONDS:
            last = now
            pipe.send(news)

    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while (plan := pipe.recv()) is not None:
            result = attempt(plan, device=device, report=report)
            pipe.send(result)


def _died(plan: Plan, device: str, code: int | None) -> Result:
    because = "killed, perhaps for memory" if code == -9 else "ended without a result"
    reason = f"its process was {because} (exit code {code}); run the same command with --retry to try it again"
    return replace(provenance(plan, device), status="failed", reason=reason)
