"""What the user of this call trusts, where a spec that is not the user's asks for more than is trusted by itself.

A spec that a user types may read a pickle, since its user says so. One that was stored (a run, a published model, a
suite file, a record), or that a plugin's own code makes up, is somebody else's word, or an old one: what it asks for is
refused unless this call allows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from zoo_core.contracts import TRUSTS
from zoo_core.errors import RefusedError, UsageError, nearest

__all__ = ["check_trust", "speaking_for", "trusted", "trusting"]

_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())
_speaker: ContextVar[str | None] = ContextVar("speaker", default=None)  # None: the user


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
def speaking_for(origin: str | None) -> Iterator[None]:
    """Specs that are bound in the block are this one's word: of a run, a suite file, a record, or a plugin's own code.

    None: of whoever speaks already, at first the user.
    """
    before = _speaker.set(origin or _speaker.get())
    try:
        yield
    finally:
        _speaker.reset(before)


def check_trust(name: str, argument: str, word: str, value: str, *, record: str | None) -> None:
    """Raises RefusedError where an argument widens what is trusted, and neither its user nor this call has said so.

    name: of the part. value: as a spec writes it. record: whose record adds the argument; None where somebody wrote it.
    """
    origin = _speaker.get() or (f"the record {record}" if record else None)
    if origin is not None and word not in _trusted.get():
        raise RefusedError(
            f"{origin} asks for {name}({argument}={value}), which only the user of a call may; if you trust where it "
            f'comes from, say so: --trust {word}, in Python zoo_core.trusting("{word}")'
        )
