"""A Hugging Face Hub on this machine, to which the real huggingface_hub talks: nothing in the client is replaced.

    from tests.hub_server import Flip, HubServer

    def test_it(hub_server: HubServer) -> None:
        first = hub_server.add("org/name", {"config.json": b"{}", "model.safetensors": weights})
        hub_server.fault(Flip(at=100), "*model.safetensors", times=1)
        path = hf_hub_download("org/name", "model.safetensors")
        assert [str(request) for request in hub_server.log] == [...]

In this process the fixture points huggingface_hub at the server, which reads HF_ENDPOINT only when it is imported; a
child process that a test starts inherits os.environ, where the fixture has set the same. Without the fixture:
`with HubServer() as server`, `endpoint=server.endpoint`, and `os.environ | server.environment(home)` for children.
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
