"""What tests of fetched backbones share: the plugin `far` in this process, a repository of it, and `zoo` in here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from zoo_core.cli import main
from zoo_core.registry.catalog import catalog
from zoo_core.registry.registry import registry

FAR = Path(__file__).parent
BASE = "org/base"


@dataclass
class Far:
    """The Hub with the repository BASE, and commands that can name `far/org/base`; the folder is the current one.

    files: contents of the repository by name. make_files: those of another one.
    """

    server: HubServer
    folder: Path
    files: dict[str, bytes]
    make_files: Callable[..., dict[str, bytes]]
    read: Callable[[], Sequence[str]]

    def zoo(self, *words: str | Path) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a command."""
        self.read()
        code = main([str(word) for word in words])
        out, err = self.read()
        return code, out, err

    def refused(self, code: int, *words: str | Path) -> str:
        """The one line that a command ends with, and its exit code is this one."""
        found, _, err = self.zoo(*words)
        assert found == code, err
        (line,) = err.splitlines()
        return line


@pytest.fixture
def far(
    hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Far]:
    from zoo_core.files import hub  # the client, which reads the environment when it is imported

    monkeypatch.syspath_prepend(FAR)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "zoo"))
    monkeypatch.setattr(hub, "RETRY_SECONDS", (0.01, 0.01, 0.01))
    monkeypatch.chdir(tmp_path)
    for cached in (registry, catalog):
        cached.cache_clear()
    make_files = importlib.import_module("zoo_far.network").far_files
    files = make_files()
    hub_server.add(BASE, files)
    yield Far(hub_server, tmp_path, files, make_files, capsys.readouterr)
    for cached in (registry, catalog):
        cached.cache_clear()
