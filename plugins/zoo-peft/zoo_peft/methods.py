"""What is known of each method of peft without importing it: its arguments, where it works, how exact it is.

methods.json is made by catalogue.py of this plugin's folder from peft's own configuration classes and from what a tiny
model of each kind of layer shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Any, Literal

__all__ = ["Argument", "Method", "known_methods", "made_from"]

WORDS: Mapping[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "none": None,
    "ints": tuple[int, ...],
}


@dataclass(frozen=True, kw_only=True)
class Argument:
    """A field of a method's configuration that a spec can write. help: peft's own words."""

    name: str
    type: Any
    default: Any
    help: str


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of peft.

    tuner: its PeftType. refused: why it cannot be an adapter here; nothing if it can.
    arguments: in peft's order. left_out: why each other field of its configuration is no argument.
    fixed: values of fields that are always given. instead: arguments of which peft takes one of two: their default is
    None, and means nothing (0) where the other is given, else this value.
    layers: kinds of layers on which it works as it should, see `injection.kinds_of`. needs: alternatives of roles.
    start: the largest change of the outputs of two layers by the fresh adapter, in float32, relative to the largest
    output; 0: an exact no-op. mergeable: whether it folds into plain weights.
    samples: whether it draws random numbers in training whatever its dropouts are.
    """

    name: str
    tuner: str
    summary: str
    source: str
    refused: str
    arguments: tuple[Argument, ...]
    left_out: Mapping[str, str]
    fixed: Mapping[str, Any]
    instead: Mapping[str, tuple[str, int]]
    layers: frozenset[str]
    needs: tuple[frozenset[str], ...]
    start: float
    mergeable: bool
    samples: bool
    learning_rates: tuple[float, ...]


@cache
def known_methods() -> Mapping[str, Method]:
    """Every method of the peft that the catalogue was made from, by the name below `peft/`."""
    return {name: _method(name, row) for name, row in _table()["methods"].items()}


def made_from() -> str:
    """The version of peft that the catalogue was made from."""
    return str(_table()["peft"])


@cache
def _table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads((Path(__file__).parent / "methods.json").read_bytes())
    return table


def _method(name: str, row: Mapping[str, Any]) -> Method:
    told: dict[str, Any] = {
        "arguments": tuple(_argument(each) for each in row["arguments"]),
        "instead": {key: (other, usual) for key, (other, usual) in row["instead"].items()},
        "layers": frozenset(row["layers"]),
        "needs": tuple(frozenset(roles) for roles in row["needs"]),
        "learning_rates": tuple(row["learning_rates"]),
    }
    return Method(name=name, **{**row, **told})


def _argument(row: Mapping[str, Any]) -> Argument:
    default = tuple(row["default"]) if isinstance(row["default"], list) else row["default"]
    return Argument(name=row["name"], type=_type(row["type"]), default=default, help=row["help"])


def _type(members: Sequence[str | list[str]]) -> Any:
    """A type from its alternatives: words, and lists of the texts that are allowed."""
    return reduce(or_, (Literal[tuple(each)] if isinstance(each, list) else WORDS[each] for each in members))
