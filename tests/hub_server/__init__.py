"""A Hugging Face Hub on this machine, to which the real huggingface_hub talks: nothing in the client is replaced.

    from tests.hub_server import Flip, HubServer

    with HubServer() as server:
        first = server.add("org/name", {"config.json": b"{}", "model.safetensors": weights})
        server.fault(Flip(at=100), "*model.safetensors", times=1)
        path = hf_hub_download("org/name", "model.safetensors", endpoint=server.endpoint, cache_dir=tmp_path)
        assert [str(request) for request in server.log] == [...]

huggingface_hub reads HF_ENDPOINT when it is imported, so a test in this process says `endpoint=server.endpoint`, and a
child process gets `os.environ | server.environment(home)`.
"""

from tests.hub_server.faults import (
    NO_COMMIT,
    NO_ETAG,
    Body,
    Cut,
    Drop,
    Flip,
    Headers,
    Html,
    IgnoreRange,
    Request,
    Rule,
    Slow,
    Status,
    Truncate,
    Wait,
)
from tests.hub_server.repositories import git_sha1
from tests.hub_server.server import HubServer

__all__ = [
    "NO_COMMIT",
    "NO_ETAG",
    "Body",
    "Cut",
    "Drop",
    "Flip",
    "Headers",
    "Html",
    "HubServer",
    "IgnoreRange",
    "Request",
    "Rule",
    "Slow",
    "Status",
    "Truncate",
    "Wait",
    "git_sha1",
]
