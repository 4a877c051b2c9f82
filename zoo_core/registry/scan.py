"""Reads what installed distributions provide from their metadata, without importing any of them.

importlib.metadata is not used: it takes longer than all of `zoo list`, has no cache, and one malformed file in any
installed package breaks it for everybody. Here a mistake affects only the distribution that made it. All results are
plain JSON values, because index.py keeps them between processes. Paths are text, because pathlib alone would take a
tenth of the time that `zoo list` may take.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict

__all__ = [
    "CORE",
    "GROUPS",
    "RECORDS_GROUP",
    "Distribution",
    "Folder",
    "Locate",
    "Name",
    "Origin",
    "is_fresh",
    "mtime_ns",
    "normalise",
    "parse_entry_points",
    "read_text",
    "scan_folder",
]

Locate: TypeAlias = Callable[[str], str]
Origin: TypeAlias = Literal["entry point", "catalogue", "record", "file"]

GROUPS = {
    "zoo.backbones": "backbone",
    "zoo.adapters": "adapter",
    "zoo.heads": "head",
    "zoo.tasks": "task",
    "zoo.metrics": "metric",
    "zoo.augmentations": "augmentation",
    "zoo.readers": "reader",
    "zoo.scores": "score",
}
RECORDS_GROUP = "zoo.records"
RECORD_FOLDERS = {"models": "backbone", "tasks": "task"}
CORE = "zoo-core"

# Patterns are compiled on first use: a process that finds a fresh index needs none of them.
_TARGET = r"([A-Za-z_][\w.]*)\s*(?::\s*([A-Za-z_][\w.]*))?\s*(?:\[.*\])?"
_SEGMENT = r"(?!\.{1,2}$)[A-Za-z0-9._-]+"
_REQUIREMENT = r"(?i)zoo[-_.]core\s*(?:\[[^\]]*\])?\s*\(?\s*([^;)]*?)\s*\)?\s*(?:;(.*))?"


class Name(NamedTuple):
    """A name and where it comes from.

    value: `module:object` of an entry point, else the file that describes the name. describes: the part that a record's
    name stands for, else the name itself. problem: why the name cannot be used; empty if it can.
    """

    origin: Origin
    kind: str
    name: str
    value: str
    describes: str
    summary: str = ""
    problem: str = ""


class Distribution(TypedDict):
    """One distribution that has zoo entry points, or zoo-core itself.

    path: where its metadata lies. requires: the range of zoo-core versions that it needs, None if it states none.
    problems: what could not be read. fatal: why none of its names can be used; empty if they can. stamps: mtime_ns and
    size of each file and folder that this was read from.
    """

    name: str
    version: str
    path: str
    requires: str | None
    names: list[Name]
    problems: list[str]
    fatal: str
    stamps: dict[str, list[int]]


class Folder(TypedDict):
    """One folder of sys.path: its zoo distributions, and the normalised names of all other distributions."""

    mtime_ns: int
    distributions: list[Distribution]
    others: list[str]
    problems: list[str]


def normalise(name: str) -> str:
    """The name of a distribution in a form in which all its spellings are equal."""
    return name.lower().replace("_", "-").replace(".", "-")


def scan_folder(folder: str, locate: Locate) -> Folder:
    """Reads every distribution whose metadata lies in `folder`. A missing or unreadable folder gives none.

    locate: returns the folder of a top-level package, or an empty string if it finds none.
    """
    found = Folder(mtime_ns=mtime_ns(folder), distributions=[], others=[], problems=[])
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return found
    except OSError as error:
        found["problems"].append(f"{folder}: {error.strerror}")
        return found
    for name in names:
        if name.endswith((".dist-info", ".egg-info")) and not name.startswith("~"):
            distribution = _scan_distribution(os.path.join(folder, name), locate)
            if distribution is None:
                found["others"].append(normalise(_stem(name).partition("-")[0]))
            else:
                found["distributions"].append(distribution)
    return found


def is_fresh(folder: str, scanned: Folder) -> bool:
    """Whether every file and folder that `scanned` was read from is unchanged."""
    return mtime_ns(folder) == scanned["mtime_ns"] and all(
        _stamp(path) == stamp
        for distribution in scanned["distributions"]
        for path, stamp in distribution["stamps"].items()
    )


def parse_entry_points(text: str) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The (group, name, value) of each entry point, and a message for each line that is not one."""
    found: list[tuple[str, str, str]] = []
    problems: list[str] = []
    group = ""
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
            continue
        name, equals, value = line.partition("=")
        if group and equals and name.strip() and re.fullmatch(_TARGET, value.strip()):
            found.append((group, name.strip(), value.strip()))
        else:
            problems.append(f"line {number} is not `name = module:object` below a [group]: {line[:60]!r}")
    return found, problems


def read_text(path: str) -> str:
    """The file as UTF-8, without a byte order mark. Raises OSError, or ValueError if it is not UTF-8."""
    with open(path, "rb") as file:
        return file.read().decode("utf-8-sig")


def _scan_distribution(path: str, locate: Locate) -> Distribution | None:
    """The distribution whose metadata lies at `path`. None if it has no zoo entry points and is not zoo-core."""
    points = os.path.join(path, "entry_points.txt")
    is_core = normalise(_stem(path).partition("-")[0]) == CORE
    try:
        with open(points, "rb") as file:
            content = file.read()
    except OSError:  # no such file, an egg-info that is a single file, or an unreadable file
        content = b""
    if b"zoo." not in content and not is_core:
        return None
    name, version, requires, problems = _read_metadata(path)
    found = Distribution(
        name=name,
        version=version,
        path=path,
        requires=requires,
        names=[],
        problems=problems,
        fatal="",
        stamps={points: _stamp(points)},
    )
    try:
        lines, malformed = parse_entry_points(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        lines, malformed = [], [f"{error.reason} at byte {error.start}"]
    problems.extend(f"entry_points.txt: {problem}" for problem in malformed)
    owned = _entry_points(lines)
    for top in sorted({name.value.partition(":")[0].partition(".")[0] for name in owned.values()}):
        _add_catalogue(found, owned, top, locate)
    found["names"][:0] = owned.values()
    for group, _, value in lines:
        if group == RECORDS_GROUP:
            _add_records(found, value, locate)
    ours = any(group in GROUPS or group == RECORDS_GROUP for group, _, _ in lines) or (problems and b"[zoo." in content)
    return found if is_core or ours else None


def _entry_points(lines: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], Name]:
    """The recipes, by kind and name. setuptools lists editable ones twice, so equal lines count once."""
    found: dict[tuple[str, str], Name] = {}
    for group, name, value in lines:
        kind = GROUPS.get(group)
        if kind is None:
            continue
        match = re.fullmatch(_TARGET, value)
        assert match is not None, "parse_entry_points has checked it"
        target = f"{match[1]}:{match[2] or ''}"
        problem = ""
        if re.fullmatch(_SEGMENT, name) is None:
            problem = f"a name is letters, digits and . _ -, found {name!r}"
        elif not match[2]:
            problem = f"an entry point names module:object, found {value!r}"
        entry = Name("entry point", kind, name, target, name, problem=problem)
        known = found.setdefault((kind, name), entry)
        if known.value != target:
            twice = f"the distribution names it twice, as {known.value} and {target}"
            found[kind, name] = known._replace(problem=twice)
    return found


def _read_metadata(path: str) -> tuple[str, str, str | None, list[str]]:
    """Name, version, required range of zoo-core, and read errors. A missing name or version is the folder's."""
    name, _, version = _stem(path).partition("-")
    version = version.partition("-")[0]
    ranges: list[str] = []
    try:
        is_egg = path.endswith(".egg-info")
        head = read_text(os.path.join(path, "PKG-INFO" if is_egg else "METADATA"))
        for line in head.replace("\r\n", "\n").partition("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            if key == "Name":
                name = value.strip()
            elif key == "Version":
                version = value.strip()
            elif key == "Requires-Dist":
                ranges.extend(_core_range(value))
        if is_egg and not ranges:
            ranges = _egg_ranges(os.path.join(path, "requires.txt"))
    except (OSError, ValueError) as error:
        return name, version, None, [f"its metadata cannot be read: {error}"]
    return name, version, ",".join(ranges) if ranges else None, []


def _core_range(requirement: str) -> list[str]:
    """The range in one requirement, as a list of one. Empty if it is not for zoo-core or applies only to an extra."""
    match = re.fullmatch(_REQUIREMENT, requirement.strip())
    return [match[1]] if match and "extra" not in (match[2] or "") else []


def _egg_ranges(path: str) -> list[str]:
    try:
        lines = read_text(path).partition("\n[")[0].splitlines()
    except OSError:
        return []
    return [found for line in lines for found in _core_range(line)]


def _add_catalogue(found: Distribution, owned: dict[tuple[str, str], Name], top: str, locate: Locate) -> None:
    """Adds the names in `catalogue.json` of the package. Each must lie below a name of an entry point."""
    package = locate(top)
    if not package:
        return
    path = os.path.join(package, "catalogue.json")
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        found["stamps"][package] = _stamp(package)  # the folder changes when a catalogue is added
        return
    except (OSError, ValueError, RecursionError) as error:
        content = {}
        found["problems"].append(f"{path}: {error}")
    found["stamps"][path] = _stamp(path)
    for kind, names in content.items() if isinstance(content, dict) else [("", content)]:
        for name, facts in names.items() if isinstance(names, dict) else [("", names)]:
            summary = _summary(facts, names)
            if not isinstance(summary, str) or (kind, name.partition("/")[0]) not in owned:
                problem = f"{kind} {name!r} is not a table about a name that the distribution's entry points own"
                found["problems"].append(f"{path}: {problem}")
            elif (kind, name) in owned:
                owned[kind, name] = owned[kind, name]._replace(summary=summary)
            else:
                found["names"].append(Name("catalogue", kind, name, path, name, summary))


def _summary(facts: Any, names: Any) -> Any:
    """The summary of a catalogue entry, or of the one that its `like` names. If not text, it is a mistake."""
    if not isinstance(facts, dict):
        return None
    if "summary" not in facts and "like" in facts:
        other = names.get(facts["like"]) if isinstance(facts["like"], str) else None
        facts = other if isinstance(other, dict) else {}
    return facts.get("summary", "")


def _add_records(found: Distribution, package_name: str, locate: Locate) -> None:
    """Adds the names in the TOML files in `models` and `tasks` of the package. Other facts are read when asked for."""
    package = locate(package_name)
    if not package:
        found["problems"].append(f"entry_points.txt: records package {package_name!r} is not a folder on sys.path")
        return
    found["stamps"][package] = _stamp(package)
    for folder, kind in RECORD_FOLDERS.items():
        base = os.path.join(package, folder)
        if not os.path.isdir(base):
            continue
        found["stamps"][base] = _stamp(base)
        for name in sorted(os.listdir(base)):
            if name.endswith(".toml"):
                path = os.path.join(base, name)
                found["stamps"][path] = _stamp(path)
                found["names"].append(_read_record(path, kind))


def _read_record(path: str, kind: str) -> Name:
    """The name of a record and the part that it describes. A bad file is listed by its file name, with the problem."""
    import tomllib  # takes 15 ms, so it is imported only if there are records

    record = Name("record", kind, _stem(path), path, _stem(path))
    try:
        content = tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        return record._replace(problem=f"{path}: {error}")
    texts = {
        "name": "",
        "summary": "",
        **{key: content[key] for key in ("name", "describes", "summary") if key in content},
    }
    wrong = next((key for key, text in texts.items() if not isinstance(text, str)), None)
    if wrong is not None:
        return record._replace(problem=f"{path}: {wrong} is text, found {texts[wrong]!r}")
    if not texts["name"]:
        return record._replace(problem=f"{path}: it has no name")
    record = record._replace(
        name=texts["name"], describes=texts.get("describes", texts["name"]), summary=texts["summary"]
    )
    if "/" in record.name and record.describes != record.name:
        problem = f"{path}: {record.name!r} lies in a namespace, so it may not stand for another name"
        return record._replace(problem=problem)
    return record


def _stem(path: str) -> str:
    return os.path.basename(path).rpartition(".")[0]


def mtime_ns(path: str) -> int:
    """When the file or folder was last modified, in ns since 1970. 0 if it is missing."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _stamp(path: str) -> list[int]:
    try:
        status = os.stat(path)
    except OSError:
        return [0, 0]
    return [status.st_mtime_ns, status.st_size]
