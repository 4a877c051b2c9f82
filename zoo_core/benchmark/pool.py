"""Processes that run groups of trials. Each has its own pipe, so one that dies costs only the group it worked on.

The trials that such a group had left are then run one by one, on the features that are stored, and the one that ends
its process, or takes too long, is known.

A worker sends whole results, and only this process, its parent, writes them. This side of the pipes has no torch, and
neither has anything that comes through them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

from zoo_core import errors
from zoo_core.benchmark import forking
from zoo_core.benchmark.groups import Group
from zoo_core.benchmark.halving import Leg
from zoo_core.benchmark.progress import TrialProgress
from zoo_core.benchmark.provenance import explained, without_score
from zoo_core.plan.plan import Plan
from zoo_core.registry.registry import registry
from zoo_core.registry.trust import trusted
from zoo_core.results.store import Result

__all__ = ["Event", "run_all"]

STOP_SECONDS = 2.0  # a worker that does not end when asked is killed after this


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happened to the plan at a position: its trial started, made progress, or ended with a result."""

    position: int
    report: TrialProgress | None = None
    result: Result | None = None


def run_all(
    plans: Sequence[Plan],
    groups: Sequence[Group],
    *,
    num_workers: int,
    device: str,
    threads: int,
    trial_time_limit: float | None = None,
    leg: Leg | None = None,
) -> Generator[Event]:
    """Runs groups of plans, several at a time, and yields events as they happen. Results come in order of completion.

    groups: of positions in plans. threads: of each worker. trial_time_limit: of an attempt at a trial, in s of wall
    time; of work for several trials, between two reports of it. leg: how far trials go; None: to their end. Close the
    iterator to end the workers early.
    """
    pool = _Pool(plans, groups, num_workers, device, threads, trial_time_limit, leg)
    try:
        while True:
            yield from pool.hand_out()
            busy = pool.busy()
            if not busy:
                return
            for pipe in wait(list(busy), pool.seconds_left()):
                assert isinstance(pipe, Connection)
                yield from pool.hear(busy[pipe])
            yield from pool.end_late()
    finally:
        pool.stop()


@dataclass(kw_only=True)
class _Worker:
    """A process, our end of its pipe, the group that it works on, and the positions of which it has not told yet.

    began_at: when the attempt that is under way began, or work for several trials last got further, in monotonic s.
    """

    process: Any
    pipe: Connection
    group: Group | None = None
    left: list[int] = field(default_factory=list)
    began_at: float = 0.0


class _Pool:
    """Up to num_workers processes, each started when there is a group for it. One that died is replaced."""

    def __init__(
        self,
        plans: Sequence[Plan],
        groups: Sequence[Group],
        num_workers: int,
        device: str,
        threads: int,
        time_limit: float | None,
        leg: Leg | None = None,
    ) -> None:
        self._context: Any = forking.context()
        self._plans, self._num_workers, self._time_limit = plans, num_workers, time_limit
        self._device, self._threads, self._leg = device, threads, leg
        self._waiting = deque(groups)
        self._workers: list[_Worker] = []

    def hand_out(self) -> Iterator[Event]:
        """Gives groups to workers until all are busy. Yields a failure for each plan that cannot be sent."""
        while self._waiting and (worker := self._idle()) is not None:
            group = self._waiting.popleft()
            messages: dict[int, bytes] = {}
            for position in group.positions:
                try:
                    messages[position] = bytes(ForkingPickler.dumps(self._plans[position]))
                except Exception as error:  # noqa: BLE001 - a plugin's recipe that cannot be pickled fails alone
                    reason = f"its plan cannot be sent to a process: {explained(error)}"
                    yield Event(position=position, result=self._failed(position, reason))
            if messages:
                worker.group, worker.left, worker.began_at = group, list(messages), time.monotonic()
                with contextlib.suppress(OSError):  # it died: `hear` says so
                    worker.pipe.send((group, messages, self._leg))

    def busy(self) -> dict[Connection, _Worker]:
        return {worker.pipe: worker for worker in self._workers if worker.group is not None}

    def hear(self, worker: _Worker) -> Iterator[Event]:
        """What a worker says of one of its trials, or how it died."""
        try:
            position, message = worker.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            death = _death(worker)
            yield from self._bury(worker, f"its process {death}", f"a process of its group {death}", "")
            return
        if isinstance(message, TrialProgress):
            if message.num_trials > 1:
                worker.began_at = time.monotonic()
            yield Event(position=position, report=message)
            return
        worker.began_at = time.monotonic()
        worker.left.remove(position)
        if not worker.left:
            worker.group = None
        result = message if isinstance(message, Result) else self._failed(position, message)
        yield Event(position=position, result=replace(result, threads=self._threads))

    def seconds_left(self) -> float | None:
        """Until the first attempt that is under way has taken too long; None if there is no limit."""
        if self._time_limit is None:
            return None
        first = min(worker.began_at for worker in self.busy().values())
        return max(0.0, first + self._time_limit - time.monotonic())

    def end_late(self) -> Iterator[Event]:
        """Ends every worker whose attempt has taken too long, and that has not told of its end meanwhile."""
        if self._time_limit is None:
            return
        latest = time.monotonic() - self._time_limit
        for worker in list(self.busy().values()):
            if worker.began_at <= latest and not worker.pipe.poll():
                worker.process.kill()
                worker.process.join()
                late = f"was not done within {self._time_limit:g} s"
                yield from self._bury(
                    worker, f"it {late}", f"a trial of its group {late}", " and a longer --trial-time-limit"
                )

    def _bury(self, worker: _Worker, how: str, how_in_group: str, help_with: str) -> Iterator[Event]:
        """Takes the group of a dead worker apart; a trial that was by itself has failed.

        how, how_in_group: what a trial is told that was by itself, or not. help_with: what --retry needs beside it.
        """
        group = worker.group
        assert group is not None, "only a worker with a group is waited for"
        self._workers.remove(worker)
        if len(group.positions) == 1:
            (position,) = group.positions
            reason = f"{how}; run the same command with --retry{help_with} to try it again"
            yield Event(position=position, result=self._failed(position, reason))
            return
        because = f"{how_in_group}, so each of its trials ran by itself"
        self._waiting.extendleft(
            replace(group, positions=(position,), apart=because) for position in reversed(worker.left)
        )

    def stop(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(STOP_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _idle(self) -> _Worker | None:
        """A worker without a group, a new one if there may be one more, or None."""
        for worker in self._workers:
            if worker.group is None:
                return worker
        if len(self._workers) == self._num_workers:
            return None
        ours, theirs = self._context.Pipe()
        held = (registry().files, str(errors.__file__), trusted())
        arguments = (theirs, dict(os.environ), self._device, self._threads, *held)
        process = self._context.Process(target=_work, args=arguments, daemon=True)
        with forking.without_main():
            process.start()
        theirs.close()
        self._workers.append(_Worker(process=process, pipe=ours))
        return self._workers[-1]

    def _failed(self, position: int, reason: str) -> Result:
        return without_score(self._plans[position], reason, device=self._device, threads=self._threads)


def _work(pipe: Connection, *told: Any) -> None:
    """What a worker runs, in a function of a module that its parent can import without torch."""
    from zoo_core.benchmark.workers import work

    work(pipe, *told)


def _death(worker: _Worker) -> str:
    worker.process.join()
    code = worker.process.exitcode
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {_signal_name(-code)}" + (", perhaps for memory" if -code == signal.SIGKILL else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
