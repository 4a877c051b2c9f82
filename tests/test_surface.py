"""The public surface: each stable module lists what it defines, in order, and documents every name that it lists."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import pytest

import zoo_core
from tests.test_layers import CORE, ROOT, STABLE_ROOMS, listed_names, module_name
from zoo_core import contracts

PATHS = [
    ROOT / CORE / "errors.py",
    *sorted(path for room in ("contracts", *STABLE_ROOMS) for path in (ROOT / CORE / room).glob("[!_]*.py")),
]
# Of the contracts the package alone is stable; this module of it is for rooms of the core that read stored files.
INTERNAL = "zoo_core.contracts.old_words"
MODULES = {name: path for path in PATHS if (name := module_name(path.relative_to(ROOT).as_posix())) != INTERNAL}
# A name has one home. These have it in a room that may not import the toolkit, or are the front of a kit.
RE_EXPORTED: Mapping[str, set[str]] = {
    "zoo_core.testing.conformance": {"ConformanceError", "Subject"},
    "zoo_core.toolkit.files": {"fresh_name", "hash_of", "is_settled", "read_memory", "replacing", "write_memory"},
    "zoo_core.toolkit.locks": {"Lock"},
}


def defined(text: str) -> dict[str, str | None]:
    """The public names that a module defines, each with its docstring; of a value it is the text beneath."""
    found: dict[str, str | None] = {}
    body = ast.parse(text).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = ast.get_docstring(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                found[ast.unparse(target)] = _text(after)
    return {name: told for name, told in found.items() if not name.startswith("_")}


def _text(node: ast.stmt | None) -> str | None:
    value = node.value if isinstance(node, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def in_order(names: list[str]) -> list[str]:
    """Constants, classes, functions; each by the alphabet."""
    return sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


def undocumented(text: str) -> list[str]:
    return [name for name, told in defined(text).items() if not told]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_lists_what_it_defines(name: str) -> None:
    text = MODULES[name].read_text(encoding="utf-8")
    assert listed_names(text) == in_order([*defined(text), *RE_EXPORTED.get(name, ())])
    module = import_module(name)
    assert [each for each in listed_names(text) if not hasattr(module, each)] == []


@pytest.mark.parametrize("name", MODULES)
def test_every_name_has_a_docstring(name: str) -> None:
    assert undocumented(MODULES[name].read_text(encoding="utf-8")) == []


def test_the_contracts_list_what_their_modules_do() -> None:
    listed = [name for module in MODULES if module.startswith("zoo_core.contracts.") for name in _listed(module)]
    assert contracts.__all__ == in_order(listed)
    for name in contracts.__all__:
        getattr(contracts, name)


def _listed(module: str) -> list[str]:
    return listed_names(MODULES[module].read_text(encoding="utf-8"))


def test_the_facade_lists_what_it_names() -> None:
    assert zoo_core.__all__ == in_order(list(zoo_core._MODULES)) == dir(zoo_core)
    text = (ROOT / CORE / "__init__.py").read_text(encoding="utf-8")
    typed = [
        alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{CORE}.")
        for alias in node.names
    ]
    assert zoo_core.__all__ == in_order(typed)


@pytest.mark.parametrize("name", zoo_core.__all__)
def test_every_name_of_the_facade_has_a_docstring(name: str) -> None:
    value: Any = getattr(zoo_core, name)
    own = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    assert own
    assert not own.startswith(f"{name}("), "a dataclass without one gets its signature"


def test_every_stable_module_has_a_docstring() -> None:
    modules = [*MODULES, *(f"{CORE}.{room}" for room in ("contracts", *STABLE_ROOMS)), CORE]
    assert [name for name in modules if not import_module(name).__doc__] == []


# --- every check can fail --------------------------------------------------------------------------------------------


def test_a_name_without_a_docstring_is_noticed() -> None:
    text = """
A = 1
B: int = 2
'''Of B.'''
_C = 3
def f(): ...
def g():
    '''Of g.'''
class D: ...
"""
    assert list(defined(text)) == ["A", "B", "f", "g", "D"]
    assert undocumented(text) == ["A", "f", "D"]


def test_the_order_is_that_of_the_lists() -> None:
    assert in_order(["b", "A", "Bc", "a", "AZ_B"]) == ["A", "AZ_B", "Bc", "a", "b"]
