"""`zoo plan` shows what one spec or a whole suite would build and train, without building anything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from zoo_core.benchmark.grid import check_shots, expand, load_suite, weights_of
from zoo_core.benchmark.groups import depth_of, open_stages, plan_groups
from zoo_core.benchmark.halving import ONE_BY_ONE
from zoo_core.cli.completion import complete_spec, complete_tasks
from zoo_core.cli.data import told
from zoo_core.cli.options import lock_file, lock_option
from zoo_core.contracts import Source, Teacher
from zoo_core.errors import UsageError
from zoo_core.lock import Pinned, read_pins
from zoo_core.plan.plan import Budget, Plan
from zoo_core.plan.resolve import consumed, resolve
from zoo_core.registry.bind import Bound
from zoo_core.registry.catalog import catalog
from zoo_core.registry.local_plugins import plugin_hashes
from zoo_core.results.store import Result, latest, read
from zoo_core.results.waiting import undecided_in, waiting_text
from zoo_core.run_layout import RESULTS

__all__ = ["lines_of", "plan"]

LISTED = ("unpublished", "teachers")  # what is left out where there is none


@click.command()
@click.argument("what", shell_complete=complete_spec)
@click.option("--task", help="The task that a spec is planned for.", shell_complete=complete_tasks)
@click.option("--seed", type=int, help="The seed that a spec is planned with; 0 unless given.")
@lock_option
@click.option(
    "--out",
    "done",
    type=click.Path(path_type=Path),
    help="Folder of a run, which says what is done and how long.",
)
@click.option("--json", "as_json", is_flag=True, help="A stable schema for programs.")
def plan(what: str, task: str | None, seed: int | None, lock: Path | None, done: Path | None, as_json: bool) -> None:
    """Show what a spec or a suite file would build, train and share, and what would be refused, with reasons.

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
        found, plans = grid.plans, [_row(each) for each in grid.plans]
        refusals = [{"trial": str(refusal.trial), "reason": refusal.reason} for refusal in grid.refusals]
    else:
        if task is None:
            raise UsageError("zoo plan SPEC needs --task; `zoo list task` shows what there is")
        one = resolve(what, task=told(task, lock=lock), budget=Budget().for_fit(), seed=seed or 0, pins=pins)
        check_shots(one)
        found, plans, refusals = (one,), [_row(one)], []
    groups = _groups(found, _known(done))
    waiting = _waiting(found, done)
    if as_json:
        click.echo(json.dumps({"plans": plans, "groups": groups, "refusals": refusals}, indent=2))
        return
    for row in plans if len(plans) == 1 else ():
        for line in _lines(row):
            click.echo(line)
    if len(plans) > 1:
        for row in plans:
            files = f"  unpublished: {', '.join(row['unpublished'])}" if row["unpublished"] else ""
            click.echo(f"{row['trial']}  {_stages(row['first_stage'], row['num_stages'])}{files}")
        click.echo(f"{len(plans)} trials, {sum(max(1, len(row['learning_rates'])) for row in plans)} fits")
    budget = found[0].budget
    if budget.rungs:
        rungs = ", ".join(map(str, budget.rungs))
        click.echo(f"halving: after {rungs} of {budget.epochs} epochs the better half goes on, by validation")
    if waiting:
        click.echo(f"{waiting_text(waiting)}; `zoo bench {what} --out {done}` goes on with them")
    for line in _group_lines(groups) if what.endswith(".toml") else ():
        click.echo(line)
    for refusal in refusals:
        click.echo(f"refused: {refusal['trial']}: {refusal['reason']}")


def _known(folder: Path | None) -> Mapping[str, Result]:
    """The results of a run that count, by digest."""
    if folder is None:
        return {}
    return latest(read(folder / RESULTS))


def _waiting(plans: Sequence[Plan], folder: Path | None) -> list[Result]:
    """The rows of those trials of a run that wait at a rung of halving."""
    if folder is None:
        return []
    known, wanted = _known(folder), {plan.digest for plan in plans}
    return [row for digest, row in undecided_in(folder).items() if digest in wanted and digest not in known]


def _groups(plans: Sequence[Plan], known: Mapping[str, Result]) -> list[dict[str, Any]]:
    """The groups of trials that run together. seconds: of those of which a result is stored, else of one like them."""
    rows = []
    for group in plan_groups(plans):
        members = [plans[position] for position in group.positions]
        alone = group.alone
        if group.shape == "rows" and members[0].budget.rungs:
            alone = ONE_BY_ONE
        results = [known[each.digest or ""] for each in members if each.digest in known]
        seconds = [result.train_seconds for result in results if result.train_seconds is not None]
        rows.append(
            {
                "group": group.id,
                "trials": [str(each.trial) for each in members],
                "shares": None if alone else _shared_by(members, group.shape),
                "reason": alone or None,
                "bytes": _feature_bytes(members) if group.shape == "features" else None,
                "done": len(results),
                "seconds": sum(seconds) / len(seconds) * len(members) if seconds else None,
            }
        )
    return rows


def _shared_by(plans: Sequence[Plan], shape: str) -> str:
    first = plans[0]
    if shape == "rows":
        return f"steps of {first.spec} on {first.trial.task}, where they are faster together"
    assert first.task is not None, "a trial has a task"
    num = open_stages(first)
    what = f"states that enter the last {f'{num} stages' if num > 1 else 'stage'}" if num else "features"
    cuts = sorted({depth_of(each): str(each.backbone.canonical()) for each in plans}.items(), reverse=True)
    passed = f" in one pass with {', '.join(name for _, name in cuts[1:])}" if len(cuts) > 1 else ""
    return f"{what} of {cuts[0][1]}{passed} on {first.task.name}"


def _feature_bytes(plans: Sequence[Plan]) -> int | None:
    """What the pooled features of a task take in float32; None where the catalogue does not know both their sizes."""
    first = plans[0]
    task = catalog().find(first.task.name, "task") if first.task is not None else None
    entry = first.entry
    if task is None or entry is None or entry.features is None or not task.splits:
        return None
    if len({depth_of(each) for each in plans}) > 1:  # nor the widths of cuts
        return None
    if open_stages(first) or any(consumed(each.head, each.target) != "pooled" for each in plans):
        return None
    return 4 * sum(task.splits.values()) * entry.features.width("pooled")


def _group_lines(groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each group whose trials share something, and one for each reason why trials share nothing."""
    alone: dict[str, list[Mapping[str, Any]]] = {}
    for row in groups:
        if row["reason"] is not None:
            alone.setdefault(row["reason"], []).append(row)
            continue
        size = "" if row["bytes"] is None else f", {row['bytes'] / 2**20:,.1f} MiB"
        size = ", bytes unknown" if not size and row["shares"].startswith("features") else size
        yield f"group {row['group']}: {_counted([row])}; {row['shares']}{size}"
    for reason, rows in alone.items():
        yield f"alone: {_counted(rows)}; {reason}"


def _counted(rows: Sequence[Mapping[str, Any]]) -> str:
    num, done = sum(len(row["trials"]) for row in rows), sum(row["done"] for row in rows)
    known = [row["seconds"] for row in rows if row["seconds"] is not None]
    seconds = f"about {sum(known):.3g} s" if len(known) == len(rows) else "seconds unknown"
    return f"{num} trial{'s' if num > 1 else ''}, {done} done, {seconds}"


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
