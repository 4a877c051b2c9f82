"""The namespace `peft`: each method of the peft library as an adapter by role, with peft's own arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any, ClassVar

from zoo_core.contracts import ROLES, Change, Context, Learner, Source
from zoo_core.errors import NotFoundError, RefusedError, UsageError, nearest
from zoo_peft.methods import Method, known_methods, made_from
from zoo_peft.portable import CONFIG, TENSORS

__all__ = ["Hub", "Peft", "Stored", "Tuned", "recipe_for"]

ADDED: frozenset[Change] = frozenset({"added"})
WIDTH = 116
KINDS_OF_ROLE: Mapping[str, frozenset[str]] = {  # of layers, in the words of Method.layers; of any other role WEIGHTS
    "conv": frozenset({"conv1d", "conv2d"}),
    "embed": frozenset({"embedding"}),
    "norm": frozenset({"norm"}),
}
WEIGHTS = frozenset({"linear", "transposed", "conv1d", "conv2d"})
USED_AS = """\
roles: of the weights that are changed; none: {usual}. Where one weight holds several roles, as a fused qkv does, all of
its rows are changed, once."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A LoRA in peft's own format: what a folder of one and a repository of one have in common."""

    any_base: bool = False

    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = ADDED
    mergeable: ClassVar[bool] = True
    exact_at_start: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """How errors name it."""
        raise NotImplementedError

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_peft.reading import load_lora

        assert context.files is not None, "its source names files"
        load_lora(learner.backbone, context.files, base=context.base, any_base=self.any_base, label=self.label)
        return learner

    def merge(self, learner: Learner) -> None:
        """Folds what peft added into plain weights."""
        from zoo_peft.injection import merge

        merge(learner.backbone)


@dataclass(frozen=True, kw_only=True)
class Peft(Stored):
    """A method of peft on weights by role, `peft/METHOD`; or a LoRA in a folder of peft's format, `peft(files="DIR")`.

    The arguments of a method are those of peft's own configuration that a spec can write, with peft's defaults; what
    they mean is told by `zoo show peft/METHOD`, and which weights are changed by `roles`.
    files: a folder with adapter_config.json and adapter_model.safetensors, which must be of the base of the spec; its
    LoRA trains on, and a head stored along is left behind. any_base: takes one that names another base or none, if all
    its names and shapes fit.
    """

    name: str = ""
    files: str | None = None

    def __post_init__(self) -> None:
        if self.files is None:
            raise UsageError(
                "peft is a namespace: write peft/METHOD or 'peft(files=\"DIR\")'; `zoo list 'peft/*'` shows the methods"
            )

    @classmethod
    def recipe_for(cls, name: str) -> type[Tuned]:
        """The recipe of a method. Raises NotFoundError for a name that is no method of peft."""
        return recipe_for(name)

    @classmethod
    def export(cls, learner: Learner, folder: Path) -> str:
        """Writes the LoRA of a learner, native or peft's, into a new folder in peft's format; one line of what it is.

        Raises RefusedError where anything else was trained in the backbone.
        """
        from zoo_peft.writing import export_lora

        return export_lora(learner, folder)

    @property
    def label(self) -> str:
        return f"peft(files={self.files})"

    def source(self) -> Source | None:
        return Source(folder=self.files, patterns=(CONFIG, TENSORS))


@dataclass(frozen=True, kw_only=True)
class Hub(Stored):
    """A LoRA of the Hub in peft's own format, `hub/ORG/NAME`, on the base that it was trained on.

    It trains on, and a head stored along is left behind. any_base: takes one that names another base or none, if all
    its names and shapes fit.
    """

    name: str = ""

    def __post_init__(self) -> None:
        if self.name.count("/") != 1:
            raise UsageError(f"hub/{self.name}: write hub/ORG/NAME, a repository of an adapter of peft")

    @property
    def label(self) -> str:
        return f"hub/{self.name}"

    def source(self) -> Source | None:
        return Source(repository=self.name, patterns=(CONFIG, TENSORS))


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A method of peft: what all of them have; `recipe_for` adds the arguments of one."""

    name: str
    roles: tuple[str, ...] = ()

    method: ClassVar[Method]
    version: ClassVar[int] = 1
    changes: ClassVar[frozenset[Change]] = ADDED
    mergeable: ClassVar[bool]
    learning_rates: ClassVar[tuple[float, ...]]

    def __post_init__(self) -> None:
        label = f"peft/{self.name}"
        if self.method.refused:
            raise RefusedError(f"{label}: {self.method.refused}")
        for role in self.roles:
            if role not in ROLES:
                raise UsageError(f"{label}: no role {role!r}; allowed: {', '.join(ROLES)}{nearest(role, ROLES)}")
            kinds = KINDS_OF_ROLE.get(role, WEIGHTS)
            if not kinds & self.method.layers:
                works = _and(sorted(self.method.layers))
                raise RefusedError(f"{label} works on {works} layers, and {role} is {_and(sorted(kinds))}")
        for argument in self.method.arguments:
            value = getattr(self, argument.name)
            if argument.name == "r" and type(argument.default) is int and argument.default > 0 and not value > 0:
                raise UsageError(f"{label}(r={value}): allowed: 1 or more")
            if "dropout" in argument.name and isinstance(value, float) and not 0 <= value < 1:
                raise UsageError(f"{label}({argument.name}={value:g}): allowed: 0 to below 1")

    @property
    def exact_at_start(self) -> bool:
        """Whether the outputs are the base's, bit for bit, before the first step."""
        starts = [argument for argument in self.method.arguments if argument.name.startswith("init")]
        return self.method.start == 0 and all(getattr(self, each.name) == each.default for each in starts)

    @property
    def needs(self) -> tuple[frozenset[str], ...]:
        return (frozenset(self.roles),) if self.roles else self.method.needs

    def apply(self, learner: Learner, context: Context) -> Learner:
        from zoo_peft.injection import inject

        values = {argument.name: getattr(self, argument.name) for argument in self.method.arguments}
        for name, (other, usual) in self.method.instead.items():
            if values[name] is None:
                values[name] = 0 if values[other] else usual
        inject(learner.backbone, self.method, values, self.needs)
        return learner

    def merge(self, learner: Learner) -> None:
        """Folds what peft added into plain weights."""
        from zoo_peft.injection import merge

        merge(learner.backbone)


@cache
def recipe_for(name: str) -> type[Tuned]:
    """The recipe of a method of peft. Raises NotFoundError for a name that is none."""
    method = known_methods().get(name)
    if method is None:
        names = [f"peft/{known}" for known in known_methods()]
        raise NotFoundError(
            f"peft {made_from()} has no method {name!r}{nearest(f'peft/{name}', names)}; "
            f"`zoo list 'peft/*'` shows the methods"
        )
    own = [(each.name, each.type, field(default=each.default)) for each in method.arguments]
    assert not {each.name for each in method.arguments} & {each.name for each in fields(Tuned)}
    told = {
        "__module__": __name__,
        "__doc__": _documentation(method),
        "method": method,
        "mergeable": method.mergeable,
        "learning_rates": method.learning_rates,
    }
    return make_dataclass(
        name, [("name", str, field(default=name)), *own], bases=(Tuned,), namespace=told, frozen=True, kw_only=True
    )


def __getattr__(name: str) -> Any:
    """The recipe of a method by its class's name, so that its instances can be pickled."""
    if name in known_methods():
        return recipe_for(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _documentation(method: Method) -> str:
    """What `zoo show` tells: the method in one line, what each argument means, and how exact it is."""
    usual = ", else ".join(" and ".join(sorted(roles)) for roles in method.needs) or "there are none"
    lines = [method.summary, ""]
    if method.refused:
        return "\n".join([*lines, _filled(f"It is refused: {method.refused}.")])
    for argument in method.arguments:
        other, value = method.instead.get(argument.name, ("", None))
        none = f" None: {value}, or nothing where {other} is given." if other else ""
        lines += _filled(f"{argument.name}: {argument.help or 'peft says nothing of it.'}{none}").splitlines()
    lines += [*_filled(USED_AS.format(usual=usual)).splitlines(), ""]
    lines += _filled(f"{_start(method)} {_merges(method)} It works on {_and(sorted(method.layers))}.").splitlines()
    left_out = "; ".join(f"{name} ({why})" for name, why in sorted(method.left_out.items()))
    lines += _filled(f"Not an argument here: {left_out}.").splitlines() if left_out else []
    return "\n".join([*lines, *([f"Source: {method.source}."] if method.source else [])])


def _start(method: Method) -> str:
    if method.start == 0:
        return "At the start the outputs are exactly those of the base."
    if method.start < 1e-5:
        return f"At the start the outputs are those of the base up to rounding, {method.start:.0e}."
    return (
        f"At the start the outputs are NOT those of the base: two random layers change by {method.start:.1g} of them."
    )


def _merges(method: Method) -> str:
    return "It folds into plain weights." if method.mergeable else "It does not fold into plain weights."


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _filled(text: str) -> str:
    return fill(" ".join(text.split()), WIDTH, break_on_hyphens=False, break_long_words=False)
