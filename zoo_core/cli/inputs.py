"""The inputs of `zoo predict` and `zoo embed` (files, folders, standard input) as items, one after the other.

Nothing is read ahead: a picture or a sound stays a path until it is prepared, and a text or a row is read when its turn
comes. An input that cannot be used becomes a SkippedItem at the same place in the order. The name of an item is its
path, or its file and line.
"""

from __future__ import annotations

import csv
import io
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from zoo_core.contracts import Modality
from zoo_core.errors import AccessError, NotFoundError, UsageError, ZooError, nearest
from zoo_core.runs.inference import Item, SkippedItem, split_words
from zoo_core.toolkit.table_encoding import Encoding

__all__ = ["STDIN", "Inputs", "check_given"]

CELL = 2**30  # characters in a cell; the limit of the csv module is otherwise 131,072
STDIN = "-"
SUFFIXES: dict[Modality, tuple[str, ...]] = {  # suffixes of the files that are taken from a folder
    "image": (
        *(".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
        *(".tif", ".tiff", ".webp"),
    ),
    "text": (".txt",),
    "audio": (".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"),
    "table": (".csv", ".tab", ".tsv"),
}
NOUNS: dict[Modality, str] = {"image": "pictures", "text": "texts", "audio": "sounds", "table": "tables"}


def check_given(given: Sequence[str]) -> None:
    """Checks the inputs before anything is read or built.

    Raises NotFoundError for a file that does not exist, and UsageError if standard input is given twice.
    """
    for name in given:
        if name != STDIN and not os.path.lexists(name):
            hint = "; nothing fits that pattern" if any(letter in name for letter in "*?[") else ""
            raise NotFoundError(f"no file {name}{hint}")
    if list(given).count(STDIN) > 1:
        raise UsageError("- is standard input, which can be read once; it was given twice")


@dataclass
class Inputs:
    """Files, folders and `-` in the order given, for a model that reads this modality.

    num_columns: number of columns of the rows that a model of tables was fitted on; None if unknown.
    encoding: how cells became the rows that the model was fitted on; None if the rows are the cells themselves.
    needs_words: whether texts are split into words.
    column: name of the column of CSV files that texts or paths are read from; None means that of the encoding.
    num_passed: how many files of folders were passed over because of their suffix; passed: the first three of them.
    """

    given: Sequence[str]
    modality: Modality
    num_columns: int | None = None
    encoding: Encoding | None = None
    needs_words: bool = False
    column: str | None = None
    num_passed: int = 0
    passed: list[str] = field(default_factory=list)

    @property
    def num(self) -> int | None:
        """The number of items, or None if it is not known before they are read."""
        if self.modality in ("text", "table"):
            return None
        if any(name == STDIN or _is_table(name) or Path(name).is_dir() for name in self.given):
            return None
        return len(self.given)

    def items(self) -> Iterator[Item | SkippedItem]:
        """The items in order; each is read only when it is asked for."""
        for name in self.given:
            if name != STDIN and Path(name).is_dir():
                yield from self._folder(Path(name))
            else:
                yield from self._file(name)

    def told(self) -> str | None:
        """A line about the files that were passed over, or None if there were none."""
        if not self.num_passed:
            return None
        files = f"{self.num_passed} file{'' if self.num_passed == 1 else 's'}"
        more = ", ..." if self.num_passed > len(self.passed) else ""
        return f"{files} passed over, by name no {NOUNS[self.modality]}: {', '.join(self.passed)}{more}"

    # -- folders ----------------------------------------------------------------------------------------------------

    def _folder(self, folder: Path) -> Iterator[Item | SkippedItem]:
        found = False
        for one in self._walk(folder, ()):
            found = True
            if isinstance(one, SkippedItem):
                yield one
            else:
                yield from self._file(str(one))
        if not found:
            suffixes = ", ".join(self.suffixes)
            yield _failure(folder, NotFoundError(f"{folder} holds no {NOUNS[self.modality]} ({suffixes})"))

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The suffixes of the files that are taken from a folder, with those of tables if a column is named."""
        own = SUFFIXES[self.modality]
        return own if self.column is None or self.modality == "table" else (*own, *SUFFIXES["table"])

    def _walk(self, folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path | SkippedItem]:
        """The files below a folder, sorted by name, without hidden ones.

        above: device and inode of the folders that contain it, so that a link back to one of them is not followed.
        """
        try:
            status = folder.stat()
            paths = sorted(folder.iterdir(), key=lambda path: path.name)
        except OSError as error:
            yield _failure(folder, AccessError(f"{folder} cannot be read ({error.strerror})"))
            return
        here = (status.st_dev, status.st_ino)
        if here in above:
            yield _failure(folder, UsageError(f"{folder} is a link to a folder that holds it, and is not followed"))
            return
        for path in paths:
            if path.name.startswith("."):
                continue
            if path.is_dir():
                yield from self._walk(path, (*above, here))
            elif path.suffix.lower() in self.suffixes:
                yield path
            else:
                self.num_passed += 1
                self.passed += [str(path)] if len(self.passed) < 3 else []

    # -- files ------------------------------------------------------------------------------------------------------

    def _file(self, name: str) -> Iterator[Item | SkippedItem]:
        if self.modality == "table":
            return self._rows(name)
        if _is_table(name):
            return self._cells(name)
        if self.modality == "text":
            return self._texts(name)
        return self._paths() if name == STDIN else iter([Item(name=name, raw=name)])

    def _paths(self) -> Iterator[Item | SkippedItem]:
        """One item for each path on standard input, which holds a path on each line. Paths need not be valid UTF-8."""
        with _opened(STDIN) as stream:
            for line in stream:
                path = line.removesuffix("\n")
                if path.strip():
                    yield Item(name=path, raw=path)

    def _texts(self, name: str) -> Iterator[Item | SkippedItem]:
        """One item for each line that is not empty.

        A line with a zero byte means that the file is not a text: a SkippedItem says so, and the rest is not read.
        """
        found = False
        try:
            with _opened(name) as stream:
                for number, line in enumerate(stream, 1):
                    if "\0" in line:
                        raise UsageError(f"{name} is not a text, line {number} has a zero byte")
                    if line.strip():
                        found = True
                        yield self._text_item(f"{name}:{number}", line.removesuffix("\n"))
        except (OSError, ZooError) as error:
            yield _failure(name, error)
            return
        if not found and name != STDIN:
            yield _failure(name, UsageError(f"{name} holds no text; one example a line"))

    def _text_item(self, name: str, line: str) -> Item | SkippedItem:
        try:
            line.encode()
        except UnicodeEncodeError:
            return _failure(name, UsageError(f"{name} is not UTF-8; `iconv -f latin1 -t utf-8` makes it so, if it is"))
        if not self.needs_words:
            return Item(name=name, raw=line)
        words = split_words(line)
        return Item(name=name, raw=[word.text for word in words], words=words)

    def _cells(self, name: str) -> Iterator[Item | SkippedItem]:
        """The cells of one column of a table with a header: texts, or paths of files relative to the table's folder."""
        header: list[str] = []
        column = self.column or (self.encoding.column if self.encoding else None)
        for row in self._lines(name):
            if isinstance(row, SkippedItem):
                yield row
            elif not header:
                header = [cell.strip() for cell in row.cells]
                problem = _column_problem(header, column, NOUNS[self.modality])
                if problem:
                    yield _failure(name, UsageError(f"{name}: {problem}"))
                    return
            elif len(row.cells) != len(header):
                wrong = f"{row.place} has {len(row.cells)} cells, and its header names {len(header)}"
                yield _failure(row.name, UsageError(wrong))
            elif not (cell := row.cells[header.index(column or "")]).strip():
                yield _failure(row.name, UsageError(f"{row.place} has no {column}"))
            elif self.modality == "text":
                yield self._text_item(row.name, cell)
            else:
                yield Item(name=row.name, raw=str(Path(name).parent / cell.strip()))

    def _rows(self, name: str) -> Iterator[Item | SkippedItem]:
        """The rows of a table as items. The first row is the header, and no item, if no cell is empty or a number."""
        if self.encoding is not None:
            yield from self._encoded(name, self.encoding)
            return
        found, num_columns = False, self.num_columns
        for row in self._lines(name):
            if isinstance(row, SkippedItem):
                yield row
                continue
            if not found and row.is_header:
                try:
                    row.check_width(num_columns)
                except UsageError as error:
                    yield _failure(name, error)
                    return
            else:
                item = row.item(num_columns)
                num_columns = num_columns or (len(row.cells) if isinstance(item, Item) else None)
                yield item
            found = True

    def _encoded(self, name: str, encoding: Encoding) -> Iterator[Item | SkippedItem]:
        """The rows of a table, encoded as the model's training rows were.

        The table has the columns that the model was fitted on, with a header or without.
        """
        header: list[str] | None = None
        is_first = True
        for row in self._lines(name):
            if isinstance(row, SkippedItem):
                yield row
                continue
            try:
                if is_first and encoding.is_header(row.cells):
                    header, is_first = [cell.strip() for cell in row.cells], False
                    continue
            except UsageError as error:  # without a valid header the cells could be taken for other columns
                yield _failure(name, UsageError(f"{row.place}: {error}"))
                return
            is_first = False
            try:
                yield Item(name=row.name, raw=encoding.encode(encoding.named(row.cells, header)))
            except UsageError as error:
                yield _failure(row.name, UsageError(f"{row.place}: {error}"))

    def _lines(self, name: str) -> Iterator[_Row | SkippedItem]:
        """The rows of a table that are not empty. An error that ends the reading early comes last, as a SkippedItem."""
        number, found = 0, False
        told = self.encoding.separator if self.encoding else ","
        separator = "\t" if Path(name).suffix.lower() in (".tab", ".tsv") else "," if told.isspace() else told
        try:
            with _opened(name, errors="strict", newline="") as stream:
                csv.field_size_limit(CELL)
                reader = csv.reader(stream, delimiter=separator, skipinitialspace=True)
                for number, cells in enumerate(reader, 1):
                    if cells:
                        found = True
                        yield _Row(name, number, cells)
        except csv.Error as error:
            yield _failure(name, UsageError(f"{name}, line {number + 1}: {error}; the rest of it was not read"))
            return
        except (OSError, UnicodeDecodeError, ZooError) as error:
            yield _failure(name, error)
            return
        if not found and name != STDIN:
            wanted = "one row for each example" if self.encoding else "one row of numbers for each example"
            yield _failure(name, UsageError(f"{name} holds no rows; a table has {wanted}"))


def _column_problem(header: Sequence[str], column: str | None, noun: str) -> str:
    """The message about a header that does not name the wanted column exactly once; empty if it does."""
    there = f"there are {', '.join(header)}"
    if column is None:
        return f"which column holds the {noun}? {there}; --column NAME says it"
    if column not in header:
        return f"no column {column!r}; {there}{nearest(column, header)}; --column NAME takes another"
    return f"column {column!r} stands {header.count(column)} times in its header" if header.count(column) > 1 else ""


@dataclass(frozen=True)
class _Row:
    """The cells of one row of a file, and the number of the row, counted from 1."""

    file: str
    number: int
    cells: Sequence[str]

    @property
    def name(self) -> str:
        """The name of the row's item."""
        return f"{self.file}:{self.number}"

    @property
    def place(self) -> str:
        """The file and line, as a message names them."""
        return f"{self.file}, line {self.number}"

    @property
    def is_header(self) -> bool:
        return not any(_is_number(cell) or not cell.strip() for cell in self.cells)

    def check_width(self, num_columns: int | None) -> None:
        """Raises UsageError if the row has another number of columns than the model was fitted on."""
        if len(self.cells) != (num_columns or len(self.cells)):
            raise UsageError(
                f"{self.place} has {len(self.cells)} columns; the model was fitted on {num_columns}, "
                "and takes them in that order"
            )

    def item(self, num_columns: int | None) -> Item | SkippedItem:
        try:
            values = [float(cell) for cell in self.cells]
            if not all(map(math.isfinite, values)):
                raise ValueError("a number that is not finite")
            self.check_width(num_columns)
        except ValueError as error:
            return _failure(self.name, UsageError(f"{self.place}: {error}; a row holds numbers"))
        except UsageError as error:
            return _failure(self.name, error)
        return Item(name=self.name, raw=values)


def _is_table(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES["table"] and name != STDIN


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@contextmanager
def _opened(name: str, *, errors: str = "surrogateescape", newline: str | None = None) -> Iterator[TextIO]:
    """A file or standard input, opened as UTF-8; a byte order mark is dropped.

    errors: by default, bytes that are not UTF-8 become surrogates, which no valid text holds.
    """
    if name == STDIN:
        stream = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", errors=errors, newline=newline)
        try:
            yield stream
        finally:
            stream.detach()  # otherwise standard input would be closed with the wrapper
        return
    with Path(name).open(encoding="utf-8-sig", errors=errors, newline=newline) as stream:
        yield stream


def _failure(name: str | Path, error: Exception) -> SkippedItem:
    """The SkippedItem for an error. An error of the system or of a codec becomes a ZooError that names the file."""
    if isinstance(error, FileNotFoundError):
        error = NotFoundError(f"no file {name}")
    elif isinstance(error, PermissionError):
        error = AccessError(f"{name} may not be read; change its rights")
    elif isinstance(error, UnicodeDecodeError):
        error = UsageError(f"{name} is not a table of text in UTF-8: {error}")
    elif isinstance(error, OSError):
        error = UsageError(f"{name} cannot be read ({error.strerror})")
    assert isinstance(error, ZooError), "what is no ZooError was told apart above"
    return SkippedItem(item=str(name), error=error)
