"""Recipes that no package publishes: those in a plugin file, and objects that Python code passes as specs. No torch.

A plugin file is read once, so that exactly those bytes run whose sha256 is in digests. A digest covers that file alone.
Therefore its folder is not put on sys.path, and the file can import only installed packages.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.abc import SourceLoader
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeAlias

from zoo_core._process.interrupts import held_back, raise_interrupt
from zoo_core.contracts import (
    AdapterRecipe,
    AugmentationRecipe,
    BackboneRecipe,
    HeadRecipe,
    MetricRecipe,
    PartKind,
    ReaderRecipe,
    ScoreRecipe,
    TaskRecipe,
)
from zoo_core.errors import AccessError, NotFoundError, SpecError, UsageError, ZooError
from zoo_core.lock import read_lock, unpublished_in
from zoo_core.registry.bind import COMMON, Bound
from zoo_core.registry.index import Provider
from zoo_core.registry.registry import Registry
from zoo_core.registry.registry import registry as default_registry
from zoo_core.run_layout import LOCK
from zoo_core.spec.parser import Part, Spec, parse

__all__ = [
    "Recipe",
    "SpecLike",
    "add_plugin",
    "check_files",
    "lacking",
    "load_again",
    "part_of",
    "plugin_hashes",
    "spec_of",
]

InSpec: TypeAlias = BackboneRecipe | AdapterRecipe | HeadRecipe | TaskRecipe
Recipe: TypeAlias = InSpec | MetricRecipe | AugmentationRecipe | ReaderRecipe | ScoreRecipe
SpecLike: TypeAlias = str | Spec | InSpec | Sequence[str | Spec | Part | InSpec]

PREFIX = "zoo_file_"  # before the names of the modules that plugin files become
VERSION = "unpublished"
NO_FILE = "no file"  # instead of a hash, for a class that was typed into an interpreter
NO_FILE_PATH = "<interpreter>"
# A class is a recipe of the first of these kinds of which it has all verbs.
VERBS: tuple[tuple[PartKind, set[str]], ...] = (
    ("adapter", {"apply"}),
    ("task", {"open"}),
    ("head", {"build", "source", "fill"}),
    ("backbone", {"build", "source"}),
    ("head", {"build"}),
    ("metric", {"score"}),
    ("augmentation", {"augment"}),
    ("reader", {"task"}),
    ("score", {"judge"}),
)


def add_plugin(path: str | Path, *, registry: Registry | None = None) -> tuple[str, ...]:
    """Makes the recipes of a Python file usable by name in this process, as `--plugin FILE` does. Returns their names.

    A recipe is a public frozen keyword-only dataclass of the file, as zoo_core.contracts describes. It is named by its
    `name: ClassVar[str]`, or else after its class: GatedLora becomes gated-lora. A file that has changed is read again,
    and its new recipes replace the old ones.
    Raises NotFoundError, AccessError, UsageError for a broken file, and AmbiguousError if a name already has an owner.
    """
    file = Path(path).expanduser().resolve()
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"no plugin file {path}; --plugin and add_plugin take the path of a Python file") from None
    except OSError as error:
        raise AccessError(f"the plugin file {path} cannot be read ({error.strerror})") from error
    return _add(str(file), content, registry or default_registry())


def load_again(files: Mapping[str, bytes]) -> None:
    """Adds the plugin files of another process to this one, by path, from the bytes that the other process read."""
    for path, content in files.items():
        _add(path, content, default_registry())


def spec_of(spec: SpecLike, registry: Registry) -> Spec:
    """The spec that text, recipe objects, or a sequence of both stand for.

    Raises SpecError, and what `part_of` raises.
    """
    if isinstance(spec, Spec):
        return spec
    if isinstance(spec, str):
        return parse(spec)
    items = spec if isinstance(spec, Sequence) else [spec]
    return Spec(tuple(part for item in items for part in _parts(item, registry)))


def part_of(recipe: Recipe, registry: Registry) -> Part:
    """The part that stands for a recipe object in a spec. A class that no package publishes is registered.

    Raises UsageError if the object is not a recipe, or if one of its values cannot be written in a spec.
    """
    kind = _kind(type(recipe))
    if kind is None:
        raise UsageError(f"a part of a spec is text or a recipe, as Lora(r=4), found {recipe!r:.80}")
    provider, name = _published(recipe, kind, registry) or _of_its_file(type(recipe), kind, registry)
    common = {argument.name: argument.default for argument in COMMON[kind]}
    try:
        bound = Bound(
            kind=kind, name=name, provider=provider, recipe=recipe, common=common, written=Part(name), qualified=True
        )
        part = bound.canonical()
    except SpecError as error:
        raise UsageError(f"{type(recipe).__name__}: a spec cannot hold one of its values, {error.reason}") from error
    again: Any = registry.bind(part).recipe
    for field in fields(again):
        given, read = getattr(recipe, field.name), getattr(again, field.name)
        if field.init and read != given:
            raise UsageError(f"{type(recipe).__name__}: {field.name}={given!r:.60} is read as {read!r:.60} in a spec")
    return part


def plugin_hashes(parts: Iterable[Bound]) -> dict[str, str]:
    """The sha256 of each plugin file that the parts come from, by the name of the file.

    If a backbone is a stored run, this includes the plugin files that the run was fitted with, as its own lock says.
    """
    found: dict[str, str] = {}
    for part in parts:
        if part.provider.sha256:
            found[part.provider.distribution] = part.provider.sha256
        source = part.source if part.kind == "backbone" else None
        folder = source.folder if source is not None and "zoo.lock" in source.patterns else None
        seen: set[str] = set()
        while folder is not None and folder not in seen:  # a run, then the run that it was fitted on, and so on
            seen.add(folder)
            lock = read_lock(Path(folder, LOCK))
            found |= {row["distribution"]: row["sha256"] for row in unpublished_in(lock).values()}
            rows = lock["parts"] if lock is not None else {}
            folder = next((row.get("folder") for key, row in rows.items() if key.startswith("backbone:run(")), None)
    return found


def lacking(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of a lock, by key, whose plugin file has not been added to this process, or has since changed."""
    known = {(f"{found.kind}:{found.name}", found.sha256) for found in default_registry().providers()}
    return {key: row for key, row in rows.items() if (re.split("[/@(]", key)[0], row["sha256"]) not in known}


def check_files(parts: Iterable[Bound], *, elsewhere: bool = False) -> None:
    """Raises UsageError for a part whose recipe has no file, such as one that was typed into an interpreter.

    elsewhere: also refuse a recipe that the running script defines, because worker processes do not run that script.
    """
    for part in parts:
        name = type(part.recipe).__qualname__
        if part.provider.sha256 == NO_FILE:
            raise UsageError(
                f"{name} has no file, so a stored result could not say what it was; write it into one, and import it "
                f"or call zoo_core.add_plugin(FILE)"
            )
        if elsewhere and type(part.recipe).__module__ == "__main__":
            raise UsageError(
                f"{name} is of the script that runs, and worker processes do not run that again; put it into a file of "
                f"its own, and call zoo_core.add_plugin(FILE)"
            )


# --- files -----------------------------------------------------------------------------------------------------------


class _Held(SourceLoader):
    """Loads a module from bytes that have already been read. Writes nothing, such as bytecode, beside its file."""

    def __init__(self, path: str, content: bytes) -> None:
        self._path, self._content = path, content

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: str | bytes) -> bytes:
        return self._content


def _add(path: str, content: bytes, registry: Registry) -> tuple[str, ...]:
    sha256 = hashlib.sha256(content).hexdigest()
    here = [provider for provider in registry.index.providers if provider.sha256 == sha256]
    if here and registry.files.get(here[0].value.rpartition(":")[0]) == content:
        return tuple(provider.name for provider in here)
    module = _module(path, content, sha256)
    found: dict[Provider, type] = {}
    for recipe in vars(module).values():
        kind = _kind(recipe) if isinstance(recipe, type) and recipe.__module__ == module.__name__ else None
        if kind is not None and not recipe.__name__.startswith("_"):
            found[_provider(recipe, kind, path, sha256)] = recipe
    if not found:
        raise UsageError(
            f"{path} has no recipe: a public frozen dataclass with apply (an adapter), build (a backbone or a head), "
            f"open (a task), score (a metric), augment (an augmentation) or task (a reader); zoo_core.contracts tells "
            f"more"
        )
    names = [(provider.kind, provider.name) for provider in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{path} names the {twice[0]} {twice[1]!r} twice; give one of them another `name`")
    registry.add(found)
    registry.files[path] = content
    return tuple(provider.name for provider in found)


def _module(path: str, content: bytes, sha256: str) -> ModuleType:
    """The module that the bytes of a file define. Raises a UsageError that names the wrong line."""
    stem = re.sub(r"\W", "_", Path(path).stem, flags=re.ASCII)
    name = f"{PREFIX}{stem}_{sha256[:16]}"
    loader = _Held(path, content)
    spec = spec_from_loader(name, loader)
    assert spec is not None, "it has a loader"
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up the module of a class there
    try:
        with held_back():
            loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the file's own code ran; whatever it raises is its fault
        del sys.modules[name]
        raise_interrupt(error)
        raise UsageError(f"the plugin file {path} cannot be loaded: {_said(error, path)}; mend it") from error
    return module


def _said(error: BaseException, path: str) -> str:
    """What went wrong in a plugin file, and in which line of it, as one line of text."""
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{said} in line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{said} in line {lines[-1]}" if lines else said


def _provider(recipe: type, kind: PartKind, path: str, sha256: str) -> Provider:
    name = _name(recipe)
    try:
        Part(name)
    except SpecError as error:
        raise UsageError(f"{recipe.__name__}.name is {name!r}: {error.reason}") from error
    if "/" in name:
        raise UsageError(f"{recipe.__name__}.name is {name!r}; a name that a file gives has no '/'")
    summary = (inspect.getdoc(recipe) or "").partition("\n")[0]
    return Provider(
        name=name,
        kind=kind,
        value=f"{path}:{recipe.__qualname__}",
        distribution=Path(path).name,
        version=VERSION,
        requires=None,
        state="ok",
        problem="",
        origin="file",
        summary="" if summary.startswith(f"{recipe.__name__}(") else summary,  # the docstring that @dataclass generates
        describes=name,
        sha256=sha256,
    )


def _name(recipe: type) -> str:
    named = getattr(recipe, "name", None)
    if isinstance(named, str) and not _owns_names(recipe):
        return named
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", recipe.__name__).lower()


def _owns_names(recipe: Any) -> bool:
    """Whether `name` is an argument of the recipe, as it is for one that provides a namespace."""
    return any(field.name == "name" for field in fields(recipe))


def _kind(recipe: type) -> PartKind | None:
    """The kind of part that a class is a recipe of, judged by its verbs. None if the class is not a recipe."""
    has = {verb for _, verbs in VERBS for verb in verbs if callable(getattr(recipe, verb, None))}
    return next((kind for kind, verbs in VERBS if is_dataclass(recipe) and verbs <= has), None)


# --- objects ---------------------------------------------------------------------------------------------------------


def _parts(item: str | Spec | Part | Recipe, registry: Registry) -> tuple[Part, ...]:
    if isinstance(item, str | Spec):
        return spec_of(item, registry).parts
    return (item if isinstance(item, Part) else part_of(item, registry),)


def _published(recipe: Recipe, kind: PartKind, registry: Registry) -> tuple[Provider, str] | None:
    """The provider of the class of a recipe, with the recipe's name there. None if nobody publishes the class."""
    own, rest = type(recipe), getattr(recipe, "name", "")
    path = f"{own.__module__}:{own.__qualname__}"
    package = own.__module__.partition(".")[0]
    for provider in registry.providers(kind):
        if provider.origin == "file" and registry.recipe(provider) is own:
            return provider, provider.name
        if provider.origin != "entry point" or provider.value.partition(":")[0].partition(".")[0] != package:
            continue
        name = f"{provider.name}/{rest}" if rest and _owns_names(own) else provider.name
        if provider.value == path or _recipe_of(name, provider, registry) is own:
            return provider, name
    return None


def _recipe_of(name: str, provider: Provider, registry: Registry) -> type | None:
    try:
        return registry.recipe_of(name, provider)
    except ZooError:  # a broken name of the same package does not concern this recipe
        return None


def _of_its_file(recipe: type, kind: PartKind, registry: Registry) -> tuple[Provider, str]:
    """Registers a class that nobody publishes under its file. Raises UsageError if the file changed since import."""
    try:
        path = str(Path(inspect.getfile(recipe)).resolve())
        content = Path(path).read_bytes()
    except (TypeError, OSError):  # an interpreter, or a notebook
        path, sha256 = NO_FILE_PATH, NO_FILE
    else:
        sha256 = hashlib.sha256(content).hexdigest()
        _check_code(recipe, path, content)
    provider = _provider(recipe, kind, path, sha256)
    same = (each for each in registry.providers() if each.sha256 == sha256 and each.value.startswith(f"{path}:"))
    others = {each.value: each for each in same}  # the other recipes that were added from the same bytes
    known = others.pop(provider.value, None)
    if known is not None and sha256 != NO_FILE:
        return known, known.name  # the same class, imported a second time
    registry.add({provider: recipe} | {each: registry.recipe(each) for each in others.values()})
    return provider, provider.name


def _check_code(recipe: type, path: str, content: bytes) -> None:
    """Raises UsageError if a class was made from code that its file no longer contains."""
    if type(getattr(sys.modules.get(recipe.__module__), "__loader__", None)) is not SourceFileLoader:
        return  # another loader may rewrite the code that it loads, as that of pytest does
    try:
        known = set(_codes(compile(content, path, "exec", dont_inherit=True)))
    except (SyntaxError, ValueError):
        known = set()
    own = [getattr(value, "__code__", None) for value in vars(recipe).values()]
    if any(code.co_filename == path and code not in known for code in own if code is not None):
        raise UsageError(
            f"{path} has changed since {recipe.__name__} was imported from it; import it in a new process, or call "
            f"zoo_core.add_plugin(FILE) and use its name"
        )


def _codes(code: Any) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
