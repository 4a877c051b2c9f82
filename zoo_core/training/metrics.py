"""Scores predictions: metrics by name, the confusion matrix, and one row for each class."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from zoo_core.contracts import Target
from zoo_core.data.loader import Loader
from zoo_core.data.token_labels import IGNORED, OUTSIDE, by_word, entities
from zoo_core.errors import DivergedError, UsageError, ZooError
from zoo_core.registry.bind import Bound
from zoo_core.registry.recipe_checks import plugin_call
from zoo_core.training.timing import autocast

__all__ = [
    "accuracy",
    "agreement",
    "average_precision",
    "confusion",
    "entity_f1",
    "macro_f1",
    "mean_absolute_error",
    "per_class",
    "predict",
    "r2",
    "score",
    "score_split",
    "top5_accuracy",
]


def score(metric: Bound, predictions: Tensor, truth: Tensor, target: Target) -> float:
    """One number for a whole split, which is finite.

    predictions: float32 [N, C], logits for classes and labels. truth: int64 [N] or float32 [N, C].
    Of token classes, float32 [N, W, C] and int64 [N, W]: of words, as `predict` gives them.
    Raises DivergedError when a prediction is no number, ZooError where the metric is not defined: no label is ever
    true, or R2 of one example; and PluginError for what goes wrong in the metric.
    """
    wrong = ~predictions.isfinite() if target.kind == "regression" else predictions.isnan()  # a class may be ruled out
    spoilt = int(wrong.flatten(1).any(dim=1).sum())
    if spoilt:
        raise DivergedError(f"predictions of {spoilt} example{'s' if spoilt > 1 else ''} are no numbers")
    with plugin_call(metric):
        found = float(metric.recipe.score(predictions, truth, target))
    if not math.isfinite(found):
        raise ZooError(f"{metric.name} is not defined on {len(truth)} examples with these targets; take another metric")
    return found


# Written out, and checked against scikit-learn: torchmetrics refuses a single output, computes in float32, warns of
# classes that no example has, and its import takes as long as torch's own.


def _top5_accuracy(x_NC: Tensor, y_N: Tensor) -> Tensor:
    best = x_NC.topk(min(5, x_NC.shape[1]), dim=1).indices
    return (best == y_N.unsqueeze(1)).any(dim=1).double().mean()


def _f1(chosen_NC: Tensor, true_NC: Tensor) -> tuple[Tensor, Tensor]:
    """F1 of each output, from booleans, and how often the output is chosen or true.

    F1 is 0 for an output that is never either.
    """
    hits, either = (chosen_NC & true_NC).sum(0), chosen_NC.sum(0) + true_NC.sum(0)
    return 2 * hits.double() / either.clamp(min=1), either


def _macro_f1_classes(x_NC: Tensor, y_N: Tensor) -> Tensor:
    """The mean over the classes that are chosen or true at all."""
    size = x_NC.shape[1]
    f1, either = _f1(_one_hot(x_NC.argmax(1), size), _one_hot(y_N, size))
    return f1[either > 0].mean()


def _average_precision(x_NC: Tensor, true_NC: Tensor) -> Tensor:
    """The sum of precision times the gain in recall, averaged over the outputs that are ever true. Ties count once."""
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
    """The share of variance explained, averaged over outputs. A target that does not vary counts 1 if exact, else 0."""
    if len(y_NC) < 2:
        return torch.tensor(math.nan)
    left = (y_NC - x_NC).square().sum(0)
    total = (y_NC - y_NC.mean(0)).square().sum(0)
    return torch.where(total > 0, 1 - left / total.clamp(min=torch.finfo(total.dtype).tiny), 1.0 * (left == 0)).mean()


def entity_f1(predictions: Tensor, truth: Tensor, target: Target) -> float:
    """F1 over all entities of all sentences: one is right if its type and both its ends are; not defined without any.

    Not defined without any entity. `zoo_core.data.token_labels.entities` says what one is. Raises UsageError if the
    classes are not named O, B-X and I-X.
    """
    names = target.names
    strange = [name for name in names if name != OUTSIDE and name.partition("-")[0] not in ("B", "I")]
    if OUTSIDE not in names or strange:
        found = strange[0] if strange else f"no {OUTSIDE} among {', '.join(names[:4])}"
        raise UsageError(f"entity_f1 needs tags named O, B-TYPE and I-TYPE, found {found}; accuracy needs no names")
    right, either = 0, 0
    for predicted, true in zip(predictions.argmax(-1), truth, strict=True):
        real = true != IGNORED
        spelt, wanted = (entities(names[tag] for tag in tags[real].tolist()) for tags in (predicted, true))
        right, either = right + len(spelt & wanted), either + len(spelt) + len(wanted)
    return 2 * right / either if either else math.nan


def _word_accuracy(x_NWC: Tensor, y_NW: Tensor) -> Tensor:
    """The share of words whose class is right. A word without a prediction is wrong."""
    best, chosen = x_NWC.max(-1)
    right = (chosen == y_NW) & (best > -math.inf)
    return right[y_NW != IGNORED].double().mean()


def _one_hot(y_N: Tensor, size: int) -> Tensor:
    return y_N.unsqueeze(1) == torch.arange(size)


def accuracy(predictions: Tensor, truth: Tensor, target: Target) -> float:
    """Share that is right: of examples, of labels, or of words."""
    if target.kind == "token_classes":
        return float(_word_accuracy(predictions.double(), truth))
    if target.kind == "multilabel":
        return float(((predictions > 0) == (truth > 0.5)).double().mean())  # over labels, not whole rows
    return float((predictions.double().argmax(1) == truth).double().mean())


def top5_accuracy(predictions: Tensor, truth: Tensor, target: Target) -> float:
    """Share of examples whose class is among the five likeliest."""
    return float(_top5_accuracy(predictions.double(), truth))


def macro_f1(predictions: Tensor, truth: Tensor, target: Target) -> float:
    """Mean of the F1 of classes, or of labels."""
    if target.kind == "multilabel":
        return float(_f1(predictions > 0, truth > 0.5)[0].mean())
    return float(_macro_f1_classes(predictions.double(), truth))


def average_precision(predictions: Tensor, truth: Tensor, target: Target) -> float:
    """Mean average precision of classes, each against the rest, or of labels."""
    x = predictions.double()
    if target.kind == "multilabel":
        return float(_average_precision(x, truth > 0.5))
    return float(_average_precision(x.softmax(1), _one_hot(truth, x.shape[1])))


def mean_absolute_error(predictions: Tensor, truth: Tensor, target: Target) -> float:
    """Mean distance of a value from the true one."""
    return float((predictions.double() - truth.double()).abs().mean())


def r2(predictions: Tensor, truth: Tensor, target: Target) -> float:
    """Share of the variance that is explained."""
    return float(_r2(predictions.double(), truth.double()))


def agreement(predictions: Tensor, truth: Tensor, target: Target) -> float:
    """How far predictions agree with a teacher's, which are the truth here; of features their linear CKA.

    predictions: float [N, D] of features. truth: then float [N, D'], what the teacher gives for the same examples.
    """
    if target.kind == "unlabelled":
        return _linear_cka(predictions.double(), truth.double())
    return r2(predictions, truth, target) if target.kind == "regression" else accuracy(predictions, truth, target)


def _linear_cka(x_ND: Tensor, y_NE: Tensor) -> float:
    """1 for features that differ by a rotation and a scale, about 0 for unrelated ones; 0 where features do not vary.

    From unbiased estimates, so that few examples of many features do not look alike; not defined below four examples.
    Source: Kornblith et al. 2019, equation 4; Song et al. 2012, "Feature Selection via Dependence Maximization",
    equation 5.
    """
    if len(x_ND) < 4:
        return math.nan
    x_NN, y_NN = (_without_diagonal(z @ z.T) for z in (x_ND - x_ND.mean(0), y_NE - y_NE.mean(0)))
    alone = _dependence(x_NN, x_NN) * _dependence(y_NN, y_NN)
    return float(_dependence(x_NN, y_NN) / alone.sqrt()) if float(alone) > 0 else 0.0


def _without_diagonal(gram_NN: Tensor) -> Tensor:
    return gram_NN - gram_NN.diag().diag()


def _dependence(x_NN: Tensor, y_NN: Tensor) -> Tensor:
    """The unbiased estimate of the dependence of two sets, from Gram matrices without their diagonals."""
    num = len(x_NN)
    pairs = (x_NN * y_NN).sum() + x_NN.sum() * y_NN.sum() / ((num - 1) * (num - 2))
    return (pairs - 2 / (num - 2) * (x_NN.sum(0) * y_NN.sum(0)).sum()) / (num * (num - 3))


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
    """Predicts a whole split in the loader's order: float32 [N, ...] on the CPU, and the ids of its rows.

    For token classes it is [N, W, C], one row for each word, with W the largest number of words of an example.
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


def score_split(learner: nn.Module, loader: Loader, metric: Bound, target: Target, precision: str) -> float:
    """The metric on a whole split. Raises as `score` does."""
    predictions, _ = predict(learner, loader, precision=precision)
    return score(metric, predictions, loader.targets, target)
