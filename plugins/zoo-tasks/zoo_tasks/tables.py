"""`csv`, `tsv`, `jsonl`, `parquet` and `conll`: a row, a line or a sentence is an example.

path: one file, or a folder of files named train, val (valid, validation, dev) and test; pattern="x.{split}.csv" for
other names. What is which column is inferred from names and the first rows; `zoo data PATH` shows it.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from zoo_core.contracts import SUFFIXES, Modality, Source, Survey, Target, TaskData
from zoo_core.errors import UsageError
from zoo_tasks.columns import Given
from zoo_tasks.folders import globs
from zoo_tasks.layout import Copies, Layout, Recipe, Unreadable, check_classes, stamp
from zoo_tasks.reading import Form, rows_of, table_files

if TYPE_CHECKING:
    from zoo_tasks.rows import Rows

__all__ = ["Arguments", "Conll", "Csv", "Jsonl", "Parquet", "Tsv", "source_of"]

Kind = Literal["auto", "classes", "multilabel", "regression", "token_classes"]
METRIC = {
    "classes": "accuracy",
    "multilabel": "average_precision",
    "regression": "mean_absolute_error",
    "token_classes": "entity_f1",
}


def _target(recipe: Recipe) -> Target:
    columns = recipe.layout().columns()
    if columns.classes is None:
        return Target(kind=columns.kind, size=len(columns.target) if columns.kind == "regression" else None)
    check_classes(columns.kind, columns.classes, recipe.path, columns.target)
    return Target(kind=columns.kind, names=columns.classes)


def source_of(recipe: Recipe) -> Source:
    """Where the files of a table are, with those that its rows name."""
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
        return source_of(self)

    def open(self: Recipe, files: Path | None) -> TaskData:
        return _rows(self).open()

    def inferred(self: Recipe) -> tuple[str, ...]:
        return _inferred(self)

    def survey(self: Recipe, files: Path) -> Survey:
        return _rows(self).survey(_inferred(self))


@dataclass(frozen=True, kw_only=True)
class Arguments(Reads):
    """The arguments that tables of your own and of the Hub share; what each means stands with `Csv`."""

    pattern: str | None = None
    target_column: str | tuple[str, ...] | None = field(default=None, metadata={"argument": "target"})
    text: str | None = None
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

    def given(self, tokens: str | None = None) -> Given:
        """What they say of the columns. tokens: the one that holds lists of words."""
        return Given(
            target=(self.target_column,) if isinstance(self.target_column, str) else self.target_column or (),
            text=self.text,
            tokens=tokens,
            image=self.image,
            audio=self.audio,
            features=self.features,
            kind=None if self.kind == "auto" else self.kind,
            group=self.group,
            split=self.split,
            strip=self.strip,
        )


@dataclass(frozen=True, kw_only=True)
class Local:
    """The argument that all but those of the Hub have, and have first."""

    path: str


def _layout(recipe: Csv | Jsonl, form: Form, *, tokens: str | None = None) -> Layout:
    where = Path(recipe.path).expanduser()
    files = table_files(where, recipe.SUFFIXES, recipe.pattern)
    return Layout(path=where, files=files, form=form, given=recipe.given(tokens))


@dataclass(frozen=True, kw_only=True)
class Csv(Arguments, Local):
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

    names: tuple[str, ...] = ()
    header: Literal["auto", "yes", "no"] = "auto"
    separator: str = ","

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
        return _layout(self, form)


@dataclass(frozen=True, kw_only=True)
class Tsv(Csv):
    """As `csv`, with tabs between columns and no quoting: a quote is a character like any other.

    separator=" " is for lines `label the text`: blanks after the first belong to the text.
    """

    separator: str = "\t"

    FORM: ClassVar[Literal["csv", "tsv"]] = "tsv"
    SUFFIXES: ClassVar[tuple[str, ...]] = (".tsv",)


@dataclass(frozen=True, kw_only=True)
class Jsonl(Arguments, Local):
    """Objects of a file of JSON lines; the arguments are those of `csv`, and a value may be a list.

    tokens: the key of lists of words, whose target is then a list of as many tags; labels may be a list of names.
    """

    tokens: str | None = None

    FORM: ClassVar[Literal["jsonl", "parquet"]] = "jsonl"
    SUFFIXES: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")

    def layout(self) -> Layout:
        """Its files, and what is said of them."""
        return _layout(self, Form(kind=self.FORM, encoding=self.encoding), tokens=self.tokens)


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
        word, tag = self.columns or (1, _tag_column(files[0].path, stamp(files[0].path), self.encoding))
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
