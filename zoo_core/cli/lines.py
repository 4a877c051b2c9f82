"""Writes predictions as lines of a table, CSV or JSON; each line is flushed as soon as it is known.

For classes a line holds item, label and score. For multilabel and regression it holds a score for each output. For
token classes there is a line for each word, with the positions of its first character and after its last one. JSON has
one line for each item in every case: item, labels, scores.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from zoo_core.contracts import Target
    from zoo_core.runs.inference import Prediction

__all__ = ["Lines", "tell"]

WORD_COLUMNS = ("item", "word", "start", "end", "label", "score")


class Lines:
    """Writes predictions of one target in one form on standard output.

    form: table, csv or jsonl. top_k: how many outputs to show with their scores, best first; None means the usual line.
    all_scores: whether to show the score of every output.
    """

    def __init__(self, form: str, target: Target, *, top_k: int | None = None, all_scores: bool = False) -> None:
        self.form, self.kind = form, target.kind
        self.names = target.names or tuple(map(str, range(target.size or 0)))
        self.top_k, self.all_scores = top_k, all_scores
        self.header = self._header()
        self._csv = csv.writer(sys.stdout, lineterminator="\n") if form == "csv" else None
        if self._csv is not None:
            self._csv.writerow(self.header)

    def add(self, one: Prediction) -> None:
        """Writes the line of a prediction; for token classes, a line for each word, except in JSON."""
        if self.form == "jsonl":
            click.echo(json.dumps(self._json(one)))
        elif self._csv is not None:
            self._csv.writerows(self._rows(one))
            sys.stdout.flush()
        else:
            for line in self._table(one):
                click.echo(line)

    def fail(self, item: str, reason: str) -> None:
        """Writes the line of an item that could not be used, with the reason; CSV has the reason on standard error."""
        reason = " ".join(reason.split())  # the reason has to fit on one line
        if self.form == "jsonl":
            click.echo(json.dumps({"item": item, "error": reason}))
        elif self._csv is not None:
            self._csv.writerow([item, *("" for _ in self.header[1:])])
            sys.stdout.flush()
            tell(item, reason)
        else:
            click.echo(f"{item}  error: {reason}")

    def _header(self) -> list[str]:
        if self.kind == "token_classes":
            return list(WORD_COLUMNS)
        if self.top_k is not None:
            places = ("", *(f"_{place}" for place in range(2, self.top_k + 1)))
            return ["item", *(f"{name}{place}" for place in places for name in ("label", "score"))]
        if self.kind != "classes":
            return ["item", *self.names]
        return ["item", "label", "score", *(self.names if self.all_scores else ())]

    def _best(self, one: Prediction) -> list[tuple[str, float]]:
        pairs = zip(self.names, one.scores, strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])[: self.top_k]

    def _rows(self, one: Prediction) -> Iterator[Sequence[str | int]]:
        """The cells of a prediction's lines, in the order of the header."""
        if self.kind == "token_classes":
            for word, label, score in zip(one.words, one.labels, one.scores, strict=True):
                yield one.item, word.text, word.start, word.end, label, _shown(score)
        elif self.top_k is not None:
            yield one.item, *(cell for name, score in self._best(one) for cell in (name, _shown(score)))
        elif self.kind != "classes":
            yield one.item, *map(_shown, one.scores)
        else:
            more = map(_shown, one.scores if self.all_scores else ())
            yield one.item, *one.labels, _shown(max(one.scores)), *more

    def _table(self, one: Prediction) -> Iterator[str]:
        if self.kind == "token_classes":
            for item, word, start, end, label, score in self._rows(one):
                yield f"{item}  {start}-{end}  {word}  {label}  {score}"
            return
        if self.kind == "classes" and self.top_k is None and not self.all_scores:
            yield "  ".join([one.item, one.labels[0], _shown(max(one.scores))])
            return
        is_ranked = self.top_k is not None or self.kind == "classes"
        pairs = self._best(one) if is_ranked else zip(self.names, one.scores, strict=True)
        yield "  ".join([one.item, *(f"{name} {_shown(score)}" for name, score in pairs)])

    def _json(self, one: Prediction) -> dict[str, object]:
        line: dict[str, object] = {"item": one.item, "labels": one.labels, "scores": one.scores}
        if self.kind == "token_classes":
            line["words"] = [asdict(word) for word in one.words]
        if self.top_k is not None:
            line["top"] = [{"label": name, "score": score} for name, score in self._best(one)]
        if self.all_scores:
            line["all"] = dict(zip(self.names, one.scores, strict=True))
        return line


def tell(item: str, reason: str) -> None:
    """Prints on standard error why an item could not be used, with its name unless the reason holds it."""
    click.echo(f"zoo: {reason}" if item in reason else f"zoo: {item}: {reason}", err=True)


def _shown(score: float) -> str:
    return f"{score:.6g}"
