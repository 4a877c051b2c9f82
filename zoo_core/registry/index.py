"""Lists everything that can be named in this environment, with its owner and state, without importing any of it.

The metadata that scan.py reads are kept between processes in one file of the cache folder. Three laws apply: a name
has one owner within each kind; a distribution made for another version of zoo-core is not imported; and neither is a
distribution that the allow-list does not contain. A cache that is missing, damaged or not writable only costs time.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from zoo_core._process.atomic_files import write_whole
from zoo_core.registry.scan import (
    CORE,
    Distribution,
    Folder,
    Locate,
    Origin,
    is_fresh,
    mtime_ns,
    normalise,
    read_text,
    scan_folder,
)
from zoo_core.registry.settings import cache_folder, read_settings, settings_file
from zoo_core.registry.versions import in_range

if TYPE_CHECKING:
    from zoo_core.contracts import PartKind  # an import at run time would take a third of the time of `zoo list`

__all__ = [
    "Index",
    "LoadFailure",
    "Origin",
    "Provider",
    "State",
    "list_names",
    "load_index",
    "read_folders",
    "reserved_names",
]

State: TypeAlias = Literal["ok", "broken", "incompatible", "ambiguous", "disallowed"]

FORMAT = 3  # raised when scan.py extracts different facts from the same files
NUM_KEPT = 16  # index files in the cache folder: one for each environment and way of starting Python
RACY_NS = 100_000_000  # a folder that changed less long ago may change again with the same modification time
PART_KINDS: tuple[PartKind, ...] = (  # a copy of contracts.PART_KINDS, because importing that takes too long
    *("backbone", "adapter", "head", "task"),
    *("metric", "augmentation", "reader", "score"),
)
HEX = frozenset("0123456789abcdef")


class Provider(NamedTuple):
    """A name and who provides it.

    value: `module:object` of an entry point, `path:object` of a plugin file, else the file that describes the name.
    distribution: for a plugin file, the name of the file. requires: the range of zoo-core versions that the
    distribution needs, None if it states none. problem: why the state is not ok, in one line; empty if it is ok.
    describes: the part that a record's name stands for, else the name itself. sha256: the hash of a plugin file that no
    distribution publishes; empty for all others.
    """

    name: str
    kind: PartKind
    value: str
    distribution: str
    version: str
    requires: str | None
    state: State
    problem: str
    origin: Origin
    summary: str
    describes: str
    sha256: str = ""

    @property
    def mend(self) -> str:
        """What a user can do about a mistake in this plugin, for a message."""
        return f"mend {self.distribution}" if self.sha256 else f"tell its author, or {self.removal}"

    @property
    def removal(self) -> str:
        return f"leave {self.distribution} out" if self.sha256 else f"remove it: pip uninstall {self.distribution}"


class LoadFailure(NamedTuple):
    """Why an entry point could not be loaded. Valid until its distribution, file or environment changes."""

    version: str
    problem: str
    file: str
    mtime_ns: int


class Index:
    """Everything that was found in folders, which are given in the order of sys.path.

    providers: every name that can be used in a spec, sorted by kind, then by name. facts: records that only add facts
    to a name that another provider owns. distributions: those with zoo entry points. shadowed: the metadata paths of
    copies that Python would not import, because another copy of the distribution comes first.
    core_version: None if zoo-core runs from a plain folder; then nothing can be incompatible.
    cache: the folder where load failures are kept between processes; None keeps none.
    """

    def __init__(
        self,
        folders: Mapping[str, Folder],
        *,
        allow: Iterable[str] | None = None,
        owners: Mapping[str, str] | None = None,
        cache: str | None = None,
    ) -> None:
        self.folders = folders
        self.allow = None if allow is None else frozenset(map(normalise, allow))
        self.owners = owners or {}
        self.cache = cache
        self.distributions, self.shadowed = _in_front(folders)
        self.core_version = next((d["version"] for d in self.distributions if normalise(d["name"]) == CORE), None)
        self.stamp = zlib.crc32(repr([(path, folder["mtime_ns"]) for path, folder in folders.items()]).encode())
        self.failures = _read_failures(cache, self.stamp)
        claims = tuple(self._claims())
        self.facts = tuple(claim for claim in claims if claim.origin == "record" and claim.describes == claim.name)
        self.providers = tuple(_settled(claims, self.facts, self.owners))

    def put(self, found: Sequence[Provider], *, instead_of: Iterable[Provider] = ()) -> None:
        """Adds providers that were registered in this process, and removes those in `instead_of`."""
        left_out = set(instead_of)
        kept = (provider for provider in self.providers if provider not in left_out)
        self.providers = tuple(sorted((*kept, *found), key=lambda each: (PART_KINDS.index(each.kind), each.name)))

    def state(self, distribution: Distribution) -> tuple[State, str]:
        """The state of a distribution, with the reason if it is not ok: not allowed, or not made for this zoo-core."""
        name, version, requires = distribution["name"], distribution["version"], distribution["requires"]
        if normalise(name) == CORE:
            return "ok", ""
        if self.allow is not None and normalise(name) not in self.allow:
            return "disallowed", f"{name} is not among the allowed plugins; add it to ZOO_PLUGINS or to the settings"
        if self.core_version is None or requires is None:
            return "ok", ""
        fits = in_range(self.core_version, requires)
        if fits is None:
            return "broken", f"{name} {version} requires zoo-core {requires!r}, which is not a range of versions"
        if not fits:
            wanted = f"{name} {version} requires zoo-core {requires}, and this is {self.core_version}"
            return "incompatible", f"{wanted}: pip install --upgrade zoo-core {name}"
        return "ok", ""

    def catalogues(self, distribution: str) -> tuple[str, ...]:
        """The catalogue files of a distribution."""
        return tuple(
            path
            for found in self.distributions
            if found["name"] == distribution
            for path in found["stamps"]
            if os.path.basename(path) == "catalogue.json"
        )

    def failure(self, provider: Provider) -> LoadFailure | None:
        """Why an earlier process could not load this entry point. None if it could, or if the version has changed."""
        failure = self.failures.get(_failure_key(provider))
        return failure if failure is not None and failure.version == provider.version else None

    def remember(self, provider: Provider, failure: LoadFailure | None) -> None:
        """Stores for later processes why an entry point could not be loaded. None removes what was stored."""
        key = _failure_key(provider)
        if self.failures.get(key) == failure:
            return
        if failure is None:
            del self.failures[key]
        else:
            self.failures[key] = failure
        if self.cache is not None:
            _write(os.path.join(self.cache, "failures.json"), {"stamp": self.stamp, "failures": self.failures})

    def _claims(self) -> Iterator[Provider]:
        reserved = reserved_names()
        bare = {name.rpartition(":")[2] for name in reserved}
        for distribution in self.distributions:
            owner_name = normalise(distribution["name"])
            for provider in self._rows(distribution):
                if provider.name not in bare:
                    yield provider
                    continue
                owner = reserved.get(f"{provider.kind}:{provider.name}", reserved.get(provider.name))
                tells_only = provider.origin == "record" and provider.describes == provider.name  # claims no name
                if owner is None or owner == owner_name or tells_only:
                    yield provider
                else:
                    problem = f"{provider.name!r} is reserved for {owner}; {provider.distribution} needs another name"
                    yield provider._replace(state="disallowed", problem=problem)

    def _rows(self, distribution: Distribution) -> Iterator[Provider]:
        """The names of one distribution, with their states as long as no other distribution claims the same names."""
        owner, version, requires = distribution["name"], distribution["version"], distribution["requires"]
        state, problem = self.state(distribution)
        if distribution["fatal"] and state == "ok":
            state, problem = "broken", distribution["fatal"]
        for origin, kind, name, value, describes, summary, mistake in distribution["names"]:
            provider = Provider(
                name,
                kind,  # type: ignore[arg-type] # one of PART_KINDS, as the scanner checked
                value,
                owner,
                version,
                requires,
                state,
                problem,
                origin,
                summary,
                describes,
            )
            if state == "ok":
                failure = self.failure(provider) if self.failures else None
                mistake = mistake or (failure.problem if failure is not None else "")
                if mistake:
                    provider = provider._replace(state="broken", problem=mistake)
            yield provider


def load_index() -> Index:
    """The index of this process's sys.path, its environment variables and the user's settings.

    Raises UsageError if the settings cannot be used.
    """
    settings = read_settings()
    cache = cache_folder()
    paths = list(dict.fromkeys(os.path.abspath(path) for path in sys.path))
    return Index(
        read_folders(paths, cache=cache, locate=_imported_from),
        allow=settings.allow,
        owners=settings.owners,
        cache=cache,
    )


def list_names(
    kind: PartKind | None = None, pattern: str | None = None, *, index: Index | None = None
) -> list[dict[str, str]]:
    """Everything that can be named, as rows of name, kind, distribution, version, state and summary, by kind and name.

    pattern: with `*` and `?`, such as `timm/*`. A plain word finds all names that contain it. Imports no plugin.
    """
    if pattern is not None and not any(symbol in pattern for symbol in "*?["):
        pattern = f"*{pattern}*"
    return [
        {  # written out for speed, because there are thousands of rows
            "name": provider.name,
            "kind": provider.kind,
            "distribution": provider.distribution,
            "version": provider.version,
            "state": provider.state,
            "summary": provider.summary,
        }
        for provider in (index or load_index()).providers
        if kind in (None, provider.kind) and (pattern is None or fnmatchcase(provider.name, pattern))
    ]


def read_folders(paths: Sequence[str], *, cache: str | None = None, locate: Locate | None = None) -> dict[str, Folder]:
    """The content of each folder, by path. It is taken from the cache if nothing has changed since it was read.

    locate: finds the folder of a package that lies in none of these folders.
    """
    file = os.path.join(cache, f"index-{_crc(repr([sys.version, *paths]))}.json") if cache is not None else None
    known = _read_index(file)
    folders: dict[str, Folder] = {}
    for path in paths:
        scanned = known.get(path)
        if scanned is None or not is_fresh(path, scanned):
            scanned = scan_folder(path, _locate_in([path, *paths], locate))
        folders[path] = scanned
    changed = [path for path in paths if folders[path] is not known.get(path)]
    if file is not None and any(folders[path]["distributions"] or folders[path]["others"] for path in changed):
        now = time.time_ns()
        kept = {path: folder for path, folder in folders.items() if now - folder["mtime_ns"] > RACY_NS}
        _write(file, kept)
        _prune(os.path.dirname(file))
    return folders


def _in_front(folders: Mapping[str, Folder]) -> tuple[list[Distribution], list[str]]:
    """The distributions that Python would import, and the metadata paths of the copies that they hide."""
    front: list[Distribution] = []
    shadowed: list[str] = []
    seen: set[str] = set()
    for folder in folders.values():
        here: dict[str, Distribution] = {}
        for distribution in folder["distributions"]:
            name = normalise(distribution["name"])
            twin = here.setdefault(name, distribution)
            if name in seen or (twin is not distribution and twin["version"] == distribution["version"]):
                shadowed.append(distribution["path"])
            elif twin is not distribution:
                versions = f"{twin['version']} and {distribution['version']}"
                mend = f"pip install --force-reinstall {twin['name']}"
                fatal = f"two versions of {twin['name']} lie in one folder, {versions}: {mend}"
                here[name] = {**twin, "fatal": fatal}
        front.extend(distribution for name, distribution in here.items() if name not in seen)
        seen.update(here, folder["others"])
    return front, shadowed


def _settled(claims: Sequence[Provider], facts: Sequence[Provider], owners: Mapping[str, str]) -> Iterator[Provider]:
    """The providers by kind and name, after the law that a name has one owner within each kind has been applied."""
    by_kind: dict[str, dict[str, list[Provider]]] = {kind: {} for kind in PART_KINDS}
    for claim in claims:
        if claim.origin != "record" or claim.describes != claim.name:
            by_kind[claim.kind].setdefault(claim.name, []).append(claim)
    for fact in facts:
        by_kind[fact.kind].setdefault(fact.name, [fact])
    for by_name in by_kind.values():
        for name in sorted(by_name):
            rows = by_name[name]
            yield from rows if len(rows) == 1 else _settle(rows, owners)


def _settle(rows: Sequence[Provider], owners: Mapping[str, str]) -> list[Provider]:
    """Decides between claims of one name. The settings choose the owner; else, if several are allowed, none is used."""
    kind, name = rows[0].kind, rows[0].name
    owner = owners.get(f"{kind}:{name}", owners.get(name))
    live = [row for row in rows if row.state != "disallowed"]
    if owner is not None and any(normalise(row.distribution) == normalise(owner) for row in live):
        lost = f"the settings give {kind} {name!r} to {owner}"
        return [
            row if normalise(row.distribution) == normalise(owner) else row._replace(state="disallowed", problem=lost)
            for row in rows
        ]
    if len(live) < 2:
        return list(rows)
    claimants = sorted(f"{row.distribution} {row.version}" for row in live)
    if len({row.distribution for row in live}) == 1:
        problem = f"{claimants[0]} names {kind} {name!r} twice, as {' and '.join(row.value for row in live)}"
        return [row._replace(state="broken", problem=problem) if row in live else row for row in rows]
    problem = (
        f"{kind} {name!r} is claimed by {' and '.join(claimants)}, so none is used; leave one out of ZOO_PLUGINS, "
        f'or write `"{kind}:{name}" = "{live[0].distribution}"` below [names] in {settings_file()}'
    )
    return [row._replace(state="ambiguous", problem=problem) if row in live else row for row in rows]


def reserved_names() -> dict[str, str]:
    """The first-party distribution, normalised, that owns each reserved name. Some names have a kind: `adapter:hub`."""
    lines = read_text(os.path.join(os.path.dirname(__file__), "reserved.txt")).splitlines()
    pairs = (line.split() for line in lines if line and not line.startswith("#"))
    return {name: normalise(owner) for name, owner in pairs}


def _locate_in(paths: Sequence[str], last_resort: Locate | None) -> Locate:
    def locate(top: str) -> str:
        for path in paths:
            package = os.path.join(path, top)
            if os.path.isdir(package):
                return package
        return last_resort(top) if last_resort is not None else ""

    return locate


def _imported_from(top: str) -> str:
    """The folder of a package that only an import finder knows, as for some editable installations. Else empty.

    It accepts top-level names only, because Python imports nothing to find those; to find `a.b` it would import `a`.
    """
    import importlib.util  # rarely needed, and slow to import

    try:
        spec = importlib.util.find_spec(top) if top.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    return next(iter(spec.submodule_search_locations or ()), "") if spec is not None else ""


def _crc(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _read_index(file: str | None) -> dict[str, Folder]:
    content = _read(file)
    return content if isinstance(content, dict) else {}


def _failure_key(provider: Provider) -> str:
    return f"{normalise(provider.distribution)} {provider.kind}:{provider.name} {provider.value}"


def _read_failures(cache: str | None, stamp: int) -> dict[str, LoadFailure]:
    """The stored failures that are still valid: nothing was installed since, and the file has not changed."""
    content = _read(os.path.join(cache, "failures.json")) if cache is not None else None
    if not isinstance(content, dict) or content["stamp"] != stamp:
        return {}
    failures = {key: LoadFailure(*failure) for key, failure in content["failures"].items()}
    return {key: failure for key, failure in failures.items() if mtime_ns(failure.file) == failure.mtime_ns}


def _read(file: str | None) -> object:
    """The JSON value of a cache file, or None if it is missing, damaged or of another format."""
    if file is None:
        return None
    try:
        head, _, body = read_text(file).partition("\n")
        return json.loads(body) if head == f"{FORMAT} {_crc(body)}" else None
    except (OSError, ValueError):
        return None


def _write(file: str, content: object) -> None:
    """Writes a cache file in one step. Does nothing if the folder is not writable."""
    body = json.dumps(content, separators=(",", ":"))
    try:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        write_whole(file, f"{FORMAT} {_crc(body)}\n{body}")
    except OSError:
        return


def _prune(cache: str) -> None:
    """Removes all but the newest index files. Files half-written by a killed process count too; other files stay."""
    try:
        found = [entry for entry in os.scandir(cache) if _is_index(entry.name)]
        found.sort(key=lambda entry: entry.stat(follow_symlinks=False).st_mtime_ns, reverse=True)
        for entry in found[NUM_KEPT:]:
            os.unlink(entry.path)
    except OSError:
        return


def _is_index(name: str) -> bool:
    """Whether this is the name of an index file, `index-HASH.json`, or of one that is being written."""
    start, _, rest = name.partition(".json")
    mark = start.removeprefix("index-")
    written = f"index-{mark}.json" + (f".{rest[1:]}" if rest else "")
    return written == name and len(mark) == 8 and set(mark + rest[1:]) <= HEX and len(rest) in (0, 9)
