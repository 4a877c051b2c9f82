"""`csv`, `tsv`, `jsonl`, `parquet` and `conll`: a row, a line or a sentence is an example.

path: one file, or a folder of files named train, val (valid, validation, dev) and test; pattern="x.{split}.csv" for
other names. What is which column is inferred from names and the first rows; `zoo data PATH` shows it.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from zoo_core.contracts import SUFFIXES, Modality, Source, Survey, Target, TargetKind, TaskData
from zoo_core.errors import UsageError
from zoo_tasks.columns import LOOKED_AT, Columns, Given, infer
from zoo_tasks.folders import globs
from zoo_tasks.reading import File, Form, Row, rows_of, table_files

if TYPE_CHECKING:
    from zoo_tasks.rows import Rows

__all__ = [
    "Conll",
    "Copies",
    "Csv",
    "Jsonl",
    "Kind",
    "Layout",
    "Parquet",
    "Reads",
    "Tsv",
    "Unreadable",
    "check_classes",
]

Kind = Literal["auto", "classes", "multilabel", "regression", "token_classes"]
Copies = Literal["auto", "leave-out", "keep"]
Unreadable = Literal["stop", "skip"]
METRIC = {
    "classes": "accuracy",
    "multilabel": "average_precision",
    "regression": "mean_absolute_error",
    "token_classes": "entity_f1",
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The files of a table, how they are written, and what the user says of their columns.

    called: what errors call it; empty: its path. looked_at: the files that tell of the columns; none: all of them.
    """

    path: Path
    files: tuple[File, ...]
    form: Form
    given: Given
    called: str = ""
    looked_at: tuple[File, ...] = ()

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def columns(self) -> Columns:
        """What the columns are, from a look at the first rows; remembered while the files stay as they are."""
        return _look(self, tuple(_stamp(file.path) for file in self.looked_at or self.files))

    def media(self) -> tuple[str, ...]:
        """The files that rows name in a column of pictures or sounds, as it names them; remembered likewise."""
        return _media(self, tuple(_stamp(file.path) for file in self.files))


def _stamp(path: Path) -> tuple[int, ...]:
    """What tells that a file is as it was: it is not written, moved or replaced without another one."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@lru_cache(maxsize=64)
def _media(layout: Layout, stamps: tuple[tuple[int, ...], ...]) -> tuple[str, ...]:
    column = layout.columns().inputs[0]
    rows = (row for file in layout.files for _, row in rows_of(file.path, layout.form))
    return tuple(sorted({str(row[column]) for row in rows if row.get(column)}))


@lru_cache(maxsize=64)
def _look(layout: Layout, stamps: tuple[tuple[int, ...], ...]) -> Columns:
    rows: list[Row] = []
    complete = not layout.looked_at or layout.looked_at == layout.files
    for file in layout.looked_at or layout.files:
        found = rows_of(file.path, replace(layout.form, media=False))
        rows += [row for _, row in islice(found, LOOKED_AT)]
        complete = complete and next(found, None) is None
    return infer(rows, layout.given, where=layout.called or str(layout.path), complete=complete)


class Recipe(Protocol):
    """What the functions below need of each recipe."""

    @property
    def path(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def test(self) -> tuple[str, ...]: ...
    @property
    def val(self) -> tuple[str, ...]: ...
    @property
    def duplicates(self) -> Copies: ...
    @property
    def unreadable(self) -> Unreadable: ...
    @property
    def modality(self) -> Modality: ...
    @property
    def metric(self) -> str: ...
    def layout(self) -> Layout: ...


def _target(recipe: Recipe) -> Target:
    columns = recipe.layout().columns()
    if columns.classes is None:
        return Target(kind=columns.kind, size=len(columns.target) if columns.kind == "regression" else None)
    check_classes(columns.kind, columns.classes, recipe.path, columns.target)
    return Target(kind=columns.kind, names=columns.classes)


def check_classes(kind: TargetKind, names: Sequence[str], where: str, target: Sequence[str]) -> None:
    """Raises UsageError for a target that nothing can be learnt about."""
    called = ", ".join(target)
    if kind == "classes" and len(names) < 2:
        found = f"one class, {names[0]}" if names else "no values at all"
        raise UsageError(f"{where}: column {called} has {found}; a classifier needs two or more; target= names another")
    if kind in ("multilabel", "token_classes") and not names:
        raise UsageError(f"{where}: column {called} has no labels at all; target= names another")


def _source(recipe: Recipe) -> Source:
    layout = recipe.layout()
    names = tuple(glob.escape(file.path.name) for file in layout.files)
    columns = layout.columns()
    suffixes = SUFFIXES.get(columns.form, ())
    if columns.inline or not suffixes:
        return Source(folder=str(layout.folder), patterns=names)
    elsewhere = (glob.escape(name) for name in layout.media() if not _is_below(name, suffixes))
    return Source(folder=str(layout.folder), patterns=(*names, *globs(suffixes), *elsewhere))


def _is_below(name: str, suffixes: Sequence[str]) -> bool:
    """Whether a file that a row names lies below the table's folder and has one of the suffixes."""
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and path.suffix.lower() in suffixes


def _inferred(recipe: Recipe) -> tuple[str, ...]:
    layout = recipe.layout()
    columns = layout.columns()
    splits = [file.split for file in layout.files if file.split]
    lines = list(columns.lines)
    if recipe.test:
        lines.append(f"split: test holds {', '.join(recipe.test)} of {columns.group}")
    elif splits and columns.split is None:
        told = {
            ("train",): "the file train alone, so 60/20/20 % are drawn from it",
            ("train", "val"): "the files train and val; val is the test split, and validation is carved from train",
        }
        lines.append("split: " + told.get(tuple(splits), f"the files {', '.join(splits)}"))
    elif columns.split is None:
        lines.append("split: none is given, so 60/20/20 %, drawn by content; seed=, split=COLUMN change it")
    return tuple(lines)


def _rows(recipe: Recipe) -> Rows:
    from zoo_tasks.rows import Rows  # numpy and pyarrow

    layout = recipe.layout()
    return Rows(recipe=recipe, layout=layout, columns=layout.columns())


def _layout(
    path: str,
    pattern: str | None,
    suffixes: Sequence[str],
    form: Form,
    *,
    target: str | tuple[str, ...] | None,
    kind: Kind,
    **named: str | tuple[str, ...] | None,
) -> Layout:
    """A recipe's fields as a layout. named: the fields of Given of the same name."""
    where = Path(path).expanduser()
    targets = (target,) if isinstance(target, str) else target or ()
    given = Given(target=targets, kind=None if kind == "auto" else kind, **named)  # type: ignore[arg-type]
    return Layout(path=where, files=table_files(where, suffixes, pattern), form=form, given=given)


class Reads:
    """What each of the recipes gives; they differ in their fields and in `layout`."""

    version: ClassVar[int] = 1

    @property
    def modality(self: Recipe) -> Modality:
        return self.layout().columns().modality

    @property
    def metric(self: Recipe) -> str:
        return METRIC[self.layout().columns().kind]

    @property
    def target(self: Recipe) -> Target:
        return _target(self)

    def source(self: Recipe) -> Source | None:
        return _source(self)

    def open(self: Recipe, files: Path | None) -> TaskData:
        return _rows(self).open()

    def inferred(self: Recipe) -> tuple[str, ...]:
        return _inferred(self)

    def survey(self: Recipe, files: Path) -> Survey:
        return _rows(self).survey(_inferred(self))


@dataclass(frozen=True, kw_only=True)
class Csv(Reads):
    """Rows of a CSV file: texts, pictures or sounds by path, or numbers and categories, with a target.

    path, pattern: see `zoo data PATH`; a folder holds train, val and test files, pattern="x.{split}.csv" names others.
    target: the column, or several (labels of 0 and 1, or values). text, image, audio, tokens: the column of inputs;
    features: columns of a table. kind: of the target. names: of the columns where the file has no header; header: yes
    or no where a look does not tell. strip: characters to take off the ends of class names.
    group: a column whose values are never divided; test, val: values of it to hold out. split: a column of train, val
    and test; without one, and with one file, 60/20/20 % are drawn by content and seed.
    duplicates: auto leaves copies of texts, pictures and sounds out and keeps equal rows of a table.
    unreadable: stop at rows without a target or input, or skip them.
    """

    path: str
    pattern: str | None = None
    target_column: str | tuple[str, ...] | None = field(default=None, metadata={"argument": "target"})
    text: str | None = None
    image: str | None = None
    audio: str | None = None
    features: tuple[str, ...] = ()
    kind: Kind = "auto"
    names: tuple[str, ...] = ()
    header: Literal["auto", "yes", "no"] = "auto"
    separator: str = ","
    encoding: str = "utf-8"
    strip: str = ""
    group: str | None = None
    split: str | None = None
    test: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    seed: int = 0
    duplicates: Copies = "auto"
    unreadable: Unreadable = "stop"

    FORM: ClassVar[Literal["csv", "tsv"]] = "csv"
    SUFFIXES: ClassVar[tuple[str, ...]] = (".csv",)

    def layout(self) -> Layout:
        """Its files, and what is said of them."""
        if len(self.separator) != 1:
            raise UsageError(f'separator={self.separator!r} is one character, as ";"')
        form = Form(
            kind=self.FORM,
            separator=self.separator,
            encoding=self.encoding,
            names=self.names,
            header=None if self.header == "auto" else self.header == "yes",
        )
        return _layout(
            self.path,
            self.pattern,
            self.SUFFIXES,
            form,
            target=self.target_column,
            kind=self.kind,
            text=self.text,
            image=self.image,
            audio=self.audio,
            features=self.features,
            group=self.group,
            split=self.split,
            strip=self.strip,
        )


@dataclass(frozen=True, kw_only=True)
class Tsv(Csv):
    """As `csv`, with tabs between columns and no quoting: a quote is a character like any other.

    separator=" " is for lines `label the text`: blanks after the first belong to the text.
    """

    separator: str = "\t"

    FORM: ClassVar[Literal["csv", "tsv"]] = "tsv"
    SUFFIXES: ClassVar[tuple[str, ...]] = (".tsv",)


@dataclass(frozen=True, kw_only=True)
class Jsonl(Reads):
    """Objects of a file of JSON lines; the arguments are those of `csv`, and a value may be a list.

    tokens: the key of lists of words, whose target is then a list of as many tags; labels may be a list of names.
    """

    path: str
    pattern: str | None = None
    target_column: str | tuple[str, ...] | None = field(default=None, metadata={"argument": "target"})
    text: str | None = None
    tokens: str | None = None
    image: str | None = None
    audio: str | None = None
    features: tuple[str, ...] = ()
    kind: Kind = "auto"
    encoding: str = "utf-8"
    strip: str = ""
    group: str | None = None
    split: str | None = None
    test: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    seed: int = 0
    duplicates: Copies = "auto"
    unreadable: Unreadable = "stop"

    FORM: ClassVar[Literal["jsonl", "parquet"]] = "jsonl"
    SUFFIXES: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")

    def layout(self) -> Layout:
        """Its files, and what is said of them."""
        return _layout(
            self.path,
            self.pattern,
            self.SUFFIXES,
            Form(kind=self.FORM, encoding=self.encoding),
            target=self.target_column,
            kind=self.kind,
            text=self.text,
            tokens=self.tokens,
            image=self.image,
            audio=self.audio,
            features=self.features,
            group=self.group,
            split=self.split,
            strip=self.strip,
        )


@dataclass(frozen=True, kw_only=True)
class Parquet(Jsonl):
    """Rows of a Parquet file; the arguments are those of `jsonl`."""

    FORM: ClassVar[Literal["jsonl", "parquet"]] = "parquet"
    SUFFIXES: ClassVar[tuple[str, ...]] = (".parquet",)


@dataclass(frozen=True, kw_only=True)
class Conll(Reads):
    """Sentences of words with a tag each, a word on a line, a blank line between sentences.

    path, pattern: one file, or a folder of train, valid and test files (.conll, .bio, .iob, .txt).
    columns: which column, counted from 1, holds the word and which its tag; none: the first, and the last that does
    not hold the same on every line looked at.
    """

    path: str
    pattern: str | None = None
    columns: tuple[int, int] | None = None
    encoding: str = "utf-8"
    seed: int = 0
    duplicates: Copies = "auto"
    unreadable: Unreadable = "stop"

    test: ClassVar[tuple[str, ...]] = ()
    val: ClassVar[tuple[str, ...]] = ()
    SUFFIXES: ClassVar[tuple[str, ...]] = (".conll", ".bio", ".iob", ".txt")

    def layout(self) -> Layout:
        """Its files, and what is said of them."""
        where = Path(self.path).expanduser()
        files = table_files(where, self.SUFFIXES, self.pattern)
        word, tag = self.columns or (1, _tag_column(files[0].path, _stamp(files[0].path), self.encoding))
        if min(word, tag) < 1 or word == tag:
            raise UsageError(f"columns=[{word},{tag}]: two different columns, counted from 1")
        names = ["" for _ in range(max(word, tag))]
        names[word - 1], names[tag - 1] = "tokens", "tags"
        form = Form(kind="conll", encoding=self.encoding, names=tuple(names))
        given = Given(target=("tags",), tokens="tokens", kind="token_classes")
        return Layout(path=where, files=files, form=form, given=given)


@lru_cache(maxsize=64)
def _tag_column(file: Path, stamp: tuple[int, ...], encoding: str) -> int:
    """The last column, counted from 1, that does not hold the same on each of the first lines."""
    form = Form(kind="tsv", separator="\t", encoding=encoding, names=("line",))
    lines = (str(row["line"]).split() for _, row in islice(rows_of(file, form), 2000))
    cells = [line for line in lines if line and line[0] != "-DOCSTART-"]
    width = min(map(len, cells), default=0)
    for column in range(width - 1, 0, -1):
        if len({line[column] for line in cells}) > 1:
            return column + 1
    some = list(chain.from_iterable(cells[:1]))
    raise UsageError(f"{file} begins with {some}; wanted lines `word ... tag` with blanks between; columns= says which")
