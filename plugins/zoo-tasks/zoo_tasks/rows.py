"""Rows of tables as a task: read once into an Arrow file, divided, opened, surveyed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from zoo_core.contracts import Survey, Target, TaskData
from zoo_core.errors import UsageError
from zoo_core.toolkit.files import cache_path, hash_of
from zoo_core.toolkit.table_encoding import Encoding, is_missing, number
from zoo_tasks.class_folders import is_split, some
from zoo_tasks.columns import Columns, label_list, plain, sort_names
from zoo_tasks.encoding import stored
from zoo_tasks.layout import Layout, Recipe, check_classes
from zoo_tasks.media import surveyed
from zoo_tasks.media_check import FileCheck, check_files, pictures, sizes, sounds
from zoo_tasks.reading import Media, Row, rows_of
from zoo_tasks.splitting import Division, Items, Rules, divide, save_split
from zoo_tasks.store import key_of, opened, put, write
from zoo_tasks.task_data import Store, pictures_store, sounds_store, split_data

__all__ = ["Rows"]

FORMAT = 2  # raised when the same files give other rows
MEDIA = "media"  # below the cache folder: the pictures and sounds that lie inside tables
TOO_MANY = 0.5  # of the rows with a class of their own: no class, but a number or a name of each row


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a table's files. Columns of the Arrow file: id, content, split, group, target, problem, inputs."""

    recipe: Recipe
    layout: Layout
    columns: Columns

    @property
    def where(self) -> str:
        return self.layout.called or str(self.layout.path)

    @property
    def folder(self) -> Path:
        """Where media files lie that the rows name."""
        return cache_path(MEDIA, "x").parent if self.columns.inline else self.layout.folder

    @cached_property
    def file(self) -> str:
        """The Arrow file with every row, what is wrong with it included."""
        files = [(file.path.name, file.split, hash_of(file.path).sha256) for file in self.layout.files]
        columns = {name: value for name, value in asdict(self.columns).items() if name not in ("lines", "classes")}
        columns["numeric"] = sorted(self.columns.numeric)
        key = key_of("rows", FORMAT, files, asdict(self.layout.form), columns)
        return str(write(key, self._read(), self._schema()))

    def _schema(self) -> pa.Schema:
        texts = dict.fromkeys(("id", "content", "split", "group", "target", "problem"), pa.string())
        if self.columns.form == "row":
            kinds = {
                f"x{place}": pa.float64() if name in self.columns.numeric else pa.string()
                for place, name in enumerate(self.columns.inputs)
            }
            return pa.schema(texts | kinds)
        return pa.schema(texts | {"x": pa.list_(pa.string()) if self.columns.form == "words" else pa.large_string()})

    def _read(self) -> Iterator[Mapping[str, Any]]:
        several = len(self.layout.files) > 1
        for file in self.layout.files:
            for line, row in rows_of(file.path, self.layout.form):
                name = f"{file.path.relative_to(self.layout.folder).as_posix()}:{line}" if several else str(line)
                yield {"id": name, **self._row(row, file.split)}

    def _row(self, row: Row, split: str) -> dict[str, Any]:
        columns = self.columns
        problems: list[str] = []
        target = self._target(row, problems)
        told = row.get(columns.split) if columns.split else None
        if columns.split is not None:
            split = is_split(str(told).strip()) or ""
            if not split:
                problems.append(f"{columns.split} is {told!r:.40}, not train, val or test")
        group = row.get(columns.group) if columns.group else ""
        if columns.group and is_missing(group):
            problems.append(f"has no {columns.group}")
        inputs = self._inputs(row, target, problems)
        content = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]
        return {
            "content": content,
            "split": split,
            "group": plain(group),
            "target": json.dumps(target),
            "problem": "; ".join(problems),
            **inputs,
        }

    def _target(self, row: Row, problems: list[str]) -> Any:
        """The target as JSON: a text (classes), a list of texts (labels, tags), a list of numbers (values)."""
        columns = self.columns
        if columns.kind == "unlabelled":
            return []
        values = [row.get(name) for name in columns.target]
        if columns.kind == "regression" or (columns.kind == "multilabel" and len(values) > 1):
            numbers = [number(value) for value in values]
            for name, value, found in zip(columns.target, values, numbers, strict=True):
                if found is None:
                    problems.append(f"{name} is {value!r:.40}, not a number")
                elif columns.kind == "multilabel" and found not in (0, 1):
                    problems.append(f"{name} is {value!r:.40}, not 0 or 1")
            if columns.kind == "multilabel":
                return [name for name, found in zip(columns.target, numbers, strict=True) if found]
            return [found or 0.0 for found in numbers]
        (value,) = values
        if columns.kind == "classes":
            if is_missing(value):
                problems.append(f"{columns.target[0]} is {value!r:.40}, no target")
            return plain(value, columns.strip)
        if columns.kind == "token_classes" and not isinstance(value, list):
            problems.append(f"{columns.target[0]} is {value!r:.40}, not a list of tags")
            return []
        return label_list(value, columns.separator)

    def _inputs(self, row: Row, target: Any, problems: list[str]) -> dict[str, Any]:
        columns = self.columns
        if columns.form == "row":
            found: dict[str, Any] = {}
            for position, name in enumerate(columns.inputs):
                value = row.get(name)
                if name not in columns.numeric:
                    found[f"x{position}"] = "" if is_missing(value) else plain(value)
                    continue
                found[f"x{position}"] = number(value)
                if found[f"x{position}"] is None and not is_missing(value):
                    problems.append(f"{name} is {value!r:.40}, not a number")
            return found
        value = row.get(columns.inputs[0])
        if columns.form == "words":
            words = [str(word) for word in value] if isinstance(value, list) else []
            if not words:
                problems.append(f"{columns.inputs[0]} holds no words")
            elif columns.kind == "token_classes" and len(words) != len(target):
                problems.append(f"has {len(words)} words and {len(target)} tags")
            return {"x": words}
        text = "" if value is None else _extracted(value) if isinstance(value, Media) else str(value)
        if not text.strip():
            problems.append(f"has no {columns.inputs[0]}")
        return {"x": text}

    # --- what was read ------------------------------------------------------------------------------------------------

    def _column(self, name: str) -> list[Any]:
        return _column(self.file, name)

    @cached_property
    def checks(self) -> list[FileCheck]:
        """For tables that name media files, the check of each file."""
        if self.columns.form not in ("image", "audio"):
            return []
        how, kind = (pictures, "pictures") if self.columns.form == "image" else (sounds, "sounds")
        return check_files(self.folder, self._column("x"), how, f"{kind}-{key_of(self.file)}")

    @cached_property
    def unreadable(self) -> dict[str, str]:
        found = dict(zip(self._column("id"), self._column("problem"), strict=True))
        if self.checks:
            for name, file, check in zip(self._column("id"), self._column("x"), self.checks, strict=True):
                found[name] = "; ".join(filter(None, (found[name], check.problem and f"{file} {check.problem}")))
        return {name: problem for name, problem in found.items() if problem}

    @cached_property
    def kept(self) -> np.ndarray:
        """int64: the rows that can be used."""
        bad = self.unreadable
        return np.array([row for row, name in enumerate(self._column("id")) if name not in bad], dtype=np.int64)

    def _kept(self, name: str) -> list[Any]:
        values = self._column(name)
        return [values[row] for row in self.kept]

    @cached_property
    def target(self) -> Target:
        columns = self.columns
        if columns.kind == "unlabelled":
            return Target(kind="unlabelled")
        if columns.kind == "regression" or (columns.kind == "multilabel" and len(columns.target) > 1):
            return Target(kind=columns.kind, names=columns.target)
        found: set[str] = set()
        for text in self._column("target"):
            value = json.loads(text)
            found.update([value] if isinstance(value, str) else value)
        if columns.kind == "classes":
            bad = self.unreadable
            pairs = zip(self._column("id"), self._column("target"), strict=True)
            found = {json.loads(text) for name, text in pairs if name not in bad}
        names = sort_names(found)
        check_classes(columns.kind, names, self.where, columns.target)
        if columns.kind == "classes" and len(names) > max(TOO_MANY * len(self.kept), 20):
            raise UsageError(
                f"{self.where}: column {columns.target[0]} has {len(names)} classes in {len(self.kept)} rows; "
                f"target= names another column, or kind=regression takes numbers"
            )
        return Target(kind=columns.kind, names=names)

    @cached_property
    def items(self) -> Items:
        place = {name: position for position, name in enumerate(self.target.names)}
        values = [json.loads(text) for text in self._kept("target")]
        targets: np.ndarray | list[list[int]]
        if self.target.kind == "unlabelled":
            targets = np.zeros(len(values), dtype=np.int64)
        elif self.target.kind == "classes":
            targets = np.array([place[value] for value in values], dtype=np.int64)
        elif self.target.kind == "token_classes":
            targets = [[place[tag] for tag in tags] for tags in values]
        elif self.target.kind == "multilabel":
            targets = np.zeros((len(values), len(place)), dtype=np.float32)
            for row, labels in enumerate(values):
                targets[row, [place[label] for label in labels]] = 1
        else:
            targets = np.array(values, dtype=np.float32).reshape(len(values), len(self.target.names))
        splits = self._kept("split")
        if (self.recipe.test or self.recipe.val) and self.columns.group is None:
            raise UsageError("test= and val= name groups to hold out, and group= does not say which column holds them")
        return Items(
            ids=self._kept("id"),
            contents=[self.checks[row].sha256 for row in self.kept] if self.checks else self._kept("content"),
            targets=targets,
            groups=self._kept("group") if self.columns.group else None,
            splits=splits if any(splits) else None,
        )

    @cached_property
    def division(self) -> Division:
        recipe = self.recipe
        is_media = self.columns.form not in ("row", "words")
        drop = is_media if recipe.duplicates == "auto" else recipe.duplicates == "leave-out"
        return divide(
            self.items, self.target, Rules(seed=recipe.seed, test=recipe.test, val=recipe.val, drop_copies=drop)
        )

    def problems(self) -> tuple[str, ...]:
        """What stops a fit, the worst first."""
        bad, found = self.unreadable, []
        if bad and self.recipe.unreadable == "stop":
            told = some([f"{name} ({problem})" for name, problem in bad.items()])
            found.append(
                f"{self.where}: {len(bad)} of {len(self._column('id'))} rows cannot be used: row {told}; mend them, or "
                f"leave them out: unreadable=skip"
            )
        if not len(self.kept):
            return tuple(found) or (f"{self.where}: none of its rows can be used",)
        return (*found, *(f"{self.where}: {problem}" for problem in self.division.problems))

    def open(self) -> TaskData:
        """Raises UsageError for the first of the problems."""
        for problem in self.problems():
            raise UsageError(problem)
        save_split(self.division, self.items.ids)
        return split_data(self.items, self.target, self.division, self._store())

    def _store(self) -> Store:
        form = self.columns.form
        names, separator = self.columns.names, self.layout.form.separator
        own = Encoding(names=names, separator=separator, column=self.columns.inputs[0])
        if form == "text" or form == "words":
            return Store(form=form, file=self.file, rows=self.kept, encoding=own if form == "text" else None)
        if form == "row":
            file, encoding = self._encoded()
            return Store(form="row", file=file, rows=np.arange(len(self.kept)), encoding=encoding)
        make = pictures_store if form == "image" else sounds_store
        store = make(self.folder, self._kept("x"), [self.checks[row] for row in self.kept])
        return store if self.columns.inline else replace(store, encoding=own)

    def _encoded(self) -> tuple[str, Encoding]:
        """The rows as numbers in a file of its own, since what they are scaled by depends on the training rows."""

        def inputs() -> list[tuple[str, bool, list[Any]]]:
            return [
                (name, name in self.columns.numeric, self._kept(f"x{position}"))
                for position, name in enumerate(self.columns.inputs)
            ]

        return stored(
            key_of(self.file, self.division.digest(self.items.ids), self.columns.names),
            inputs,
            self.division.splits["train"],
            names=self.columns.names,
            separator=self.layout.form.separator,
        )

    def survey(self, inferred: tuple[str, ...]) -> Survey:
        if not len(self.kept):
            raise UsageError(self.problems()[0])
        return surveyed(
            self.recipe,
            self.target,
            self.items,
            self.division,
            num_bytes=sum(file.path.stat().st_size for file in self.layout.files)
            + sum(check.num_bytes for check in self.checks),
            sizes=self._sizes(),
            inferred=inferred,
            unreadable=self.unreadable,
            ignored=(),
            problems=self.problems(),
        )

    def _sizes(self) -> str:
        if self.checks:
            return sizes(self.checks, unit="pixels" if self.columns.form == "image" else "seconds")
        if self.columns.form == "row":
            num = len(self.columns.numeric)
            width = opened_width(self._encoded()[0]) if self.division.splits["train"].size else 0
            return f"{num} columns of numbers, {len(self.columns.inputs) - num} of categories; {width} inputs"
        unit = "words" if self.columns.form == "words" else "characters"
        lengths = np.array([len(x) for x in self._kept("x")])
        return f"{lengths.min()} to {lengths.max()} {unit}, median {int(np.median(lengths))}"


def _extracted(value: Media) -> str:
    """A picture or sound of a table as a file below the cache folder, by its content; its name, empty for none."""
    if not value.content:
        return ""
    sha256 = hashlib.sha256(value.content).hexdigest()
    name = f"{sha256[:2]}/{sha256}"
    path = cache_path(MEDIA, name)
    if not path.exists():
        content = value.content
        put(path, lambda stream: stream.write(content))
    return name


@lru_cache(maxsize=8)
def _column(file: str, name: str) -> list[Any]:
    found: list[Any] = opened(file).column(name).to_pylist()
    return found


def opened_width(file: str) -> int:
    """The columns of a stored matrix."""
    found: np.ndarray = np.load(file, mmap_mode="r")
    return int(found.shape[1])
