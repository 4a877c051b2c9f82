"""Completes names from the static index, and prints the shell's script (`zoo completion SHELL`). No torch is imported.

The text before the last `+` or comma of a word is kept, so specs and lists of specs are completed part by part.
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
    """Completes a name of any kind."""
    from zoo_core.registry.index import PART_KINDS

    return _items(_names(PART_KINDS, incomplete), incomplete)


def complete_listed(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes an argument of `zoo list`: a kind, or a name."""
    from zoo_core.registry.index import PART_KINDS

    return _items([*PART_KINDS, *_names(PART_KINDS, incomplete)], incomplete)


def complete_spec(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes a spec: first a backbone, then adapters and heads.

    If no backbone begins with the text, it is completed as the path of a file or folder.
    """
    return _chain(incomplete, ("adapter", "head") if "+" in incomplete else ("backbone",))


def complete_tasks(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the name of a task, or the path of a file or folder."""
    return _chain(incomplete, ("task",))


def complete_backbones(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes a list of backbones, separated by commas."""
    return _chain(incomplete, ("backbone",))


def complete_adapters(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes a list of adapters; an entry may be a chain joined by `+`, which may end in a head."""
    return _chain(incomplete, ("adapter", "head") if "+" in incomplete.rpartition(",")[2] else ("adapter",))


def complete_heads(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes a list of heads, separated by commas."""
    return _chain(incomplete, ("head",))


def complete_augmentations(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the name of an augmentation, or the word none."""
    return _items(["none", *_names(("augmentation",), incomplete)], incomplete)


def _chain(incomplete: str, kinds: tuple[PartKind, ...]) -> list[CompletionItem]:
    """Completes the last part of a word, which begins after the last `+` or comma.

    Nothing is offered inside the parentheses of a part's arguments. If the word is a single part and no name begins
    with it, the shell completes it as a path.
    """
    from click.shell_completion import CompletionItem

    match = _LAST.match(incomplete)
    assert match is not None, "it fits the empty text"
    before = match.group()
    if incomplete.count("(") > incomplete.count(")"):
        return []
    found = _items((f"{before}{name}" for name in _names(kinds, incomplete[len(before) :])), incomplete)
    return found if found or before else [CompletionItem(incomplete, type="file")]


def _names(kinds: Iterable[PartKind], begun: str) -> list[str]:
    """The usable names of some kinds.

    begun: the text typed so far. If it is empty, a namespace with more than MANY names is given as its first segment.
    """
    from zoo_core.cli.listing import MANY
    from zoo_core.registry.index import load_index

    try:
        providers = load_index().providers
    except ZooError:  # the settings are faulty, which the command itself will report
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
