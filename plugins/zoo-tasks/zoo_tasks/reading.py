"""Rows of files, read by the standard library, so that a look needs nothing heavy and every error names a line.

A row is a mapping from column to what stands there: text from CSV and TSV, whatever JSON holds from JSON lines, lists
of words and tags from CoNLL files.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zoo_core.errors import AccessError, NotFoundError, UsageError
from zoo_tasks.found import SPLITS, is_split, some

__all__ = ["File", "Form", "Media", "Row", "rows_of", "table_files"]

Row = Mapping[str, Any]
CELL = 2**30  # characters; csv refuses more than 128 thousand unless told
IN_NAME = re.compile(rf"(?:^|[._-])({'|'.join(sorted(SPLITS, key=len, reverse=True))})$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a file is written. names: of the columns, where it has no header; header: None to look whether it has one.

    A separator of one blank leaves blanks in the last column: `label the text`.
    media: whether pictures and sounds inside a Parquet file are read; without them a look at its rows is cheap.
    """

    kind: Literal["csv", "tsv", "jsonl", "conll", "parquet"]
    separator: str = ","
    encoding: str = "utf-8"
    names: tuple[str, ...] = ()
    header: bool | None = None
    media: bool = True


@dataclass(frozen=True, kw_only=True)
class Media:
    """A picture or a sound that lies inside a Parquet file, as `datasets` writes them. content: None if not read."""

    form: Literal["image", "audio"]
    content: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a table, and the split that its name says it is; empty: none."""

    path: Path
    split: str


def table_files(path: Path, suffixes: Sequence[str], pattern: str | None) -> tuple[File, ...]:
    """The files of a table: the one at a path, or those of a folder whose names say train, val or test.

    pattern: of names in the folder, as "TREC.{split}.all". Raises NotFoundError and UsageError.
    """
    if path.is_file():
        return (File(path=path, split=""),)
    if not path.is_dir():
        loop = f"{path} is a symbolic link that leads in circles, or to nothing; put the file itself there"
        raise NotFoundError(loop if path.is_symlink() else f"no file or folder {path}")
    inside = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    if pattern is not None:
        if pattern.count("{split}") != 1:
            raise UsageError(f'pattern="{pattern}" needs one {{split}}, as "reviews.{{split}}.csv"')
        before, after = pattern.split("{split}")
        middles = {
            entry: entry.name[len(before) : len(entry.name) - len(after)]
            for entry in inside
            if entry.name.startswith(before) and entry.name.endswith(after)
        }
        found = [File(path=entry, split=is_split(middle) or "") for entry, middle in middles.items()]
        wanted = f"no file fits pattern={pattern!r}"
    else:
        fitting = [entry for entry in inside if entry.suffix.lower() in suffixes]
        words = {entry: IN_NAME.search(entry.stem) for entry in fitting}
        found = [File(path=entry, split=is_split(word.group(1)) or "") for entry, word in words.items() if word]
        if not found and len(fitting) == 1:
            return (File(path=fitting[0], split=""),)
        wanted = f"none of {some([entry.name for entry in fitting])} ends in train, val or test" if fitting else "none"
    splits = [file.split for file in found]
    if not found or "" in splits:
        names = some([entry.name for entry in inside]) or "nothing"
        raise UsageError(
            f"{path} holds {names}; {wanted}: give one file, or files named train, val and test with the suffix "
            f'{" or ".join(suffixes)}, or pattern="NAME.{{split}}.SUFFIX"'
        )
    twice = next((split for split in splits if splits.count(split) > 1), None)
    if twice is not None:
        raise UsageError(
            f"{path} has several files of {twice}: {some([f.path.name for f in found if f.split == twice])}"
        )
    order = ("train", "val", "test")
    return tuple(sorted(found, key=lambda file: order.index(file.split)))


def rows_of(file: Path, form: Form) -> Iterator[tuple[int, Row]]:
    """Line number and row of each row that is not empty. Raises UsageError that names the file and the line."""
    readers = {"csv": _delimited, "tsv": _delimited, "jsonl": _jsonl, "conll": _conll, "parquet": _parquet}
    try:
        yield from readers[form.kind](file, form)
    except UnicodeDecodeError:
        number, wrong = _undecodable(file, form.encoding)
        raise UsageError(
            f"{file}, line {number}: byte 0x{wrong:02x} is not {form.encoding}; say what it is, as in "
            f'encoding="latin-1" or encoding="gb18030", or save the file in UTF-8'
        ) from None
    except LookupError as error:
        raise UsageError(f"encoding={form.encoding!r} is not one that Python knows ({error})") from None
    except PermissionError as error:
        raise AccessError(f"{file} may not be read; change its rights") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror})") from error


def _open(file: Path, form: Form) -> Any:
    encoding = "utf-8-sig" if form.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else form.encoding
    return file.open(encoding=encoding, newline="")


def _undecodable(file: Path, encoding: str) -> tuple[int, int]:
    """The line and the byte at which decoding stops."""
    content = file.read_bytes()
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        return content[: error.start].count(b"\n") + 1, content[error.start]
    raise AssertionError("the same bytes could not be decoded a moment ago")


# --- CSV and TSV -----------------------------------------------------------------------------------------------------


def _delimited(file: Path, form: Form) -> Iterator[tuple[int, Row]]:
    lines = _cells(file, form)
    names = form.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"names= has {twice!r} twice; each column has a name of its own")
    header = None if names else form.header
    if names and form.header:
        next(lines, None)
    for number, cells in lines:
        if not names:
            if header is None:
                header = not any(map(_is_number, cells))
            names = _header(file, cells) if header else tuple(f"column_{i}" for i in range(1, len(cells) + 1))
            if header:
                continue
        if len(cells) != len(names):
            raise UsageError(
                f"{file}, line {number} has {len(cells)} columns, and there are {len(names)} names "
                f"({', '.join(names)}); mend the line, or the quotes before it"
            )
        yield number, dict(zip(names, cells, strict=True))


def _cells(file: Path, form: Form) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(CELL)
    with _open(file, form) as stream:
        if form.kind == "tsv":  # a quote in a TSV file is a quote
            most = len(form.names) - 1 if form.separator == " " and form.names else 1 if form.separator == " " else -1
            for number, line in enumerate(stream, 1):
                text = line.rstrip("\r\n")
                if text.strip():
                    yield number, text.split(form.separator, most)
            return
        reader = csv.reader(stream, delimiter=form.separator, skipinitialspace=True, strict=True)
        try:
            for cells in reader:
                if any(cells):
                    yield reader.line_num, cells
        except csv.Error as error:
            raise UsageError(f"{file}, line {reader.line_num}: {error}; quotes are doubled inside quotes") from error


def _header(file: Path, cells: Sequence[str]) -> tuple[str, ...]:
    names = [cell.strip() for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{file}: column {twice!r} stands {names.count(twice)} times in the header; rename one")
    return tuple(names)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


# --- JSON lines, CoNLL, Parquet --------------------------------------------------------------------------------------


def _jsonl(file: Path, form: Form) -> Iterator[tuple[int, Row]]:
    with _open(file, form) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_no_twice)
            except ValueError as error:
                raise UsageError(f"{file}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise UsageError(f'{file}, line {number} is not an object, as {{"text": ..., "label": ...}}')
            yield number, row


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


def _conll(file: Path, form: Form) -> Iterator[tuple[int, Row]]:
    """Sentences of lines `word ... tag ...`; names say which columns are `tokens` and `tags`."""
    place, tag = form.names.index("tokens"), form.names.index("tags")
    start = 1
    words: list[str] = []
    tags: list[str] = []
    with _open(file, form) as stream:
        for number, line in enumerate(stream, 1):
            cells = line.split()
            if not cells or cells[0] == "-DOCSTART-":
                if words:
                    yield start, {"tokens": words, "tags": tags}
                start, words, tags = number + 1, [], []
                continue
            if len(cells) <= max(place, tag):
                raise UsageError(
                    f"{file}, line {number} has {len(cells)} columns, wanted {max(place, tag) + 1} or more: "
                    f"a word and its tag; columns= says which they are"
                )
            words.append(cells[place])
            tags.append(cells[tag])
    if words:
        yield start, {"tokens": words, "tags": tags}


def _parquet(file: Path, form: Form) -> Iterator[tuple[int, Row]]:
    """Rows of a Parquet file; what `datasets` noted there says which numbers are classes, and which bytes are media."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        schema = table.schema_arrow
        twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"{file}: column {twice!r} stands {schema.names.count(twice)} times; rename one")
        features = _features(schema.metadata or {})
        media = {field.name: _media_form(field.name, features) for field in schema if _holds_media(field.type)}
        classes = {name: names for name, feature in features.items() if (names := _class_names(feature))}
        wanted = None
        if media and not form.media:
            wanted = [f"{name}.path" if name in media else name for name in schema.names]
        number = 0
        for batch in table.iter_batches(batch_size=100 if media and form.media else 1000, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                for name, kind in media.items():
                    held = row.get(name)
                    row[name] = None if held is None else Media(form=kind, content=held.get("bytes"))
                for name, names in classes.items():
                    row[name] = _named(row[name], names)
                yield number, row
    except pa.ArrowException as error:
        raise UsageError(f"{file} is not a Parquet file that can be read: {error}") from error


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """What `datasets` noted of each column; nothing of a file that others wrote."""
    try:
        found = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: each for name, each in found.items() if isinstance(each, dict)} if isinstance(found, dict) else {}


def _class_names(feature: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a column's classes, or of the classes in its lists; none if it holds none."""
    inner = feature.get("feature", feature)
    names = inner.get("names") if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _named(value: Any, names: tuple[str, ...]) -> Any:
    """The name of a class by its number, of a list of them each; None for -1, which stands for an unknown one."""
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _holds_media(kind: Any) -> bool:
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return False
    inner = {field.name: field.type for field in kind}
    return inner.keys() == {"bytes", "path"} and pa.types.is_binary(inner["bytes"])


def _media_form(name: str, features: Mapping[str, Any]) -> Literal["image", "audio"]:
    told = str(features.get(name, {}).get("_type", name)).lower()
    return "audio" if told in ("audio", "sound", "speech", "recording") else "image"
