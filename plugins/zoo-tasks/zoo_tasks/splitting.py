"""Which example is in which split: as the files say, or drawn from their contents; and copies kept apart.

A drawn split gives 60 % of each class to train, 20 % to val and 20 % to test: val chooses, test ranks, and with less
than a fifth of a small set neither tells two methods apart. Which example goes where is decided by the sha256 of
(seed, content), so neither names of files nor their order matter, and adding examples moves few others. Groups
(a patient, a speaker) go as a whole, by the sha256 of their name.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zoo_core.contracts import Target
from zoo_core.errors import UsageError, nearest
from zoo_core.toolkit.files import cache_path
from zoo_tasks.class_folders import some
from zoo_tasks.store import put

__all__ = ["HELD", "Division", "Items", "Rules", "divide", "save_split"]

HELD = 0.2  # the share of val, and of test
TEST = 0.1  # the share of test where there are no labels: agreement with a teacher needs few examples to tell
NUM_BINS = 10  # of values, which are drawn from as classes are
NAMES = ("train", "val", "test")
KEEPERS = {"test": 0, "val": 1, "train": 2}  # a copy stays in the first of these


@dataclass(frozen=True, kw_only=True)
class Items:
    """The examples of a task, before they are divided.

    contents: of each a digest of what it holds; equal contents are copies. targets: int64 [N] (classes), float32
    [N, C], or a list of lists (token classes). groups, splits: of each a name, or None where there are none.
    """

    ids: Sequence[str]
    contents: Sequence[str]
    targets: np.ndarray | list[list[int]]
    groups: Sequence[str] | None = None
    splits: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How examples are divided. test, val: names of groups that are held out whole. drop_copies: see `divide`."""

    seed: int = 0
    test: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    drop_copies: bool = True


@dataclass(frozen=True, kw_only=True)
class Division:
    """The positions of each split, ascending, and what was found on the way; see zoo_core.contracts.Survey.

    given: whether the files, or groups that were named, say which example is in which split.
    """

    splits: Mapping[str, np.ndarray]
    given: bool
    copies: tuple[tuple[str, ...], ...] = ()
    conflicting: tuple[tuple[str, ...], ...] = ()
    leaking: tuple[tuple[str, ...], ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def digest(self, ids: Sequence[str]) -> str:
        """128 bits, in hex, of which example is in which split."""
        rows = sorted(f"{ids[int(i)]}\x1f{name}" for name, index in self.splits.items() for i in index)
        return hashlib.sha256("\x1e".join(rows).encode()).hexdigest()[:32]


def divide(items: Items, target: Target, rules: Rules) -> Division:
    """The splits of some examples, and their copies.

    drop_copies: of examples with the same content and several targets none is kept, since nobody knows which is right,
    and of those with one target, one is. Where splits are given, what is in test stays, so that scores are of the
    published test split; val leaves out what is in test, and train what is in either. False: all are kept, and in a
    drawn split copies go together.
    """
    num = len(items.ids)
    same: dict[str, list[int]] = defaultdict(list)
    for position, content in enumerate(items.contents):
        same[content].append(position)
    multiple = [positions for positions in same.values() if len(positions) > 1]
    labels = _strata(items.targets, target)
    conflicting = [rows for rows in multiple if len({_answer(items.targets, row) for row in rows}) > 1]
    given = _given(items, rules)
    is_drawn = given is None
    if given is None and target.kind == "unlabelled":
        given = _held_out(items.ids, rules.seed)
    leaking = [rows for rows in multiple if given is not None and len({given[row] for row in rows}) > 1]
    left_out = _left_out(items.ids, multiple, conflicting, given) if rules.drop_copies else {}
    kept = np.array([row for row in range(num) if row not in left_out], dtype=np.int64)
    if not len(kept):
        raise UsageError("every example is left out, since the same contents have several targets; duplicates=keep")
    if given is None:
        whole = items.groups if items.groups is not None else items.contents
        drawn = _draw(labels[kept], [whole[int(row)] for row in kept], rules.seed)
        splits = {name: kept[drawn == place] for place, name in enumerate(NAMES)}
    else:
        names = np.array(given)
        held = {*given, *(("train", "test") if is_drawn else ())}  # of a single example one of them is empty
        splits = {name: kept[names[kept] == name] for name in NAMES if name in held}

    def named(groups: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(items.ids[row] for row in rows) for rows in groups)

    return Division(
        splits=splits,
        given=not is_drawn,
        copies=named(multiple),
        conflicting=named(conflicting),
        leaking=() if is_drawn else named(leaking),
        left_out={items.ids[row]: reason for row, reason in sorted(left_out.items())},
        problems=tuple(_problems(items, target, splits, not is_drawn)),
    )


def _left_out(
    ids: Sequence[str],
    multiple: Sequence[Sequence[int]],
    conflicting: Sequence[Sequence[int]],
    given: Sequence[str] | None,
) -> dict[int, str]:
    """The rows that are left out where copies are dropped, each with its reason. multiple: rows of the same content."""
    found: dict[int, str] = {}
    for rows in conflicting:
        inside = [row for row in rows if given is None or given[row] == "train"]
        found |= dict.fromkeys(inside, "the same content has several targets")
    for rows in multiple:
        first = min(rows, key=lambda row: (KEEPERS[given[row]] if given else 0, row))
        copies = [row for row in rows if row != first and (given is None or given[row] != given[first])]
        found |= {row: f"a copy of {ids[first]}" for row in copies if row not in found}
    return found


def save_split(division: Division, ids: Sequence[str]) -> tuple[str, str]:
    """The digest of a division and the file `item,split` below the cache folder that holds it."""
    digest = division.digest(ids)
    path = cache_path("splits", f"{digest}.csv")
    if not path.exists():
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(("item", "split"))
        writer.writerows((ids[int(i)], name) for name, index in division.splits.items() for i in index)
        put(path, lambda stream: stream.write(text.getvalue().encode()))
    return digest, str(path)


def _answer(targets: np.ndarray | list[list[int]], row: int) -> object:
    found = targets[row]
    return tuple(found) if isinstance(found, list) else found.tobytes()


def _strata(targets: np.ndarray | list[list[int]], target: Target) -> np.ndarray:
    """int64 [N]: what each split should hold in proportion."""
    if target.kind in ("classes", "unlabelled"):
        return np.asarray(targets)
    if target.kind == "regression":
        first = np.asarray(targets)[:, 0]
        return np.searchsorted(np.unique(np.quantile(first, np.linspace(0, 1, NUM_BINS + 1)[1:-1])), first)
    return _rarest(targets, target)


def _rarest(targets: np.ndarray | list[list[int]], target: Target) -> np.ndarray:
    """int64 [N]: of several labels or tags the one that fewest examples hold, so that train keeps some of each.

    One more than there are names for an example that holds none.
    """
    size = target.size or 0
    held = [sorted(_held(row, target)) for row in targets]
    counts = Counter(label for row in held for label in row)
    return np.array([min(row, key=lambda label: counts[label], default=size) for row in held], dtype=np.int64)


def _held(row: Any, target: Target) -> set[int]:
    """The labels, or the tags of the words, of an example."""
    return set(np.flatnonzero(row).tolist()) if target.kind == "multilabel" else set(row)


def _given(items: Items, rules: Rules) -> list[str] | None:
    """The split of each example where files or rules say it; train without test is not enough, and is None."""
    if rules.test or rules.val:
        groups = items.groups
        assert groups is not None, "a recipe that takes test= knows the groups"
        for name in (*rules.test, *rules.val):
            if name not in set(groups):
                raise UsageError(f"no group {name!r} to hold out; the groups are {some(sorted(set(groups)))}")
        if not rules.test:
            raise UsageError("val= names groups and test= does not; test=[NAME] holds groups out for the test split")
        both = set(rules.test) & set(rules.val)
        if both:
            raise UsageError(f"group {min(both)!r} is in test= and in val=; a group is on one side")
        return ["test" if name in rules.test else "val" if name in rules.val else "train" for name in groups]
    if items.splits is None or set(items.splits) == {"train"}:
        return None
    if "train" not in items.splits:
        raise UsageError(f"there are examples of {', '.join(sorted(set(items.splits)))} and none of train")
    if "test" not in items.splits:  # val is then what a result is told of, and the core carves another from train
        return ["test" if name == "val" else name for name in items.splits]
    return list(items.splits)


def _held_out(ids: Sequence[str], seed: int) -> list[str]:
    """The split of each example without labels: a tenth is held out for test, each by its own id, so that examples that
    are added move no others; of a few examples one is.
    """
    ranks = [_rank(seed, name) for name in ids]
    bound = max(int(TEST * 2**32).to_bytes(4, "big"), min(ranks))
    return ["test" if rank <= bound else "train" for rank in ranks]


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\x1f{name}".encode()).digest()


def _draw(labels: np.ndarray, wholes: Sequence[str], seed: int) -> np.ndarray:
    """int64 [N], 0 train, 1 val, 2 test: of each label its share, as nearly as what goes as a whole allows."""
    members: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(wholes):
        members[name].append(row)
    order = sorted(members, key=lambda name: _rank(seed, name))
    total = Counter(labels.tolist())
    wanted = {label: max(1, round(HELD * num)) for label, num in total.items()}
    if len(members) == len(labels):  # nothing goes together, which is usual and may be a million examples
        return _draw_each(labels[[members[name][0] for name in order]], order, members, wanted)
    taken: dict[int, Counter[int]] = {1: Counter(), 2: Counter()}
    left = Counter(total)
    place = np.zeros(len(labels), dtype=np.int64)
    queues: dict[int, list[str]] = defaultdict(list)
    for name in order:
        for label in {int(labels[row]) for row in members[name]}:
            queues[label].append(name)
    placed: set[str] = set()
    for label in sorted(queues, key=lambda label: (total[label], label)):  # the rarest first: they have least choice
        for part in (2, 1):
            for name in queues[label]:
                if taken[part][label] >= wanted[label]:
                    break
                held = Counter(labels[members[name]].tolist())
                too_many = (
                    len(members[name]) > 1
                    and taken[part][label]
                    and (taken[part][label] + held[label] > 1.5 * wanted[label])
                )
                if name in placed or too_many or any(left[each] <= num for each, num in held.items()):
                    continue
                placed.add(name)
                place[members[name]] = part
                taken[part] += held
                left -= held
    return place


def _draw_each(
    labels: np.ndarray, order: Sequence[str], members: Mapping[str, list[int]], wanted: Mapping[int, int]
) -> np.ndarray:
    """What the general way gives where each example goes alone. labels: in that order."""
    place = np.zeros(len(labels), dtype=np.int64)
    rows = np.array([members[name][0] for name in order], dtype=np.int64)
    for label, num in wanted.items():
        own = rows[labels == label]
        test = own[: min(num, len(own) - 1)]
        val = own[len(test) : len(test) + max(0, min(num, len(own) - 1 - len(test)))]
        place[test], place[val] = 2, 1
    return place


def _problems(items: Items, target: Target, splits: Mapping[str, np.ndarray], given: bool) -> list[str]:
    """What keeps these splits from being fitted on and scored."""
    empty = [name for name in NAMES if name in splits and not len(splits[name])]
    if empty:
        return [f"no example is left for {empty[0]}: {len(items.ids)} examples, or their groups, are too few to divide"]
    if target.kind in ("regression", "unlabelled"):
        return []
    names = target.names or tuple(map(str, range(target.size or 0)))
    if target.kind == "classes":
        labels = np.asarray(items.targets)
        counts = {name: np.bincount(labels[index], minlength=len(names)) for name, index in splits.items()}
    else:
        counts = {name: np.zeros(len(names), dtype=np.int64) for name in splits}
        for name, index in splits.items():
            for row in index:
                counts[name][list(_held(items.targets[int(row)], target))] += 1
    for label, called in enumerate(names):
        num = sum(int(count[label]) for count in counts.values())
        lacking = [name for name in splits if not counts[name][label]]
        if (given or target.kind != "classes") and not counts["train"][label] and num:
            where = next(name for name in splits if counts[name][label])
            others = [name for place, name in enumerate(names) if counts["train"][place]]
            mend = f"move it or leave it out{nearest(called, others)}" if given else "draw again: seed="
            noun = {"classes": "class", "multilabel": "label"}.get(target.kind, "tag")
            return [f"{noun} {called} is in {where} and not in train, so it cannot be learnt; {mend}"]
        if target.kind == "classes" and not given and lacking:
            held = f"{num} example" + ("s" if num != 1 else "")
            needed = "three or more are needed, in groups of their own if there are groups"
            return [f"class {called} has {held} and none for {lacking[0]}; {needed}: add some, or leave the class out"]
    return []
