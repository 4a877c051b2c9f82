"""A path where a task is expected: which recipe reads what lies there.

`./flowers` stands for `image-folder(path="./flowers")`. The rule looks at names of files alone; everything else is
inferred by the recipe, which says so.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from zoo_core.contracts import SUFFIXES
from zoo_core.errors import NotFoundError, UsageError
from zoo_core.spec.parser import Part, parse_part

__all__ = ["READERS", "is_path", "task_part"]

# Suffix of a file -> the recipe that reads it alone; the names are reserved for zoo-tasks.
READERS: Mapping[str, str] = {
    ".bio": "conll",
    ".conll": "conll",
    ".csv": "csv",
    ".iob": "conll",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".npz": "npz",
    ".parquet": "parquet",
    ".tsv": "tsv",
}
FOLDERS: Mapping[str, str] = {
    **dict.fromkeys(SUFFIXES["image"], "image-folder"),
    **dict.fromkeys(SUFFIXES["audio"], "audio-folder"),
}
LOOKED_AT = 5000  # files of a folder; what most of them are is known by then


def is_path(text: str) -> bool:
    """Whether a text that should name a task is a path.

    One that starts with `.`, `/` or `~` always is; another one if it has a `/` or the suffix of a file that is read,
    no arguments, and exists. So a folder in the working directory never hides a task of the same name.
    """
    if text.startswith(("./", "../", "/", "~")) or text in (".", ".."):
        return "(" not in text or Path(text).expanduser().exists()
    looks_so = "/" in text or os.sep in text or Path(text).suffix.lower() in READERS
    return looks_so and "(" not in text and Path(text).exists()


def task_part(text: str) -> Part:
    """The task that a text names: a part of a spec, or a path. Raises SpecError, NotFoundError and UsageError."""
    if not is_path(text):
        return parse_part(text)
    path = Path(text).expanduser()
    if not path.exists():
        raise NotFoundError(f"no file or folder {text}; `zoo list task` shows the tasks that have names")
    return Part(_reader(path, text), arguments=(("path", text),))


def _reader(path: Path, text: str) -> str:
    """The name of the recipe that reads what lies at a path."""
    kinds = ", ".join(dict.fromkeys(("image-folder", "audio-folder", *READERS.values())))
    write = f"write the recipe, as 'csv(path=\"{text}\")'; there are {kinds}"
    if not path.is_dir():
        suffix = path.suffix.lower()
        if suffix in READERS:
            return READERS[suffix]
        raise UsageError(f"{text}: nothing tells how to read a file {suffix or 'without a suffix'}; {write}")
    below: Counter[str] = Counter()
    beside: Counter[str] = Counter()
    num = 0
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            suffix = Path(name).suffix.lower()
            below[FOLDERS.get(suffix, "")] += 1
            if Path(folder) == path:
                beside[READERS.get(suffix, "")] += 1
        num += len(files)
        if num > LOOKED_AT:
            break
    for found in (beside, below):  # a table beside folders of pictures tells of them
        del found[""]
        best = found.most_common(1)
        if best:
            return best[0][0]
    if (path / "train.txt").is_file():  # any text may be called so, hence last
        return READERS[".conll"]
    if not num:
        raise UsageError(f"{text} is an empty folder; a task needs files, such as a folder of pictures for each class")
    raise UsageError(f"{text} holds no file whose suffix tells how to read it; {write}")
