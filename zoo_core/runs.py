"""A fitted model on disk: its delta as safetensors, what it was built from as JSON, and the way back.

run.json holds the spec, task, target with its ordered names, budget, seed, and the digests of trial and base. Loading
resolves the same spec with what is installed now, refuses another base, rebuilds without the objective, and copies the
delta in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from zoo_core.build import build
from zoo_core.contracts import TARGET_KINDS, FileHash, Target
from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError
from zoo_core.learner import Learner
from zoo_core.resolve import Plan, budget_from, resolve
from zoo_core.weights import read_tensors, sha256_of, verify

__all__ = ["StoredRun", "load_stored", "read_run", "save_run"]

FORMAT = 1
DELTA = "delta.safetensors"
FILE = "run.json"


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """What run.json says, resolved again: the plan, the target with its names, and the hash of the delta."""

    path: Path
    plan: Plan
    target: Target
    base_digest: str
    delta: FileHash


def save_run(learner: Learner, plan: Plan, path: Path) -> None:
    """Writes the delta and run.json into an existing folder; run.json comes last, so a torn save is not a run."""
    delta = path / DELTA
    fresh = path / f"{DELTA}.new"
    save_file({name: tensor.contiguous().cpu() for name, tensor in learner.delta().items()}, fresh)
    fresh.replace(delta)
    table = {
        "format": FORMAT,
        "spec": str(plan.spec),
        "task": str(plan.task.canonical()) if plan.task else None,
        "target": asdict(learner.target),
        "budget": asdict(plan.budget),
        "seed": plan.seed,
        "digest": plan.digest,
        "base_digest": plan.base_digest,
        "delta": {"sha256": sha256_of(delta), "size": delta.stat().st_size},
    }
    fresh = path / f"{FILE}.new"
    fresh.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path / FILE)


def read_run(path: Path) -> StoredRun:
    """Reads and resolves run.json.

    Raises NotFoundError (no run there, or a plugin it needs is not installed), IntegrityError (damaged),
    IncompatibleError (a base with other weights, or a recipe of another version, than the run was fitted on).
    """
    file = path / FILE
    if not file.is_file():
        raise NotFoundError(f"{path} holds no fitted model ({FILE} is missing); `zoo fit SPEC --task T --out DIR` makes one")
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        if table["format"] != FORMAT:
            raise IncompatibleError(f"{file} has format {table['format']}, this zoo-core reads {FORMAT}; upgrade zoo-core")
        target = _target(table["target"])
        delta = FileHash(sha256=table["delta"]["sha256"], size=table["delta"]["size"])
        spec, task, budget, seed = table["spec"], table["task"], budget_from(table["budget"]), table["seed"]
        base_digest = table["base_digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{file} is damaged ({type(error).__name__}: {error}); fit the model again") from error
    plan = resolve(spec, task=task, target=target, budget=budget, seed=seed)
    if plan.base_digest != base_digest:
        raise IncompatibleError(
            f"{path} was fitted on another base: {base_digest[:12]} then, {str(plan.base_digest)[:12]} now; "
            f"install the version of {plan.backbone.provider.distribution} that its zoo.lock names"
        )
    return StoredRun(path=path, plan=plan, target=target, base_digest=base_digest, delta=delta)


def load_stored(run: StoredRun) -> Learner:
    """The fitted learner of a stored run, in evaluation mode on the CPU, without an objective."""
    file = run.path / DELTA
    verify(file, run.delta)
    learner = build(run.plan, target=run.target, purpose="use")
    learner.load_delta(read_tensors(file))
    return learner


def _target(table: Mapping[str, Any]) -> Target:
    if table["kind"] not in TARGET_KINDS:
        raise ValueError(f"unknown target kind {table['kind']!r}")
    return Target(kind=table["kind"], size=table["size"], names=tuple(table["names"]))
