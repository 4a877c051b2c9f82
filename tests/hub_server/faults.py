"""What can go wrong between the Hub and a client: each fault turns a right answer into the wrong one that is sent.

A fault that spoils a body leaves errors and redirects alone: a file in LFS is spoilt where it comes from, at the CDN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import ClassVar, Literal, Protocol

Origin = Literal["hub", "cdn"]
Spoils = Literal["answer", "file"]
PORTAL = b"<!DOCTYPE html><html><body>Please log in to the wireless network.</body></html>"


@dataclass(frozen=True)
class Request:
    """One request as it arrived. path: still quoted, without the query. status: 0 if the connection was dropped."""

    method: str
    path: str
    status: int
    origin: Origin
    has_token: bool
    range: str | None
    query: str = ""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Response:
    """An answer and how it is sent. ranges: the request's Range is cut out of the body; everything else is sent whole.

    cut_at: the connection ends after so many bytes of the body, though Content-Length promises all of them.
    reset: it then ends by RST, not by FIN. dropped: it ends before the status line.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    ranges: bool = False
    cut_at: int | None = None
    reset: bool = False
    dropped: bool = False
    bytes_per_second: float | None = None
    wait_seconds: float = 0.0


class Fault(Protocol):
    """How an answer is spoilt. spoils: any answer, or only one with status 200, which carries a file."""

    spoils: ClassVar[Spoils]

    def spoil(self, answer: Response) -> Response: ...


@dataclass(frozen=True)
class Status:
    """An error in place of the answer: 401, 403, 404, 429, 5xx. code: X-Error-Code, such as GatedRepo."""

    status: int
    code: str | None = None
    message: str = "An error that the test asked for."
    retry_after: int | None = None
    spoils: ClassVar[Spoils] = "answer"

    def spoil(self, answer: Response) -> Response:
        headers = {"X-Error-Message": self.message, "Content-Type": "text/plain"}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return Response(self.status, headers, self.message.encode())


@dataclass(frozen=True)
class Html:
    """A captive portal answers: 200, and a page."""

    spoils: ClassVar[Spoils] = "answer"

    def spoil(self, answer: Response) -> Response:
        return Response(200, {"Content-Type": "text/html"}, PORTAL)


@dataclass(frozen=True)
class Headers:
    """Other headers than the right ones; None leaves one out. `X-Repo-Commit`, `ETag`, `X-Linked-Etag`, ..."""

    change: Mapping[str, str | None]
    spoils: ClassVar[Spoils] = "answer"

    def spoil(self, answer: Response) -> Response:
        changed = {name: value for name, value in self.change.items() if value is not None}
        kept = {name: value for name, value in answer.headers.items() if name not in self.change}
        return replace(answer, headers=kept | changed)


NO_COMMIT = Headers({"X-Repo-Commit": None})
NO_ETAG = Headers({"ETag": None, "X-Linked-Etag": None})


@dataclass(frozen=True)
class Drop:
    """The connection ends without an answer, as when the Hub or a proxy dies. reset: by RST."""

    reset: bool = False
    spoils: ClassVar[Spoils] = "answer"

    def spoil(self, answer: Response) -> Response:
        return replace(answer, dropped=True, reset=self.reset)


@dataclass(frozen=True)
class Wait:
    """The answer comes after so many seconds."""

    seconds: float
    spoils: ClassVar[Spoils] = "answer"

    def spoil(self, answer: Response) -> Response:
        return replace(answer, wait_seconds=self.seconds)


@dataclass(frozen=True)
class Cut:
    """The connection ends after `at` bytes of this answer (after its Range). reset: by RST, which is no clean end."""

    at: int = 0
    reset: bool = False
    spoils: ClassVar[Spoils] = "file"

    def spoil(self, answer: Response) -> Response:
        return replace(answer, cut_at=self.at, reset=self.reset)


@dataclass(frozen=True)
class Truncate:
    """The file ends after `at` bytes, and Content-Length agrees."""

    at: int = 0
    spoils: ClassVar[Spoils] = "file"

    def spoil(self, answer: Response) -> Response:
        return replace(answer, body=answer.body[: self.at])


@dataclass(frozen=True)
class Flip:
    """The lowest bit of the byte at offset `at` of the file is another one; the size is right."""

    at: int = 0
    spoils: ClassVar[Spoils] = "file"

    def spoil(self, answer: Response) -> Response:
        flipped = bytes([answer.body[self.at] ^ 1])
        return replace(answer, body=answer.body[: self.at] + flipped + answer.body[self.at + 1 :])


@dataclass(frozen=True)
class Body:
    """The content of another file, with its own Content-Length; the other headers stay."""

    content: bytes
    spoils: ClassVar[Spoils] = "file"

    def spoil(self, answer: Response) -> Response:
        return replace(answer, body=self.content)


@dataclass(frozen=True)
class Slow:
    """The body arrives at so many bytes per second."""

    bytes_per_second: float
    spoils: ClassVar[Spoils] = "file"

    def spoil(self, answer: Response) -> Response:
        return replace(answer, bytes_per_second=self.bytes_per_second)


@dataclass(frozen=True)
class IgnoreRange:
    """The whole file with status 200, whatever Range asked for."""

    spoils: ClassVar[Spoils] = "answer"

    def spoil(self, answer: Response) -> Response:
        return replace(answer, ranges=False)


@dataclass(frozen=True)
class Do:
    """Spoils nothing and does something else before the answer is sent, such as a commit between two requests."""

    action: Callable[[], object]
    spoils: ClassVar[Spoils] = "answer"

    def spoil(self, answer: Response) -> Response:
        self.action()
        return answer


@dataclass
class Rule:
    """When a fault strikes: the next `times` answers (None: all) to such requests, after the first `skip`.

    path: a pattern for the unquoted path, where * also matches slashes. fired: how often it has struck.
    """

    fault: Fault
    path: str = "*"
    method: str = "GET"
    origin: Origin | None = None
    times: int | None = None
    skip: int = 0
    fired: int = 0

    def matches(self, method: str, path: str, origin: Origin) -> bool:
        return (
            fnmatchcase(path, self.path)
            and self.method in ("*", method)
            and self.origin in (None, origin)
            and (self.times is None or self.fired < self.times)
        )

    def apply(self, answer: Response) -> Response:
        """The answer, spoilt if it is this rule's turn. What the fault does not concern does not count."""
        if self.fault.spoils == "file" and answer.status != 200:
            return answer
        if self.skip > 0:
            self.skip -= 1
            return answer
        self.fired += 1
        return self.fault.spoil(answer)
