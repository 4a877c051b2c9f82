"""Completion of names from the static index, and `zoo completion SHELL`, the script that a shell reads. No torch.

What stands before the last `+` or comma of a word is kept, so specs and lists of them are completed part by part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

import click

from zoo_core.errors import ZooError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from zoo_core.contracts import PartKind

__all__ = [
    "complete_adapters",
    "complete_augmentations",
    "complete_backbones",
    "complete_heads",
    "complete_listed",
    "complete_names",
    "complete_spec",
    "complete_tasks",
    "completion",
]

Complete: TypeAlias = "Callable[[click.Context, click.Parameter, str], list[CompletionItem]]"

VARIABLE = "_ZOO_COMPLETE"
_LAST = re.compile(r"(?:.*[+,])?", re.DOTALL)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what a shell reads to complete commands, options and names.

    \b
    eval "$(zoo completion bash)"                                     in ~/.bashrc
    eval "$(zoo completion zsh)"                                      in ~/.zshrc
    zoo completion fish > ~/.config/fish/completions/zoo.fish
    """  # noqa: D301 - click reads the character \b as: keep these lines
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None, "click knows the shells of the choice"
    zoo = click.get_current_context().find_root().command
    click.echo(found(zoo, {}, "zoo", VARIABLE).source())


def complete_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Any name."""
    from zoo_core.registry.index import PART_KINDS

    return _items(_names(PART_KINDS, incomplete), incomplete)


def complete_listed(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What `zoo list` takes: a kind, or a name."""
    from zoo_core.registry.index import PART_KINDS

    return _items([*PART_KINDS, *_names(PART_KINDS, incomplete)], incomplete)


def complete_spec(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A backbone, then adapters and heads; a file or a folder where no name begins like it."""
    return _chain(incomplete, ("adapter", "head") if "+" in incomplete else ("backbone",))


def complete_tasks(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A task, or the path of files."""
    return _chain(incomplete, ("task",))


def complete_backbones(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Backbones with commas between."""
    return _chain(incomplete, ("backbone",))


def complete_adapters(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Adapters, chains of them, and the head that a chain may end in."""
    return _chain(incomplete, ("adapter", "head") if "+" in incomplete.rpartition(",")[2] else ("adapter",))


def complete_heads(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Heads with commas between."""
    return _chain(incomplete, ("head",))


def complete_augmentations(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """An augmentation, or none."""
    return _items(["none", *_names(("augmentation",), incomplete)], incomplete)


def _chain(incomplete: str, kinds: tuple[PartKind, ...]) -> list[CompletionItem]:
    """The last part of a word, unless it is among the arguments of one; a path where no name fits a whole word."""
    from click.shell_completion import CompletionItem

    match = _LAST.match(incomplete)
    assert match is not None, "it fits the empty text"
    before = match.group()
    if incomplete.count("(") > incomplete.count(")"):
        return []
    found = _items((f"{before}{name}" for name in _names(kinds, incomplete[len(before) :])), incomplete)
    return found if found or before else [CompletionItem(incomplete, type="file")]


def _names(kinds: Iterable[PartKind], begun: str) -> list[str]:
    """The usable names of some kinds; before anything is typed, a namespace with many of them is its first segment."""
    from zoo_core.cli.listing import MANY
    from zoo_core.registry.index import load_index

    try:
        providers = load_index().providers
    except ZooError:  # settings that cannot be used: the command itself tells of them
        return []
    wanted = frozenset(kinds)
    names = [each.name for each in providers if each.kind in wanted and each.state == "ok"]
    if begun:
        return names
    spaces: dict[str, list[str]] = {}
    for name in names:
        spaces.setdefault(name.partition("/")[0], []).append(name)
    return [name for space, held in spaces.items() for name in (held if len(held) <= MANY else [f"{space}/"])]


def _items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in dict.fromkeys(names) if name.startswith(incomplete)]
