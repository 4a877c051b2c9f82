"""`zoo config`, and where the defaults of options come from.

A flag overrides a ZOO_* variable, which overrides zoo.toml, then the user's file, then the built-in default. Only the
command line reads zoo.toml, from the working directory. It may hold options and [budget] and nothing else: which
plugins may run, who owns a name and where files are kept is for the user to decide, never for a folder. Of click's own
means only the default map is used, because the variables that click reads have the command in their names, and its
errors name neither the file nor the variable. No torch is imported.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import click

from zoo_core.cli.options import BUDGET_FLAGS, MAX_PROCESSES
from zoo_core.errors import UsageError, nearest
from zoo_core.plan.plan import Budget, budget_from
from zoo_core.registry.settings import OPTIONS, cache_folder, outputs_bytes, read_settings, read_toml, settings_file

__all__ = ["PROJECT", "READS", "Setting", "config", "defaults", "effective"]

PROJECT = "zoo.toml"
# Tables and keys that only the user's file may hold, each with the variable that says the same.
USERS_OWN = {
    "cache": "ZOO_CACHE",
    "outputs_bytes": "ZOO_OUTPUTS_BYTES",
    "plugins": "ZOO_PLUGINS",
    "names": "ZOO_PLUGINS",
}
BUDGET = tuple(flag.removeprefix("--").replace("-", "_") for flag, _, _ in BUDGET_FLAGS)
# Key -> its type, and its value if nothing sets it; for None, `zoo COMMAND --help` says what happens.
SETTINGS: Mapping[str, tuple[click.ParamType[Any], Any]] = {
    "device": (click.STRING, "auto"),
    "lock": (click.STRING, None),
    "num_workers": (click.IntRange(0, MAX_PROCESSES), 0),
    "runs": (click.STRING, "runs"),
    "seeds": (click.IntRange(1), 3),
    "threads": (click.IntRange(1, MAX_PROCESSES), None),
    "workers": (click.IntRange(1, MAX_PROCESSES), None),
    **{
        f"budget.{name}": (click.types.convert_type(kind), getattr(Budget(), name))
        for name, (_, kind, _) in zip(BUDGET, BUDGET_FLAGS, strict=True)
    },
}
# Command -> its parameters whose defaults come from settings. The key has the same name, or the one that KEYS gives.
READS: Mapping[str, tuple[str, ...]] = {
    "bench": ("device", "lock", "seeds", "threads", "workers", *BUDGET),
    "distill": ("device", "lock", "num_workers", "threads", *BUDGET),
    "fit": ("device", "lock", "num_workers", "threads", *BUDGET),
    "evaluate": ("device", "threads"),
    "predict": ("device", "num_workers", "threads"),
    "embed": ("device", "lock", "num_workers", "threads"),
    "plan": ("lock",),
    "fetch": ("file",),
    "lock": ("file",),
    "verify": ("file",),
}
KEYS: Mapping[str, str] = {"file": "lock"} | {name: f"budget.{name}" for name in BUDGET}  # where it differs


class Setting(NamedTuple):
    """A value and where it comes from: `environment:NAME`, `file:PATH` or `default`."""

    value: Any
    origin: str


def defaults(command: str) -> dict[str, Any]:
    """The defaults of a command's parameters that a file or a variable sets; built-in defaults are left out.

    Raises UsageError as `effective` does.
    """
    if command not in READS:
        return {}
    found = effective()
    settings = {name: found[KEYS.get(name, name)] for name in READS[command]}
    return {name: setting.value for name, setting in settings.items() if setting.origin != "default"}


def effective() -> dict[str, Setting]:
    """Every key with the value that it has if no flag is given.

    Raises UsageError for a bad key or value; the message names the file or the variable.
    """
    found = {key: Setting(usual, "default") for key, (_, usual) in SETTINGS.items()}
    for path in (settings_file(), PROJECT):
        found |= _of_file(path)
    for key in SETTINGS:
        variable = _variable(key)
        if variable in os.environ:
            found[key] = Setting(_converted(key, os.environ[variable], variable), f"environment:{variable}")
    return found


def _of_file(path: str) -> dict[str, Setting]:
    """The options and the budget that a settings file sets. Raises UsageError for a key or value that is not valid."""
    content = dict(read_toml(path))
    is_project = path == PROJECT
    for key in USERS_OWN if is_project else ():
        if key in content:
            raise UsageError(
                f"{path}: {key} is for the user to say, not for a folder: write it into {settings_file()}, or set "
                f"{USERS_OWN[key]}"
            )
    known = (*OPTIONS, "budget", *(() if is_project else USERS_OWN))
    for key in content:
        if key not in known:
            raise UsageError(f"{path}: unknown key {key!r}; there are {', '.join(known)}{nearest(key, known)}")
    budget = content.get("budget", {})
    if not isinstance(budget, Mapping):
        raise UsageError(f"{path}: budget is a table, [budget], found {budget!r:.40}")
    for name in budget:
        if name not in BUDGET:
            raise UsageError(f"{path}: [budget] has {', '.join(BUDGET)}, found {name!r}{nearest(name, BUDGET)}")
    given = {key: value for key, value in content.items() if key in OPTIONS}
    given |= {f"budget.{name}": value for name, value in budget.items()}
    return {key: Setting(_converted(key, value, path), f"file:{path}") for key, value in given.items()}


def _converted(key: str, value: Any, origin: str) -> Any:
    """The value, converted to the type of its key.

    origin: the file or variable that the value comes from, for messages. Raises UsageError if the value does not fit.
    """
    kind, _ = SETTINGS[key]
    try:
        if isinstance(value, bool | list | dict) or (isinstance(value, float) and "integer" in kind.name):
            raise click.BadParameter(f"found {value!r}")
        found = kind.convert(value, None, None)
        if key.startswith("budget."):
            budget_from({key.removeprefix("budget."): found})
        if key == "device" and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", found):
            raise click.BadParameter(f"found {found!r}; allowed: auto, cpu, cuda, cuda:N")
    except click.BadParameter as error:
        said = f"found {value!r}; allowed: {_range(kind)}" if isinstance(kind, click.IntRange) else error.message
        raise UsageError(f"{origin}: {key}: {said}") from None
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from None
    return os.path.expanduser(found) if key in ("lock", "runs") else found  # noqa: PTH111 - the value stays a text


def _range(kind: click.IntRange) -> str:
    return f"a whole number from {kind.min}" + (f" to {kind.max}" if kind.max is not None else "")


def _variable(key: str) -> str:
    return f"ZOO_{key.upper().replace('.', '_')}"


# --- zoo config ------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--show-origin", is_flag=True, help="Also where each value comes from.")
@click.option("--json", "as_json", is_flag=True, help="An object of {value, origin} by key.")
def config(show_origin: bool, as_json: bool) -> None:
    """Show what holds where no flag is given, and where it was set.

    A flag goes before an environment variable (ZOO_DEVICE, ZOO_BUDGET_EPOCHS), that before zoo.toml of this folder,
    that before your own file, that before the default. Python calls read neither zoo.toml nor the options.

    \b
    zoo config --show-origin
    """  # noqa: D301 - click reads the character \b as: keep these lines
    found = dict(sorted({**effective(), **dict(_users_own())}.items()))
    for variable, close in _unread(found):
        click.echo(f"nothing reads {variable}{close}", err=True)
    if as_json:
        click.echo(json.dumps({key: setting._asdict() for key, setting in found.items()}, indent=2))
        return
    for key, setting in found.items():
        origin = f"{setting.origin}\t" if show_origin else ""
        click.echo(f"{origin}{key}={_setting_text(setting.value)}")


def _users_own() -> Iterator[tuple[str, Setting]]:
    """The keys of the user's own file: the cache folder, its limit, the allowed plugins, and the owners of names."""
    path, settings = settings_file(), read_settings()
    own = read_toml(path)
    of_file = f"file:{path}"
    is_set = bool(os.environ.get("ZOO_CACHE"))
    yield (
        "cache",
        Setting(cache_folder(), "environment:ZOO_CACHE" if is_set else of_file if "cache" in own else "default"),
    )
    is_set = bool(os.environ.get("ZOO_OUTPUTS_BYTES"))
    origin = "environment:ZOO_OUTPUTS_BYTES" if is_set else of_file if "outputs_bytes" in own else "default"
    yield "outputs_bytes", Setting(outputs_bytes(), origin)
    is_set = "ZOO_PLUGINS" in os.environ
    origin = "environment:ZOO_PLUGINS" if is_set else "default" if settings.allow is None else of_file
    yield "plugins.allow", Setting(settings.allow, origin)
    for name, owner in settings.owners.items():
        yield f"names.{name}", Setting(owner, of_file)


def _unread(found: Mapping[str, Setting]) -> Iterator[tuple[str, str]]:
    """Environment variables that begin with ZOO_ but are not read, each with a hint at the nearest known one."""
    known = {*map(_variable, SETTINGS), *USERS_OWN.values(), "ZOO_CONFIG"}
    for variable in sorted(os.environ):
        if variable.startswith("ZOO_") and variable not in known:
            yield variable, nearest(variable, known)


def _setting_text(value: Any) -> str:
    if value is None:
        return ""
    return ",".join(value) if isinstance(value, list) else str(value)
