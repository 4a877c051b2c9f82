"""Token classes: from the tags of words to targets of tokens and back, and the entities that tags spell.

A preparation that reads lists of words returns `word_ids`, int64 [B, T]: at the first token of each word the index of
the word, and -1 at every other token. Only first tokens are trained on and read. A word that was cut off has none, and
counts as missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo_core.contracts import Target
from zoo_core.errors import UsageError

__all__ = ["IGNORED", "OUTSIDE", "by_word", "entities", "on_tokens", "word_targets"]

IGNORED = -100  # a target that no loss and no score looks at; torch's own default
OUTSIDE = "O"  # the tag of a word that is in no entity


def word_targets(rows: Sequence[Any], target: Target, ids: Sequence[str], *, may_lack: bool = False) -> Tensor:
    """int64 [N, W], with W the largest number of words of an example, padded with IGNORED.

    rows: for each example the class of each word, counted from 0. may_lack: or IGNORED, where it is not known.
    Raises UsageError for other rows, naming the example.
    """
    assert target.size is not None, "data that was opened knows its outputs"
    allowed = (*range(target.size), *([IGNORED] if may_lack else []))
    found = []
    for tags, name in zip(rows, ids, strict=True):
        array = np.asarray(tags)
        if array.ndim != 1 or not len(array) or not np.isin(array, allowed).all():
            raise UsageError(
                f"token classes are a list for each example, whole numbers from 0 to {target.size - 1}, "
                f"found {tags!r:.60} in example {name}"
            )
        found.append(torch.from_numpy(array.astype(np.int64)))
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=IGNORED)


def on_tokens(target_BW: Tensor, word_ids_BT: Tensor) -> Tensor:
    """The target of each word at its first token and IGNORED elsewhere, int64 [B, T]."""
    return target_BW.gather(1, word_ids_BT.clamp(min=0)).masked_fill(word_ids_BT < 0, IGNORED)


def by_word(predictions_BTC: Tensor, word_ids_BT: Tensor, num_words: int, target: Target) -> Tensor:
    """The predictions of words, float [B, W, C], taken from their first tokens. W: num_words.

    A word without a token is predicted OUTSIDE. If no class has that name, all its scores are minus infinity, which
    means no prediction.
    """
    batch, _, size = predictions_BTC.shape
    missed = predictions_BTC.new_full((size,), -torch.inf)
    if OUTSIDE in target.names:
        missed[target.names.index(OUTSIDE)] = 0
    found = missed.expand(batch, num_words, size).clone()
    rows, places = (word_ids_BT >= 0).nonzero(as_tuple=True)
    found[rows, word_ids_BT[rows, places]] = predictions_BTC[rows, places]
    return found


def entities(tags: Iterable[str]) -> set[tuple[str, int, int]]:
    """(type, first word, last word) of each entity that the tags of a sentence spell: O, B-TYPE or I-TYPE.

    An entity begins at every B, and at an I after O or after another type (IOB1, read as conlleval reads it). It ends
    before the next O, the next B or the next other type.
    Source: Tjong Kim Sang & De Meulder 2003; conlleval, and seqeval in its default mode.
    """
    found: set[tuple[str, int, int]] = set()
    start, kind = 0, ""
    place = 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, now = tag.partition("-")
        if kind and (prefix != "I" or now != kind):
            found.add((kind, start, place - 1))
            kind = ""
        if tag != OUTSIDE and not kind:
            start, kind = place, now or "_"
    return found
