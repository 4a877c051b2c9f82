"""The row of a trial before anything of it is measured: what was run, where, with which versions. No torch on a CPU."""

from __future__ import annotations

import platform
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

from zoo_core.benchmark.grid import weights_of
from zoo_core.plan.plan import Plan
from zoo_core.registry.bind import Bound
from zoo_core.registry.local_plugins import plugin_hashes
from zoo_core.results.store import UNMEASURED, Result, Status
from zoo_core.spec.parser import Part

__all__ = ["explained", "provenance", "without_score"]

PACKAGES = ("zoo-core", "torch", "torchvision", "numpy", "safetensors")
MAX_REASON = 500  # characters; a reason is one line of a table


def provenance(plan: Plan, *, device: str, threads: int) -> Result:
    """A result without measurements: what was run, on which device, with which versions. Its status is failed."""
    return Result(
        **UNMEASURED,
        trial=str(plan.trial),
        digest=plan.digest or "",
        record=plan.entry.name if plan.entry else None,
        status="failed",
        reason=None,
        metric=plan.metric_name,
        higher_is_better=plan.metric is None or plan.metric.recipe.higher_is_better,
        versions=_versions() | {part.provider.distribution: part.provider.version for part in _parts(plan)},
        device=_device_name(device),
        threads=threads,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        backbone=str(_without_weights(plan.backbone.canonical())),
        adapters="+".join(str(part.canonical()) for part in plan.adapters) or "probe",
        head=str(plan.head.canonical()),
        task=str(plan.task.canonical()) if plan.task else "",
        seed=plan.seed,
        weights=weights_of(plan),
        unpublished=plugin_hashes(plan.parts),
        sources=plan.contents,
    )


def without_score(plan: Plan, reason: str, *, device: str, threads: int, status: Status = "failed") -> Result:
    """The row of a trial that gave no score, with the first line of the reason."""
    line = reason.strip().splitlines()[0] if reason.strip() else "it gave no reason"
    return replace(provenance(plan, device=device, threads=threads), status=status, reason=line[:MAX_REASON])


def explained(error: BaseException, memory_errors: tuple[type[BaseException], ...] = (MemoryError,)) -> str:
    """The type and message of an error. torch reports a lack of CPU memory only in the message."""
    text = " ".join(str(error).split())
    if isinstance(error, memory_errors) or "can't allocate memory" in text:
        return f"out of memory: {text}" if text else "out of memory"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _without_weights(part: Part) -> Part:
    return replace(part, arguments=tuple(argument for argument in part.arguments if argument[0] != "weights"))


def _parts(plan: Plan) -> list[Bound]:
    return [plan.backbone, *plan.adapters, plan.head, *([plan.task] if plan.task else []), *plan.extensions]


@cache
def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@cache
def _device_name(device: str) -> str:
    if device.partition(":")[0] == "cuda":
        import torch  # a second and a half, for the one device whose name it alone knows

        return torch.cuda.get_device_name(device)
    return f"cpu: {_processor()}"


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
