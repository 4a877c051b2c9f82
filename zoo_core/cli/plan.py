"""`zoo plan` shows what one spec or a whole suite would build and train, without building anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from zoo_core.benchmark.grid import check_shots, expand, load_suite, weights_of
from zoo_core.cli.completion import complete_spec, complete_tasks
from zoo_core.cli.data import told
from zoo_core.cli.options import lock_file, lock_option
from zoo_core.contracts import Source, Teacher
from zoo_core.errors import UsageError
from zoo_core.lock import Pinned, read_pins
from zoo_core.plan.plan import Budget, Plan
from zoo_core.plan.resolve import resolve
from zoo_core.registry.bind import Bound
from zoo_core.registry.local_plugins import plugin_hashes

__all__ = ["lines_of", "plan"]

LISTED = ("unpublished", "teachers")  # what is left out where there is none


@click.command()
@click.argument("what", shell_complete=complete_spec)
@click.option("--task", help="The task that a spec is planned for.", shell_complete=complete_tasks)
@click.option("--seed", type=int, help="The seed that a spec is planned with; 0 unless given.")
@lock_option
@click.option("--json", "as_json", is_flag=True, help="A stable schema for programs.")
def plan(what: str, task: str | None, seed: int | None, lock: Path | None, as_json: bool) -> None:
    """Show what a spec or a suite file would build and train, and what would be refused, with reasons.

    A spec is planned as `zoo fit` runs it, which keeps the best epoch; a suite as `zoo bench` does.

    \b
    zoo plan 'starter/vit-nano+partial(n=2)' --task digits
    zoo plan my-suite.toml
    """  # noqa: D301 - click reads the character \b as: keep these lines
    lock = lock_file(lock)
    pins = read_pins(lock)
    if what.endswith(".toml"):
        if task is not None or seed is not None:
            raise UsageError("a suite file names its tasks and seeds; leave --task and --seed out")
        grid = expand(load_suite(Path(what)), pins=pins)
        plans = [_row(each) for each in grid.plans]
        refusals = [{"trial": str(refusal.trial), "reason": refusal.reason} for refusal in grid.refusals]
    else:
        if task is None:
            raise UsageError("zoo plan SPEC needs --task; `zoo list task` shows what there is")
        found = resolve(what, task=told(task, lock=lock), budget=Budget().for_fit(), seed=seed or 0, pins=pins)
        check_shots(found)
        plans, refusals = [_row(found)], []
    if as_json:
        click.echo(json.dumps({"plans": plans, "refusals": refusals}, indent=2))
        return
    for row in plans if len(plans) == 1 else ():
        for line in _lines(row):
            click.echo(line)
    if len(plans) > 1:
        for row in plans:
            files = f"  unpublished: {', '.join(row['unpublished'])}" if row["unpublished"] else ""
            click.echo(f"{row['trial']}  {_stages(row['first_stage'], row['num_stages'])}{files}")
        click.echo(f"{len(plans)} trials, {sum(max(1, len(row['learning_rates'])) for row in plans)} fits")
    for refusal in refusals:
        click.echo(f"refused: {refusal['trial']}: {refusal['reason']}")


def lines_of(found: Plan) -> list[str]:
    """The lines by which `zoo plan` shows a plan."""
    return _lines(_row(found))


def _lines(row: dict[str, Any]) -> list[str]:
    return [f"{name + ':':21}{_shown(name, value)}" for name, value in row.items() if name not in LISTED or value]


def _row(found: Plan) -> dict[str, Any]:
    parts = (found.backbone, *found.adapters, found.head, *((found.task,) if found.task else ()))
    return {
        "trial": str(found.trial),
        "spec": str(found.spec),
        "unpublished": plugin_hashes(found.parts),
        "task": str(found.trial.task),
        "target": {"kind": found.target.kind, "size": found.target.size, "names": list(found.target.names)},
        "weights": weights_of(found),
        "backbone_parameters": found.entry.num_parameters if found.entry else None,
        "num_stages": found.num_stages,
        "first_stage": found.first_stage,
        "learning_rates": list(found.learning_rates),
        "parts": [
            {
                "name": part.name,
                "kind": part.kind,
                "distribution": part.provider.distribution,
                "version": part.provider.version,
            }
            for part in parts
        ],
        "teachers": [_teacher(of, asked, part) for of, (asked, part) in found.teachers.items()],
        "files": [_files(key, source, found.pins.get(key)) for key, source in found.sources.items()],
        "deferred": list(found.deferred),
        "base_digest": found.base_digest,
        "digest": found.digest,
    }


def _stages(first: int | None, num: int | None) -> str:
    """A phrase that says which stages of the backbone a trial changes.

    first: the first changed stage, counted from 0; equal to num if only the head changes. num: the number of stages.
    Either is None if it is not known before the model is built.
    """
    if first is None or num is None:
        return "stages not known before it is built"
    if first == num:
        return "changes no stage, only the head"
    return f"changes stages {first + 1} to {num} of {num}" if first + 1 < num else f"changes stage {num} of {num}"


def _teacher(of: str, asked: Teacher, part: Bound) -> dict[str, Any]:
    """A teacher: what is read of it, and where it comes from."""
    stages = [f"stage {stage + 1 if stage >= 0 else stage}" for stage in asked.stages]
    sites = [f"{role} of stage {stage + 1 if stage >= 0 else stage}" for stage, role in asked.sites]
    whole = [name for name in ("predictions", "pooled") if getattr(asked, name)]
    source = part.source
    return {
        "name": of,
        "reads": [*whole, *stages, *sites],
        "keep": asked.keep,
        "from": (source and (source.repository or source.folder)) or part.provider.distribution,
    }


def _files(key: str, source: Source, pin: Pinned | None) -> dict[str, Any]:
    """Where the files of a part come from, and their total size in bytes, which is None until they are pinned."""
    return {
        "part": key,
        "from": source.repository or source.folder,
        "revision": (pin.revision if pin else None) or source.revision,
        "pinned": pin is not None,
        "bytes": sum(file.size for file in pin.files.values()) if pin else None,
    }


def _shown(name: str, value: Any) -> str:
    if name == "files":
        return ", ".join(map(_place, value)) or "none to fetch"
    if name == "teachers":
        return "; ".join(f"{row['name']}, its {', '.join(row['reads'])}, from {row['from']}" for row in value)
    if name == "unpublished":
        files = ", ".join(f"{file} (sha256 {digest[:12]})" for file, digest in value.items())
        return f"{files}: results are marked, and a fitted model cannot be pushed"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", ".join(f"{row['name']} ({row['kind']}, {row['distribution']} {row['version']})" for row in value)
    if isinstance(value, dict):
        return f"{value['kind']}, {value['size']} outputs"
    if isinstance(value, list):
        return ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value) or "none"
    if value is None:
        return "not pinned" if name.endswith("digest") else "not known before it is built"
    return f"{value:,}" if name == "backbone_parameters" else str(value)


def _place(row: dict[str, Any]) -> str:
    size = f"{row['bytes'] / 2**20:,.1f} MiB" if row["pinned"] else "not pinned"
    revision = f"@{row['revision'][:12]}" if row["revision"] else ""
    return f"{row['from']}{revision} ({size})"
