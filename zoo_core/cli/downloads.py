"""How downloads and files are shown: a progress bar on a terminal, a line every LINE_SECONDS elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from zoo_core.files.fetch import DownloadProgress

__all__ = ["count_text", "downloading", "size_text"]

LINE_SECONDS = 10.0


def size_text(sizes: Iterable[int]) -> str:
    """The sum of some sizes in bytes, as a text in kB or MB."""
    total = sum(sizes)
    return f"{total / 1e6:,.1f} MB" if total >= 1e5 else f"{total / 1e3:,.1f} kB"


def count_text(count: int, noun: str) -> str:
    """A count with its noun in singular or plural, such as `1 file` or `2 files`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


@contextmanager
def downloading() -> Iterator[Callable[[DownloadProgress], None]]:
    """Shows downloads as a progress bar if standard error is a terminal, and as a line every LINE_SECONDS elsewhere.

    Yields the function to give as `progress` to zoo_core.files.fetch.
    """
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("", total=None, visible=False)

        def report(event: DownloadProgress) -> None:
            description = f"{event.repository} {event.file}"
            bars.update(bar, description=description, completed=event.done_bytes, total=event.total_bytes, visible=True)

        yield report


def _lines() -> Callable[[DownloadProgress], None]:
    last = time.monotonic()

    def report(event: DownloadProgress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            told = f"{size_text([event.done_bytes])} of {size_text([event.total_bytes])}"
            click.echo(f"{event.repository}: {told}, {event.file}", err=True)

    return report
