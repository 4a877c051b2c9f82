"""The plugins of examples/ pass their own tests, as if installed, and nobody who did not install them sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import zoo_core
from benchmarks.cifar import install

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))


def outcome(example: Path, installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The tests of an example in a process of their own, in which it is found as pip would have put it there."""
    install(example, installed)
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (example, installed)))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *words]
    return subprocess.run(
        [*command, str(example / "tests")],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def tell(done: subprocess.CompletedProcess[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What was skipped and why goes on to whoever reads this run, and all of it where something failed."""
    with capsys.disabled():
        sys.stdout.writelines(f"\n{line}" for line in done.stdout.splitlines() if line.startswith("SKIPPED"))
    assert done.returncode == 0, done.stdout[-8000:]


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_passes_its_tests(example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(outcome(example, tmp_path), capsys)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_passes_its_slow_tests(example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(outcome(example, tmp_path, "-m", "slow"), capsys)


def test_a_failing_test_of_an_example_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = tmp_path / "example"
    (example / "tests").mkdir(parents=True)
    (example / "tests" / "test_wrong.py").write_text("def test_wrong() -> None:\n    assert 1 == 2\n")
    (example / "pyproject.toml").write_text(
        '[project]\nname = "zoo-x"\nversion = "1"\ndependencies = []\n[project.entry-points."zoo.heads"]\n'
    )
    done = outcome(example, tmp_path / "installed")
    assert done.returncode == 1
    assert "assert 1 == 2" in done.stdout
    with pytest.raises(AssertionError):
        tell(done, capsys)


def test_no_example_is_installed_with_zoo() -> None:
    listed = {row["distribution"] for row in zoo_core.list_names()}
    assert listed & {f"zoo-{example.name}" for example in EXAMPLES} == set()
