"""What the user of this call trusts, where a spec that was stored asks for more than is trusted by itself.

A spec that a user types may read a pickle, since its user says so. One that was stored (a run, a published model, a
suite file, a record) is somebody else's word, or an old one: what it asks for is refused unless this call allows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from zoo_core.bind import Bound, value_text
from zoo_core.contracts import TRUSTS
from zoo_core.errors import RefusedError, UsageError, nearest

__all__ = ["check_trust", "trusted", "trusting"]

_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


@contextmanager
def trusting(*words: str) -> Iterator[None]:
    """Calls in the block take stored specs that ask for these: `pickle` reads pickled files, `code` runs foreign code.

    Example: `with zoo_core.trusting("pickle"): learner = zoo_core.load_run("hub/ORG/NAME")`.
    Raises UsageError for another word.
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


def check_trust(part: Bound, stored: str | None) -> None:
    """Raises RefusedError where a part widens what is trusted, and neither its user nor this call has said so.

    stored: what the part was read from; None where the user wrote it. What a record adds is never the user's.
    """
    written = {name for name, _ in part.written.arguments}
    for name, word, value in part.widened():
        by = stored or ("" if name in written or name not in part.implied else f"the record {part.written.name}")
        if by and word not in _trusted.get():
            raise RefusedError(
                f"{by} asks for {part.name}({name}={value_text(value)}), and what is stored is not trusted with that; "
                f'if you trust its origin, say so in this call: --trust {word}, in Python zoo_core.trusting("{word}")'
            )
