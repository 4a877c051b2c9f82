"""`zoo export` writes a fitted model as a plain checkpoint, which its backbone's own library loads."""

from __future__ import annotations

from pathlib import Path

import click

from zoo_core._process.interrupts import held_back

__all__ = ["export"]


@click.command()
@click.argument("run")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", "form", default="plain", help="plain, or peft: the LoRA alone, for plain peft.")
def export(run: str, folder: Path, form: str) -> None:
    """Write a fitted model as a plain checkpoint, which timm or transformers loads without zoo.

    RUN is the folder of a fit, or hub/ORG/NAME of a published one; FOLDER is a new one. Adapters are folded into the
    weights; one that cannot be is refused, and nothing is written.

    \b
    zoo export runs/my-flowers plain/my-flowers
    zoo export runs/my-flowers adapters/my-flowers --format peft
    """  # noqa: D301 - click reads the character \b as: keep these lines
    with held_back():
        from zoo_core.api import export as write

    click.echo(write(run, folder, form=form))
