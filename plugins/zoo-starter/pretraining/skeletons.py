"""The pen skeletons: letters and signs written by hand as short strings, and glyphs invented by a seeded walk.

A point is two digits on a 10 x 10 grid, column then row from the top left; `!` after it keeps a corner there, otherwise
the curve is smooth. A blank separates points, a slash lifts the pen, and every string is one way to write its glyph.

There is no digit, no O and no bare vertical bar among the classes. Look-alikes of digits stay, because they are
ordinary letters: B (8), D and Q (0), S (5), Z (2), b (6), g and q (9), J and y (4, 7), the question mark (2). Signs
that a hurried reader takes for a digit (the Cyrillic Ze, the ampersand, sigma, the lazy eight, theta) are left out. An
invented glyph is never a single line, but nothing else keeps one from resembling a digit by chance.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

LETTERS: Final[Mapping[str, Sequence[str]]] = {
    "A": ("09! 40! 89!/26! 76!", "09! 21 40 71 89!/05! 85!", "40! 09!/40! 89!/25! 75!"),
    "a": ("82 40 11 05 18 48 85/82! 86 99", "12 40 72 79!/74 35 07 39 77"),
    "B": ("00! 09!/00! 50 82 54 04!/54 96 79 09!", "09! 00! 60 72 34! 85 79 09!"),
    "b": ("00! 09!/05 43 86 49 08", "10! 09!/06 44 77 49 18"),
    "C": ("82 50 11 05 18 49 87", "71 30 05 39 88"),
    "D": ("00! 09!/00! 50 94 59 09!", "10! 19!/00! 60 93 86 59 09!"),
    "d": ("80! 89!/85 43 06 49 87", "84 43 06 48 86/80! 87 99"),
    "E": ("80! 00! 09! 89!/04! 64!", "80 30 01 04 08 39 89/04! 64!", "00! 09!/00! 80!/04! 64!/09! 89!"),
    "e": ("05! 85! 72 40 11 06 39 87", "06 84 61 22 05 28 59 87"),
    "F": ("80! 00! 09!/04! 64!", "00! 09!/00! 90!/05! 65!"),
    "f": ("81 50 32 39!/04! 74!", "80 51 43 47 29 08/14! 84!"),
    "G": ("82 50 11 05 18 59 86! 55!", "82 50 11 05 18 59 86/55! 85! 89!"),
    "g": ("82 40 13 45 83/81! 87 49 08", "82 40 13 45 83! 87 59 28 46 97"),
    "H": ("00! 09!/80! 89!/04! 84!", "10! 09!/90! 89!/05! 94!"),
    "h": ("00! 09!/05 43 75 79!", "20 09!/06 44 66 78 99"),
    "I": ("40! 49!/10! 70!/19! 79!", "50! 49!/20! 80!/19! 79!"),
    "i": ("43! 49!/40!", "13 33! 37 59/30!"),
    "J": ("20! 90!/60! 67 39 07", "70! 77 49 17 25", "30! 70! 77 39 07"),
    "j": ("53! 57 39 18/50!", "33! 63! 67 39 18/60!"),
    "K": ("00! 09!/80! 04! 89!", "00! 09!/80 44 05! 46 89"),
    "k": ("00! 09!/62! 05! 69!", "00! 09!/05 42 63 05! 69!"),
    "L": ("00! 09! 79!", "00 08 19! 79!", "10! 08! 88!"),
    "l": ("07 52 40 31 37 59 88", "06 63 51 30 26 48 79"),
    "M": ("09! 00! 45! 80! 89!", "09! 10! 46! 80! 99!"),
    "m": ("02! 09!/04 22 44 49!/45 62 84 89!", "03 12! 19!/15 32 44 49!/45 62 84 88 99"),
    "N": ("09! 00! 89! 80!", "00! 09!/00! 89!/89! 80!"),
    "n": ("02! 09!/05 42 75 79!", "03 12! 19!/15 43 65 78 99"),
    "P": ("00! 09!/00! 60 83 56 05!", "10! 09!/01 50 82 64 15"),
    "Q": ("50 11 05 28 68 95 81 50/66! 99!", "40 03 17 58 85 72 40/56 67 98"),
    "q": ("82 40 13 46 84/81! 89! 97!", "72 40 13 45 73/71! 78 99 97"),
    "R": ("00! 09!/00! 60 83 55 05!/45! 89!", "09! 00! 60 72 34! 89!"),
    "r": ("02! 09!/05 32 72", "03 22! 29!/25 52 83"),
    "S": ("81 40 12 44 76 59 07", "82 60 21 34 65 77 49 08"),
    "T": ("00! 90!/40! 49!", "01! 90!/50! 49!"),
    "t": ("30! 37 59 88/03! 73!", "40! 49!/03! 83!"),
    "U": ("00! 06 39 76 80!", "00 05 28 68 85 80"),
    "u": ("02! 07 39 76/82! 89!", "02 06 38 66 72! 77 99"),
    "V": ("00! 49! 80!", "00 25 49! 75 80"),
    "W": ("00! 29! 43! 69! 90!", "02 07 29 45! 47 69 87 92"),
    "X": ("00! 89!/80! 09!", "01 23 67 89/80! 09!"),
    "Y": ("00! 44! 80!/44! 49!", "00 03 45 84/80! 84 49"),
    "y": ("00! 44!/80! 19!", "00 13 45 83/80! 86 59 18"),
    "Z": ("00! 80! 09! 89!", "00! 80! 09! 89!/24! 64!"),
}

SIGNS: Final[Mapping[str, Sequence[str]]] = {
    "alpha": ("80 57 29 05 22 46 89",),
    "gamma": ("00 23 46 49 37 45 80",),
    "lambda": ("00 32 89!/45! 09!",),
    "mu": ("02! 09!/06 38 75/72! 79!",),
    "pi": ("01 20 90!/20! 29!/60! 68 89", "00! 80!/20! 19!/60! 69!"),
    "phi": ("42 15 48 75 42/40! 49!",),
    "psi": ("00 04 46 84 80/40! 49!",),
    "omega": ("11 06 29 45! 69 96 81",),
    "Sigma": ("80! 00! 54! 09! 89!",),
    "Gamma": ("09! 00! 80!",),
    "Delta": ("40! 09! 89! 40!",),
    "Lambda": ("09! 40! 89!",),
    "Xi": ("00! 80!/14! 74!/09! 89!",),
    "Omega": ("09! 39! 06 22 50 82 96 69! 99!",),
    "Zhe": ("00! 89!/80! 09!/40! 49!",),
    "I-short": ("00! 09! 80! 89!",),
    "Sha": ("00! 09! 89! 80!/40! 49!",),
    "Tse": ("00! 08! 88! 80!/88! 99!",),
    "Ya": ("80! 89!/80! 20 03 25 85!/45! 09!",),
    "E-turned": ("01 40 82 85 59 08/35! 85!",),
    "Yu": ("00! 09!/04! 34!/60 34 69 94 60",),
    "Pe": ("09! 00! 80! 89!",),
    "El": ("09 28 30! 80! 89!",),
    "Yery": ("00! 09!/05 45 57 39 09!/80! 89!",),
    "plus": ("40! 49!/04! 94!",),
    "equals": ("03! 83!/06! 86!",),
    "hash": ("20! 29!/60! 69!/03! 93!/06! 96!",),
    "asterisk": ("40! 49!/02! 97!/92! 07!",),
    "question": ("02 40 72 55 46!/49!",),
    "exclamation": ("40! 46!/49!",),
    "arrow-right": ("04! 94!/61! 94! 67!",),
    "arrow-up": ("49! 40!/13! 40! 73!",),
    "arrow-left": ("04! 94!/31! 04! 37!",),
    "less": ("80! 04! 89!",),
    "greater": ("00! 84! 09!",),
    "bracket-left": ("60! 20! 29! 69!",),
    "bracket-right": ("20! 60! 69! 29!",),
    "parenthesis-left": ("60 32 24 36 59",),
    "parenthesis-right": ("20 52 64 56 29",),
    "at": ("63 44 36 58 66 62! 68 86 72 40 11 05 18 49 78",),
    "dollar": ("81 40 12 44 76 59 07/40! 49!",),
    "euro": ("82 50 21 15 28 59 87/04! 64!/06! 66!",),
    "check": ("05! 39! 90!",),
    "heart": ("43 20 02 16 49! 86 92 70 43",),
    "star": ("19! 50! 89! 03! 93! 19!",),
    "box": ("00! 09! 99! 90! 00!",),
    "diamond": ("50! 05! 59! 95! 50!",),
    "house": ("09! 04! 40! 84! 89! 09!",),
    "lightning": ("60! 15! 55! 29!",),
    "spiral": ("54 45 44 63 86 68 28 04 31 70",),
    "flag": ("09! 00! 80! 84! 04!",),
    "tilde": ("05 23 45 67 85 93",),
    "hourglass": ("00! 90! 09! 99! 00!",),
    "kana-a": ("00! 80! 54!/43 46 19",),
    "kana-i": ("90! 04!/52! 59!",),
    "kana-u": ("40! 42!/05! 02! 82! 76 39",),
    "kana-e": ("10! 80!/40! 49!/09! 99!",),
    "kana-o": ("02! 92!/60! 69! 48!/62! 08!",),
    "kana-ku": ("30! 05/21! 81! 75 29",),
    "kana-sa": ("03! 93!/20! 26!/70! 75 39",),
    "kana-te": ("10! 80!/04! 94!/54 47 29",),
    "kana-nu": ("01! 81! 55 09/23! 89!",),
    "kana-ma": ("00! 90! 45!/26! 69!",),
    "kana-mu": ("40! 08! 88!/65! 99!",),
    "kana-re": ("20! 29! 83",),
    "kana-no": ("80 65 39 08",),
    "kana-ki": ("03! 92!/06! 95!/30! 69!",),
    "kana-hi": ("00! 08 19! 89!/04 74 93",),
}


@dataclass(frozen=True)
class Skeleton:
    """One way to write a glyph: control points and the linear map from them to points along the pen's path.

    controls: float32 [K, 2], about -1 to 1. curve: float32 [P, K], rows sum to 1. strokes: int64 [P], ascending.
    """

    controls: np.ndarray
    curve: np.ndarray
    strokes: np.ndarray


def catmull_rom_weights(num_controls: int, num_samples: int) -> np.ndarray:
    """Weights [num_samples, num_controls] of a uniform Catmull-Rom spline whose ends are reflected.

    Source: Catmull & Rom 1974, the uniform cubic with tension 1/2.
    """
    if num_controls == 1:
        return np.ones((num_samples, 1))
    padded = np.zeros((num_controls + 2, num_controls))
    padded[1:-1] = np.eye(num_controls)
    padded[0] = 2 * padded[1] - padded[2]
    padded[-1] = 2 * padded[-2] - padded[-3]
    position = np.linspace(0, num_controls - 1, num_samples)
    left = np.minimum(position.astype(int), num_controls - 2)
    t = (position - left)[:, None]
    cubic = (
        (-t + 2 * t**2 - t**3) / 2,
        (2 - 5 * t**2 + 3 * t**3) / 2,
        (t + 4 * t**2 - 3 * t**3) / 2,
        (-(t**2) + t**3) / 2,
    )
    return np.asarray(sum(weight * padded[left + k] for k, weight in enumerate(cubic)))


def stroke_weights(corners: Sequence[bool], num_samples: int) -> np.ndarray:
    """Weights [num_samples, K] of one stroke that is smooth between corners; its samples are shared by span count."""
    num_controls = len(corners)
    if num_controls == 1:
        return np.ones((num_samples, 1))
    breaks = [0, *(k for k in range(1, num_controls - 1) if corners[k]), num_controls - 1]
    position = np.linspace(0, num_controls - 1, num_samples)
    weights = np.zeros((num_samples, num_controls))
    for first, last in itertools.pairwise(breaks):
        inside = (position >= first) & (position <= last)
        dense = catmull_rom_weights(last - first + 1, 64 * (last - first) + 1)
        rows = np.round((position[inside] - first) * 64).astype(int)
        weights[inside] = 0
        weights[np.ix_(inside, np.arange(first, last + 1))] = dense[rows]
    return weights


def build_skeleton(strokes: Sequence[tuple[np.ndarray, Sequence[bool]]], num_samples: int) -> Skeleton:
    """Shares `num_samples` points among the strokes by length; each stroke is (points [K, 2], corner flags)."""
    lengths = np.array([0.3 + np.linalg.norm(np.diff(points, axis=0), axis=1).sum() for points, _ in strokes])
    shares = np.maximum(np.floor(num_samples * lengths / lengths.sum()).astype(int), 1)
    shares[np.argmax(lengths)] += num_samples - shares.sum()
    controls = np.concatenate([points for points, _ in strokes])
    curve = np.zeros((num_samples, len(controls)), dtype=np.float32)
    row = column = 0
    for (points, corners), share in zip(strokes, shares, strict=True):
        curve[row : row + share, column : column + len(points)] = stroke_weights(corners, share)
        row, column = row + share, column + len(points)
    return Skeleton(controls.astype(np.float32), curve, np.repeat(np.arange(len(strokes)), shares))


def written_skeleton(text: str, num_samples: int) -> Skeleton:
    """Reads one string of `LETTERS` or `SIGNS`; the grid becomes -1 to 1."""
    strokes = []
    for stroke in text.split("/"):
        tokens = stroke.split()
        points = np.array([[int(token[0]), int(token[1])] for token in tokens], dtype=float) / 4.5 - 1
        strokes.append((points, [token.endswith("!") for token in tokens]))
    return build_skeleton(strokes, num_samples)


def invented_skeleton(rng: np.random.RandomState, num_samples: int) -> Skeleton:
    """A glyph nobody writes: one to three strokes, each of lines and arcs with corners between, scaled to the box."""
    strokes: list[tuple[np.ndarray, Sequence[bool]]] = []
    num_strokes = rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2])
    for _ in range(num_strokes):
        points, corners = [rng.uniform(-1, 1, 2)], [True]
        heading = rng.uniform(0, 2 * math.pi)
        for _ in range(max(rng.choice([1, 2, 3, 4], p=[0.25, 0.35, 0.25, 0.15]), 3 - num_strokes)):
            turn = rng.choice([0.0, rng.choice([-1, 1]) * rng.uniform(0.6, 5.0)], p=[0.35, 0.65])
            spans = 1 + math.ceil(abs(turn) / 0.9)
            length = rng.uniform(0.7, 2.0) * (1 + abs(turn) / 3)
            for _ in range(spans):
                heading += turn / spans
                step = np.array([math.cos(heading), math.sin(heading)]) * length / spans
                points.append(points[-1] + step)
                corners.append(False)
            corners[-1] = bool(rng.rand() < 0.7)
            heading += rng.choice([-1, 1]) * rng.uniform(0.8, 2.6) if corners[-1] else 0.0
        strokes.append((np.array(points), corners))
    every = np.concatenate([points for points, _ in strokes])
    low, high = every.min(0), every.max(0)
    centre, half = (low + high) / 2, np.maximum((high - low).max() / 2, 0.1)
    return build_skeleton([((points - centre) / half, corners) for points, corners in strokes], num_samples)


def alphabet(num_invented: int, num_samples: int, seed: int) -> list[list[Skeleton]]:
    """Every class as its list of skeletons: first the written ones, in the order above, then the invented ones."""
    written = [[written_skeleton(text, num_samples) for text in way] for way in (*LETTERS.values(), *SIGNS.values())]
    rng = np.random.RandomState(seed)
    return written + [[invented_skeleton(rng, num_samples)] for _ in range(num_invented)]
