"""`zoo list` (all names), `zoo show` (one name in full), `zoo doctor` (the health of plugins). No torch is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from zoo_core.cli import listing
from zoo_core.cli.completion import complete_listed, complete_names
from zoo_core.cli.health import Health, check_up
from zoo_core.errors import PluginError
from zoo_core.registry.registry import registry
from zoo_core.registry.registry import show as describe
from zoo_core.results.columns import aligned

__all__ = ["doctor", "list_", "show"]


@click.command("list")
@click.argument("words", nargs=-1, metavar="[KIND] [PATTERN]", shell_complete=complete_listed)
@click.option(
    "--json", "as_json", is_flag=True, help="An array of {name, kind, distribution, version, state, summary}."
)
def list_(words: tuple[str, ...], as_json: bool) -> None:
    """List what can be named. KIND is backbone, adapter, head or task; PATTERN may hold * and ?.

    The state is ok, or why a name cannot be used: broken, incompatible, ambiguous or disallowed. Without PATTERN a
    namespace with many names is one line.

    \b
    zoo list
    zoo list backbone 'starter/*'
    """  # noqa: D301 - click reads the character \b as: keep these lines
    if len(words) > 2:
        raise click.UsageError(f"found {len(words)} words, allowed are a kind and a pattern")
    listing.run(words, as_json=as_json, index=registry().index)


@click.command()
@click.argument("name", shell_complete=complete_names)
@click.option("--json", "as_json", is_flag=True, help="A stable schema for programs.")
def show(name: str, as_json: bool) -> None:
    """Show one name in full: its arguments with types and defaults, what is known of it, who provides it.

    A part that cannot be used is shown with the reason, and the exit code is 6.

    \b
    zoo show starter/vit-nano
    zoo show head:linear
    """  # noqa: D301 - click reads the character \b as: keep these lines
    shown = describe(name)
    click.echo(json.dumps(shown, indent=2) if as_json else _page(shown))
    if shown["state"] != "ok":
        raise PluginError(shown["problem"])


def _page(shown: Mapping[str, Any]) -> str:
    lines = [f"{shown['name']}  {shown['kind']} of {shown['distribution']} {shown['version']}"]
    is_said = shown["documentation"].startswith(shown["summary"])  # as an adapter's documentation does
    lines += [text for text in ("" if is_said else shown["summary"], shown["documentation"]) if text]
    rows = [(row["name"], "required" if row["required"] else row["default"], row["type"]) for row in shown["arguments"]]
    if rows:
        table = [f"  {line}" for line in aligned(rows)]
        lines.append("\n".join(["arguments, their defaults and types:", *table]))
    elif shown["state"] == "ok":
        lines.append("It takes no arguments.")
    if shown["facts"]:
        width = max(map(len, shown["facts"]))
        facts = [f"  {key:{width}}  {_fact(value)}" for key, value in shown["facts"].items()]
        lines.append("\n".join(["what is known of it:", *facts]))
    return "\n\n".join(lines)


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items() if item not in (None, "", (), []))
    if isinstance(value, list | tuple):
        return " ".join(map(_fact, value))
    return f"{value:,}" if type(value) is int else str(value)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A stable schema for programs.")
def doctor(as_json: bool) -> None:
    """Check every plugin: its version, names, range of zoo-core and state, load it, and see what it says of itself.

    The exit code is 6 if a name that is allowed cannot be used, else 0; broken metadata of packages that have nothing
    to do with zoo is shown and does not count.
    """
    health = check_up()
    click.echo(json.dumps(health.as_json(), indent=2) if as_json else _findings(health))
    if not health.is_well:
        raise PluginError(f"{health.num_problems} problems, each shown above with what to do")


def _findings(health: Health) -> str:
    """A line for each distribution with its problems below it, followed by everything else that was found."""
    rows = [
        (
            found.name,
            found.version,
            found.state,
            f"{len(found.names)} names",
            f"zoo-core {found.requires}" if found.requires else "no range",
            "" if found.import_seconds is None else f"{1000 * found.import_seconds:.0f} ms",
        )
        for found in health.distributions
    ]
    lines: list[str] = []
    for found, line in zip(health.distributions, aligned(rows), strict=True):
        lines.append(line)
        lines += [f"    {problem}" for problem in found.problems]
    lines += [f"record {found.name} of {found.distribution}: {found.problem}" for found in health.records]
    lines += health.groups
    lines += health.suffixes
    lines += [f"not zoo's: {problem}" for problem in health.foreign]
    lines += [f"behind another copy on sys.path, not used: {path}" for path in health.shadowed]
    lines += [f"left over by an interrupted pip, may be removed: {path}" for path in health.leftovers]
    lines.append(f"zoo-core {health.core_version or 'from a plain folder'}; cache {health.cache}; {health.settings}")
    return "\n".join(lines)
