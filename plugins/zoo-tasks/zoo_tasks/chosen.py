"""Which files of a data set's repository are read, by their names and by what its card says of its configurations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from zoo_core.contracts import SUFFIXES
from zoo_core.errors import UsageError, nearest
from zoo_tasks.found import is_split, some

__all__ = ["Chosen", "choose"]

TABLES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".tsv": "tsv"}
FOLDERS = dict.fromkeys(SUFFIXES["image"], "image-folder") | dict.fromkeys(SUFFIXES["audio"], "audio-folder")
ORDER = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The files that are read, of one commit. splits: of each table, empty where nothing tells.

    reader: the recipe that reads such files. prefix: the folder that the class folders lie in. others: the names of
    all the other files.
    """

    commit: str
    reader: str
    names: tuple[str, ...]
    splits: tuple[str, ...]
    others: tuple[str, ...]
    prefix: str = ""

    def told(self) -> str:
        """In words."""
        return f"{some(self.names)}, read as {self.reader}; config=, pattern= choose others"


def choose(
    names: Sequence[str], card: str, *, called: str, config: str | None, pattern: str | None, commit: str
) -> Chosen:
    """The files that are read. card: the text of its README. Raises UsageError where there are none."""
    told = _wanted(names, card, called, config, pattern)
    kinds = Counter(_reader(name) for name in told)
    del kinds[""]
    tables = [kind for kind, _ in kinds.most_common() if kind in TABLES.values()]
    reader = (tables or [kind for kind, _ in kinds.most_common()] or [""])[0]
    chosen = [name for name in told if _reader(name) == reader]
    if not reader:
        raise UsageError(f"{called} holds {_held(names)}; {_readable(names, called)}")
    splits = [told[name] or _split_in(name) for name in chosen]
    if reader in FOLDERS.values():
        splits = [""] * len(chosen)  # folders say it
    elif any(splits) and not all(splits):
        untold = [name for name, split in zip(chosen, splits, strict=True) if not split]
        raise UsageError(
            f"{called}: nothing says which split {some(untold)} belongs to, and others say it; "
            f'pattern="data/{{split}}-*" takes some of the files'
        )
    order = sorted(range(len(chosen)), key=lambda i: (ORDER.index(splits[i]) if splits[i] else 0, chosen[i]))
    return Chosen(
        commit=commit,
        reader=reader,
        names=tuple(chosen[i] for i in order),
        splits=tuple(splits[i] for i in order),
        others=tuple(name for name in names if name not in set(chosen)),
        prefix=_common(chosen) if reader in FOLDERS.values() else "",
    )


def _wanted(names: Sequence[str], card: str, called: str, config: str | None, pattern: str | None) -> dict[str, str]:
    """The files that are asked for, each with the split that is said of it."""
    if pattern is not None and config is not None:
        raise UsageError(f"{called}: config= and pattern= both say which files are read; give one of them")
    if pattern is not None:
        return _fitting(names, pattern, called)
    configs, usual = _configs(card)
    if configs and (config is None or config in configs):
        if config is None and usual is None:
            raise UsageError(f"{called} has configurations {', '.join(configs)}; config= says which")
        told: dict[str, str] = {}
        for split, glob in configs[config or usual or ""]:
            told |= {name: split for name in names if fnmatchcase(name, glob)}
        return told
    visible = [name for name in names if not any(part.startswith((".", "_")) for part in name.split("/"))]
    if config is not None:
        below = [name for name in visible if name.startswith(f"{config}/")]
        if not below:
            known = sorted(configs or {name.partition("/")[0] for name in visible if "/" in name})
            there = f"there are {', '.join(known)}" if known else "it has none"
            raise UsageError(f"{called} has no configuration {config!r}; {there}{nearest(config, known)}")
        return dict.fromkeys(below, "")
    return dict.fromkeys(visible, "")


def _fitting(names: Sequence[str], pattern: str, called: str) -> dict[str, str]:
    """The files that fit a pattern, each with the split that `{split}` stands for."""
    pieces = re.split(r"(\{split\}|\*|\?)", pattern)
    meant = {"{split}": "(?P<split>[^/]+?)", "*": ".*", "?": "."}
    if pattern.count("{split}") > 1 or re.search(r"[{}]", pattern.replace("{split}", "")):
        raise UsageError(f'pattern="{pattern}" has at most one {{split}}, and * and ?, as "data/{{split}}-*.parquet"')
    compiled = re.compile("".join(meant.get(piece, re.escape(piece)) for piece in pieces))
    found: dict[str, str] = {}
    for name in names:
        match = compiled.fullmatch(name)
        if match is not None:
            word = match.groupdict().get("split")
            split = "" if word is None else is_split(word)
            if split is not None:
                found[name] = split
    if not found:
        raise UsageError(f'{called}: no file fits pattern="{pattern}"; it holds {_held(names)}')
    return found


def _common(names: Sequence[str]) -> str:
    """The folders that all of the names lie in, with a slash at the end."""
    parts = [name.split("/")[:-1] for name in names]
    depth = next((i for i, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1), min(map(len, parts)))
    return "".join(f"{part}/" for part in parts[0][:depth])


def _configs(card: str) -> tuple[dict[str, list[tuple[str, str]]], str | None]:
    """Of each configuration in the head of a card its pairs of a split and a glob; and which is meant by default."""
    import yaml  # type: ignore[import-untyped]  # which recipes are named without

    match = re.match(r"---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    try:
        head = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}, None
    listed = head.get("configs") if isinstance(head, dict) else None
    rows = [row for row in (listed if isinstance(listed, list) else []) if _is_config(row)]
    found = {str(row["config_name"]): _pairs(row["data_files"], str(row.get("data_dir") or "")) for row in rows}
    usual = [str(row["config_name"]) for row in rows if row.get("default") is True]
    usual += [name for name in found if name == "default" or len(found) == 1]
    return found, usual[0] if usual else None


def _is_config(row: object) -> bool:
    return isinstance(row, dict) and "config_name" in row and "data_files" in row


def _pairs(data_files: Any, folder: str) -> list[tuple[str, str]]:
    """Pairs of a split, perhaps empty, and a glob: of a text, a list of texts, or of mappings `split`, `path`."""
    start = f"{folder.strip('/')}/" if folder.strip("/") else ""
    pairs: list[tuple[str, str]] = []
    for row in data_files if isinstance(data_files, list) else [data_files]:
        split, paths = "", row
        if isinstance(row, Mapping):
            split, paths = is_split(str(row.get("split", ""))) or "", row.get("path", [])
            if not split:
                continue  # unsupervised, train_extra: no split of a task
        pairs += [(split, start + str(path)) for path in (paths if isinstance(paths, list) else [paths])]
    return pairs


def _reader(name: str) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    return TABLES.get(suffix) or FOLDERS.get(suffix, "")


def _split_in(name: str) -> str:
    """The split that a name tells: of its words, those of the file first, then those of its folders, outwards."""
    for part in reversed(name.split("/")):
        for word in re.split(r"[^A-Za-z]+", part.rpartition(".")[0] or part):
            if split := is_split(word):
                return split
    return ""


def _held(names: Sequence[str]) -> str:
    return some(list(names)) or "nothing"


def _readable(names: Sequence[str], called: str) -> str:
    kinds = ", ".join(sorted(TABLES))
    line = f"nothing that is read: {kinds}, or pictures or sounds in class folders"
    if any(name.endswith(".py") for name in names):
        line += f"; its loading script is never run: try what the Hub made of it, {called}@refs/convert/parquet"
    return line
