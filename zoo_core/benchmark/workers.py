"""Processes that run trials. Each has its own pipe, so that a process that dies costs only the trial it worked on.

A worker ends when its parent does, however that ends. A worker sends whole results, and only the parent writes them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from zoo_core import errors
from zoo_core._process.malloc import keep_freed
from zoo_core.benchmark import forking
from zoo_core.benchmark.trial import TrialProgress, provenance, run_trial
from zoo_core.errors import RefusedError, ZooError
from zoo_core.plan.plan import Plan
from zoo_core.registry.local_plugins import load_again
from zoo_core.registry.registry import registry
from zoo_core.registry.trust import trusted, trusting
from zoo_core.results.store import Result, Status

__all__ = ["Event", "attempt", "run_all", "without_score"]

REPORT_SECONDS = 0.2
STOP_SECONDS = 2.0  # a worker that does not end when asked is killed after this
MAX_REASON = 500  # characters; a reason is one line of a table


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happened to the plan at a position: its trial started, made progress, or ended with a result."""

    position: int
    report: TrialProgress | None = None
    result: Result | None = None


def attempt(plan: Plan, *, device: str, report: Callable[[TrialProgress], None] = lambda _: None) -> Result:
    """The result of a trial. If anything goes wrong in it, that is a result too, with its reason."""
    try:
        return run_trial(plan, device=device, report=report)[0]
    except RefusedError as error:  # a check that needed the data or the built backbone
        return without_score(plan, device, str(error), status="refused")
    except ZooError as error:
        return without_score(plan, device, str(error) or type(error).__name__)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - one trial's failure is a row, not the end of the suite
        return without_score(plan, device, _explained(error))


def run_all(plans: Sequence[Plan], *, num_workers: int, device: str, threads: int) -> Generator[Event]:
    """Runs every plan once, several at a time, and yields events as they happen. Results come in order of completion.

    threads: of each worker. Close the iterator to end the workers early.
    """
    pool = _Pool(plans, num_workers, device, threads)
    try:
        while True:
            yield from pool.hand_out()
            busy = pool.busy()
            if not busy:
                return
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                yield pool.hear(busy[pipe])
    finally:
        pool.stop()


@dataclass(kw_only=True)
class _Worker:
    """A process, our end of its pipe, and the position of the plan that it works on."""

    process: Any
    pipe: Connection
    position: int | None = None


class _Pool:
    """Up to num_workers processes, each started when there is a plan for it. One that died is replaced."""

    def __init__(self, plans: Sequence[Plan], num_workers: int, device: str, threads: int) -> None:
        self._context: Any = forking.context()
        self._plans, self._num_workers = plans, num_workers
        self._device, self._threads = device, threads
        self._waiting = deque(range(len(plans)))
        self._workers: list[_Worker] = []

    def hand_out(self) -> Iterator[Event]:
        """Gives plans to workers until all are busy. Yields a failure for each plan that cannot be sent."""
        while self._waiting and (worker := self._idle()) is not None:
            position = self._waiting.popleft()
            try:
                message = bytes(ForkingPickler.dumps(self._plans[position]))
            except Exception as error:  # noqa: BLE001 - a plugin's recipe that cannot be pickled fails alone
                reason = f"its plan cannot be sent to a process: {_explained(error)}"
                yield Event(position=position, result=self._failed(position, reason))
                continue
            worker.position = position
            with contextlib.suppress(OSError):  # it died: `hear` says so
                worker.pipe.send_bytes(message)

    def busy(self) -> dict[Connection, _Worker]:
        return {worker.pipe: worker for worker in self._workers if worker.position is not None}

    def hear(self, worker: _Worker) -> Event:
        """What a worker says, or how it died."""
        position = worker.position
        assert position is not None, "only a worker with a plan is waited for"
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._workers.remove(worker)
            message = f"its process {_death(worker)}; run the same command with --retry to try it again"
        if isinstance(message, TrialProgress):
            return Event(position=position, report=message)
        worker.position = None
        result = message if isinstance(message, Result) else self._failed(position, message)
        return Event(position=position, result=replace(result, threads=self._threads))

    def stop(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(STOP_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _idle(self) -> _Worker | None:
        """A worker without a plan, a new one if there may be one more, or None."""
        for worker in self._workers:
            if worker.position is None:
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
        return without_score(self._plans[position], self._device, reason)


def _work(
    pipe: Connection,
    environment: Mapping[str, str],
    device: str,
    threads: int,
    files: Mapping[str, bytes],
    core: str,
    trust: frozenset[str],
) -> None:
    _end_with_parent()
    os.environ.clear()  # what the fork server began with may have changed since: a token, a cache folder
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches us too; the parent ends us
    os.dup2(2, 1)  # what a plugin prints is no part of the table
    torch.set_num_threads(threads)
    keep_freed()
    last = 0.0

    def report(trial: TrialProgress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_SECONDS:
            last = now
            pipe.send(trial)

    with contextlib.suppress(EOFError, BrokenPipeError), trusting(*trust):
        while True:
            message = pipe.recv_bytes()
            if errors.__file__ != core:  # before Python 3.13 a preload sees nothing that a program put on its path
                pipe.send(f"its process has the zoo-core of {errors.__file__}, not {core}; put that on PYTHONPATH")
                continue
            try:
                load_again(files)
                plan = pickle.loads(message)  # noqa: S301 - our own parent's bytes
            except Exception as error:  # noqa: BLE001 - it imports the plan's plugins; one that breaks fails alone
                pipe.send(f"its plan cannot be read in a process: {_explained(error)}")
            else:
                pipe.send(attempt(plan, device=device, report=report))


def _end_with_parent() -> None:
    """Ends this process as soon as its parent is gone, killed or not, whatever this process is doing."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by multiprocessing"

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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


def _explained(error: BaseException) -> str:
    """The type and message of an error. torch reports a lack of CPU memory only in the message."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return f"out of memory: {text}" if text else "out of memory"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def without_score(plan: Plan, device: str, reason: str, status: Status = "failed") -> Result:
    """The row of a trial that gave no score, with the first line of the reason."""
    line = reason.strip().splitlines()[0] if reason.strip() else "it gave no reason"
    return replace(provenance(plan, device), status=status, reason=line[:MAX_REASON])
