"""Measures what a learner costs: rates with their spread, peak memory, parameter counts."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from zoo_core._process.malloc import give_back_freed
from zoo_core.contracts import Batch
from zoo_core.data.loader import Loader
from zoo_core.model.learner import Learner

__all__ = [
    "Stopwatch",
    "autocast",
    "count_parameters",
    "inference_rate",
    "inference_rate_of",
    "peak_memory_bytes",
    "precision_of",
    "reset_peak_memory",
]

INFERENCE_BATCH = 64
MIN_WINDOW_SECONDS = 0.1
EVENTS_IN_WINDOW = 10
INFERENCE_SECONDS = 0.5


def precision_of(wanted: str, device: torch.device) -> str:
    """The precision that `auto` stands for on a device: bfloat16 on a GPU, float32 elsewhere."""
    return wanted if wanted != "auto" else "bfloat16" if device.type == "cuda" else "float32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Mixed precision while open; nothing for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


class Stopwatch:
    """Rates of repeated steps, in windows of at least 100 ms. Warm-up steps and the time between steps are not counted.

    On a GPU, events of the device mark the steps, so only the end of a window waits. `spread` is the interquartile
    range of the windows' rates divided by their median.
    """

    def __init__(self, device: torch.device, *, warmup: int = 2) -> None:
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] | None = [] if device.type == "cuda" else None
        self._skip = warmup
        self._rates: list[float] = []
        self._examples = 0
        self._seconds = 0.0
        self._started = 0.0

    def start(self) -> None:
        """Call this just before a step."""
        if self._events is None:
            self._started = time.perf_counter()
            return
        self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
        self._events[-1][0].record()

    def stop(self, examples: int) -> None:
        """Call this just after a step on this many examples."""
        seconds = time.perf_counter() - self._started
        if self._events is not None:
            self._events[-1][1].record()
        if self._skip:
            self._skip -= 1
            if self._events is not None:
                self._events.pop()
            return
        self._examples += examples
        self._seconds += seconds
        if self._events is not None:
            if len(self._events) < EVENTS_IN_WINDOW:
                return
            torch.cuda.synchronize()
            self._seconds = sum(first.elapsed_time(last) for first, last in self._events) / 1000
            self._events.clear()
        if self._seconds >= MIN_WINDOW_SECONDS or self._events is not None:
            self._rates.append(self._examples / self._seconds)
            self._examples, self._seconds = 0, 0.0

    @property
    def windows(self) -> int:
        return len(self._rates)

    def state(self) -> dict[str, Any]:
        """What has been measured, as JSON can hold it, for a watch that goes on with it; on a GPU whole windows."""
        begun = {"examples": self._examples, "seconds": self._seconds} if self._events is None else {}
        return {"rates": list(self._rates), "examples": 0, "seconds": 0.0} | begun

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on with what another watch has measured, after a warm-up of its own."""
        self._rates = list(state["rates"])
        self._examples, self._seconds = state["examples"], state["seconds"]

    def rate(self, *, batch_size: int, precision: str) -> dict[str, Any] | None:
        """The measured rate as a result stores it; None if there were too few steps for one window."""
        if not self._rates:
            return None
        median = statistics.median(self._rates)
        spread = 0.0
        if len(self._rates) > 1:
            low, _, high = statistics.quantiles(self._rates, n=4, method="inclusive")
            spread = (high - low) / median
        return {
            "examples_per_second": median,
            "spread": spread,
            "batch_size": batch_size,
            "precision": precision,
            "repeats": len(self._rates),
        }


def inference_rate(
    learner: Learner,
    loader: Loader,
    *,
    precision: str = "float32",
    seconds: float | None = None,
    windows: int = 3,
) -> dict[str, Any] | None:
    """The rate of forward passes on one batch that is already on the device, so without loading.

    Call it after a split was scored with the same loader, which has warmed up everything that a pass needs.
    seconds, windows: the least that is measured. None: INFERENCE_SECONDS.
    """
    batch: Batch = next(iter(loader.epoch()))
    learner.eval()
    watch = Stopwatch(loader.device, warmup=0)
    with torch.inference_mode(), autocast(loader.device, precision):
        end = time.perf_counter() + (INFERENCE_SECONDS if seconds is None else seconds)
        while time.perf_counter() < end or watch.windows < windows:
            watch.start()
            learner(batch.inputs)
            watch.stop(len(batch))
    return watch.rate(batch_size=len(batch), precision=precision)


def inference_rate_of(
    watch: Stopwatch, learner: Learner, features: Loader, *, precision: str = "float32"
) -> dict[str, Any] | None:
    """The rate of forward passes whose backbone was timed when it made features; None without one window of these.

    watch: of full batches through the backbone. features: a loader of features, on which the head is timed.
    """
    backbone = watch.rate(batch_size=INFERENCE_BATCH, precision=precision)
    head = inference_rate(learner, features, precision=precision, seconds=0, windows=1) if backbone else None
    if backbone is None or head is None:
        return None
    seconds = 1 / backbone["examples_per_second"] + 1 / head["examples_per_second"]
    return {**backbone, "examples_per_second": 1 / seconds}


def count_parameters(learner: Learner) -> tuple[int, int]:
    """The numbers of trainable parameters and of all parameters of backbone and heads, without the objective's.

    The state of a head that is fitted in closed form counts as trainable, because the data decide it.
    """
    held = [*learner.backbone.parameters(), *learner.head.parameters()]
    closed = sum(x.numel() for x in learner.head.buffers()) if not any(True for _ in learner.trainable()) else 0
    trainable = sum(parameter.numel() for parameter in held if parameter.requires_grad) + closed
    return trainable, sum(parameter.numel() for parameter in held) + closed


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new peak. On a CPU under Linux this clears the kernel's high-water mark of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    give_back_freed()
    mark = Path("/proc/self/clear_refs")
    try:
        mark.write_text("5")
    except OSError:
        return  # the peak since the process began is reported instead


def peak_memory_bytes(device: torch.device) -> int:
    """The peak since the last reset: allocated memory on a GPU, resident memory of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
