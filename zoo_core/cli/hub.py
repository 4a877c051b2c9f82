"""`zoo fetch`, `zoo lock`, `zoo verify`, `zoo push`: download pinned weights and check them, upload a fitted model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from zoo_core._process.atomic_files import alone_in
from zoo_core.benchmark.grid import expand, load_suite
from zoo_core.cli.completion import complete_spec, complete_tasks
from zoo_core.cli.downloads import count_text, downloading, size_text
from zoo_core.cli.options import lock_file
from zoo_core.contracts import TARGET_KINDS, Target
from zoo_core.errors import (
    AccessError,
    IncompatibleError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    UsageError,
    ZooError,
)
from zoo_core.files.folders import check_locked, look
from zoo_core.lock import Pinned, lock_of, part_key, pin_of, pins_of, read_lock, read_pins, write_lock
from zoo_core.plan.plan import Plan, needed
from zoo_core.plan.resolve import resolve
from zoo_core.registry.local_plugins import lacking as not_given
from zoo_core.run_layout import LOCK
from zoo_core.runs.backbones import plans_below

__all__ = ["fetch", "lock", "push", "verify"]

SHOWN = 5  # differences, or errors, that one message names
PUBLISHED = "hub/"  # prefix of a model that `zoo push` put on the Hub

what_arguments = click.argument("what", nargs=-1, metavar="[SPEC | SUITE.toml]...", shell_complete=complete_spec)
task_option = click.option(
    "--task", help="The task of the specs; its files are taken along.", shell_complete=complete_tasks
)
json_option = click.option("--json", "as_json", is_flag=True, help="A stable schema for programs.")


@click.command()
@what_arguments
@task_option
@click.option("--lock", "file", type=click.Path(path_type=Path), help=f"Its pins come first; {LOCK} of this folder.")
@json_option
def fetch(what: tuple[str, ...], task: str | None, file: Path | None, as_json: bool) -> None:
    """Download what specs and suites are built from, check it, and say where it is; then they work with no network.

    Without a spec, all that the lock pins.

    \b
    zoo fetch 'hf/sentence-transformers/all-MiniLM-L6-v2' my-suite.toml
    zoo fetch --lock zoo.lock
    """  # noqa: D301 - click reads the character \b as: keep these lines
    from zoo_core.files.fetch import folder, pin_plans

    pins = read_pins(lock_file(file))
    if what:
        plans = pin_plans(_plans(what, task, pins))
        if any(plan.deferred for plan in plans):
            from zoo_core.model.build import check_outline  # imports torch, for checks that need a built backbone

            for plan in plans:
                check_outline(plan)
        wanted = _needed(_with_chains(plans))
    elif pins:
        wanted = {key: (pin, tuple(pin.files)) for key, pin in pins.items()}
    else:
        raise UsageError(f"zoo fetch takes specs or suites, or a --lock; there is no {LOCK} here")
    rows = []
    with downloading() as progress:
        for key, (pin, names) in wanted.items():
            if not names or (pin.repository is None and pin.folder is None):
                continue  # the part reads no file, or its files are inside an installed package
            place = folder(pin, names, progress=progress)
            rows.append(_row(key, pin, names) | {"path": str(place)})
            if not as_json:
                click.echo(f"{_pin_line(rows[-1])}  {place}")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif not rows:
        click.echo("nothing to fetch: all of it is in installed packages")


@click.command()
@what_arguments
@task_option
@click.option("--lock", "file", type=click.Path(path_type=Path), default=Path(LOCK), show_default=True)
@click.option("--check", is_flag=True, help="Write nothing, ask nobody: does the lock fit what is installed?")
def lock(what: tuple[str, ...], task: str | None, file: Path, check: bool) -> None:
    """Write down what specs and suites are made with now: each part's version, commit, and sha256 of its files.

    What else the lock holds stays. With --check the exit code is 6 where the lock is not what is installed, where a
    pin is not complete, or where a spec has a part that the lock lacks.

    \b
    zoo lock 'timm/resnet18.a1_in1k+partial(n=2)' my-suite.toml
    zoo lock --check
    """  # noqa: D301 - click reads the character \b as: keep these lines
    if check:
        click.echo(_checked(what, task, file))
        return
    if not what:
        raise UsageError("zoo lock takes specs or suites; zoo lock --check compares a lock with what is installed")
    from zoo_core.files.fetch import pin_plans

    plans = pin_plans(_plans(what, task, {}))
    fresh = lock_of(
        [part for plan in plans for part in plan.parts], {k: p for plan in plans for k, p in plan.pins.items()}
    )
    try:
        with alone_in(file.parent):  # another `zoo lock` may be adding to the same file
            parts = (read_lock(file) or lock_of([], {}))["parts"] | fresh["parts"]
            write_lock(file, fresh | {"parts": dict(sorted(parts.items()))})
    except OSError as error:
        raise AccessError(f"{file} cannot be written ({error.strerror}); give --lock another file") from error
    for key, row in fresh["parts"].items():
        files = row.get("files", {})
        told = (
            f"{count_text(len(files), 'file')}, {size_text(file['size'] for file in files.values())}"
            if files
            else "no files"
        )
        commit = f" at {row['revision'][:12]}" if "revision" in row else ""
        click.echo(f"{key}  {row['distribution']} {row['version']}  {told}{commit}")
    click.echo(f"{len(fresh['parts'])} parts in {file}, {len(parts) - len(fresh['parts'])} others kept")


@click.command()
@what_arguments
@task_option
@click.option("--lock", "file", type=click.Path(path_type=Path), help=f"Its pins come first; {LOCK} of this folder.")
@json_option
def verify(what: tuple[str, ...], task: str | None, file: Path | None, as_json: bool) -> None:
    """Hash every file again, whatever is remembered of it; nothing is downloaded or removed.

    Without a spec, all that the lock pins. The exit code is 5 where a file is not what was pinned, 3 where one is not
    on this machine.

    \b
    zoo verify --lock runs/mine/zoo.lock
    """  # noqa: D301 - click reads the character \b as: keep these lines
    from zoo_core.files.fetch import pin as pin_of
    from zoo_core.files.fetch import verify as check

    pins = read_pins(lock_file(file))
    if not what and not pins:
        raise UsageError(f"zoo verify takes specs or suites, or a --lock; there is no {LOCK} here that pins a file")
    wanted = {} if what else pins
    for plan in _plans(what, task, pins):
        wanted |= plan.pins
        wanted |= {key: pin_of(plan.sources[key], offline=True, weights="random") for key in plan.unpinned}
    rows: list[dict[str, Any]] = []
    wrong: list[ZooError] = []
    for key, pin in wanted.items():
        if pin.repository is None and pin.folder is None:
            continue  # its files are inside an installed package; the plugin checks them at each build
        found = check(pin)
        wrong += found.values()
        rows.append(_row(key, pin, tuple(pin.files)) | {"wrong": {name: str(error) for name, error in found.items()}})
        if not as_json:
            click.echo(f"{_pin_line(rows[-1])}  {f'{len(found)} wrong or missing' if found else 'as pinned'}")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    damaged = [error for error in wrong if isinstance(error, IntegrityError)]
    if damaged:
        raise IntegrityError(f"{_listed(damaged)}; get them again: zoo fetch SPEC")
    if wrong:
        raise NotFoundError(f"{_listed(wrong)}; get them: zoo fetch SPEC")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repository", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="For you and yours alone, if the repository is new.")
def push(folder: Path, repository: str, private: bool) -> None:
    """Upload a fitted model to the Hub: what fitting changed, its lock, its results and a model card, in one commit.

    Your token comes from `hf auth login` or HF_TOKEN. zoo_core.load_run("hub/ORG/NAME") loads it anywhere.

    \b
    zoo push runs/my-digits me/my-digits
    """  # noqa: D301 - click reads the character \b as: keep these lines
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from zoo_core.runs.card import push_run

    if not sys.stderr.isatty():
        disable_progress_bars()
    repository = repository.removeprefix(PUBLISHED)
    click.echo(push_run(folder, repository, private=private))
    click.echo(f'zoo_core.load_run("{PUBLISHED}{repository}") loads it', err=True)


# --- plans and the files they read ------------------------------------------------------------------------------------


def _plans(what: Sequence[str], task: str | None, pins: Mapping[str, Pinned], *, offline: bool = False) -> list[Plan]:
    """The plans of specs, suite files and published models. What no lock, catalogue or record pins stays unpinned."""
    plans: list[Plan] = []
    for text in what:
        if text.endswith(".toml"):
            plans += expand(load_suite(Path(text)), pins=pins, offline=offline).plans
        elif text.startswith(PUBLISHED) and not {*"+("} & {*text}:
            from zoo_core.files.fetch import fetch_run
            from zoo_core.runs.stored_run import read_run

            plans.append(read_run(fetch_run(text.removeprefix(PUBLISHED)), needs_task=False).plan)
        else:
            plans.append(_plan(text, task, pins, offline))
    return plans


def _with_chains(plans: Iterable[Plan]) -> Iterator[Plan]:
    """Each plan, followed by the plans of the stored runs that its backbone was made from or that teach it."""
    for plan in plans:
        yield plan
        yield from plans_below(plan)


def _plan(text: str, task: str | None, pins: Mapping[str, Pinned], offline: bool) -> Plan:
    """The plan of a spec for a task, or, without a task, for the first kind of target that its head can predict.

    Raises RefusedError if there is no such kind.
    """
    if task is not None:
        return resolve(text, task=task, pins=pins, offline=offline)
    refusals = []
    for kind in TARGET_KINDS:
        try:
            return resolve(text, target=Target(kind=kind, size=2), pins=pins)
        except RefusedError as error:
            refusals.append(error)
    raise refusals[0]


def _needed(plans: Iterable[Plan]) -> dict[str, tuple[Pinned, tuple[str, ...]]]:
    """For the key of each pinned part: its pin, and the sorted names of its files that at least one plan reads."""
    wanted: dict[str, tuple[Pinned, tuple[str, ...]]] = {}
    for plan in plans:
        for part in plan.parts:
            key = part_key(part)
            if key in plan.pins:
                pin, weights = plan.pins[key], plan.weights if part is plan.backbone else "pretrained"
                names = needed(plan.sources.get(key), weights, pin.files)
                wanted[key] = (pin, tuple(sorted({*names, *wanted.get(key, (pin, ()))[1]})))
    return wanted


def _checked(what: Sequence[str], task: str | None, file: Path) -> str:
    """The line to print if the lock describes what is installed and what the specs need.

    Raises NotFoundError if there is no lock, and IncompatibleError with the first SHOWN differences.
    """
    held = read_lock(file)
    if held is None:
        raise NotFoundError(f"there is no lock {file}; zoo lock SPEC --lock {file} writes one")
    differences = []
    for key, row in held["parts"].items():
        name, version = row["distribution"], row["version"]
        try:
            installed = version if row.get("sha256") else metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = None
        if row.get("sha256") and not_given({key: row}):
            differences.append(f"{key} is of the plugin file {name} ({row['sha256'][:12]}), and no --plugin gives it")
        if installed != version:
            is_now = f"{installed} is installed" if installed else "it is not installed"
            differences.append(f"{key} is of {name} {version}, and {is_now}")
        lacking = _lacking(row)
        if lacking:
            differences.append(f"{key} has {lacking}")
    for plan in _plans(what, task, pins_of(held), offline=True):
        keys = [part_key(part) for part in plan.parts]
        named = {key for part, key in zip(plan.parts, keys, strict=True) if pin_of(pins_of(held), part) is not None}
        differences += [f"{key} is not in it" for key in dict.fromkeys(keys) if key not in {*held["parts"], *named}]
        differences += [
            f"{key} is not pinned" for key in plan.unpinned if key in held["parts"] and plan.sources[key].folder is None
        ]
        differences += _changed(plan)
    if differences:
        shown = "; ".join(list(dict.fromkeys(differences))[:SHOWN])
        raise IncompatibleError(
            f"{file} is not what is here: {shown}; install what it names, or write it again: zoo lock SPEC"
        )
    return f"{file} fits: {len(held['parts'])} parts, {len(pins_of(held))} with files"


def _changed(plan: Plan) -> Iterator[str]:
    """A message for each local folder of the plan whose content is no longer what the lock says."""
    for key, source in plan.sources.items():
        try:
            if source.folder is not None:
                check_locked(key, plan.locked, look(source, "random"))
        except ZooError as error:
            yield str(error)


def _lacking(row: Mapping[str, Any]) -> str:
    """What makes a row of a lock incomplete, such as `a repository and no commit`; empty if it is complete."""
    pin = pins_of({"parts": {"": row}}).get("")
    if pin is None:
        return "a source and no files" if "repository" in row or "folder" in row else ""
    if pin.repository is not None and not _is_hex(pin.revision or "", 40):
        return "a repository and no commit"
    wrong = [name for name, file in pin.files.items() if not _is_hex(file.sha256, 64)]
    return f"no sha256 of {wrong[0]}" if wrong else "" if pin.files else "no files"


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and not text.strip("0123456789abcdef")


# --- text for people -------------------------------------------------------------------------------------------------


def _row(key: str, pin: Pinned, names: Sequence[str]) -> dict[str, Any]:
    files = {name: {"sha256": pin.files[name].sha256, "size": pin.files[name].size} for name in names}
    return {
        "part": key,
        "repository": pin.repository,
        "revision": pin.revision,
        "folder": pin.folder,
        "files": files,
        "size": sum(file["size"] for file in files.values()),
    }


def _pin_line(row: Mapping[str, Any]) -> str:
    place = f"{row['repository']} at {row['revision'][:12]}" if row["repository"] else row["folder"]
    return f"{row['part']}  {place}  {count_text(len(row['files']), 'file')}, {size_text([row['size']])}"


def _listed(errors: Sequence[ZooError]) -> str:
    more = f", and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
    return ", ".join(str(error) for error in errors[:SHOWN]) + more
