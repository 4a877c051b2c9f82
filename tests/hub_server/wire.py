"""Bytes on sockets: one origin, which reads requests, has them answered and sends answers as badly as they ask for."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

from tests.hub_server.faults import Origin, Response

RST = struct.pack("ii", 1, 0)  # SO_LINGER of zero seconds: closing sends RST
TICK_SECONDS = 0.02


class Respond(Protocol):
    """Who answers: the method, the target with its query, the headers (in lower case) and the whole body."""

    def __call__(
        self, origin: Origin, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> Response: ...


class Listener(ThreadingHTTPServer):
    """An origin at a port of its own, in threads of its own."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, origin: Origin, respond: Respond) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.origin = origin
        self.respond = respond
        self.address = f"http://{'localhost' if origin == 'cdn' else '127.0.0.1'}:{self.server_port}"
        self.connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(TICK_SECONDS,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No new connections, and an end to those that clients keep open for later."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):  # the client has closed it meanwhile
                connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client went away, or we did
            super().handle()

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._send(self.server.respond(self.server.origin, self.command, self.path, headers, self._read_body()))

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 -- the base class looks for these names

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 -- the name is the base class's
        """Not on stderr: the log is HubServer's."""

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(self._chunks())
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, answer: Response) -> None:
        time.sleep(answer.wait_seconds)
        if answer.dropped:
            self._end(answer)
            return
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for piece in _pieces(answer):
            self.wfile.write(piece)
        if answer.cut_at is not None:
            self._end(answer)

    def _end(self, answer: Response) -> None:
        self.close_connection = True
        if answer.reset:
            time.sleep(TICK_SECONDS)  # a client's kernel forgets what the client has not read when RST arrives
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            os.close(self.connection.detach())  # close() would wait for rfile


def _pieces(answer: Response) -> Iterator[bytes]:
    """The body up to where it is cut, all at once or as slowly as the answer says."""
    body = answer.body[: answer.cut_at]
    if answer.bytes_per_second is None:
        yield body
        return
    size = max(1, int(answer.bytes_per_second * TICK_SECONDS))
    for start in range(0, len(body), size):
        yield body[start : start + size]
        time.sleep(size / answer.bytes_per_second)
