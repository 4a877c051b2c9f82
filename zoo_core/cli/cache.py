"""`zoo cache ls`, `rm` and `prune`: list what is in the caches, and remove some of it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from zoo_core.cli.downloads import count_text, size_text
from zoo_core.errors import UsageError
from zoo_core.results.columns import aligned

if TYPE_CHECKING:
    from zoo_core.files.cache import Entry

__all__ = ["cache"]

UNITS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}

dry_option = click.option("--dry-run", is_flag=True, help="Remove nothing, say what would go.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group()
def cache() -> None:
    """What lies in the caches: zoo's own, and of the Hugging Face cache what zoo resolved.

    \b
    zoo cache ls
    zoo cache prune --older-than 30d --dry-run
    """  # noqa: D301 - click reads the character \b as: keep these lines


@cache.command("ls")
@click.option("--json", "as_json", is_flag=True, help="A stable schema for programs.")
def list_(as_json: bool) -> None:
    """List what lies there, the largest first: name, commit, size, files, and when it was last used.

    zoo:ROOM is below ZOO_CACHE (see `zoo config`) and is made again when it is needed, but for the wrong files that lie
    in zoo:set-aside; the rest are repositories of the Hub, in the usual cache of Hugging Face. What lies behind a link
    to a folder is shown and never removed.
    """
    from zoo_core.files.cache import cover

    entries = cover()
    if as_json:
        click.echo(json.dumps([_row(entry) for entry in entries], indent=2))
        return
    _show(entries)
    click.echo(f"{size_text(entry.size_bytes for entry in entries)} in all")


@cache.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@dry_option
@yes_option
def rm(names: tuple[str, ...], dry_run: bool, yes: bool) -> None:
    """Remove by name: ORG/NAME, ORG/NAME@COMMIT, zoo:ROOM, or zoo for all of zoo's own.

    \b
    zoo cache rm timm/resnet18.a1_in1k --dry-run
    """  # noqa: D301 - click reads the character \b as: keep these lines
    from zoo_core.files.cache import chosen, cover

    entries = cover()
    _remove(list({id(entry): entry for name in names for entry in chosen(entries, name)}.values()), dry_run, yes)


@cache.command()
@click.option("--older-than", metavar="30d", help="Also what was not used for so many hours, days or weeks (h, d, w).")
@dry_option
@yes_option
def prune(older_than: str | None, dry_run: bool, yes: bool) -> None:
    """Remove what is of no use: interrupted downloads, files of no commit, commits that a later one replaced.

    \b
    zoo cache prune --older-than 30d --dry-run
    """  # noqa: D301 - click reads the character \b as: keep these lines
    from zoo_core.files.cache import cover, stale

    seconds = None if older_than is None else _seconds(older_than)
    _remove(stale(cover(), older_than=seconds), dry_run, yes)


def _remove(entries: Sequence[Entry], dry_run: bool, yes: bool) -> None:
    """Shows the entries, asks for confirmation, and removes them.

    Raises UsageError if it would have to ask and standard input is not a terminal.
    """
    from zoo_core.files.cache import removed

    if not entries:
        click.echo("nothing to remove")
        return
    _show(entries)
    noun = "entry" if len(entries) == 1 else "entries"
    told = f"{len(entries)} {noun}, {size_text(entry.size_bytes for entry in entries)}"
    if dry_run:
        click.echo(f"{told} would be removed")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody is there to be asked; give --yes to remove it, or --dry-run to see what would go")
        click.confirm(f"remove {told}?", abort=True)
    click.echo(f"{size_text([removed(entries)])} freed")


def _show(entries: Sequence[Entry]) -> None:
    rows = [
        (
            entry.name,
            (entry.revision or "")[:12],
            size_text([entry.size_bytes]),
            count_text(entry.num_files, "file"),
            _day(entry.used_at),
            entry.remark,
        )
        for entry in entries
    ]
    for line in aligned(rows, right=(2, 3)):
        click.echo(line)


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "revision": entry.revision,
        "size": entry.size_bytes,
        "files": entry.num_files,
        "last_used": datetime.fromtimestamp(entry.used_at, UTC).isoformat(timespec="seconds"),
        "remark": entry.remark,
    }


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,6})([hdw])", text)
    if match is None:
        raise UsageError(f"--older-than {text}: allowed: a whole number of hours, days or weeks, as 12h, 30d, 4w")
    return int(match[1]) * UNITS[match[2]]
