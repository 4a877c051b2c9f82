"""Reads what is known about a name without importing its plugin, from two sources: catalogues and records.

A catalogue is the file `catalogue.json` in the top-level package of a distribution with zoo entry points:
`{"backbone": {"starter/vit-nano": {"modality": "image", ...}}}`. An entry `{"like": NAME, ...}` takes every field that
it does not state from the entry of another name of the same kind.
A record is one TOML file about one set of weights or one version of a data set. It lies in `models` or `tasks` of a
package that a `zoo.records` entry point names. It must state its licence and its source. If its author has seen the
files, it also pins their commit and their sha256, always both; otherwise a lock pins them on first use.
Every field is checked. A mistake makes only its own entry unusable.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_args

from zoo_core._process.singletons import Once
from zoo_core.contracts import (
    FEATURE_KINDS,
    MODALITIES,
    ROLES,
    TARGET_KINDS,
    FeatureSpec,
    FileHash,
    Modality,
    PartKind,
    Seam,
    Target,
    Weights,
)
from zoo_core.contracts.old_words import current_word
from zoo_core.errors import AmbiguousError, PluginError, SpecError, ZooError, nearest
from zoo_core.registry.index import Index, Provider, load_index
from zoo_core.registry.scan import read_text
from zoo_core.spec.parser import parse_part

__all__ = ["Catalog", "Entry", "Problem", "catalog", "facts"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known about a name. A field of which nothing is known is None or empty.

    describes: the part that a record's name stands for, else the name itself. weights: the kinds that exist.
    files: by name, at one commit of `repository`. revision: that commit, 40 hex digits. input: the table of the
    backbone's input (size, mean, ...). splits: the number of examples in each split. source: where the weights or data
    come from, as text for people.
    """

    name: str
    kind: PartKind
    describes: str
    summary: str = ""
    modality: Modality | None = None
    features: FeatureSpec | None = None
    num_stages: int | None = None
    roles: tuple[str, ...] = ()
    seams: tuple[Seam, ...] = ()
    num_parameters: int | None = None
    weights: tuple[Weights, ...] = ()
    target: Target | None = None
    metric: str | None = None
    splits: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, FileHash] = field(default_factory=dict)
    repository: str | None = None
    revision: str | None = None
    input: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None
    source: str | None = None
    documentation: str | None = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A catalogue entry or a record that cannot be used, and why."""

    distribution: str
    name: str
    problem: str


PROSE = frozenset({"summary", "source", "documentation"})  # a record's text replaces a catalogue's


class Catalog:
    """The entries of an index. Each is read and checked when it is first asked for."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._catalogues: dict[str, dict[str, Any]] = {}
        self._found: dict[tuple[str, PartKind | None], Entry | None] = {}
        self._records: dict[str, list[Provider]] = {}
        self._describing: dict[str, list[Provider]] = {}  # records with another name, by the part that they describe
        self._owners: dict[str, list[Provider]] = {}
        for provider in index.providers:
            if provider.origin == "entry point" and provider.state not in ("ambiguous", "disallowed"):
                self._owners.setdefault(provider.name, []).append(provider)
            if provider.origin == "record" and provider.state != "disallowed":
                self._records.setdefault(provider.name, []).append(provider)
                if provider.describes != provider.name:
                    self._describing.setdefault(provider.describes, []).append(provider)
        for fact in index.facts:
            if fact.state != "disallowed" and fact not in self._records.get(fact.name, ()):
                self._records.setdefault(fact.name, []).append(fact)

    def find(self, name: str, kind: PartKind | None = None) -> Entry | None:
        """What is known about a name, or None. The name of a record also gives the facts of the part that it describes.

        Raises PluginError if an entry is malformed or if a record and a catalogue contradict each other, and
        AmbiguousError if two records describe the name.
        """
        if (name, kind) not in self._found:
            self._found[name, kind] = self._find(name, kind)
        return self._found[name, kind]

    def problems(self) -> tuple[Problem, ...]:
        """Every unusable entry of the allowed distributions. To find them, this reads all entries."""
        found: list[Problem] = []
        for provider in (*self._index.providers, *self._index.facts):
            if provider.state == "disallowed":
                continue
            try:
                self.find(provider.name, provider.kind)
            except ZooError as error:
                problem = Problem(distribution=provider.distribution, name=provider.name, problem=str(error))
                if problem not in found:
                    found.append(problem)
        return tuple(found)

    def _find(self, name: str, kind: PartKind | None) -> Entry | None:
        record = self._record(name, kind)
        if record is not None:
            described = parse_part(record.describes).name
            base = self._from_catalogue(name, kind) if described == name else self._known(described, record.kind)
            return _merged(record, base)
        base = self._known(name, kind)
        found = [provider for provider in self._describing.get(name, ()) if kind in (None, provider.kind)]
        return _merged(_read_record(found[0]), base) if len(found) == 1 else base

    def _known(self, name: str, kind: PartKind | None) -> Entry | None:
        """The facts stated under the name itself: those in its owner's catalogue, with those that a record adds."""
        record, base = self._record(name, kind), self._from_catalogue(name, kind)
        return _merged(record, base) if record is not None else base

    def _record(self, name: str, kind: PartKind | None) -> Entry | None:
        found = [provider for provider in self._records.get(name, ()) if kind in (None, provider.kind)]
        if len(found) > 1:
            files = " and ".join(f"{provider.value} of {provider.distribution}" for provider in found)
            raise AmbiguousError(f"two records tell of {name!r}: {files}; leave one out of ZOO_PLUGINS")
        return _read_record(found[0]) if found else None

    def _from_catalogue(self, name: str, kind: PartKind | None) -> Entry | None:
        """The entry in the catalogue of the name's owner. None if several distributions claim the name."""
        for provider in self._owners.get(name.partition("/")[0], ()):
            if kind not in (None, provider.kind):
                continue
            for path in self._index.catalogues(provider.distribution):
                names = self._catalogue(path).get(provider.kind)
                if isinstance(names, dict) and name in names:
                    label = f"{path}: {provider.kind} {name!r}"
                    told = _spelt_out(names, name, label, provider.distribution)
                    return _entry(told, name=name, kind=provider.kind, label=label, owner=provider.distribution)
        return None

    def _catalogue(self, path: str) -> dict[str, Any]:
        """The content of a catalogue. A catalogue that cannot be read counts as empty; `zoo doctor` reports it."""
        if path not in self._catalogues:
            try:
                content = json.loads(read_text(path))
            except (OSError, ValueError, RecursionError):
                content = None
            self._catalogues[path] = content if isinstance(content, dict) else {}
        return self._catalogues[path]


def facts(entry: Entry | None) -> dict[str, Any]:
    """The known fields of an entry, as JSON. Unknown fields are left out."""
    if entry is None:
        return {}
    unsaid = {"name", "kind", "summary"} | ({"describes"} if entry.describes == entry.name else set())
    known = {key: value for key, value in asdict(entry).items() if value and key not in unsaid}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in known.items()}


@Once
def catalog() -> Catalog:
    """The catalog of this process's environment."""
    return Catalog(load_index())


def _read_record(provider: Provider) -> Entry:
    """The entry of a record. Raises PluginError if anything in its file is not as a record should be."""
    owner = f"{provider.distribution} {provider.version}"
    if provider.problem:
        raise _malformed(owner, provider.problem)
    try:
        content = tomllib.loads(read_text(provider.value))
    except (OSError, ValueError) as error:
        raise _malformed(owner, f"{provider.value}: {error}") from error
    name, describes = content.pop("name"), content.pop("describes", provider.name)
    try:
        parse_part(describes)
    except SpecError as error:
        raise _malformed(owner, f"{provider.value}: describes {describes!r}: {error.reason}") from None
    entry = _entry(content, name=name, kind=provider.kind, label=provider.value, owner=owner)
    lacking = [key for key in ("licence", "source") if getattr(entry, key) is None]
    if entry.repository is not None and bool(entry.revision) != bool(entry.files):
        lacking += [key for key in ("revision", "files") if not getattr(entry, key)]
    if lacking:
        raise _malformed(owner, f"{provider.value}: a record states its {' and '.join(lacking)}")
    return replace(entry, describes=describes)


def _spelt_out(names: Mapping[str, Any], name: str, label: str, owner: str) -> Any:
    """An entry of a catalogue, completed with the fields of the entry that its `like` names."""
    told = names[name]
    if not isinstance(told, dict) or "like" not in told:
        return told
    like = told["like"]
    other = names.get(like) if isinstance(like, str) else None
    if not isinstance(other, dict) or "like" in other:
        near = nearest(like, names) if isinstance(like, str) and other is None else ""
        raise _malformed(owner, f"{label}: like {like!r:.80} names no entry of the same kind that is whole{near}")
    return {**other, **{key: value for key, value in told.items() if key != "like"}}


def _entry(facts: Any, *, name: str, kind: PartKind, label: str, owner: str) -> Entry:
    if not isinstance(facts, dict):
        raise _malformed(owner, f"{label} is not a table")
    checked: dict[str, Any] = {}
    for key, value in facts.items():
        if key not in _CHECKS:
            raise _malformed(
                owner, f"{label}: unknown key {key!r}; known are {', '.join(_CHECKS)}{nearest(key, _CHECKS)}"
            )
        try:
            checked[key] = _CHECKS[key](value)
        except _WrongError as error:
            raise _malformed(owner, f"{label}: {key}{error.where} {error}, found {error.found!r:.80}") from None
    return Entry(name=name, kind=kind, describes=name, **checked)


def _merged(record: Entry, base: Entry | None) -> Entry:
    """The facts of a record, completed with those that only the catalogue states. Raises PluginError if they differ."""
    if base is None:
        return record
    known: dict[str, Any] = {}
    for each in fields(Entry):
        ours, theirs = getattr(record, each.name), getattr(base, each.name)
        if each.name in ("name", "kind", "describes"):
            continue
        if not ours:
            known[each.name] = theirs
        elif theirs and not _agree(each.name, ours, theirs):
            raise PluginError(
                f"the record {record.name!r} and what is known of {base.name!r} differ in {each.name}: {ours!r} and "
                f"{theirs!r}; mend the one that is wrong"
            )
    return replace(record, **known)


def _agree(name: str, ours: Any, theirs: Any) -> bool:
    if name == "licence":  # the Hub writes apache-2.0 for SPDX's Apache-2.0
        return str(ours).lower() == str(theirs).lower()
    return name in PROSE or bool(ours == theirs)


def _malformed(owner: str, problem: str) -> PluginError:
    return PluginError(f"{problem}; it is part of {owner}: mend it, or tell its author")


class _WrongError(Exception):
    """A value that is wrong for its key. where: the place of the mistake inside the value, such as `.dim`."""

    def __init__(self, expected: str, found: object, where: str = "") -> None:
        super().__init__(expected)
        self.found = found
        self.where = where


def _filled_string(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _WrongError("is text", value)
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise _WrongError("is a whole number, 0 or more", value)
    return value


def _word_of(allowed: Sequence[str]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in allowed:
            raise _WrongError(f"is one of {', '.join(allowed)}", value)
        return str(value)

    return check


def _list_of(allowed: Sequence[str]) -> Callable[[Any], tuple[str, ...]]:
    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or any(item not in allowed for item in value):
            raise _WrongError(f"is a list of {', '.join(allowed)}", value)
        return tuple(value)

    return check


def _hex(length: int) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or re.fullmatch(f"[0-9a-f]{{{length}}}", value) is None:
            raise _WrongError(f"is {length} hex digits in lower case", value)
        return value

    return check


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _WrongError("is a table", value)
    return value


def _row(checks: Mapping[str, Callable[[Any], Any]], required: Sequence[str]) -> Callable[[Any], dict[str, Any]]:
    """A check for a table that has all required keys and no keys other than these."""

    def check(value: Any) -> dict[str, Any]:
        wrong = set(_table(value)) - set(checks) | (set(required) - set(value))
        if wrong:
            raise _WrongError(f"is a table of {', '.join(checks)}", value)
        return {key: _inside(key, checks[key], item) for key, item in value.items()}

    return check


def _each(check: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {key: _inside(key, check, item) for key, item in _table(value).items()}


def _inside(key: str, check: Callable[[Any], Any], value: Any) -> Any:
    try:
        return check(value)
    except _WrongError as error:
        raise _WrongError(str(error), error.found, f".{key}{error.where}") from None


def _target_kind(value: Any) -> str:
    return _word_of(TARGET_KINDS)(current_word(value) if isinstance(value, str) else value)


_FEATURES = _row({"kind": _word_of(FEATURE_KINDS), "dim": _count, "pooled_dim": _count}, ["kind", "dim"])
_TARGET = _row({"kind": _target_kind, "size": _count}, ["kind"])
_FILE = _row({"sha256": _hex(64), "size": _count}, ["sha256", "size"])

_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "summary": _filled_string,
    "modality": _word_of(MODALITIES),
    "features": lambda value: FeatureSpec(**_FEATURES(value)),
    "num_stages": _count,
    "roles": _list_of(ROLES),
    "seams": _list_of(get_args(Seam)),
    "num_parameters": _count,
    "weights": _list_of(get_args(Weights)),
    "target": lambda value: Target(**_TARGET(value)),
    "metric": _filled_string,
    "splits": _each(_count),
    "files": _each(lambda value: FileHash(**_FILE(value))),
    "repository": _filled_string,
    "revision": _hex(40),
    "input": _table,
    "licence": _filled_string,
    "source": _filled_string,
    "documentation": _filled_string,
}
