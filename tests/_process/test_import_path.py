"""Processes that zoo starts import what their parent would, and nothing of the working directory."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from zoo_core._process.import_path import same_path

ZOO = Path(sysconfig.get_path("scripts"), "zoo")
# What a fork server, a worker, a loader or the tracker of shared memory may import: of Python, of others, of ours.
NAMES = (
    *("random", "socket", "signal", "selectors", "queue", "struct", "pickle", "logging", "tempfile", "threading"),
    *("torch", "numpy", "PIL", "datasets", "zoo_core", "zoo_starter", "zoo_adapters", "sitecustomize"),
)
PATH_OF_A_CHILD = """
import multiprocessing, sys
from multiprocessing import forkserver, resource_tracker
from zoo_core._process.import_path import same_path

def tell(pipe):
    pipe.send(sys.path)

if __name__ == "__main__":
    sys.path.append("/added/by/the/program")
    context = multiprocessing.get_context(sys.argv[1])
    ours, theirs = context.Pipe()
    with same_path() if sys.argv[2] == "safe" else open(sys.argv[0]):
        resource_tracker.ensure_running()
        process = context.Process(target=tell, args=(theirs,))
        process.start()
    print(ours.recv() == sys.path)
    process.join()
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose files take the names of modules; each notes that it ran."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\n")
    return folder


def _run(command: Sequence[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, check=False)


def _ran(folder: Path) -> str:
    file = folder.parent / "ran"
    return file.read_text() if file.exists() else ""


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_a_child_has_its_parents_path_and_imports_nothing_of_the_working_directory(
    hostile: Path, tmp_path: Path, method: str
) -> None:
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(PATH_OF_A_CHILD)
    done = _run([sys.executable, script, method, "safe"], hostile)
    assert (done.stdout.strip(), _ran(hostile)) == ("True", ""), done.stderr


def test_the_folder_would_be_imported_from_without_the_cure(hostile: Path, tmp_path: Path) -> None:
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(PATH_OF_A_CHILD)
    _run([sys.executable, script, "forkserver", "as usual"], hostile)
    assert "signal" in _ran(hostile)


@pytest.mark.slow
def test_commands_import_nothing_of_the_working_directory(hostile: Path, tmp_path: Path) -> None:
    common = ("--task", "digits(shots=2)", "--epochs", "1", "--num-rates", "1", "--device", "cpu")
    grid = ("--backbones", "starter/vit-nano", "--adapters", "probe", "--seeds", "1")
    for words in (
        ("bench", *common, *grid, "--out", tmp_path / "bench"),
        ("fit", "starter/vit-nano", *common, "--num-workers", "1", "--out", tmp_path / "fit"),
        ("evaluate", tmp_path / "fit"),
        ("doctor",),
        ("list",),
    ):
        done = _run([ZOO, *words], hostile)
        assert (done.returncode, _ran(hostile)) == (0, ""), (words, done.stderr)


def test_python_that_heeds_no_variable_is_refused_where_it_would_start_another(tmp_path: Path) -> None:
    program = "from zoo_core._process.import_path import same_path\nwith same_path(): print('in')"
    for flags, said in (("-E", "python -EP"), ("-EP", "in"), ("-I", "in")):
        done = _run([sys.executable, flags, "-c", program], tmp_path)
        assert said in done.stdout + done.stderr


def test_the_environment_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "", "1"):
        if before is None:
            monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
        else:
            monkeypatch.setenv("PYTHONSAFEPATH", before)
        with same_path(), same_path():
            assert os.environ["PYTHONSAFEPATH"] == "1"
        assert os.environ.get("PYTHONSAFEPATH") == before
