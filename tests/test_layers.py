"""The arrows of the architecture: which module may import which, and what must never be reached without torch.

All of it is read from the source with `ast`; nothing is imported, except by the two probes in subprocesses. A check is
a function from sources to complaints, so each has a test that feeds it a wrong tree and sees it complain.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
CORE = "zoo_core"
INSTALLED = [ROOT / "registry", *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
PLUGIN_FOLDERS = [*INSTALLED, *sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))]

# A room of zoo_core, a folder or a module beside them, imports only from the rooms above its own; inside a folder its
# files are each other's equals. Read downwards it is the sentence of the design: spec, resolve, build, train, measure,
# store, report.
LAYERS = (
    "errors",
    "_process",
    "contracts",
    "spec",
    "run_layout",
    "lock",
    "registry",
    "plan",
    "files",
    "results",
    "toolkit",
    "data",
    "model",
    "training",
    "runs",
    "benchmark",
    "selection",
    "api",
    "cli",
    "testing",
)
LEVELS = {name: level for level, name in enumerate(LAYERS)}
FACADES = {CORE, f"{CORE}.__main__"}  # they name what lies below them, wherever it lies
# What loads without torch: whole rooms, and of the other rooms these modules. Commands, and the main process of a
# bench, import the rest when they run and need it.
LIGHT_ROOMS = ("errors", "_process", "contracts", "spec", "run_layout", "lock", "registry", "plan", "results")
LIGHT_MODULES = (
    "benchmark.forking",
    "benchmark.grid",
    "benchmark.halving",
    "benchmark.progress",
    "files.folders",
    "files.hashing",
    "selection.candidates",
    "selection.scores",
    "toolkit.files",
    "toolkit.locks",
    "toolkit.table_encoding",
    "training.progress",
)
LIGHT_COMMANDS = ("cli", "cli.bench", "cli.completion", "cli.config", "cli.data", "cli.names", "cli.plan", "cli.rank")
LIGHT_BENCH = ("benchmark.pool", "benchmark.provenance", "benchmark.rounds", "benchmark.runner")
LIGHT_LIBRARIES = frozenset({"click", "rich"})
FORBIDDEN = ("torch", "numpy", "pydantic", "huggingface_hub")  # named by the promise; the probes look for these

# What a plugin may import: these modules as they stand, and every module of these rooms; of each what `__all__` lists.
STABLE_MODULES = (CORE, f"{CORE}.contracts", f"{CORE}.errors")
STABLE_ROOMS = ("testing", "toolkit")

Sources = Mapping[str, str]  # path below its import root, such as zoo_core/cli/plan.py -> source text


class Import(NamedTuple):
    """One module that another one imports. `scope` is where: when the module loads, in a function, for types only."""

    importer: str
    target: str
    line: int
    scope: Literal["module", "function", "types"]


# --- reading sources -------------------------------------------------------------------------------------------------


def read_sources(*packages: Path) -> dict[str, str]:
    """Every module of the packages, by path below the package's parent."""
    return {
        path.relative_to(package.parent).as_posix(): path.read_text(encoding="utf-8")
        for package in packages
        for path in sorted(package.rglob("*.py"))
    }


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(sources: Sources) -> list[Import]:
    """Every import of every module; `from package import submodule` counts as an import of the submodule."""
    known = {module_name(path) for path in sources}
    return [found for path, text in sources.items() for found in _imports_of(path, text, known)]


def _imports_of(path: str, text: str, known: set[str]) -> Iterator[Import]:
    importer = module_name(path)
    package = importer if path.endswith("/__init__.py") else importer.rpartition(".")[0]
    for node, scope in _statements(ast.parse(text, path), "module"):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            targets = [name if (name := f"{base}.{alias.name}") in known else base for alias in node.names]
        else:
            continue
        for target in sorted(set(targets)):
            yield Import(importer, target, node.lineno, scope)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _statements(
    node: ast.AST, scope: Literal["module", "function", "types"]
) -> Iterator[tuple[ast.AST, Literal["module", "function", "types"]]]:
    """Every node below `node` with the scope it runs in."""
    for child in ast.iter_child_nodes(node):
        yield child, scope
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _statements(child, "function" if scope == "module" else scope)
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            yield from _statements(ast.Module(body=child.body, type_ignores=[]), "types")
            yield from _statements(ast.Module(body=child.orelse, type_ignores=[]), scope)
        else:
            yield from _statements(child, scope)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.id if isinstance(test, ast.Name) else test.attr if isinstance(test, ast.Attribute) else ""
    return name == "TYPE_CHECKING"


def _top(module: str) -> str:
    return module.partition(".")[0]


def _unit(module: str) -> str:
    """The part of a core module's name that LEVELS knows: `cli` of zoo_core.cli.plan."""
    return module.split(".")[1] if "." in module else module


# --- the checks ------------------------------------------------------------------------------------------------------


def unknown_rooms(sources: Sources) -> list[str]:
    """Rooms that LAYERS does not name, and names in it that are no room."""
    rooms = {_unit(module_name(path)) for path in sources if module_name(path) not in FACADES}
    unknown = [f"{CORE}.{room} has no row in LAYERS" for room in sorted(rooms - LEVELS.keys())]
    return unknown + [f"LAYERS names {room}, and there is no such room" for room in LAYERS if room not in rooms]


def hidden_names(sources: Sources, facade: Sources) -> list[str]:
    """Names of the facade that are rooms too: an import of the room would put it in the place of the name."""
    rooms = {_unit(module_name(path)) for path in sources if module_name(path) not in FACADES}
    (text,) = facade.values()
    return [f"{CORE}.{name} is a name of the facade and a room" for name in listed_names(text) if name in rooms]


@cache
def listed_names(text: str) -> list[str]:
    """What the `__all__` of a module lists; nothing if it has none."""
    found: list[str] = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            found = ast.literal_eval(node.value)
    return found


def private_names(sources: Sources) -> list[str]:
    """Names with a leading underscore that a module takes from another one."""
    return [
        f"{module_name(path)}:{node.lineno} imports {node.module}.{alias.name}"
        for path, text in sources.items()
        for node in ast.walk(ast.parse(text, path))
        if isinstance(node, ast.ImportFrom) and _top(node.module or "") == CORE
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]


def wrong_arrows(sources: Sources) -> list[str]:
    """Imports inside the core that do not point to a lower level, wherever they stand except under TYPE_CHECKING."""
    complaints = []
    for found in imports(sources):
        if found.scope == "types" or found.importer in FACADES or _top(found.target) != CORE:
            continue
        importer, target = _unit(found.importer), _unit(found.target)
        if importer == target:
            continue
        if found.target in FACADES:
            if LEVELS.get(importer, 0) < LEVELS["cli"]:
                complaints.append(f"{found.importer}:{found.line} imports the facade {found.target}")
        elif {importer, target} <= LEVELS.keys() and LEVELS[importer] <= LEVELS[target]:
            levels = f"level {LEVELS[importer]} imports level {LEVELS[target]}"
            complaints.append(f"{found.importer}:{found.line} imports {found.target}: {levels}")
    return complaints


def light_modules(sources: Sources) -> list[str]:
    """The core modules that load without torch: the light rooms, the facade, some commands, a bench's main process."""
    return sorted(
        name
        for name in map(module_name, sources)
        if name == CORE or _is_light(name) or _is_one_of(name, LIGHT_COMMANDS + LIGHT_BENCH)
    )


def _is_light(module: str) -> bool:
    return _unit(module) in LIGHT_ROOMS or _is_one_of(module, LIGHT_MODULES)


def _is_one_of(module: str, names: Iterable[str]) -> bool:
    return module.removeprefix(f"{CORE}.") in names


def heavy_reached(sources: Sources, start: Iterable[str]) -> list[str]:
    """Libraries beyond the light ones that loading the modules of `start` would load, each with its importer.

    Follows what runs at import through our own modules, parents included (importing a.b loads a first).
    """
    by_importer: dict[str, list[Import]] = {module_name(path): [] for path in sources}
    for found in imports(sources):
        if found.scope == "module":
            by_importer[found.importer].append(found)
    ours = {_top(name) for name in by_importer}
    complaints = []
    queue, seen = list(start), set[str]()
    while queue:
        module = queue.pop()
        if module in seen or not module:
            continue
        seen.add(module)
        queue.append(module.rpartition(".")[0])
        for found in by_importer.get(module, []):
            if _top(found.target) in ours:
                queue.append(found.target)
            elif _top(found.target) not in LIGHT_LIBRARIES | sys.stdlib_module_names:
                complaints.append(f"{module}:{found.line} imports {found.target}")
    return sorted(complaints)


def heavy_in_functions(sources: Sources) -> list[str]:
    """Libraries beyond the light ones that a function of a light module imports. Commands may, after parsing."""
    return [
        f"{found.importer}:{found.line} imports {found.target} in a function"
        for found in imports(sources)
        if found.scope == "function"
        and _is_light(found.importer)
        and _top(found.target) not in LIGHT_LIBRARIES | sys.stdlib_module_names | {CORE}
    ]


def foreign_imports(sources: Sources, forbidden: Iterable[str]) -> list[str]:
    """Imports of any of the top-level packages `forbidden`, type-only ones included: those need it installed too."""
    names = set(forbidden)
    return [
        f"{found.importer}:{found.line} imports {found.target}"
        for found in imports(sources)
        if _top(found.target) in names
    ]


def outside_surface(sources: Sources, core: Sources) -> list[str]:
    """What modules of a plugin take from the core that is not stable, in functions and under TYPE_CHECKING too."""
    texts = {module_name(path): text for path, text in core.items()}
    complaints = []
    for path, text in sources.items():
        for node in ast.walk(ast.parse(text, path)):
            if isinstance(node, ast.Import):
                taken = [(alias.name, "") for alias in node.names if _top(alias.name) == CORE]
            elif isinstance(node, ast.ImportFrom) and not node.level and _top(node.module or "") == CORE:
                base = node.module or ""
                names = [alias.name for alias in node.names]
                taken = [(below, "") if (below := f"{base}.{name}") in texts else (base, name) for name in names]
            else:
                continue
            for module, name in taken:
                if not _is_stable(module):
                    complaints.append(f"{module_name(path)}:{node.lineno} imports {module}, which is not stable")
                elif name and name not in listed_names(texts.get(module, "")):
                    complaints.append(f"{module_name(path)}:{node.lineno} imports {name}, which {module} does not list")
    return complaints


def _is_stable(module: str) -> bool:
    return module in STABLE_MODULES or _unit(module) in STABLE_ROOMS


def circles(sources: Sources) -> list[str]:
    """Modules that import each other in a circle at run time, in functions too: of each circle one way around."""
    arrows: dict[str, list[str]] = {module_name(path): [] for path in sources}
    for found in imports(sources):
        if found.scope != "types" and found.target in arrows and found.target != found.importer:
            arrows[found.importer].append(found.target)
    complaints, done = [], set[str]()
    for start in sorted(arrows):
        way = _way_back(start, arrows)
        if way and not done & set(way):
            done |= set(way)
            complaints.append(" -> ".join(way))
    return complaints


def _way_back(start: str, arrows: Mapping[str, Iterable[str]]) -> list[str]:
    """The shortest way from a module to itself, both ends included; empty if there is none."""
    ways, seen = [[start]], set[str]()
    for way in ways:  # grows while it is read
        for target in sorted(arrows[way[-1]]):
            if target == start:
                return [*way, start]
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return []


# --- this repository -------------------------------------------------------------------------------------------------


def package_of(folder: Path) -> Path:
    """The one package that a plugin folder publishes, as its pyproject.toml says."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    (package,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    return folder / str(package)


def recipe_modules(folder: Path) -> list[str]:
    """The modules that a plugin's entry points name."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["project"].get("entry-points", {})
    return sorted({str(value).partition(":")[0] for group in groups.values() for value in group.values()})


PACKAGES = {folder.name: package_of(folder) for folder in PLUGIN_FOLDERS}


@pytest.fixture(scope="module")
def core() -> dict[str, str]:
    return read_sources(ROOT / CORE)


def test_every_room_of_the_core_has_a_level(core: dict[str, str]) -> None:
    assert unknown_rooms(core) == []


def test_rooms_import_only_from_lower_ones(core: dict[str, str]) -> None:
    assert wrong_arrows(core) == []


def test_no_room_hides_a_name_of_the_facade(core: dict[str, str]) -> None:
    assert hidden_names(core, {"zoo_core/__init__.py": core["zoo_core/__init__.py"]}) == []


def test_modules_of_the_core_import_public_names_only(core: dict[str, str]) -> None:
    assert private_names(core) == []


def test_light_modules_reach_only_light_libraries(core: dict[str, str]) -> None:
    assert heavy_reached(core, light_modules(core)) == []


def test_light_levels_import_nothing_heavy_inside_functions(core: dict[str, str]) -> None:
    assert heavy_in_functions(core) == []


def test_core_imports_no_plugin(core: dict[str, str]) -> None:
    assert foreign_imports(core, [package.name for package in PACKAGES.values()]) == []


def test_no_modules_of_the_core_import_each_other_in_a_circle(core: dict[str, str]) -> None:
    modules = {path: text for path, text in core.items() if module_name(path) not in FACADES}
    assert circles(modules) == []


@pytest.mark.parametrize("folder", PLUGIN_FOLDERS, ids=lambda folder: folder.name)
def test_no_modules_of_a_plugin_import_each_other_in_a_circle(folder: Path) -> None:
    assert circles(read_sources(PACKAGES[folder.name])) == []


@pytest.mark.parametrize("folder", PLUGIN_FOLDERS, ids=lambda folder: folder.name)
def test_plugin_imports_no_sibling(folder: Path) -> None:
    siblings = [package.name for name, package in PACKAGES.items() if name != folder.name]
    assert foreign_imports(read_sources(PACKAGES[folder.name]), siblings) == []


@pytest.mark.parametrize("folder", PLUGIN_FOLDERS, ids=lambda folder: folder.name)
def test_plugin_imports_what_is_stable(folder: Path, core: dict[str, str]) -> None:
    scripts = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}  # what makes its catalogue
    assert outside_surface(scripts | read_sources(PACKAGES[folder.name]), core) == []


@pytest.mark.parametrize("folder", [ROOT, *PLUGIN_FOLDERS], ids=lambda folder: folder.name)
def test_recipe_modules_reach_only_light_libraries(folder: Path, core: dict[str, str]) -> None:
    sources = core | read_sources(package_of(folder))
    assert heavy_reached(sources, recipe_modules(folder)) == []


def loaded(modules: Iterable[str]) -> list[str]:
    """Which of FORBIDDEN a fresh interpreter holds after importing `modules`."""
    program = (
        "import importlib, json, sys\n"
        f"for name in {sorted(modules)!r}: importlib.import_module(name)\n"
        f"print(json.dumps([name for name in {FORBIDDEN!r} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout)
    return names


def test_light_modules_load_nothing_heavy_in_a_fresh_interpreter(core: dict[str, str]) -> None:
    assert loaded(light_modules(core)) == []


def test_recipe_modules_load_nothing_heavy_in_a_fresh_interpreter() -> None:
    assert loaded(module for folder in (ROOT, *INSTALLED) for module in recipe_modules(folder)) == []


# --- every check can fail --------------------------------------------------------------------------------------------


def test_a_room_without_a_level_and_a_level_without_a_room_are_noticed() -> None:
    rooms = {f"zoo_core/{room}/__init__.py": "" for room in LAYERS}
    assert unknown_rooms(rooms) == []
    assert unknown_rooms(rooms | {"zoo_core/helpers.py": ""}) == ["zoo_core.helpers has no row in LAYERS"]
    del rooms["zoo_core/runs/__init__.py"]
    assert unknown_rooms(rooms) == ["LAYERS names runs, and there is no such room"]


def test_a_name_that_a_room_hides_is_noticed() -> None:
    facade = {"zoo_core/__init__.py": '__all__ = ["Spec", "plan"]'}
    assert hidden_names({"zoo_core/plan/plan.py": ""}, facade) == ["zoo_core.plan is a name of the facade and a room"]
    assert hidden_names({"zoo_core/spec/parser.py": ""}, facade) == []


def test_a_private_name_of_another_module_is_noticed() -> None:
    private = {"zoo_core/plan/plan.py": "from zoo_core.spec.parser import _read"}
    assert private_names(private) == ["zoo_core.plan.plan:1 imports zoo_core.spec.parser._read"]
    assert private_names({"zoo_core/cli/group.py": "from zoo_core import __version__"}) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("zoo_core/spec/parser.py", "from zoo_core.registry.registry import Registry"),
        ("zoo_core/spec/parser.py", "from zoo_core import registry"),
        ("zoo_core/spec/parser.py", "import zoo_core.registry"),
        ("zoo_core/spec/parser.py", "from .. import registry"),
        ("zoo_core/spec/parser.py", "from ..registry.registry import Registry"),
        ("zoo_core/spec/parser.py", "try:\n    import zoo_core.registry\nexcept ImportError:\n    pass"),
        ("zoo_core/spec/parser.py", "def bind():\n    from zoo_core.registry.registry import Registry"),
        ("zoo_core/spec/parser.py", "if not TYPE_CHECKING:\n    import zoo_core.registry"),
        ("zoo_core/spec/parser.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import zoo_core.registry"),
        ("zoo_core/results/store.py", "import zoo_core.toolkit.weights"),
        ("zoo_core/api.py", "from zoo_core.cli import main"),
        ("zoo_core/training/fit.py", "import zoo_core"),
    ],
)
def test_an_arrow_that_points_up_is_noticed(path: str, source: str) -> None:
    folders = ("registry/__init__", "registry/registry", "toolkit/weights", "cli/__init__", "__init__")
    others = {f"zoo_core/{name}.py": "" for name in folders}
    assert len(wrong_arrows(others | {path: source})) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("zoo_core/registry/registry.py", "from zoo_core.spec.parser import Spec"),
        ("zoo_core/registry/registry.py", "if TYPE_CHECKING:\n    from zoo_core.training.fit import fit"),
        ("zoo_core/registry/registry.py", "if typing.TYPE_CHECKING:\n    from zoo_core.training.fit import fit"),
        ("zoo_core/cli/plan.py", "from zoo_core.cli.names import table\nfrom zoo_core.api import plan"),
        ("zoo_core/__init__.py", "from zoo_core.api import fit"),
    ],
)
def test_an_arrow_that_points_down_or_is_exempt_passes(path: str, source: str) -> None:
    assert wrong_arrows({path: source}) == []


@pytest.mark.parametrize(
    "source",
    [
        "from zoo_a.rows import Rows",
        "def rows():\n    from zoo_a.rows import Rows",
        "def rows():\n    from . import rows",
    ],
)
def test_a_circle_is_noticed(source: str) -> None:
    others = {"zoo_a/rows.py": "from zoo_a.layout import Layout", "zoo_a/layout.py": "from zoo_a.tables import Csv"}
    assert circles(others | {"zoo_a/tables.py": source}) == [
        "zoo_a.layout -> zoo_a.tables -> zoo_a.rows -> zoo_a.layout"
    ]


def test_each_circle_is_noticed_once_and_a_type_makes_none() -> None:
    two = {"a.py": "import b", "b.py": "import a", "c.py": "import a\nimport d", "d.py": "import c"}
    assert circles(two) == ["a -> b -> a", "c -> d -> c"]
    types = "if TYPE_CHECKING:\n    import a"
    assert circles({"a.py": "import b\nimport c", "b.py": types, "c.py": "import b"}) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "from torch import nn",
        "import yaml",
        "class A:\n    import numpy",
        "from zoo_core.model.learner import Learner",
        "import zoo_core.benchmark.planner",  # whose parent is the heavy one
    ],
)
def test_a_heavy_library_that_a_light_module_reaches_is_noticed(source: str) -> None:
    sources = {
        "zoo_core/__init__.py": "",
        "zoo_core/spec/parser.py": source,
        "zoo_core/model/learner.py": "import torch",
        "zoo_core/benchmark/__init__.py": "import torch",
        "zoo_core/benchmark/planner.py": "",
    }
    assert len(heavy_reached(sources, ["zoo_core.spec.parser"])) == 1


def test_a_heavy_facade_is_noticed() -> None:
    sources = {"zoo_core/__init__.py": "import torch", "zoo_core/spec/parser.py": ""}
    assert heavy_reached(sources, ["zoo_core.spec.parser"]) == ["zoo_core:1 imports torch"]


def test_a_light_command_may_import_torch_only_when_it_runs() -> None:
    late = {"zoo_core/cli/plan.py": "def plan():\n    import torch", "zoo_core/cli/__init__.py": "import click"}
    assert light_modules(late) == ["zoo_core.cli", "zoo_core.cli.plan"]
    assert heavy_reached(late, light_modules(late)) == []
    assert heavy_in_functions(late) == []
    early = late | {"zoo_core/cli/plan.py": "import torch"}
    assert heavy_reached(early, light_modules(early)) == ["zoo_core.cli.plan:1 imports torch"]


def test_a_heavy_library_inside_a_light_function_is_noticed() -> None:
    assert heavy_in_functions({"zoo_core/plan/resolve.py": "def resolve():\n    import torch"}) == [
        "zoo_core.plan.resolve:2 imports torch in a function"
    ]


@pytest.mark.parametrize(
    "source",
    [
        "import zoo_starter",
        "def f():\n    from zoo_starter.tasks import Digits",
        "if TYPE_CHECKING:\n    import zoo_starter",
    ],
)
def test_an_import_of_a_plugin_is_noticed(source: str) -> None:
    assert len(foreign_imports({"zoo_core/model/build.py": source}, ["zoo_starter"])) == 1


SURFACE = {
    "zoo_core/__init__.py": '__all__ = ["Budget"]',
    "zoo_core/contracts/__init__.py": '__all__ = ["Source"]',
    "zoo_core/contracts/values.py": '__all__ = ["Source"]',
    "zoo_core/files/__init__.py": "",
    "zoo_core/files/hub.py": '__all__ = ["download"]',
    "zoo_core/toolkit/__init__.py": "",
    "zoo_core/toolkit/sites.py": '__all__ = ["attach"]\nLARGEST = 3',
}


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("from zoo_core.files.hub import download", "imports zoo_core.files.hub, which is not stable"),
        ("from zoo_core.files import hub", "imports zoo_core.files.hub, which is not stable"),
        ("from zoo_core import files", "imports zoo_core.files, which is not stable"),
        ("import zoo_core.files.hub", "imports zoo_core.files.hub, which is not stable"),
        ("from zoo_core.contracts.values import Source", "imports zoo_core.contracts.values, which is not stable"),
        ("from zoo_core.toolkit.sites import LARGEST", "imports LARGEST, which zoo_core.toolkit.sites does not list"),
        ("from zoo_core.toolkit.sites import *", "imports *, which zoo_core.toolkit.sites does not list"),
        ("from zoo_core import __version__", "imports __version__, which zoo_core does not list"),
    ],
)
@pytest.mark.parametrize("place", ["{}", "def apply():\n    {}", "if TYPE_CHECKING:\n    {}"])
def test_an_import_of_what_is_not_stable_is_noticed(place: str, source: str, complaint: str) -> None:
    line = 2 if "\n" in place else 1
    found = outside_surface({"zoo_acme/parts.py": place.format(source)}, SURFACE)
    assert found == [f"zoo_acme.parts:{line} {complaint}"]


def test_an_import_of_what_is_stable_passes() -> None:
    source = """
from zoo_core import Budget
from zoo_core.contracts import Source
from zoo_core.toolkit import sites
from zoo_core.toolkit.sites import attach
from zoo_acme import other
from . import files
"""
    assert outside_surface({"zoo_acme/parts.py": source}, SURFACE) == []


def test_a_recipe_module_that_imports_torch_is_noticed() -> None:
    sources = {"zoo_starter/__init__.py": "", "zoo_starter/tasks.py": "from zoo_starter.reading import read"}
    heavy = sources | {"zoo_starter/reading.py": "import sklearn.datasets"}
    light = sources | {"zoo_starter/reading.py": "def read():\n    import sklearn.datasets"}
    assert heavy_reached(heavy, ["zoo_starter.tasks"]) == ["zoo_starter.reading:1 imports sklearn.datasets"]
    assert heavy_reached(light, ["zoo_starter.tasks"]) == []


def test_the_probe_sees_a_heavy_module() -> None:
    assert loaded(["json", "numpy"]) == ["numpy"]
