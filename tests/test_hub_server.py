from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import hf_hub_download, snapshot_download

from tests.hub_server import Cut, HubServer

WEIGHTS = bytes(range(256)) * 1000
FILES = {"config.json": b'{"a": 1}\n', "model.safetensors": WEIGHTS, "sub/vocab.txt": b"a\nb\n"}


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def test_a_download_is_one_head_and_one_get(server: HubServer, tmp_path: Path) -> None:
    server.add("org/name", FILES)
    path = hf_hub_download("org/name", "config.json", endpoint=server.endpoint, cache_dir=tmp_path)
    assert Path(path).read_bytes() == FILES["config.json"]
    url = "/org/name/resolve/main/config.json"
    assert [str(request) for request in server.log] == [f"HEAD {url}", f"GET {url}"]


def test_a_snapshot_is_bit_equal(server: HubServer, tmp_path: Path) -> None:
    server.add("org/name", FILES)
    folder = Path(snapshot_download("org/name", endpoint=server.endpoint, cache_dir=tmp_path))
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == FILES


def test_a_cut_body_is_resumed_by_range(server: HubServer, tmp_path: Path) -> None:
    step = huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE  # what arrived of a step that is not complete is asked again
    content = WEIGHTS * (step // len(WEIGHTS) + 2)
    server.add("org/name", {"model.safetensors": content})
    rule = server.fault(Cut(at=step + 1000), "*model.safetensors", times=1)
    path = hf_hub_download("org/name", "model.safetensors", endpoint=server.endpoint, cache_dir=tmp_path)
    assert Path(path).read_bytes() == content
    assert rule.fired == 1
    seen = [(request.method, request.origin, request.range, request.status) for request in server.log]
    whole, rest = ("GET", "cdn", None, 200), ("GET", "cdn", f"bytes={step}-", 206)
    assert seen == [("HEAD", "hub", None, 302), whole, rest]
