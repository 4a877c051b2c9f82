"""The promises of a score, checked on features whose worth is known: one call in a test of its plugin.

from zoo_core.testing.scores import check_score

def test_my_score_keeps_its_promises():
    for kind in ("classes", "regression"):
        check_score(MyScore(), kind)
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from zoo_core.contracts import ScoreRecipe, Target, TargetKind
from zoo_core.testing.comparing import ConformanceError

__all__ = ["check_score", "scored_examples"]

_NUM = 120
_SIZE = 3
_TOLERANCE = 1e-6  # two orders of summation in float64 differ by far less, and a score that learns less by far more


def scored_examples(kind: TargetKind, *, num: int = _NUM, noise: float = 0.5) -> tuple[Tensor, Tensor, Target]:
    """Features, targets and the target itself, as a score is given them. noise: how far features hide the target.

    Features are float64 [num, 8]: the target in the first columns, and noise in all.
    """
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(num) % _SIZE
    sides = torch.nn.functional.one_hot(labels, _SIZE).double()
    truth = {"classes": labels, "multilabel": sides, "regression": sides + labels[:, None]}[kind]
    features = noise * torch.randn(num, 8, generator=generator, dtype=torch.float64)
    features[:, :_SIZE] += sides
    return features, truth, Target(kind=kind, size=_SIZE)


def check_score(score: ScoreRecipe, kind: TargetKind = "classes") -> None:
    """Raises ConformanceError, in one line, unless a score keeps its promises on a target of this kind.

    It gives a float tensor [N] or [] that is finite, gives the same twice, leaves its arguments and torch's generator
    as they are, does not depend on the order of examples, and gives better features more than worse ones and noise.
    """
    features, truth, target = scored_examples(kind)
    before = features.clone(), truth.clone(), torch.get_rng_state()
    found = _judged(score, features, truth, target)
    if not (torch.equal(before[0], features) and torch.equal(before[1], truth)):
        raise ConformanceError(f"{_name(score)} changed its arguments; judge works on copies")
    if not torch.equal(before[2], torch.get_rng_state()):
        raise ConformanceError(
            f"{_name(score)} drew from torch's generator; it takes one of its own, with a fixed seed"
        )
    if not torch.equal(found, _judged(score, features, truth, target)):
        raise ConformanceError(f"{_name(score)} gave another number for the same examples")
    order = torch.randperm(_NUM, generator=torch.Generator().manual_seed(2))
    moved = float(_judged(score, features[order], truth[order], target).mean())
    # How a score divides examples may depend on their order, so what it then says of each may move by its own error.
    spread = float(found.std()) / sqrt(_NUM) if found.ndim else 0.0
    if abs(moved - float(found.mean())) > spread + _TOLERANCE * max(1.0, abs(moved)):
        raise ConformanceError(f"{_name(score)} gave {float(found.mean()):.6g}, and {moved:.6g} in another order")
    better = float(_judged(score, *scored_examples(kind, noise=0.05)).mean())
    noise = torch.randn(_NUM, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    worse = float(_judged(score, noise, truth, target).mean())
    if not better > float(found.mean()) > worse:
        raise ConformanceError(
            f"{_name(score)} gave clear features {better:.6g}, noisy ones {float(found.mean()):.6g} and noise "
            f"{worse:.6g}; higher is better"
        )


def _judged(score: ScoreRecipe, features: Tensor, truth: Tensor, target: Target) -> Tensor:
    found: object = score.judge(features, truth, target)
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.shape not in ((), (len(features),)):
        raise ConformanceError(f"{_name(score)} gave {found!r:.60}; allowed: a float tensor of shape [] or [N]")
    if not bool(found.isfinite().all()):
        raise ConformanceError(f"{_name(score)} gave what is not finite for {target.kind} that it says it is for")
    return found


def _name(score: ScoreRecipe) -> str:
    return type(score).__name__
