"""What predictions are worth: scores by name, the confusion matrix, a row for each class."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo_core.contracts import METRICS, Target
from zoo_core.data.loader import Loader
from zoo_core.data.token_labels import IGNORED, OUTSIDE, by_word, entities
from zoo_core.errors import DivergedError, UsageError, ZooError, nearest
from zoo_core.training.timing import autocast

__all__ = [
    "confusion",
    "per_class",
    "predict",
    "score",
]


def score(metric: str, predictions: Tensor, target: Tensor, kind: Target) -> float:
    """One number for a whole split.

    predictions: float [N, C] (logits for classes and labels). target: int64 [N] or float32 [N, C].
    Of token classes, float [N, W, C] and int64 [N, W]: of words, as `predict` gives them.
    Raises UsageError for a metric that is unknown or not for this kind of target, DivergedError when a prediction is
    no number, ZooError where the metric is not defined: no label is ever true, or R2 of one example.
    """
    if metric not in METRICS:
        raise UsageError(f"unknown metric {metric!r}; there are {', '.join(sorted(METRICS))}{nearest(metric, METRICS)}")
    if kind.kind not in METRICS[metric].targets:
        fitting = sorted(name for name, known in METRICS.items() if kind.kind in known.targets)
        raise UsageError(f"metric {metric} is not for {kind.kind}; use one of {', '.join(fitting)}")
    wrong = ~predictions.isfinite() if kind.kind == "regression" else predictions.isnan()  # a class may be ruled out
    spoilt = int(wrong.flatten(1).any(dim=1).sum())
    if spoilt:
        raise DivergedError(f"predictions of {spoilt} example{'s' if spoilt > 1 else ''} are no numbers")
    if metric == "entity_f1":
        found = _entity_f1(predictions, target, kind.names)
    else:
        found = float(_METRICS[metric, kind.kind](predictions.double(), target))
    if not math.isfinite(found):
        raise ZooError(f"{metric} is not defined on {len(target)} examples with these targets; take another metric")
    return found


# Written out, and checked against scikit-learn: torchmetrics refuses a single output, computes in float32, warns of
# classes that no example has, and its import takes as long as torch's own.


def _top5_accuracy(x_NC: Tensor, y_N: Tensor) -> Tensor:
    best = x_NC.topk(min(5, x_NC.shape[1]), dim=1).indices
    return (best == y_N.unsqueeze(1)).any(dim=1).double().mean()


def _f1(chosen_NC: Tensor, true_NC: Tensor) -> tuple[Tensor, Tensor]:
    """F1 of each output, 0 where it is never chosen and never true, and how often it is either; from booleans."""
    hits, either = (chosen_NC & true_NC).sum(0), chosen_NC.sum(0) + true_NC.sum(0)
    return 2 * hits.double() / either.clamp(min=1), either


def _macro_f1_classes(x_NC: Tensor, y_N: Tensor) -> Tensor:
    """Mean over the classes that are chosen or true at all."""
    size = x_NC.shape[1]
    f1, either = _f1(_one_hot(x_NC.argmax(1), size), _one_hot(y_N, size))
    return f1[either > 0].mean()


def _average_precision(x_NC: Tensor, true_NC: Tensor) -> Tensor:
    """Mean over the outputs that are true at all of the sum of precision times the gain in recall; ties count once."""
    found = []
    for scores, true in zip(x_NC.T, true_NC.T, strict=True):
        if true.any():
            ranked, order = scores.sort(descending=True)
            hits = true[order].double().cumsum(0)
            last = torch.cat([ranked[1:] != ranked[:-1], true.new_ones(1)])  # of those with one score
            precision = (hits / torch.arange(1, len(hits) + 1))[last]
            gain = torch.diff(hits[last], prepend=hits.new_zeros(1)) / hits[-1]
            found.append((precision * gain).sum())
    return torch.stack(found).mean() if found else torch.tensor(math.nan)


def _r2(x_NC: Tensor, y_NC: Tensor) -> Tensor:
    """Mean over outputs of the share of variance explained; of a target that does not vary, 1 if exact, else 0."""
    if len(y_NC) < 2:
        return torch.tensor(math.nan)
    left = (y_NC - x_NC).square().sum(0)
    total = (y_NC - y_NC.mean(0)).square().sum(0)
    return torch.where(total > 0, 1 - left / total.clamp(min=torch.finfo(total.dtype).tiny), 1.0 * (left == 0)).mean()


def _entity_f1(x_NWC: Tensor, y_NW: Tensor, names: tuple[str, ...]) -> float:
    """F1 over all entities of all sentences: one is right if its type and both its ends are; not defined without any.

    What an entity is, see `zoo_core.data.token_labels.entities`. Raises UsageError where the classes are not named O,
    B-X and I-X.
    """
    strange = [name for name in names if name != OUTSIDE and name.partition("-")[0] not in ("B", "I")]
    if OUTSIDE not in names or strange:
        found = strange[0] if strange else f"no {OUTSIDE} among {', '.join(names[:4])}"
        raise UsageError(f"entity_f1 needs tags named O, B-TYPE and I-TYPE, found {found}; accuracy needs no names")
    right, either = 0, 0
    for predicted, true in zip(x_NWC.argmax(-1), y_NW, strict=True):
        real = true != IGNORED
        spelt, wanted = (entities(names[tag] for tag in tags[real].tolist()) for tags in (predicted, true))
        right, either = right + len(spelt & wanted), either + len(spelt) + len(wanted)
    return 2 * right / either if either else math.nan


def _word_accuracy(x_NWC: Tensor, y_NW: Tensor) -> Tensor:
    """Share of words whose class is right; one that is predicted nothing is not."""
    best, chosen = x_NWC.max(-1)
    right = (chosen == y_NW) & (best > -math.inf)
    return right[y_NW != IGNORED].double().mean()


def _one_hot(y_N: Tensor, size: int) -> Tensor:
    return y_N.unsqueeze(1) == torch.arange(size)


_METRICS: dict[tuple[str, str], Callable[[Tensor, Tensor], Tensor]] = {  # predictions come as float64
    ("accuracy", "classes"): lambda x, y: (x.argmax(1) == y).double().mean(),
    ("accuracy", "token_classes"): _word_accuracy,
    ("accuracy", "multilabel"): lambda x, y: ((x > 0) == (y > 0.5)).double().mean(),  # over labels, not whole rows
    ("top5_accuracy", "classes"): _top5_accuracy,
    ("macro_f1", "classes"): _macro_f1_classes,
    ("macro_f1", "multilabel"): lambda x, y: _f1(x > 0, y > 0.5)[0].mean(),
    ("average_precision", "classes"): lambda x, y: _average_precision(x.softmax(1), _one_hot(y, x.shape[1])),
    ("average_precision", "multilabel"): lambda x, y: _average_precision(x, y > 0.5),
    ("mean_absolute_error", "regression"): lambda x, y: (x - y.double()).abs().mean(),
    ("r2", "regression"): lambda x, y: _r2(x, y.double()),
}


def confusion(predictions: Tensor, target: Tensor) -> Tensor:
    """int64 [C, C] counts, rows the true class and columns the predicted one, from logits [N, C]."""
    size = predictions.shape[-1]
    return torch.bincount(target * size + predictions.argmax(-1), minlength=size * size).view(size, size)


def per_class(predictions: Tensor, target: Tensor, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and number of true examples of each class, from logits [N, C]."""
    counts = confusion(predictions, target).double()
    hits, predicted, true = counts.diag(), counts.sum(0), counts.sum(1)
    rows = []
    for index in range(len(counts)):
        precision = float(hits[index] / predicted[index]) if predicted[index] else 0.0
        recall = float(hits[index] / true[index]) if true[index] else 0.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        name = names[index] if names else str(index)
        rows.append({"class": name, "precision": precision, "recall": recall, "f1": f1, "num": int(true[index])})
    return rows


def predict(learner: nn.Module, loader: Loader, *, precision: str = "float32") -> tuple[Tensor, tuple[str, ...]]:
    """Predictions of a whole split in the loader's order, float32 [N, ...] on the CPU, and the ids of its rows.

    Of token classes [N, W, C]: of words, W the most that an example of the split has.
    """
    learner.eval()
    predictions: list[Tensor] = []
    ids: list[str] = []
    with torch.no_grad(), autocast(loader.device, precision):  # what inference mode leaves in a cache cannot train
        for batch in loader.epoch():
            found = learner(batch.inputs).predictions.float()
            if loader.target.kind == "token_classes":
                found = by_word(found, batch.inputs["word_ids"], loader.targets.shape[1], loader.target)
            predictions.append(found.cpu())
            ids.extend(batch.ids)
    return torch.cat(predictions), tuple(ids)
