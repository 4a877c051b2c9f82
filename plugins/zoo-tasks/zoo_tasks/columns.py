"""Which column is what: inferred from names and from a look at the first rows, unless the user says so. No imports.

The look takes at most LOOKED_AT rows; if the file has no more, the class names are known before anything is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from zoo_core.contracts import SUFFIXES, Modality, TargetKind
from zoo_core.errors import UsageError, nearest
from zoo_core.toolkit.table_encoding import is_missing, number
from zoo_tasks.reading import Media, Row

__all__ = ["LOOKED_AT", "Columns", "Given", "infer", "label_list", "plain", "sort_names"]

LOOKED_AT = 50_000
MANY = 20  # whole numbers of more than so many values are values, of fewer they are classes
SEPARATORS = (";", "\t", "|")  # of files that call themselves CSV
TARGETS = ("label", "labels", "target", "class", "category", "y", "value", "values", "score", "tags", "ner_tags")
TEXTS = ("text", "sentence", "review", "body", "content", "question", "comment", "document", "title")
TOKENS = ("tokens", "words")
IMAGES = ("image", "image_path", "file", "file_name", "filename", "path")
AUDIOS = ("audio", "audio_path", "file", "file_name", "filename", "path")
SPLIT = "split"
LONG = 20  # characters on average, from which on a column of texts is read as text and not as categories
SAMPLE = 5000  # rows that tell a text from a category
SEPARATORS = ("|", ";", ",")  # of several labels in one cell


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the user says of the columns; None and empty: to be inferred.

    column: the one of the inputs, whatever lies in it. kind: unlabelled means that there is no target.
    """

    target: tuple[str, ...] = ()
    column: str | None = None
    text: str | None = None
    tokens: str | None = None
    image: str | None = None
    audio: str | None = None
    features: tuple[str, ...] = ()
    kind: TargetKind | None = None
    group: str | None = None
    split: str | None = None
    strip: str = ""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column is what. form: of the inputs. numeric: of a table's inputs those that hold numbers.

    separator: between the labels in a cell. classes: sorted, None where more rows may hold more of them.
    names: of all columns, in order. inline: whether pictures or sounds lie in the table itself, where others hold paths
    of files.
    """

    form: Literal["text", "words", "image", "audio", "row"]
    inputs: tuple[str, ...]
    numeric: frozenset[str]
    target: tuple[str, ...]
    kind: TargetKind
    separator: str
    group: str | None
    split: str | None
    strip: str
    classes: tuple[str, ...] | None
    lines: tuple[str, ...]
    names: tuple[str, ...]
    inline: bool = False

    @property
    def modality(self) -> Modality:
        words: Mapping[str, Modality] = {"text": "text", "words": "text", "row": "table"}
        return words.get(self.form) or ("image" if self.form == "image" else "audio")


def infer(rows: Sequence[Row], given: Given, *, where: str, complete: bool) -> Columns:
    """What the columns are. rows: the first ones. complete: whether these are all. Raises UsageError."""
    if not rows:
        raise UsageError(f"{where} has no rows; a task needs examples")
    names = list(dict.fromkeys(name for row in rows[:1000] for name in row))
    for argument in ("column", "text", "tokens", "image", "audio", "group", "split"):
        _check(getattr(given, argument), names, argument, where)
    for name in given.target:
        _check(name, names, "target", where)
    for name in given.features:
        _check(name, names, "features", where)
    split = given.split or (SPLIT if SPLIT in names and SPLIT not in given.target else None)
    free = [name for name in names if name not in {split, given.group, *given.target}]
    form, inputs, why = _inputs(rows[:SAMPLE], given, free)
    if given.kind == "unlabelled" and form == "row":
        raise UsageError(
            f"{where} has no texts, and no paths of pictures or sounds; rows of numbers have to be scaled as those of "
            f"their teacher were: give its own table with the labels dropped, as csv(path=..., labels=drop)"
        )
    target = given.target
    if not target and given.kind != "unlabelled":
        used = {*inputs, split, given.group} if form != "row" else {split, given.group}
        target = (_target(rows, names, used, where),)
    if form == "row":
        inputs = given.features or tuple(name for name in free if name not in target)
        if not inputs:
            hint = _other_separator(names) or "nothing to predict it from"
            raise UsageError(f"{where} has no columns besides {', '.join(target)}; {hint}")
    kind, separator = _kind(rows, target, given)
    numeric = frozenset(name for name in inputs if form == "row" and _is_numeric(rows, name))
    classes = _classes(rows, target, kind, separator, given.strip) if complete else None
    if classes is None and kind == "multilabel" and len(target) > 1:
        classes = target
    lines = [
        why,
        *([f"target: {', '.join(target)}, {kind}{_shown(classes, kind)}; target=, kind= change it"] if target else []),
        *(filter(None, (_nearly_numeric(rows, name) for name in inputs if form == "row" and name not in numeric))),
        *([f"split: column {split}; split=COLUMN changes it"] if split else []),
        *([f"group: column {given.group}, never divided"] if given.group else []),
    ]
    return Columns(
        form=form, inputs=inputs, numeric=numeric, target=target, kind=kind, separator=separator, group=given.group,
        split=split, strip=given.strip, classes=classes, lines=tuple(lines), names=tuple(names),
        inline=isinstance(_first(rows, inputs[0]), Media),
    )  # fmt: skip


def plain(value: Any, strip: str = "") -> str:
    """A cell as the name of a class: texts without blanks around them, and 1.0 as 1."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip().strip(strip).strip() if strip else str(value).strip()


def label_list(value: Any, separator: str) -> list[str]:
    """The labels of a cell: of a list its items, of a text those between separators; a missing one has none."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if is_missing(value):
        return []
    return [part.strip() for part in str(value).split(separator) if part.strip()] if separator else [plain(value)]


def _check(name: str | None, names: Sequence[str], argument: str, where: str) -> None:
    if name is not None and name not in names:
        raise UsageError(
            f"{where}: no column {name!r} for {argument}=; there are {', '.join(names)}{nearest(name, names)}"
        )


def _inputs(rows: Sequence[Row], given: Given, free: Sequence[str]) -> tuple[Any, tuple[str, ...], str]:
    """The form of the inputs, their columns, and what is said of it."""
    for form, name in (("words", given.tokens), ("image", given.image), ("audio", given.audio), ("text", given.text)):
        if name is not None:
            return form, (name,), f"input: column {name}, {form}"
    if given.column is not None:
        return _form_of(rows, given.column), (given.column,), f"input: column {given.column}"
    if given.features:
        return "row", given.features, f"input: columns {', '.join(given.features)}"
    for name in TOKENS:
        if name in free and isinstance(_first(rows, name), list):
            return "words", (name,), f"input: column {name}, lists of words; tokens=COLUMN changes it"
    for name in free:
        held = _first(rows, name)
        if isinstance(held, Media):
            return held.form, (name,), f"input: column {name}, {held.form} files in the table"
    for form, known, suffixes in (("image", IMAGES, SUFFIXES["image"]), ("audio", AUDIOS, SUFFIXES["audio"])):
        for name in free:
            if name.lower() in known and _all(
                rows, name, lambda x, s=suffixes: isinstance(x, str) and x.lower().endswith(s)
            ):
                return form, (name,), f"input: column {name}, paths of {form} files; {form}=COLUMN changes it"
    named = [name for name in free if name.lower() in TEXTS and isinstance(_first(rows, name), str)]
    long = sorted((-_length(rows, name), name) for name in free if _is_text(rows, name))
    for name in (*sorted(named, key=lambda name: TEXTS.index(name.lower())), *(name for _, name in long)):
        return "text", (name,), f"input: column {name}, text; text=COLUMN changes it, features=[...] takes numbers"
    return "row", (), "input: every other column, a table of numbers and categories; features=[...], text= change it"


def _form_of(rows: Sequence[Row], name: str) -> str:
    """What lies in a column: media, lists of words, paths of media, or else texts."""
    held = _first(rows, name)
    if isinstance(held, Media):
        return held.form
    if isinstance(held, list):
        return "words"
    suffix = "." + str(held).lower().rpartition(".")[2]
    return next((form for form, suffixes in SUFFIXES.items() if suffix in suffixes), "text")


def _other_separator(names: Sequence[str]) -> str:
    """What may be wrong with a file of one column whose name holds what often parts cells."""
    odd = next((mark for mark in SEPARATORS if len(names) == 1 and mark in names[0]), None)
    return f'separator="{odd}" may be what parts its cells' if odd else ""


def _target(rows: Sequence[Row], names: Sequence[str], used: set[str | None], where: str) -> str:
    free = [name for name in names if name not in used]
    for wanted in TARGETS:
        found = [name for name in free if name.lower() == wanted]
        if found:
            return found[0]
    if not free:
        hint = _other_separator(names) or "target=COLUMN says which it is"
        raise UsageError(f"{where} has no column for the target among {', '.join(names)}; {hint}")
    return free[-1]


def _kind(rows: Sequence[Row], target: tuple[str, ...], given: Given) -> tuple[TargetKind, str]:
    """The kind of the target, and what separates labels in a cell."""
    values = [row.get(name) for row in rows for name in target]
    held = [value for value in values if not is_missing(value)]
    if any(isinstance(value, list) for value in held):
        words = given.tokens is not None or any(name in rows[0] for name in TOKENS)
        kind = given.kind or ("token_classes" if words and given.text is None else "multilabel")
        return kind, ""
    numbers = [number(value) for value in held]
    if given.kind is not None:
        return given.kind, _separator(held) if given.kind == "multilabel" and len(target) == 1 else ""
    if len(target) > 1:
        return ("multilabel" if all(found in (0, 1) for found in numbers) else "regression"), ""
    name = target[0].lower()
    if name == "labels" and _separator(held):
        return "multilabel", _separator(held)
    if held and None not in numbers:
        whole = all(found is not None and found.is_integer() for found in numbers)
        if name in ("value", "values") or not whole or len(set(numbers)) > MANY:
            return "regression", ""
    return "classes", ""


def _separator(values: Sequence[Any]) -> str:
    return next((each for each in SEPARATORS if any(each in str(value) for value in values)), "")


def _classes(
    rows: Sequence[Row], target: tuple[str, ...], kind: TargetKind, separator: str, strip: str
) -> tuple[str, ...] | None:
    if kind in ("regression", "unlabelled"):
        return target
    if kind == "multilabel" and len(target) > 1:
        return target
    found: set[str] = set()
    for row in rows:
        value = row.get(target[0])
        if kind == "classes":
            if not is_missing(value):
                found.add(plain(value, strip))
        else:
            found.update(label_list(value, separator))
    return sort_names(found)


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes in their order: numbers by size, if all are, else texts."""
    found = list(names)
    numbers = {name: number(name) for name in found}
    if all(value is not None for value in numbers.values()):
        return tuple(sorted(found, key=lambda name: (numbers[name], name)))
    return tuple(sorted(found))


def _shown(classes: tuple[str, ...] | None, kind: TargetKind) -> str:
    if kind == "regression":
        return ""
    if classes is None:
        return " (which ones is known when all rows are read)"
    shown = ", ".join(classes) if len(classes) <= 6 else f"{', '.join(classes[:3])}, ... {classes[-1]}"
    return f" ({len(classes)}: {shown})"


def _first(rows: Sequence[Row], name: str) -> Any:
    return next((row[name] for row in rows if not is_missing(row.get(name))), None)


def _all(rows: Sequence[Row], name: str, holds: Any) -> bool:
    num = 0
    for row in rows:
        value = row.get(name)
        if not is_missing(value):
            num += 1
            if not holds(value):
                return False
    return num > 0


def _is_numeric(rows: Sequence[Row], name: str) -> bool:
    return _all(rows, name, lambda value: not isinstance(value, list | dict) and number(value) is not None)


def _nearly_numeric(rows: Sequence[Row], name: str) -> str:
    """A remark on a column of categories most of whose cells are numbers: one odd word for nothing may be why."""
    held = [row[name] for row in rows if not is_missing(row.get(name)) and not isinstance(row[name], list | dict)]
    odd = [value for value in held if number(value) is None]
    if not odd or 2 * len(odd) >= len(held):
        return ""
    counted = f"{len(odd)} of {len(held)} cells are no numbers, {odd[0]!r:.40} first"
    return f"{name}: categories, since {counted}; empty is missing"


def _is_text(rows: Sequence[Row], name: str) -> bool:
    """Texts that are long, or nearly all different, and no numbers."""
    held = [row[name] for row in rows if not is_missing(row.get(name))]
    if not held or not all(isinstance(value, str) for value in held) or _is_numeric(rows, name):
        return False
    return _length(rows, name) >= LONG or len(set(held)) > 0.9 * len(held) > 20


def _length(rows: Sequence[Row], name: str) -> float:
    held = [len(str(row.get(name))) for row in rows]
    return sum(held) / len(held)
