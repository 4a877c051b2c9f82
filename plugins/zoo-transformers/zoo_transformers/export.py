"""A backbone as a folder in transformers' own format: its save_pretrained, beside the files that prepare inputs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import logging

from zoo_transformers.families import INPUT_FILES

__all__ = ["write"]


def write(model: PreTrainedModel, files: Path, folder: Path) -> str:
    """Writes a model as it stands; one line that says what loads it.

    files: of the repository that it comes from, of which those that prepare inputs are copied: tokeniser,
    preprocessor, and how sentence-transformers pools.
    """
    with _no_bar():
        model.save_pretrained(folder)
    for pattern in INPUT_FILES:
        for file in sorted(files.glob(pattern)):
            copied = folder / file.relative_to(files)
            copied.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copied)
    kind = type(model)
    found: Any = MODEL_MAPPING.get(type(model.config), None)
    loader = "AutoModel" if found is kind else f"{kind.__module__.removeprefix('transformers.')}.{kind.__name__}"
    return (
        f'transformers.{loader}.from_pretrained("{folder}") loads it: features; the head is left out, since '
        f"transformers' classifiers pool with layers of their own"
    )


@contextmanager
def _no_bar() -> Iterator[None]:
    """Without the bar that is shown while a file is written."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
