"""Target kinds that were renamed. Whatever was stored or typed with an old word is read through this one table.

`labels` became `multilabel` and `values` became `regression`. Digests still hash the old words, so that a result that
was stored before the change counts as done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["OLD_WORDS", "current_text", "current_word", "digest_word"]

OLD_WORDS: Mapping[str, str] = {"labels": "multilabel", "values": "regression"}  # old word -> word of today
_DIGEST_WORDS: Mapping[str, str] = {new: old for old, new in OLD_WORDS.items()}
_ARGUMENT = re.compile(rf'"(?:[^"\\]|\\.)*"|(?<=[(,])kind=({"|".join(OLD_WORDS)})(?=[,)])')


def current_word(word: str) -> str:
    """The word of today for a target kind; any other word as it is."""
    return OLD_WORDS.get(word, word)


def digest_word(word: str) -> str:
    """The word that digests use for a target kind; any other word as it is."""
    return _DIGEST_WORDS.get(word, word)


def current_text(text: str) -> str:
    """A stored text that holds parts, such as `csv(kind=values)`, with its target kinds in the words of today.

    Only the argument `kind` changes. A column or file that is called `values` keeps its name, as does quoted text.
    """
    if "kind=" not in text:
        return text
    return _ARGUMENT.sub(lambda found: f"kind={OLD_WORDS[found[1]]}" if found[1] else found[0], text)
