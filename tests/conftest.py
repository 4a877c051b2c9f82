"""What tests of the runner and the commands share: the plugin in nasty/, and `zoo` in this process or its own."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.far.fixture import far  # noqa: F401 -- a fixture
from tests.hub_server.fixture import hub_server  # noqa: F401 -- a fixture
from tests.taught.fixture import taught  # noqa: F401 -- a fixture
from zoo_core.cli import main
from zoo_core.plan.plan import Plan
from zoo_core.plan.resolve import resolve
from zoo_core.registry.catalog import Catalog
from zoo_core.registry.index import Index, read_folders
from zoo_core.registry.registry import Registry

NASTY = Path(__file__).parent / "nasty"
TIMING = (
    "train_seconds",
    "training",
    "inference",
    "peak_memory_bytes",
    "created_at",
    "threads",
    "shared",
    "after_seconds",
    "work",
)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A registry and a catalog that know the plugin in nasty/ as well as what is installed."""

    registry: Registry
    catalog: Catalog

    def resolve(self, spec: str, *, task: str | None = "thirds", **arguments: Any) -> Plan:
        return resolve(spec, task=task, registry=self.registry, catalog=self.catalog, **arguments)


@contextmanager
def on_path() -> Iterator[None]:
    sys.path.insert(0, str(NASTY))
    try:
        yield
    finally:
        sys.path.remove(str(NASTY))


@pytest.fixture(scope="session")
def nasty() -> Parts:
    """sys.path is as it was afterwards, or `zoo list` in this process would show the plugin to other tests."""
    with on_path():
        importlib.import_module("zoo_nasty.parts")
        index = Index(read_folders(list(dict.fromkeys(sys.path))))
    return Parts(registry=Registry(index), catalog=Catalog(index))


@pytest.fixture(scope="module")
def nasty_in_workers() -> Iterator[None]:
    """Worker processes get this process's sys.path when they start."""
    with on_path():
        yield


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line that a mistake is told in."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


@dataclass
class Zoo:
    """`zoo WORDS` as a process of its own, with the plugin in nasty/ on its path."""

    cwd: Path
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "zoo_core.cli", *map(str, words)]

    def variables(self, **more: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(NASTY), **self.environment, **more}

    def __call__(self, *words: str | Path, **variables: str) -> Done:
        done = subprocess.run(
            self.command(*words),
            cwd=self.cwd,
            env=self.variables(**variables),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str | Path, **options: Any) -> subprocess.Popen[str]:
        """The same, still running, in a process group of its own."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen(
            self.command(*words), cwd=self.cwd, env=self.variables(), text=True, start_new_session=True, **pipes
        )


Shown = tuple[int, str, list[str]]
Run = Callable[..., Shown]


@pytest.fixture
def zoo_here(capfd: pytest.CaptureFixture[str]) -> Run:
    """A command in this process, which has imported torch already: exit code, output, lines of standard error."""

    def run(*words: str | Path) -> Shown:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return code, out, err.splitlines()

    return run


def told(shown: Shown, code: int, *reasons: str) -> None:
    """One line on standard error and nothing else."""
    assert shown[0] == code, shown
    assert len(shown[2]) == 1, shown
    assert shown[1] == ""
    for reason in reasons:
        assert reason in shown[2][0]


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo(tmp_path)


@pytest.fixture(scope="session")
def session_zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """For fixtures whose runs several tests look at."""
    return Zoo(tmp_path_factory.mktemp("zoo"))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def untimed(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By digest, what must be the same however often a run was interrupted."""
    return {row["digest"]: {key: value for key, value in row.items() if key not in TIMING} for row in rows}


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path], list[dict[str, Any]]]:
    return read_rows


@pytest.fixture(scope="session")
def scores_of() -> Callable[[Path], dict[str, dict[str, Any]]]:
    """The results of a run without what is timed, by digest; more than one line for a digest is an error."""

    def scores(folder: Path) -> dict[str, dict[str, Any]]:
        rows = read_rows(folder)
        found = untimed(rows)
        assert len(found) == len(rows), "a trial has more than one result"
        return found

    return scores


MIXED = (
    *("bench", "--task", "thirds", "--backbones", "nasty/tokens,nasty/far", "--seeds", "1", "--epochs", "1"),
    *("--adapters", "probe,trouble(how=gone),trouble(how=print),maps-only", "--device", "cpu"),
)


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """A run with two results, a failure, refusals, and a plugin that prints; and what its command said.

    words: the command without --out. The failure is gone when it runs again.
    """

    out: Path
    done: Done
    words: tuple[str, ...] = MIXED


@pytest.fixture(scope="session")
def mixed(session_zoo: Zoo) -> Mixed:
    out = session_zoo.cwd / "with" / "parents" / "mixed"
    return Mixed(out=out, done=session_zoo(*MIXED, "--out", out, ZOO_NASTY_GONE="1"))
