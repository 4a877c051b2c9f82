"""What the user of this call trusts, where a spec that is not the user's asks for more than is trusted by itself.

A spec that a user types may read a pickle, since its user says so. One that was stored (a run, a published model, a
suite file, a record), or that a plugin's own code makes up, is somebody else's word, or an old one: what it asks for is
refused unless this call allows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from zoo_core.bind import Bound, value_text
from zoo_core.contracts import TRUSTS
from zoo_core.errors import RefusedError, UsageError, nearest

__all__ = ["check_trust", "origin_of", "running", "speaking", "trusted", "trusting"]

_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())
_running: ContextVar[str | None] = ContextVar("running", default=None)


@contextmanager
def trusting(*words: str) -> Iterator[None]:
    """Calls in the block take stored specs that ask for these: `pickle` reads pickled files, `code` runs foreign code.

    Example: `with zoo_core.trusting("pickle"): learner = zoo_core.load_run("hub/ORG/NAME")`. It holds for this thread;
    one that is started inside says it itself. Raises UsageError for another word.
    """
    for word in words:
        if word not in TRUSTS:
            raise UsageError(f"{word!r} is nothing to be trusted; there are {', '.join(TRUSTS)}{nearest(word, TRUSTS)}")
    before = _trusted.set(_trusted.get() | set(words))
    try:
        yield
    finally:
        _trusted.reset(before)


def trusted() -> frozenset[str]:
    """The words that hold here, for processes that go on with this call."""
    return _trusted.get()


@contextmanager
def running(part: Bound) -> Iterator[None]:
    """A part's own code runs: specs that it hands on are its word, not the user's."""
    before = _running.set(f"the code of {part.kind} {part.name}")
    try:
        yield
    finally:
        _running.reset(before)


def speaking() -> str | None:
    """Whose word a spec is here, where nobody says that it was stored; None: the user's."""
    return _running.get()


def origin_of(part: Bound, argument: str, stored: str | None) -> str | None:
    """Whose word an argument of a part is; None: the user's. What a record adds is the record's.

    stored: whose the part is.
    """
    if stored is None and argument in part.implied and argument not in dict(part.written.arguments):
        return f"the record {part.written.name}"
    return stored


def check_trust(part: Bound, stored: str | None) -> None:
    """Raises RefusedError where a part widens what is trusted, and neither its user nor this call has said so.

    stored: whose word the part is; None: the user's.
    """
    for name, word, value in part.widened():
        origin = origin_of(part, name, stored)
        if origin is not None and word not in _trusted.get():
            raise RefusedError(
                f"{origin} asks for {part.name}({name}={value_text(value)}), which only the user of a call may; if you "
                f'trust where it comes from, say so: --trust {word}, in Python zoo_core.trusting("{word}")'
            )
