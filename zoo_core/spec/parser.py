"""Parses the text of a composition, `backbone+adapter+head`, and writes it back. Nothing is looked up or run.

    spec  = part *( "+" part )
    part  = name [ "@" revision ] [ "(" [ arg *( "," arg ) ] ")" ]
    name  = [ kind ":" ] segment *( "/" segment )     segment = [A-Za-z0-9._-]+, not "." or ".."
    arg   = key "=" value     value = number | true | false | none | word | "text" | [ value, ... ]

`parse(str(spec)) == spec` holds for every spec, because a Part whose text could not be read back cannot be created.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import isfinite
from typing import TypeAlias, cast

from zoo_core.contracts import PART_KINDS, PartKind
from zoo_core.errors import SpecError, nearest

__all__ = ["MAX_LENGTH", "Part", "Spec", "Value", "parse", "parse_part", "parse_parts", "parse_specs"]

Value: TypeAlias = int | float | bool | str | tuple["Value", ...] | None

MAX_LENGTH = 4096  # characters, as typed and as printed; a longer text is a mistake, such as a file given as a spec
MAX_DEPTH = 8  # levels of nested lists
MAX_NUMBER = 30  # characters of a number; longer ones only cost time in int()

_WORD = re.compile(r"[A-Za-z0-9._-]+")
_PATH = re.compile(r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+)*")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9._-])")
_TEXT = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_ESCAPED = re.compile(r"\\(.)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Part:
    """One name with its revision and its arguments, sorted by key. str() gives the canonical text.

    kind: the kind that the text names, as in `head:linear`; None means that the registry finds it.
    Raises SpecError for what no text can express: a bad name, a number that is not finite, a control character.
    """

    name: str
    kind: PartKind | None = None
    revision: str | None = None
    arguments: tuple[tuple[str, Value], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", tuple(sorted(self.arguments, key=lambda argument: argument[0])))
        _check_part(self)

    def __str__(self) -> str:
        kind = f"{self.kind}:" if self.kind else ""
        revision = f"@{self.revision}" if self.revision else ""
        arguments = ",".join(f"{key}={_write(value)}" for key, value in self.arguments)
        return f"{kind}{self.name}{revision}" + (f"({arguments})" if arguments else "")


@dataclass(frozen=True)
class Spec:
    """The parts in the order written: a backbone, then adapters in order of wrapping, then at most one head."""

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise SpecError("a spec has at least one part", "", 0)

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))


def parse(text: str) -> Spec:
    """The spec that a text names. Raises SpecError, and no other error, with the column of the first mistake."""
    reader = _Reader(text)
    spec = reader.spec()
    reader.end("'+' or the end")
    return spec


def parse_part(text: str) -> Part:
    """The single part that a text names. Raises SpecError, also for a text with `+`."""
    return parse_parts(text, separator="")[0]


def parse_parts(text: str, *, separator: str = ",") -> tuple[Part, ...]:
    """The parts in a list separated by commas, as flags take it: `linear,mlp(width=64)`. Raises SpecError.

    separator: if it is empty, the text is a single part.
    """
    reader = _Reader(text)
    parts = [reader.part()]
    while separator and reader.take(separator):
        parts.append(reader.part())
    reader.end(f"'{separator}' or the end" if separator else "one part and the end")
    return tuple(parts)


def parse_specs(text: str) -> tuple[Spec, ...]:
    """The chains in a list separated by commas, as flags take it: `probe,full,partial(n=2)+norm`. Raises SpecError."""
    reader = _Reader(text)
    specs = [reader.spec()]
    while reader.take(","):
        specs.append(reader.spec())
    reader.end("',', '+' or the end")
    return tuple(specs)


class _Reader:
    """A position in a text, with a method for each rule of the grammar.

    A method moves the position behind what it has read. All but `kind` and `path` also skip the spaces that follow.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        if len(text) > MAX_LENGTH:
            raise self.fail(f"found {len(text)} characters, allowed are {MAX_LENGTH}", MAX_LENGTH)
        self.skip()

    def fail(self, reason: str, column: int | None = None) -> SpecError:
        return SpecError(reason, self.text, self.at if column is None else column)

    def here(self) -> str:
        """The word or character at the position, quoted for an error message."""
        if self.at >= len(self.text):
            return "the end"
        word = _WORD.match(self.text, self.at)
        found = word.group() if word else self.text[self.at]
        return ascii(found if len(found) <= 40 else f"{found[:40]}...")

    def end(self, expected: str) -> None:
        if self.at < len(self.text):
            raise self.fail(f"expected {expected}, found {self.here()}")

    def skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
            self.at += 1

    def take(self, symbol: str) -> bool:
        if not self.text.startswith(symbol, self.at):
            return False
        self.at += len(symbol)
        self.skip()
        return True

    def spec(self) -> Spec:
        start = self.at
        parts = [self.part()]
        while self.take("+"):
            parts.append(self.part())
        spec = Spec(tuple(parts))
        # The canonical text must itself be short enough for a spec, and it can be longer: 1e15 is 1000000000000000.0.
        if len(self.text) > MAX_LENGTH // 8 and len(str(spec)) > MAX_LENGTH:
            raise self.fail(f"its canonical text has {len(str(spec))} characters, allowed are {MAX_LENGTH}", start)
        return spec

    def part(self) -> Part:
        start = self.at
        kind = self.kind()
        name = self.path("a name")
        self.skip()
        revision = self.path("a revision") if self.take("@") else None
        self.skip()
        arguments = self.arguments() if self.take("(") else ()
        part = Part(name, kind, revision, arguments)
        if len(self.text) > MAX_LENGTH // 8 and len(str(part)) > MAX_LENGTH:
            raise self.fail(f"its canonical text has {len(str(part))} characters, allowed are {MAX_LENGTH}", start)
        return part

    def kind(self) -> PartKind | None:
        word = _WORD.match(self.text, self.at)
        if word is None or not self.text.startswith(":", word.end()):
            return None
        if word.group() not in PART_KINDS:
            allowed = ", ".join(PART_KINDS)
            raise self.fail(f"unknown kind {word.group()!r}, allowed are {allowed}{nearest(word.group(), PART_KINDS)}")
        self.at = word.end() + 1
        return cast(PartKind, word.group())

    def path(self, expected: str) -> str:
        """Reads segments joined by '/', which are a name or a revision. expected: what an error calls it."""
        start = self.at
        while True:
            segment = _WORD.match(self.text, self.at)
            if segment is None:
                raise self.fail(f"expected {expected} of letters, digits and . _ - /, found {self.here()}")
            if segment.group() in (".", ".."):
                raise self.fail(f"a segment of {expected} is not {segment.group()!r}")
            self.at = segment.end()
            if not self.text.startswith("/", self.at):
                return self.text[start : self.at]
            self.at += 1

    def arguments(self) -> tuple[tuple[str, Value], ...]:
        found: dict[str, Value] = {}
        if self.take(")"):
            return ()
        while True:
            key = _KEY.match(self.text, self.at)
            if key is None:
                raise self.fail(f"expected the name of an argument, found {self.here()}")
            if key.group() in found:
                raise self.fail(f"argument {key.group()!r} is given twice")
            self.at = key.end()
            self.skip()
            if not self.take("="):
                raise self.fail(f"expected '=' after {key.group()!r}, found {self.here()}")
            found[key.group()] = self.value(depth=0)
            if self.take(")"):
                return tuple(found.items())
            if not self.take(","):
                raise self.fail(f"expected ',' or ')', found {self.here()}")

    def value(self, depth: int) -> Value:
        if self.text.startswith("[", self.at):
            return self.values(depth + 1)
        if self.text.startswith('"', self.at):
            return self.quoted()
        number = _NUMBER.match(self.text, self.at)
        if number is not None:
            return self.number(number.group())
        word = _WORD.match(self.text, self.at)
        if word is None:
            raise self.fail(f'expected a number, true, false, none, a word, "text" or [ ], found {self.here()}')
        self.at = word.end()
        self.skip()
        return _CONSTANTS.get(word.group(), word.group())

    def values(self, depth: int) -> tuple[Value, ...]:
        if depth > MAX_DEPTH:
            raise self.fail(f"lists are nested more than {MAX_DEPTH} deep")
        self.take("[")
        found: list[Value] = []
        if self.take("]"):
            return ()
        while True:
            found.append(self.value(depth))
            if self.take("]"):
                return tuple(found)
            if not self.take(","):
                raise self.fail(f"expected ',' or ']', found {self.here()}")

    def number(self, text: str) -> int | float:
        if len(text) > MAX_NUMBER:
            raise self.fail(f"a number has at most {MAX_NUMBER} characters, found {len(text)}")
        number = int(text) if text.lstrip("-").isdigit() else float(text)
        if not isfinite(number):
            raise self.fail(f"{text} is not a finite number")
        self.at += len(text)
        self.skip()
        return number

    def quoted(self) -> str:
        match = _TEXT.match(self.text, self.at)
        if match is None:
            raise self.unquotable()
        odd = _UNPRINTABLE.search(match.group())
        if odd is not None:
            raise self.fail(f"text in quotes holds the control character {odd.group()!a}", self.at + odd.start())
        self.at = match.end()
        self.skip()
        return _ESCAPED.sub(r"\1", match.group(1))

    def unquotable(self) -> SpecError:
        """The error for text in quotes that cannot be read: an escape that does not exist, or no closing quote."""
        at = self.at + 1
        while at < len(self.text) - 1:
            if self.text[at] == "\\":
                if self.text[at + 1] not in '"\\':
                    return self.fail('the only escapes are \\" and \\\\', at)
                at += 1
            at += 1
        return self.fail("text in quotes has no closing quote")


def _write(value: Value) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(_write, value))}]"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if _WORD.fullmatch(value) and _NUMBER.fullmatch(value) is None and value not in _CONSTANTS:
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _check_part(part: Part) -> None:
    """Raises SpecError for a part that the parser could never return, so that every part's text can be parsed again."""
    for label, path in (("name", part.name), ("revision", part.revision)):
        if path is not None and _PATH.fullmatch(path) is None:
            raise SpecError(f"expected a {label} of letters, digits and . _ - /, found {path!r}", path, 0)
    seen = ""
    for key, value in part.arguments:
        if _KEY.fullmatch(key) is None:
            raise SpecError(f"{key!r} is not the name of an argument", key, 0)
        if key == seen:
            raise SpecError(f"argument {key!r} is given twice", key, 0)
        seen = key
        _check_value(value, 0)


def _check_value(value: Value, depth: int) -> None:
    if isinstance(value, tuple):
        if depth == MAX_DEPTH:
            raise SpecError(f"lists are nested more than {MAX_DEPTH} deep", _write(value), 0)
        for item in value:
            _check_value(item, depth + 1)
    elif isinstance(value, str):
        odd = _UNPRINTABLE.search(value)
        if odd is not None:
            raise SpecError(f"text holds the control character {odd.group()!a}", ascii(value), odd.start())
    elif isinstance(value, float):
        if not isfinite(value):
            raise SpecError(f"{value} is not a finite number", repr(value), 0)
    elif isinstance(value, int):
        if not -(10 ** (MAX_NUMBER - 1)) < value < 10**MAX_NUMBER:
            raise SpecError(f"a number has at most {MAX_NUMBER} characters", "", 0)
    elif value is not None:
        raise SpecError(f"an argument is a number, text, true, false, none or a tuple, found {value!r}", "", 0)
