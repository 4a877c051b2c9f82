"""Binds the values of a spec to the declared fields of a recipe, or refuses them and says what is allowed."""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from zoo_core._process.interrupts import raise_interrupt
from zoo_core.contracts import TARGET_KINDS, TRUSTS, LoadsFiles, Located, PartKind, Source, Target, fact
from zoo_core.contracts.old_words import current_word, digest_word
from zoo_core.errors import PluginError, SpecError, UsageError, ZooError, nearest
from zoo_core.registry.index import Provider
from zoo_core.registry.trust import check_trust, speaking_for
from zoo_core.spec.parser import Part, Spec, Value, parse

__all__ = ["COMMON", "Argument", "Bound", "arguments_of", "bind_recipe", "coerce", "type_text", "value_text"]


@dataclass(frozen=True, kw_only=True)
class Argument:
    """Something that may be written as `name=value`.

    default: MISSING if it must be given. common: whether the core handles it, so that it is no field of the recipe.
    attribute: the field that holds the value. It has another name if the recipe's field says `{"argument": name}` in
    its metadata, because its class uses that name for something else.
    silent: whether it is left out of identities at its default, because they are older than it.
    trust: what any value but the default widens, one of TRUSTS; see zoo_core.registry.trust.
    """

    name: str
    attribute: str = ""
    type: Any
    default: Any = MISSING
    minimum: int | None = None
    common: bool = False
    silent: bool = False
    trust: str = ""


COMMON: Mapping[PartKind, tuple[Argument, ...]] = {
    "backbone": (
        Argument(name="weights", type=Literal["pretrained", "random"], default="pretrained", common=True),
        Argument(name="until", type=int | None, default=None, minimum=1, common=True, silent=True),
    ),
    "task": (
        Argument(name="shots", type=int | None, default=None, minimum=1, common=True),
        Argument(name="limit", type=int | None, default=None, minimum=1, common=True),
        Argument(name="rest", type=Literal["drop", "unlabelled"], default="drop", common=True, silent=True),
        Argument(name="labels", type=Literal["keep", "drop"], default="keep", common=True, silent=True),
    ),
    **dict.fromkeys(("adapter", "head", "metric", "augmentation", "reader", "score"), ()),
}
WITH_FILES: frozenset[PartKind] = frozenset({"backbone", "adapter", "task"})  # a head may have a source, see LoadsFiles


# A digest names a recipe by its module. A recipe of zoo-core that has moved keeps the name of its first one, so that
# the runs, rows and locks that were stored before still load.
_FIRST_MODULE: Mapping[str, str] = {"zoo_core.runs.backbones": "zoo_core.stored"}


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A part with its recipe, and every argument in its declared type.

    name: the name of the entry point or `namespace/rest`; for a record's name, the part that it stands for.
    recipe: an instance of the plugin's own class. common: the arguments that the core itself handles, by name.
    written: the part as the user wrote it. implied: the arguments that its record gives.
    qualified: whether another kind that fits the position has the same name, so that the canonical text needs `head:`.
    """

    kind: PartKind
    name: str
    provider: Provider
    recipe: Any
    common: Mapping[str, Any]
    written: Part
    revision: str | None = None
    implied: Mapping[str, Value] = field(default_factory=dict)
    qualified: bool = False

    def fact(self, name: str) -> Any:
        """What its recipe says of itself under a name, or the default of its kind; see zoo_core.contracts.fact."""
        return fact(self.kind, self.recipe, name)

    @cached_property
    def source(self) -> Source | None:
        """Where its files come from, as its recipe says; only some kinds have any. Raises what the recipe raises."""
        with speaking_for(f"the code of {self.kind} {self.name}"):
            if self.kind == "head":
                return self.recipe.source() if isinstance(self.recipe, LoadsFiles) else None
            return self.fact("source")() if self.kind in WITH_FILES else None

    @cached_property
    def target(self) -> Target:
        """What a task predicts: what its recipe says, which may list a folder for it; with labels=drop nothing."""
        found: Target = self.recipe.target
        return Target(kind="unlabelled") if self.common["labels"] == "drop" else found

    @property
    def reads(self) -> bool:
        """Whether it has files of its own; told without a request."""
        return isinstance(self.recipe, Located) or self.source is not None

    @property
    def types(self) -> dict[str, Any]:
        """The declared type of each argument."""
        return {argument.name: argument.type for argument in arguments_of(self.provider, type(self.recipe))}

    def specs(self) -> tuple[tuple[str, Spec], ...]:
        """The specs among its arguments, alone or in lists, each with the name of its argument."""
        return tuple((name, spec) for name, value in self._values().items() for spec in _specs_in(value))

    def canonical(self) -> Part:
        """The part for people, by the name that was written, with arguments sorted and defaults left out."""
        usual: dict[str, Any] = {
            argument.name: argument.default for argument in arguments_of(self.provider, type(self.recipe))
        }
        usual |= {key: coerce(value, _hint(self, key), key) for key, value in self.implied.items()}
        given = {key: value for key, value in self._values().items() if not _same(value, usual[key])}
        return Part(
            name=self.written.name,
            kind=self.kind if self.qualified else None,
            revision=self.written.revision,
            arguments=tuple((key, _plain(value)) for key, value in given.items()),
        )

    def identity(self) -> dict[str, object]:
        """What decides the numbers of this part, as JSON. It has the hash of a plugin file, but no version.

        The version of the distribution is not part of it. A field that is a spec is in it as canonical text; who needs
        the identity of what it names resolves it. Target kinds keep the words of the first results, see
        contracts/old_words.py.
        """
        recipe, module = type(self.recipe), type(self.recipe).__module__
        name = {"name": self.recipe.name} if _owns_namespace(recipe) else {}
        values = {key: _json(_plain(_in_digest(value, self.types[key]))) for key, value in self._values().items()}
        common = {argument.name for argument in COMMON[self.kind]}
        silent = {each.name for each in COMMON[self.kind] if each.silent and values[each.name] == each.default}
        identity: dict[str, object] = {
            "kind": self.kind,
            "recipe": f"{self.provider.sha256 or _FIRST_MODULE.get(module, module)}:{recipe.__qualname__}",
            "version": recipe.version,
            "fields": name | {key: value for key, value in values.items() if key not in common},
            "common": {key: value for key, value in values.items() if key in common - silent},
        }
        return identity | ({"revision": self.revision} if self.revision is not None else {})

    def _values(self) -> dict[str, Any]:
        """Every argument with its value, common ones included."""
        return {
            argument.name: self.common[argument.name] if argument.common else getattr(self.recipe, argument.attribute)
            for argument in arguments_of(self.provider, type(self.recipe))
        }


def arguments_of(provider: Provider, recipe: type) -> tuple[Argument, ...]:
    """What may be written for this recipe: its fields in their order, then the arguments of its kind.

    Raises PluginError if the types of its fields cannot be read, or if a field has a name that the core handles.
    """
    return _arguments(provider, recipe)


@cache  # reading annotations takes longer than all the rest of a plan, and a suite has thousands of those
def _arguments(provider: Provider, recipe: type) -> tuple[Argument, ...]:
    try:
        hints = get_type_hints(recipe)
    except (NameError, TypeError, AttributeError) as error:
        raise _plugin_error(provider, f"the types of {recipe.__qualname__} cannot be read: {error}") from error
    common = COMMON[provider.kind]
    own: list[Argument] = []
    for declared in fields(recipe):
        if declared.name in {argument.name for argument in common}:
            raise _plugin_error(provider, f"{recipe.__qualname__}.{declared.name} is an argument that zoo-core handles")
        if declared.init and declared.name != "name":
            default = declared.default
            if declared.default_factory is not MISSING:
                default = declared.default_factory()
            name, trust = declared.metadata.get("argument", declared.name), declared.metadata.get("trust", "")
            if trust and (trust not in TRUSTS or default is MISSING):
                problem = f"widens the trust {trust!r}; allowed: {', '.join(TRUSTS)}, and it has a default"
                raise _plugin_error(provider, f"{recipe.__qualname__}.{declared.name} {problem}")
            own.append(
                Argument(
                    name=name, attribute=declared.name, type=hints[declared.name], default=default, trust=str(trust)
                )
            )
    return (*own, *common)


def bind_recipe(
    provider: Provider, recipe: type, part: Part, rest: str, label: str, implied: Collection[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """An instance of the recipe with the part's arguments, and the common arguments.

    rest: the name after the namespace, or nothing. label: the part as errors name it. implied: arguments that its
    record adds.
    No code of the plugin runs before its request for trust is granted.
    Raises UsageError for what the user can correct, PluginError for what the plugin's author can, and RefusedError.
    """
    allowed = {argument.name: argument for argument in arguments_of(provider, recipe)}
    given: dict[str, Any] = {}
    for key, value in part.arguments:
        if key not in allowed:
            raise UsageError(_unknown_argument(label, key, allowed, recipe))
        argument = allowed[key]
        given[key] = _checked(argument, coerce(value, argument.type, f"{label}: {key}", provider), label)
        if argument.trust and not _same(given[key], argument.default):
            record = label if key in implied else None
            check_trust(label, key, argument.trust, value_text(given[key]), record=record)
    if rest:
        given["name"] = rest
    elif _owns_namespace(recipe) and _default_name(recipe) is MISSING:
        raise UsageError(f"{label} is a namespace: write {label}/NAME; `zoo list '{label}/*'` shows the names")
    missing = [name for name, argument in allowed.items() if argument.default is MISSING and name not in given]
    if missing:
        example = f"{label}({', '.join(f'{name}=...' for name in missing)})"
        raise UsageError(f"{label} needs {', '.join(missing)}: write '{example}'; `zoo show {label}` tells more")
    common = {argument.name: given.pop(argument.name, argument.default) for argument in COMMON[provider.kind]}
    given = {allowed[key].attribute if key in allowed else key: value for key, value in given.items()}
    try:
        with speaking_for(f"the code of {provider.kind} {label}"):
            return recipe(**given), common
    except ZooError:
        raise
    except ValueError as error:
        raise UsageError(f"{label}: {error}") from error
    except Exception as error:  # a plugin's own code ran; whatever it raises is told as its fault
        raise_interrupt(error)
        raise _plugin_error(provider, f"{recipe.__qualname__} raised {type(error).__name__}: {error}") from error


def coerce(value: Value, hint: Any, label: str, provider: Provider | None = None) -> Any:
    """The value in the declared type. An int becomes a float if one is wanted, and a bool is never a number.

    Raises UsageError that says what was found and what is allowed, PluginError for a type that no argument can have.
    """
    found = _coerced(value, hint)
    if found is _UNSUPPORTED:
        text = f"{label.rpartition(' ')[2]} has the type {type_text(hint)}, which no argument can have"
        raise _plugin_error(provider, text) if provider is not None else PluginError(text)
    if found is _WRONG:
        raise UsageError(f"{label} is {type_text(hint)}, found {_found(value)}{_hint_for(value, hint)}")
    return found


def type_text(hint: Any) -> str:
    """A type as a user reads it: `int`, `one of a, b`, `number or none`."""
    origin, members = get_origin(hint), get_args(hint)
    if origin is Literal:
        words = [str(_plain(member)) if isinstance(member, str) else _word(member) for member in members]
        return f"one of {', '.join(words)}" if len(words) > 1 else words[0]
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(member) for member in members)
    if origin is tuple:
        inner = members[:1] if members[1:] == (...,) else members
        dots = ", ..." if members[1:] == (...,) else ""
        return f"[{', '.join(type_text(member) for member in inner)}{dots}]"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    more: dict[Any, str] = {Path: "a path", Spec: "a spec in quotes"}
    return str((names | more).get(hint) or getattr(hint, "__name__", hint))


def value_text(value: Any) -> str:
    """A value as a spec writes it."""
    return str(Part("x", arguments=(("x", _plain(value)),)))[4:-1]


_WRONG = object()
_UNSUPPORTED = object()


def _coerced(value: Value, hint: Any) -> Any:
    """The value in the declared type, _WRONG or _UNSUPPORTED."""
    origin, members = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _literal(value, members)
    if origin in (Union, types.UnionType):
        return _one_of(value, members)
    if origin is tuple:
        return _items(value, members)
    if hint is float:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else _WRONG
    if hint is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else _WRONG
    if hint in (bool, str):
        return value if isinstance(value, hint) else _WRONG
    if hint is type(None):
        return None if value is None else _WRONG
    if hint is Path:
        return Path(value) if isinstance(value, str) else _WRONG
    if hint is Spec:
        return _spec(value)
    return _UNSUPPORTED


def _specs_in(value: Any) -> Iterator[Spec]:
    if isinstance(value, Spec):
        yield value
    for item in value if isinstance(value, tuple) else ():
        yield from _specs_in(item)


def _spec(value: Value) -> Any:
    try:
        return parse(value) if isinstance(value, str) else _WRONG
    except SpecError:
        return _WRONG


def _literal(value: Value, members: tuple[Any, ...]) -> Any:
    """One of the members; the words true, false and none may be members as text."""
    for member in members:
        if type(member) is type(value) and member == value:
            return member
    word = _word(value) if value is None or isinstance(value, bool) else current_word(str(value))
    return word if word in members else _WRONG


def _in_digest(value: Any, hint: Any) -> Any:
    """The value as digests hold it: a target kind by the word that it had when the first results were stored."""
    literals = [hint, *get_args(hint)] if get_origin(hint) in (Union, types.UnionType) else [hint]
    words = {word for each in literals if get_origin(each) is Literal for word in get_args(each)}
    is_target_kind = bool(words) and words <= {*TARGET_KINDS, "auto"}
    return digest_word(value) if is_target_kind and isinstance(value, str) else value


def _one_of(value: Value, members: tuple[Any, ...]) -> Any:
    """Through the member of the value's own type if there is one, else the first that takes it."""
    found = [_coerced(value, member) for member in members]
    if any(item is _UNSUPPORTED for item in found):
        return _UNSUPPORTED
    taken = [item for item in found if item is not _WRONG]
    exact = [item for item in taken if type(item) is type(value)]
    return (exact or taken or [_WRONG])[0]


def _items(value: Value, members: tuple[Any, ...]) -> Any:
    many = members[1:] == (...,)
    if not isinstance(value, tuple) or not (many or len(value) == len(members)):
        return _WRONG
    found = [_coerced(item, members[0 if many else place]) for place, item in enumerate(value)]
    bad = [item for item in found if item is _UNSUPPORTED or item is _WRONG]
    return bad[0] if bad else tuple(found)


def _checked(argument: Argument, value: Any, label: str) -> Any:
    if argument.minimum is not None and value is not None and value < argument.minimum:
        raise UsageError(f"{label}: {argument.name} is at least {argument.minimum}, found {value}")
    return value


def _unknown_argument(label: str, key: str, allowed: Mapping[str, Argument], recipe: type) -> str:
    if key == "name" and _owns_namespace(recipe):
        return (
            f"{label} has no argument 'name': what follows the first '/' is the name, as in {label.partition('/')[0]}/X"
        )
    takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
    return f"{label} has no argument {key!r}; {takes}{nearest(key, allowed)}"


def _owns_namespace(recipe: type) -> bool:
    return any(declared.name == "name" for declared in fields(recipe))


def _default_name(recipe: type) -> Any:
    declared = next(declared for declared in fields(recipe) if declared.name == "name")
    return declared.default


def _hint(bound: Bound, key: str) -> Any:
    arguments = arguments_of(bound.provider, type(bound.recipe))
    return next(argument.type for argument in arguments if argument.name == key)


def _same(value: Any, other: Any) -> bool:
    """Equal in value and type, so that 1 is neither 1.0 nor true."""
    return type(value) is type(other) and bool(value == other)


def _plain(value: Any) -> Value:
    """The value as a spec writes it."""
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return str(value) if isinstance(value, Path | Spec) else value


def _json(value: Value) -> Any:
    return [_json(item) for item in value] if isinstance(value, tuple) else value


def _word(value: Any) -> str:
    words = {True: "true", False: "false"}
    return "none" if value is None else words[value] if isinstance(value, bool) else str(value)


def _found(value: Value) -> str:
    if isinstance(value, bool) or value is None:
        return _word(value)
    if isinstance(value, tuple):
        return "a list"
    return f"the text {value!r}" if isinstance(value, str) else f"the number {value!r}"


def _hint_for(value: Value, hint: Any) -> str:
    """What to type instead, where that can be said."""
    members = get_args(hint)
    if isinstance(value, str) and get_origin(hint) is Literal:
        return nearest(value, [member for member in members if isinstance(member, str)])
    if get_origin(hint) is tuple and not isinstance(value, tuple):
        return f"; write [{_word(value)}]"
    if isinstance(value, int | float) and not isinstance(value, bool) and (hint is str or str in members):
        return f'; write "{value}"'
    if isinstance(value, str) and value.lower() in ("true", "false", "none"):
        return f"; write {value.lower()}"
    return ""


def _plugin_error(provider: Provider, problem: str) -> PluginError:
    return PluginError(
        f"{provider.kind} {provider.name!r} of {provider.distribution} {provider.version} cannot be used: {problem}; "
        f"{provider.mend}"
    )
