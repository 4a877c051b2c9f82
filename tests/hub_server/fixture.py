"""The server as a fixture, with this process's huggingface_hub pointed at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server.server import HubServer


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub of this test's own, with an empty cache at tmp_path / "huggingface", no token, and uploads by LFS.

    What huggingface_hub read from the environment when it was imported is set again, as a child process would read it.
    """
    from huggingface_hub import close_session, constants, hf_api

    home = tmp_path / "huggingface"
    with HubServer() as server:
        for name, text in server.environment(home).items():
            monkeypatch.setenv(name, text)
        template = server.endpoint + constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        paths = {"HF_HOME": home, "HF_HUB_CACHE": home / "hub", "HF_TOKEN_PATH": home / "token"}
        flags = {"HF_HUB_DISABLE_TELEMETRY": True, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}
        addresses = {"ENDPOINT": server.endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": template}
        for name, value in (addresses | flags | {name: str(path) for name, path in paths.items()}).items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)  # of model_info and the other plain functions
        yield server
        close_session()  # or its connections are collected, and warned of, in another test
