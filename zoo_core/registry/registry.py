"""Looks up names, imports the recipes that plugins publish under them on first use, and binds parts to them."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from zoo_core._process.interrupts import held_back, raise_interrupt
from zoo_core._process.singletons import Once
from zoo_core.contracts import PART_KINDS, Namespace, PartKind
from zoo_core.errors import AmbiguousError, NotFoundError, PluginError, SpecError, UsageError, ZooError, nearest
from zoo_core.registry.bind import Argument, Bound, arguments_of, bind_recipe, type_text, value_text
from zoo_core.registry.catalog import Catalog, catalog, facts
from zoo_core.registry.index import Index, LoadFailure, Provider, State, load_index, reserved_names
from zoo_core.registry.index import list_names as names_of
from zoo_core.registry.scan import mtime_ns, normalise
from zoo_core.spec.parser import Part, parse_part

__all__ = ["Bound", "Provider", "Registry", "State", "list_names", "registry", "show"]

PLACES_OF_KINDS: tuple[
    frozenset[PartKind], ...
] = (  # the first stands at the start of a spec, the second after a `+`, and the others outside of specs
    frozenset({"backbone"}),
    frozenset({"adapter", "head"}),
    frozenset({"task"}),
    frozenset({"metric"}),
    frozenset({"augmentation"}),
    frozenset({"reader"}),
    frozenset({"score"}),
)
VERBS: dict[PartKind, str] = {
    "backbone": "build",
    "head": "build",
    "adapter": "apply",
    "task": "open",
    "metric": "score",
    "augmentation": "augment",
    "reader": "task",
    "score": "judge",
}


class Registry:
    """The parts of an index. Looking up executes nothing; `recipe` and `bind` import one plugin's module."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._recipes: dict[tuple[str, str, str], type] = {}
        self._named: dict[tuple[tuple[str, str, str], str], type] = {}
        self._failures: dict[tuple[str, str, str], str] = {}
        self._by_name = _by_name(index)
        self.files: dict[str, bytes] = {}  # the content of each plugin file that was loaded, by path

    def add(self, found: Mapping[Provider, type]) -> None:
        """Makes recipes that no distribution publishes usable by name. They replace all earlier recipes of their files.

        Raises UsageError if a class is not a recipe, and AmbiguousError if another provider already owns a name. In
        both cases, no recipe is added.
        """
        files = {_file(provider) for provider in found}
        own = [provider for provider in self.index.providers if provider.origin == "file"]
        before = [provider for provider in own if _file(provider) in files]
        for provider, recipe in found.items():
            problem = _contract_problem(recipe, provider.kind)
            if problem:
                raise UsageError(f"{provider.distribution}: {recipe.__qualname__} {problem}; an underscore hides it")
            for other in self._by_name.get(provider.name, ()):
                if other.kind == provider.kind and other.state != "disallowed" and other not in before:
                    owner = f"{other.distribution} {other.version}" if not other.sha256 else _file(other)
                    raise AmbiguousError(
                        f"{provider.kind} {provider.name!r} is claimed by {_file(provider)} and by {owner}; rename the "
                        f"class, or give it another `name: ClassVar[str]`"
                    )
        self.index.put(list(found), instead_of=before)
        self._recipes |= {_key(provider): recipe for provider, recipe in found.items()}
        self._named.clear()
        self._by_name = _by_name(self.index)

    def providers(self, kind: PartKind | None = None, pattern: str | None = None) -> tuple[Provider, ...]:
        """The providers of a kind whose names match a pattern with `*` and `?`, sorted by kind, then by name."""
        return tuple(
            self._as_known(provider)
            for provider in self.index.providers
            if (kind is None or provider.kind == kind) and (pattern is None or fnmatchcase(provider.name, pattern))
        )

    def find(self, name: str, kind: PartKind | None = None) -> Provider:
        """The provider of a name, or else of the namespace in its first segment. `head:linear` states the kind as well.

        The provider may be unusable; `recipe` then raises the reason. Raises NotFoundError if nobody provides the name,
        and AmbiguousError if several kinds or several distributions claim it.
        """
        prefix, colon, rest = name.partition(":")
        if colon and prefix in PART_KINDS:
            name, kind = rest, prefix
        found = self._claimed(name, kind)
        if not found:
            raise NotFoundError(self._not_found(name, kind))
        if len({provider.kind for provider in found}) > 1:
            kinds = sorted({provider.kind for provider in found}, key=PART_KINDS.index)
            mend = " or ".join(f"{each}:{name}" for each in kinds)
            raise AmbiguousError(f"{name!r} is the name of {' and of '.join(map(_a, kinds))}; write {mend}")
        if found[0].state == "ambiguous":
            raise AmbiguousError(found[0].problem)
        return self._as_known(found[0])

    def kinds(self, name: str) -> frozenset[PartKind]:
        """The kinds of part for which some provider claims the name."""
        return frozenset(provider.kind for provider in self._claimed(name, None))

    def recipe(self, provider: Provider) -> type:
        """The dataclass that the provider publishes. It is imported only if the provider is allowed and compatible.

        Raises NotFoundError if the provider is not allowed, AmbiguousError if several providers claim its name, and
        PluginError for everything else, including any exception that the plugin itself raises.
        """
        provider = provider if _is_root(provider) else self._root(parse_part(provider.describes).name, provider)
        key = _key(provider)
        if key in self._recipes:
            return self._recipes[key]
        if provider.state == "disallowed":
            raise NotFoundError(provider.problem)
        if provider.state == "ambiguous":
            raise AmbiguousError(provider.problem)
        remembered = self.index.failure(provider)
        if provider.state != "ok" and (remembered is None or key in self._failures):
            raise PluginError(provider.problem)
        try:
            recipe = _load(provider)
        except PluginError as error:
            self._failures[key] = str(error)
            file = _file_of(provider)
            self.index.remember(provider, LoadFailure(provider.version, str(error), file, mtime_ns(file)))
            raise
        self.index.remember(provider, None)
        self._recipes[key] = recipe
        return recipe

    def recipe_of(self, name: str, provider: Provider) -> type:
        """The dataclass of a name. For a name in a namespace, this is the dataclass for the part after the '/'.

        A namespace whose names differ in their arguments has a class method `recipe_for(name)`, which returns the
        dataclass of each. Without that method, all its names share the recipe of the namespace.
        Raises what `recipe` raises, and NotFoundError if there is no such name.
        """
        root = self._root(name, provider)
        recipe, rest = self.recipe(root), _rest(name, root)
        if rest and not _has_name(recipe):
            raise NotFoundError(f"{root.name} is no namespace, so there is no {name!r}; `zoo show {root.name}`")
        if not rest or not isinstance(recipe, Namespace):
            return recipe
        key = _key(root), rest
        if key not in self._named:
            self._named[key] = _offered(root, recipe, rest)
        return self._named[key]

    def bind(self, part: Part, kind: PartKind | None = None) -> Bound:
        """The part with its recipe, and with every argument converted to its type.

        The name of a record is replaced by the part that the record describes.
        Raises what `find` and `recipe` raise, and UsageError for a wrong argument or a part of the wrong kind.
        """
        wanted = part.kind or kind
        if part.kind is not None and kind is not None and part.kind != kind:
            raise UsageError(f"{part} is {_a(part.kind)} and {_a(kind)} is wanted here")
        provider = self.find(part.name, wanted)
        described = parse_part(provider.describes) if provider.origin == "record" else Part(part.name)
        implied = dict(described.arguments)
        arguments = tuple((implied | dict(part.arguments)).items())
        full = replace(described, kind=provider.kind, revision=part.revision or described.revision, arguments=arguments)
        root = self._root(described.name, provider)
        recipe = self.recipe_of(described.name, root)
        added = implied.keys() - dict(part.arguments).keys()
        instance, common = bind_recipe(root, recipe, full, _rest(described.name, root), part.name, added)
        rivals = self.kinds(part.name) & next(place for place in PLACES_OF_KINDS if root.kind in place)
        return Bound(
            kind=root.kind,
            name=described.name,
            provider=root,
            recipe=instance,
            common=common,
            written=part,
            revision=full.revision,
            implied=implied,
            qualified=len(rivals) > 1,
        )

    def _claimed(self, name: str, kind: PartKind | None) -> list[Provider]:
        """The providers that claim the name, or else its namespace. Disallowed ones only if there are no others."""
        for each in dict.fromkeys((name, name.partition("/")[0])):
            found = [provider for provider in self._by_name.get(each, ()) if kind in (None, provider.kind)]
            if each != name:
                found = [provider for provider in found if _is_root(provider)]
            live = [provider for provider in found if provider.state != "disallowed"]
            if found:
                return live or found
        return []

    def _root(self, name: str, provider: Provider) -> Provider:
        """The provider that publishes the recipe: this one, or for a catalogue or record the owner of the name."""
        if _is_root(provider):
            return provider
        for each in dict.fromkeys((name, name.partition("/")[0])):
            found = [claim for claim in self._claimed(each, provider.kind) if _is_root(claim)]
            if found:
                return self._as_known(found[0])
        raise NotFoundError(self._not_found(name, provider.kind))

    def _as_known(self, provider: Provider) -> Provider:
        """The provider, with its state updated if this process has already tried to load it."""
        key = _key(provider)
        if key in self._failures:
            return provider._replace(state="broken", problem=self._failures[key])
        if key in self._recipes:
            return provider._replace(state="ok", problem="")
        return provider

    def _not_found(self, name: str, kind: PartKind | None) -> str:
        """The message for a name that nobody provides, with the command that helps."""
        wanted = kind or "part"
        root = name.partition("/")[0]
        owner = reserved_names().get(f"{kind}:{root}", reserved_names().get(root))
        if owner is not None and not any(normalise(d["name"]) == owner for d in self.index.distributions):
            return f"{name!r} is reserved for {owner}, which is not installed: pip install {owner}"
        held = f"; {owner}, which owns the name, does not provide it in this version" if owner is not None else ""
        known = {provider.name for provider in self.index.providers if kind in (None, provider.kind)}
        suspects = sorted(
            {f"{d['name']} {d['version']}" for d in self.index.distributions if d["problems"] or d["fatal"]}
        )
        unread = (
            f"; {' and '.join(suspects)} could not be read and may provide it, see `zoo doctor`" if suspects else ""
        )
        help_ = f"`zoo list{f' {kind}' if kind else ''}` shows what there is"
        return f"no plugin provides {_a(wanted)} {name!r}{held}{nearest(name, known)}{unread}; {help_}"


@Once
def registry() -> Registry:
    """The registry of this process's environment. Plugins that are installed later are seen only by a new process."""
    return Registry(load_index())


def list_names(kind: PartKind | None = None, pattern: str | None = None) -> list[dict[str, str]]:
    """Everything that can be named, as rows of name, kind, distribution, version, state and summary, by kind and name.

    pattern: with `*` and `?`, such as `timm/*`. A plain word finds all names that contain it. Imports no plugin.
    """
    return names_of(kind, pattern, index=registry().index)


def show(name: str) -> dict[str, Any]:
    """Everything about one name, as JSON: its provider, arguments with types and defaults, documentation and facts.

    Imports the module of the recipe, but not torch. A part that cannot be used has a `problem` and no arguments.
    Raises NotFoundError or AmbiguousError.
    """
    return describe(name, registry(), catalog())


def describe(name: str, registry: Registry, catalog: Catalog) -> dict[str, Any]:
    """The same as `show`, but from a given registry and catalog."""
    if "+" in name:
        raise UsageError(f"{name!r} is a spec, and one name is shown at a time; `zoo plan '{name}' --task T` shows it")
    if "(" in name:
        bare = name.partition("(")[0]
        raise UsageError(f"{name!r} has arguments, and a name is shown with those it may have: `zoo show {bare}`")
    provider = registry.find(name)
    shown: dict[str, Any] = {
        "name": name.rpartition(":")[2],
        "kind": provider.kind,
        "distribution": provider.distribution,
        "version": provider.version,
        "requires": provider.requires,
        "state": provider.state,
        "problem": provider.problem,
        "summary": provider.summary,
        "documentation": "",
        "recipe": None,
        "arguments": [],
        "facts": {},
    }
    try:
        shown["facts"] = facts(catalog.find(shown["name"], provider.kind))
        described = parse_part(provider.describes).name if provider.origin == "record" else shown["name"]
        recipe = registry.recipe_of(described, provider)
        arguments = arguments_of(provider, recipe)
        if "/" in shown["name"] and not shown["facts"]:
            registry.bind(parse_part(shown["name"]), provider.kind)  # raises if the namespace has no such name
    except NotFoundError:
        raise
    except ZooError as error:
        return shown | {"state": provider.state if provider.state != "ok" else "broken", "problem": str(error)}
    return shown | {
        "documentation": inspect.getdoc(recipe) or "",
        "recipe": f"{recipe.__module__}:{recipe.__qualname__}",
        "arguments": [_argument_row(argument) for argument in arguments],
    }


def _argument_row(argument: Argument) -> dict[str, Any]:
    required = argument.default is MISSING
    return {
        "name": argument.name,
        "type": type_text(argument.type),
        "default": None if required else _default_text(argument.default),
        "required": required,
        "common": argument.common,
    }


def _default_text(value: Any) -> str:
    """A default as a spec writes it. A value that a spec cannot hold, such as a tab, is written as Python writes it."""
    try:
        return value_text(value)
    except SpecError:
        return repr(value)


def _load(provider: Provider) -> type:
    """The recipe, imported and checked. Raises a PluginError that names the distribution, the file and the line."""
    module_name, _, path = provider.value.partition(":")
    try:
        with held_back():
            found: object = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except (Exception, SystemExit) as error:  # a plugin's own code ran; whatever it raises is its fault
        raise_interrupt(error)
        raise _unusable(provider, _load_problem(error, module_name)) from error
    problem = _contract_problem(found, provider.kind)
    if problem:
        raise _unusable(provider, f"{provider.value} {problem}")
    return cast(type, found)


def _offered(root: Provider, namespace: Any, rest: str) -> type:
    """The recipe that `recipe_for` of a namespace returns for one of its names, checked like any other recipe."""
    label = f"{root.value}.recipe_for({rest!r})"
    try:
        with held_back():
            found: object = namespace.recipe_for(rest)
    except ZooError:
        raise
    except Exception as error:  # a plugin's own code ran; whatever it raises is its fault
        raise_interrupt(error)
        raise _unusable(root, f"{label}: {_load_problem(error, root.value.partition(':')[0])}") from error
    problem = _contract_problem(found, root.kind)
    if not problem and not _has_name(cast(type, found)):
        problem = "has no field `name`, which holds the name below the namespace"
    if problem:
        raise _unusable(root, f"{label} {problem}")
    return cast(type, found)


def _contract_problem(found: object, kind: PartKind) -> str:
    """Why this object is not a recipe of the kind, or an empty string if it is one."""
    if not isinstance(found, type) or not is_dataclass(found):
        return "is not a dataclass; a recipe is a frozen, keyword-only one"
    if not found.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return "is not frozen: write @dataclass(frozen=True, kw_only=True)"
    positional = [field.name for field in fields(found) if field.init and not field.kw_only]
    if positional:
        return f"takes {', '.join(positional)} by position: write @dataclass(frozen=True, kw_only=True)"
    if not callable(getattr(found, VERBS[kind], None)):
        return f"has no method {VERBS[kind]}(), which is what makes it {_a(kind)}"
    if type(getattr(found, "version", None)) is not int:
        return "has no `version: ClassVar[int]`, the number that is raised when its results change"
    return ""


def _load_problem(error: BaseException, module_name: str) -> str:
    """What went wrong while a module was loaded, and where, in one line."""
    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, AttributeError) and getattr(error, "obj", None) is sys.modules.get(module_name):
        module = sys.modules[module_name]
        return f"{_module_file(module_name)} has no {error.name!r}{nearest(str(error.name), vars(module))}"
    if isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]:
        return f"its package {error.name!r} is not there; an editable installation whose folder is gone looks like this"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{said} at {error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    own = [frame for frame in frames if f"{module_name.partition('.')[0]}" in frame.filename.split("/")]
    if len(frames) < 2:  # only our own call, so no code of the module ran
        return said
    at = (own or frames)[-1]
    return f"{said} at {at.filename}:{at.lineno}"


def _unusable(provider: Provider, problem: str) -> PluginError:
    return PluginError(
        f"{provider.kind} {provider.name!r} of {provider.distribution} {provider.version} cannot be loaded: {problem}; "
        f"mend it, or {provider.removal}"
    )


def _file_of(provider: Provider) -> str:
    return _module_file(provider.value.partition(":")[0])


def _module_file(name: str) -> str:
    """The file of a module, found without importing it. Empty if there is none."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded.__file__ or ""
    parts = name.split(".")
    for folder in sys.path:
        base = Path(folder, *parts)
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return str(file)
    return ""


def _rest(name: str, root: Provider) -> str:
    """The part of a name after its namespace and the '/', or an empty string."""
    return name.removeprefix(root.name).removeprefix("/")


def _has_name(recipe: type) -> bool:
    """Whether a recipe has a field `name`, as the recipes of a namespace and of the names in it do."""
    return any(field.name == "name" for field in fields(recipe))


def _by_name(index: Index) -> dict[str, list[Provider]]:
    found: dict[str, list[Provider]] = {}
    for provider in index.providers:
        found.setdefault(provider.name, []).append(provider)
    return found


def _is_root(provider: Provider) -> bool:
    """Whether the provider publishes a recipe, as opposed to a catalogue or record that only describes a name."""
    return provider.origin in ("entry point", "file")


def _file(provider: Provider) -> str:
    """The plugin file that a provider comes from."""
    return provider.value.rpartition(":")[0]


def _key(provider: Provider) -> tuple[str, str, str]:
    return provider.kind, provider.distribution, provider.value


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] == "a" else f"a {kind}"
