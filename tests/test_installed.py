"""What a user gets: the four wheels, installed in a clean environment, work the same without the repository.

Third-party packages are lent to that environment by links, so that nothing is downloaded; nothing of ours is lent.
"""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PROJECTS = (ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml")), ROOT / "registry")
REQUIRED = {  # data that an installation would miss without an error until somebody asks for it
    "zoo_core": ("py.typed", "registry/reserved.txt", "benchmark/starter.toml", "catalogue.json"),
    "zoo_adapters": ("py.typed", "catalogue.json"),
    "zoo_distill": ("py.typed", "catalogue.json"),
    "zoo_peft": ("py.typed", "catalogue.json", "methods.json"),
    "zoo_registry": ("py.typed", "models/*.toml", "tasks/*.toml"),
    "zoo_starter": ("py.typed", "catalogue.json", "weights/*.safetensors"),
    "zoo_tasks": ("py.typed", "catalogue.json"),
    "zoo_timm": ("py.typed", "catalogue.json", "tags.json"),
    "zoo_transformers": ("py.typed", "catalogue.json"),
}


@dataclass(frozen=True, kw_only=True)
class Project:
    """One distribution of this repository, as its pyproject.toml describes it."""

    folder: Path
    name: str
    version: str
    package: str
    entry_points: dict[str, dict[str, str]]
    wheel: Path

    @property
    def dist_info(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}.dist-info"

    def contents(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def read(self, path: str) -> str:
        with zipfile.ZipFile(self.wheel) as archive:
            return archive.read(path).decode()


def read_project(folder: Path, wheels: Path) -> Project:
    settings = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    (package,) = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    (wheel,) = wheels.glob(f"{project['name'].replace('-', '_')}-*.whl")
    return Project(
        folder=folder,
        name=project["name"],
        version=project["version"],
        package=package,
        entry_points=project.get("entry-points", {}),
        wheel=wheel,
    )


def run(*command: str | Path, cwd: Path, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Project]:
    folder = tmp_path_factory.mktemp("wheels")
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder))
    done = run(sys.executable, "-m", "pip", "wheel", *flags, *PROJECTS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [read_project(project, folder) for project in PROJECTS]


def lend_third_party(source: Path, folder: Path) -> None:
    """Links in `folder` to all that `source` holds, except what is ours and the files that make an install editable."""
    for entry in source.iterdir():
        if not entry.name.startswith(("zoo_", "_editable_impl_zoo", "__editable__")) and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)


@pytest.fixture(scope="module")
def clean(wheels: list[Project], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the executables of an environment that holds our wheels and no trace of the repository."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False, symlinks=True)
    executables = Path(sysconfig.get_path("scripts", "venv", {"base": str(folder)}))
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    lent = folder / "third-party"
    lent.mkdir()
    lend_third_party(Path(sysconfig.get_path("purelib")), lent)
    (packages / "third-party.pth").write_text(f"{lent}\n")
    files = [project.wheel for project in wheels]
    pip = (sys.executable, "-m", "pip", "--python", executables / "python")
    done = run(*pip, "install", "--no-index", "--no-deps", *files, cwd=folder)
    assert done.returncode == 0, done.stderr
    return executables


def files_below(package: Path) -> set[str]:
    return {
        path.relative_to(package.parent).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheels_hold_their_package_whole_and_nothing_else(wheels: list[Project]) -> None:
    for project in wheels:
        contents = {name for name in project.contents() if not name.startswith(f"{project.dist_info}/")}
        assert contents == files_below(project.folder / project.package), project.name


def test_wheels_hold_their_data(wheels: list[Project]) -> None:
    for project in wheels:
        names = [Path(name) for name in project.contents()]
        missing = [
            pattern
            for pattern in REQUIRED[project.package]
            if not any(name.match(f"{project.package}/{pattern}") for name in names)
        ]
        assert missing == [], project.name


def test_wheels_hold_the_licence(wheels: list[Project]) -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    for project in wheels:
        assert project.read(f"{project.dist_info}/licenses/LICENSE") == licence


def test_wheels_declare_their_entry_points(wheels: list[Project]) -> None:
    for project in wheels:
        parser = configparser.ConfigParser(delimiters=["="])
        if f"{project.dist_info}/entry_points.txt" in project.contents():
            parser.read_string(project.read(f"{project.dist_info}/entry_points.txt"))
        declared = {group: dict(parser[group]) for group in parser.sections() if group.startswith("zoo.")}
        assert declared == project.entry_points, project.name


def test_plugins_require_the_core_and_no_sibling(wheels: list[Project]) -> None:
    ours = {project.name for project in wheels}
    for project in wheels:
        metadata = message_from_string(project.read(f"{project.dist_info}/METADATA"))
        declared = [text for text in metadata.get_all("Requires-Dist") or [] if text.startswith("zoo-")]
        required = {text for text in declared if "extra ==" not in text}  # those of extras are for who asks for them
        expected = set() if project.name == "zoo-core" else {"zoo-core<0.2,>=0.1"}
        assert required == expected, project.name
        assert metadata["Version"] == project.version
        assert metadata["License-Expression"] == "Apache-2.0"
    assert ours == {
        "zoo-core",
        "zoo-registry",
        "zoo-starter",
        "zoo-adapters",
        "zoo-distill",
        "zoo-peft",
        "zoo-tasks",
        "zoo-timm",
        "zoo-transformers",
    }


def test_the_clean_environment_knows_nothing_of_the_repository(clean: Path, tmp_path: Path) -> None:
    program = (
        "import json, sys, zoo_core, zoo_starter\n"
        "print(json.dumps([*sys.path, *zoo_core.__path__, *zoo_starter.__path__]))"
    )
    done = run(clean / "python", "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    base = Path(sys.base_prefix).resolve()
    paths = [Path(path).resolve() for path in json.loads(done.stdout) if path]
    strangers = [path for path in paths if not path.is_relative_to(clean.parent) and not path.is_relative_to(base)]
    assert strangers == []


def test_installed_zoo_lists_every_part(clean: Path, tmp_path: Path) -> None:
    done = run(clean / "zoo", "list", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    entries = {(entry["kind"], entry["name"]): entry for entry in json.loads(done.stdout)}
    expected = {
        *(("adapter", name) for name in ("bitfit", "full", "norm", "partial", "probe")),
        *(("backbone", name) for name in ("starter/convnet-nano", "starter/vit-nano", "timm/resnet18.a1_in1k", "hf")),
        *(("head", name) for name in ("attention-pool", "knn", "linear", "mlp", "ncm", "ridge")),
        *(("task", name) for name in ("diabetes", "digits", "digits-attributes")),
    }
    assert expected <= set(entries)
    assert {entries[key]["state"] for key in expected} == {"ok"}
    assert {entries[key]["version"] for key in expected} == {"0.1.0"}


def test_installed_zoo_shows_a_backbone(clean: Path, tmp_path: Path) -> None:
    done = run(clean / "zoo", "show", "starter/vit-nano", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "starter/vit-nano" in done.stdout


def test_installed_zoo_runs_a_bench(clean: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    grid = ("--task", "digits(shots=1)", "--backbones", "starter/vit-nano,starter/convnet-nano(weights=random)")
    budget = ("--adapters", "probe", "--seeds", "1", "--epochs", "1")
    done = run(clean / "zoo", "bench", *grid, *budget, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert all(0 <= row["score"] <= 1 for row in rows)
    assert "starter/vit-nano" in done.stdout
    assert list(tmp_path.iterdir()) == [out]  # a bench writes where it was told to and nowhere else
