"""Stores a fitted model on disk, its delta as safetensors and what it was built from as JSON, and loads it again.

run.json holds the spec, task, target with its ordered names, budget, seed, the digests of trial and base, the identity
of each adapter and of the head, and the digests of all runs that it was fitted on. Loading resolves the same spec with
what is installed now, refuses another base or recipe, rebuilds without the objective, and copies the delta in.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from zoo_core._process.atomic_files import replacing, write_whole
from zoo_core.contracts import FileHash, Target
from zoo_core.errors import IncompatibleError, IntegrityError, NotFoundError, UsageError, ZooError
from zoo_core.files.fetch import pin_plan
from zoo_core.files.hashing import sha256_of, verify
from zoo_core.lock import part_key, pins_of, read_lock, unpublished_in
from zoo_core.model.build import PROVENANCE, build, build_backbone
from zoo_core.model.learner import Learner
from zoo_core.plan.plan import Plan, budget_from, identity_of
from zoo_core.plan.resolve import resolve
from zoo_core.registry.bind import Bound
from zoo_core.registry.local_plugins import lacking
from zoo_core.registry.registry import registry
from zoo_core.registry.trust import speaking_for
from zoo_core.run_layout import DELTA, LOCK, RUN
from zoo_core.runs.lineage import check_links, links_of, moved, places_of
from zoo_core.runs.run_table import damaged, run_table, target_in, text_in
from zoo_core.spec.parser import Part, Spec, parse, parse_part
from zoo_core.toolkit.table_encoding import Encoding, encoding_from
from zoo_core.toolkit.weights import read_tensors

__all__ = ["StoredRun", "load_stored", "load_together", "read_run", "save_run"]

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """What run.json says, resolved again: the plan, the target with its names, and the hash of the delta.

    spec: that it was fitted with; the plan has no adapters that changed its training alone.
    num_columns: the columns of the table that it was fitted on, None for other modalities. encoding: how its inputs
    were made from the cells of files, None if the cells are the inputs.
    """

    path: Path
    spec: Spec
    plan: Plan
    target: Target
    base_digest: str | None
    delta: FileHash
    num_columns: int | None = None
    encoding: Encoding | None = None


def save_run(learner: Learner, plan: Plan, path: Path) -> None:
    """Writes the delta and run.json into an existing folder. run.json is written last, so a torn save is not a run."""
    delta = path / DELTA
    tensors = learner.delta()  # copied, since tied ones share memory, which the format does not express
    with replacing(delta) as fresh:
        save_file(
            {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, fresh
        )
    table = {
        "format": FORMAT,
        "spec": str(plan.spec),
        "task": str(plan.task.canonical()) if plan.task else None,
        "target": asdict(learner.target),
        "modality": learner.source.modality,
        "budget": asdict(plan.budget),
        "seed": plan.seed,
        "digest": plan.digest,
        "base_digest": plan.base_digest,
        "used": [position for position, part in enumerate(plan.adapters) if _is_used(part)],
        "parts": _identities(plan),
        "chain": links_of(plan),
        "places": places_of(plan, path),
        "num_columns": learner.num_columns,
        **({"encoding": learner.encoding.as_json()} if learner.encoding is not None else {}),
        "delta": {"sha256": sha256_of(delta), "size": delta.stat().st_size},
    }
    write_whole(path / RUN, json.dumps(table, indent=2) + "\n")


def read_run(path: Path, *, needs_task: bool = True) -> StoredRun:
    """Reads and resolves run.json.

    needs_task: False to only use the model, which needs neither the task's plugin nor its data. The plan has no task if
    they are missing.
    Raises NotFoundError (no run there, or a plugin that it needs is not installed), AccessError, IntegrityError
    (damaged), IncompatibleError (the run was fitted on a base with other weights, or with another version of a recipe).
    """
    file = path / RUN
    table = run_table(file)
    if table.get("format") != FORMAT:
        raise IncompatibleError(f"{file} has format {table.get('format')!r}, this zoo-core reads {FORMAT}; upgrade it")
    try:
        target = target_in(table["target"])
        delta = FileHash(sha256=text_in(table["delta"]["sha256"]), size=int(table["delta"]["size"]))
        spec, budget = parse(text_in(table["spec"])), budget_from(table["budget"])
        task = parse_part(text_in(table["task"])) if table["task"] is not None else None
        base_digest, seed, parts = table["base_digest"], int(table["seed"]), list(table["parts"])
        whole, used = spec, table.get("used")  # older ones have none, and are used with all that they were fitted with
        spec, places = _as_used(spec, None if used is None else [int(position) for position in used])
        num_columns = None if table["num_columns"] is None else int(table["num_columns"])
        encoding = encoding_from(table["encoding"]) if "encoding" in table else None
        chain, folders = list(table.get("chain", [])), dict(table.get("places", {}))  # older ones have none
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise damaged(file, error) from error
    spec, pins = moved(path, spec, pins_of(read_lock(path / LOCK)), folders)
    trial: dict[str, Any] = {"target": target, "budget": budget, "seed": seed, "pins": pins, "afresh": needs_task}
    trial |= {"learns": False}
    plan = _resolved_again(path, spec, task, trial | {"stored": f"the run {path}"}, needs_task=needs_task)
    plan = replace(plan, places=places)
    _check_files(path, plan)
    if chain:
        check_links(path, chain, links_of(plan))
    if plan.base_digest != base_digest:
        raise IncompatibleError(
            f"{path} was fitted on another base: {str(base_digest)[:12]} then, {str(plan.base_digest)[:12]} now; "
            f"install the version of {plan.backbone.provider.distribution} that its zoo.lock names"
        )
    _check_parts(path, plan, parts)
    return StoredRun(
        path=path,
        spec=whole,
        plan=plan,
        target=target,
        base_digest=base_digest,
        delta=delta,
        num_columns=num_columns,
        encoding=encoding,
    )


def _resolved_again(path: Path, spec: Spec, task: Part | None, trial: Mapping[str, Any], *, needs_task: bool) -> Plan:
    """The plan of a stored run, without its task where that is neither needed nor there."""
    try:
        try:
            return pin_plan(resolve(spec, task=task, offline=not needs_task, **trial))
        except ZooError:
            if needs_task:
                raise
            return pin_plan(resolve(spec, **trial))
    except NotFoundError as error:
        _tell_of_files(path)
        if task is not None and _lacks_data(spec, task, trial):
            raise NotFoundError(
                f"{path} was fitted on data that are not there now, and predicts without: {error}"
            ) from error
        raise NotFoundError(f"{path} needs a part that is not installed{_fitted_with(path)}: {error}") from error


def load_stored(run: StoredRun, *, backbone: nn.Module | None = None) -> Learner:
    """The fitted learner of a stored run, in evaluation mode on the CPU, without an objective.

    backbone: a built backbone of the run's base, which may share memory with others. The delta is not written into it.
    """
    file = run.path / DELTA
    if not file.is_file():
        raise NotFoundError(f"{file} is missing; copy the whole folder, or fit the model again")
    verify(file, run.delta)
    learner = build(run.plan, target=run.target, purpose="use", backbone=backbone)
    if backbone is not None:
        _own(learner)
    learner.load_delta(read_tensors(file))
    learner.plan, learner.num_columns, learner.encoding = run.plan, run.num_columns, run.encoding
    return learner


def load_together(runs: Mapping[str, StoredRun]) -> dict[str, Learner]:
    """The fitted learners of runs with one base, by name, as `load_stored` returns them. They share its frozen tensors.

    Each has its own memory for what is in its delta: what it added and what it trained. With random weights that is all
    of it. Raises IncompatibleError for runs with different bases.
    """
    if not runs:
        return {}
    first, *_ = runs
    for name, run in runs.items():
        if run.base_digest != runs[first].base_digest:
            raise IncompatibleError(
                f"{name} was fitted on another base than {first}: {run.plan.backbone.written} there, "
                f"{runs[first].plan.backbone.written} here; load_run loads each by itself"
            )
    backbone = build_backbone(runs[first].plan)
    return {name: load_stored(run, backbone=_sharing(backbone)) for name, run in runs.items()}


def _sharing(backbone: nn.Module) -> nn.Module:
    """A copy whose tensors are new objects with the same memory, so that each copy decides by itself what trains."""
    memo: dict[int, Any] = {id(x): nn.Parameter(x.detach(), requires_grad=False) for x in backbone.parameters()}
    memo |= {id(buffer): buffer.detach() for buffer in backbone.buffers()}
    return copy.deepcopy(backbone, memo)


def _own(learner: Learner) -> None:
    """Gives what the delta holds a memory that nothing shares."""
    names = learner.delta().keys()
    for name, tensor in (*learner.named_parameters(), *learner.named_buffers()):
        if name in names:
            tensor.data = tensor.data.clone()


def _is_used(adapter: Bound) -> bool:
    """Whether a model is used with an adapter: one that changed its training alone is provenance."""
    return not adapter.fact("changes") <= PROVENANCE


def _as_used(spec: Spec, used: list[int] | None) -> tuple[Spec, tuple[int, ...] | None]:
    """The spec without the adapters that are provenance, and the places that the others had among all adapters."""
    if used is None:
        return spec, None
    backbone, *adapters, head = spec.parts
    if not all(0 <= position < len(adapters) for position in used):
        raise ValueError(f"adapters {used} of {len(adapters)}")
    return Spec((backbone, *(adapters[position] for position in used), head)), tuple(used)


def _identities(plan: Plan) -> list[dict[str, object]]:
    """What decides the numbers of each adapter that is used and of the head, as JSON.

    A head that was filled is known by its files.
    """
    return [*(part.identity() for part in plan.adapters if _is_used(part)), identity_of(plan, plan.head)]


def _check_parts(path: Path, plan: Plan, stored: list[Any]) -> None:
    """Raises IncompatibleError if a recipe is not the one that the delta was made with."""
    found = json.loads(json.dumps(_identities(plan)))
    parts = (*plan.adapters, plan.head)
    for position, part in enumerate(parts):
        before = stored[position] if position < len(stored) else None
        if before != found[position]:
            then, now = (row.get("version") if isinstance(row, dict) else None for row in (before, found[position]))
            raise IncompatibleError(
                f"{path} was fitted with another {part.kind} {part.name} (version {then} then, {now} now); "
                f"install the version of {part.provider.distribution} that its zoo.lock names"
            )


def _lacks_data(spec: Spec, task: Part, trial: Mapping[str, Any]) -> bool:
    """Whether every part of a run is installed, so that only the files of its task are missing."""
    try:
        resolve(spec, **trial)
        with speaking_for(trial["stored"]):
            registry().bind(task, "task")
    except ZooError:
        return False
    return True


def _tell_of_files(path: Path) -> None:
    """Raises NotFoundError if a plugin file provided a part, and nothing provides it now."""
    for key, row in lacking(unpublished_in(_lock_of(path))).items():
        name = row["distribution"]
        raise NotFoundError(
            f"{path} needs {key} of the plugin file {name} (sha256 {row['sha256'][:12]}), which no package publishes: "
            f'add --plugin {name}, or zoo_core.add_plugin("{name}") in Python'
        )


def _check_files(path: Path, plan: Plan) -> None:
    """Raises IncompatibleError if a part comes from another plugin file than before, or the file has changed."""
    rows = (_lock_of(path) or {"parts": {}})["parts"]
    for part in (plan.backbone, *plan.adapters, plan.head):
        row = rows.get(part_key(part))
        if row is not None and row.get("sha256", "") != part.provider.sha256:
            then, now = (sha256[:12] or "a package" for sha256 in (row.get("sha256", ""), part.provider.sha256))
            raise IncompatibleError(
                f"{path} was fitted with another {part.kind} {part.name}: of {row['distribution']} ({then}) then, of "
                f"{part.provider.distribution} ({now}) now; give it what it was fitted with"
            )


def _lock_of(path: Path) -> dict[str, Any] | None:
    try:
        return read_lock(path / LOCK)
    except IntegrityError:
        return None


def _fitted_with(path: Path) -> str:
    """The distributions that the run's lock names, if it can be read."""
    lock = _lock_of(path)
    rows = lock["parts"].values() if lock else ()
    named = sorted({f"{row['distribution']} {row['version']}" for row in rows})
    return f" (it was fitted with {', '.join(named)})" if named else ""
