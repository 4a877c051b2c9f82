"""The group of commands. The module of a command is imported when it is called; `zoo --help` imports none."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zoo_core.contracts import TRUSTS
from zoo_core.errors import nearest
from zoo_core.registry.settings import settings_file

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["COMMANDS", "TAKE_PLUGINS", "TAKE_STORED", "run"]

# Name of a command -> its module and function, and its line in `zoo --help`, in the order shown there.
COMMANDS: dict[str, tuple[str, str]] = {
    "list": ("zoo_core.cli.names:list_", "What can be named: backbones, adapters, heads, tasks and more."),
    "show": ("zoo_core.cli.names:show", "One name in full: arguments, facts, who provides it."),
    "plan": ("zoo_core.cli.plan:plan", "What would be built and trained, and what is refused."),
    "data": ("zoo_core.cli.data:data", "What a folder or a table is, as a task."),
    "rank": ("zoo_core.cli.rank:rank", "Which backbone for these data, without training."),
    "bench": ("zoo_core.cli.bench:bench", "Run a grid of trials, print the ranked table."),
    "report": ("zoo_core.cli.bench:report", "The table of stored results."),
    "fit": ("zoo_core.cli.models:fit", "Train one model and store it."),
    "distill": ("zoo_core.cli.models:distill", "Train a student on what a teacher says, without labels."),
    "evaluate": ("zoo_core.cli.models:evaluate", "Score a stored model."),
    "predict": ("zoo_core.cli.predict:predict", "Use a stored model on files."),
    "embed": ("zoo_core.cli.predict:embed", "Store the features of files."),
    "export": ("zoo_core.cli.export:export", "Write a stored model as a plain checkpoint."),
    "fetch": ("zoo_core.cli.hub:fetch", "Download what is named, for work with no network."),
    "lock": ("zoo_core.cli.hub:lock", "Pin versions, commits and hashes; check a lock."),
    "verify": ("zoo_core.cli.hub:verify", "Hash downloaded files again."),
    "push": ("zoo_core.cli.hub:push", "Publish a stored model on the Hub."),
    "cache": ("zoo_core.cli.cache:cache", "What lies in the caches; remove some of it."),
    "config": ("zoo_core.cli.config:config", "What is set, and where."),
    "completion": ("zoo_core.cli.completion:completion", "What a shell reads to complete names."),
    "doctor": ("zoo_core.cli.names:doctor", "The health of every plugin."),
}

# Commands that look up names or build from them; they take --plugin.
TAKE_PLUGINS = frozenset(
    {
        "list",
        "show",
        "plan",
        "data",
        "rank",
        "bench",
        "report",
        "fit",
        "distill",
        "evaluate",
        "predict",
        "embed",
        "export",
        "fetch",
        "lock",
        "verify",
    }
)

# Commands that may resolve specs stored in runs, suite files or records; they take --trust.
TAKE_STORED = (TAKE_PLUGINS | {"push"}) - {"list", "show"}


def plugin_option() -> click.Option:
    """The option `--plugin FILE`, which makes the recipes of a file usable by name. No file is searched for."""
    return click.Option(
        ["--plugin"],
        multiple=True,
        expose_value=False,
        is_eager=True,  # handled before names in other options are looked up
        type=click.Path(),
        metavar="FILE",
        callback=lambda ctx, option, files: _add_plugins(ctx, files),
        help="A Python file with recipes, usable by name; may be given again.",
    )


def trust_option() -> click.Option:
    """The option `--trust WORD`, which says what stored specs may ask for in this call."""
    return click.Option(
        ["--trust"],
        multiple=True,
        expose_value=False,
        metavar="|".join(TRUSTS),
        is_eager=True,
        callback=lambda ctx, option, words: _trust(ctx, words),
        help="Let stored runs, suite files and records ask for this; may be given again.",
    )


class LazyGroup(click.Group):
    """A group whose commands are those of COMMANDS, each imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command), f"{module}:{name} is no command"
        if cmd_name in TAKE_PLUGINS and not any(option.name == "plugin" for option in command.params):
            command.params.append(plugin_option())
        if cmd_name in TAKE_STORED and not any(option.name == "trust" for option in command.params):
            command.params.append(trust_option())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not ctx.resilient_parsing:
            ctx.fail(f"no command {args[0]!r}; there are {', '.join(COMMANDS)}{nearest(args[0], COMMANDS)}")
        if args and not ctx.resilient_parsing and not {"-h", "--help"} & set(args) and _has_settings():
            from zoo_core.cli.config import defaults  # imported only if there are settings

            ctx.default_map = {args[0]: defaults(args[0])}
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Completes commands from COMMANDS, so that none is imported, and options as click does."""
        from click.shell_completion import CompletionItem  # needed only when a shell asks for completion

        found = [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--plugin",
    multiple=True,
    expose_value=False,
    is_eager=True,
    type=click.Path(),
    metavar="FILE",
    callback=lambda ctx, option, files: _add_plugins(ctx, files),
    help="A Python file with recipes, usable by name; also after the command.",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=lambda ctx, _, on: _version(ctx, on)
)
def zoo() -> None:
    """Turn a name into a transfer-learning model, and measure which combination of parts is best for a task.

    \b
    zoo bench                                        the starter suite: three minutes, no network
    zoo list backbone
    zoo fit 'starter/vit-nano+full' --task digits --out runs/mine
    """  # noqa: D301 - click reads the character \b as: keep these lines


def run(words: Sequence[str]) -> int:
    """Runs one command and returns its exit code.

    Prints the usage errors that click finds. Raises what the command raises, and KeyboardInterrupt if it was aborted.
    """
    try:
        code = zoo.main(list(words), prog_name="zoo", standalone_mode=False)
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        where = f" (see zoo {_path(error)}--help)" if isinstance(error, click.UsageError) else ""
        click.echo(f"zoo: {' '.join(error.format_message().split())}{where}", err=True)
        return error.exit_code
    return code if isinstance(code, int) else 0


def _path(error: click.UsageError) -> str:
    return f"{error.ctx.command_path.removeprefix('zoo').strip()} ".lstrip() if error.ctx is not None else ""


def _add_plugins(ctx: click.Context, files: Sequence[str]) -> None:
    if files and not ctx.resilient_parsing:  # completion in a shell never runs the code of a plugin file
        from zoo_core.registry.local_plugins import add_plugin  # imported only if a file is given

        for file in files:
            add_plugin(file)


def _trust(ctx: click.Context, words: Sequence[str]) -> None:
    if words and not ctx.resilient_parsing:
        from zoo_core.registry.trust import trusting  # imported only if --trust is given

        ctx.with_resource(trusting(*words))


def _has_settings() -> bool:
    """Whether anything may set a default: a ZOO_* variable, zoo.toml in this folder, or the user's own file."""
    files = ("zoo.toml", settings_file())
    return any(name.startswith("ZOO_") for name in os.environ) or any(Path(file).exists() for file in files)


def _version(ctx: click.Context, wanted: bool) -> None:
    if wanted:
        from zoo_core import __version__

        click.echo(f"zoo {__version__}")
        ctx.exit()
