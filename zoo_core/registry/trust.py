"""What the user of this call trusts, if a spec that is not the user's asks for more than is trusted by default.

A spec that a user types may read a pickle, because its user says so. A spec that was stored (in a run, a published
model, a suite file, a record), or that a plugin's own code makes, comes from somebody else or from the past. What it
asks for is refused unless this call allows it.
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
    """Inside the block, stored specs may ask for these: `pickle` reads pickled files, `code` runs foreign code.

    Example: `with zoo_core.trusting("pickle"): learner = zoo_core.load_run("hub/ORG/NAME")`. It applies to this thread
    only; a thread that is started inside needs its own. Raises UsageError for another word.
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
    """The words that are trusted here, to pass on to processes that continue this call."""
    return _trusted.get()


@contextmanager
def speaking_for(origin: str | None) -> Iterator[None]:
    """Marks specs that are bound in the block as coming from a run, a suite file, a record, or a plugin's own code.

    None keeps the present origin, which is the user at first.
    """
    before = _speaker.set(origin or _speaker.get())
    try:
        yield
    finally:
        _speaker.reset(before)


def check_trust(name: str, argument: str, word: str, value: str, *, record: str | None) -> None:
    """Raises RefusedError if an argument widens what is trusted, and neither its user nor this call allows it.

    name: of the part. value: as a spec writes it. record: the record that adds the argument; None if somebody wrote it.
    """
    origin = _speaker.get() or (f"the record {record}" if record else None)
    if origin is not None and word not in _trusted.get():
        raise RefusedError(
            f"{origin} asks for {name}({argument}={value}), which only the user of a call may; if you trust where it "
            f'comes from, say so: --trust {word}, in Python zoo_core.trusting("{word}")'
        )
