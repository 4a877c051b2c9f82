"""Distances between the predictions of a student and of a teacher.

Axes: N examples or tokens, C outputs. Each takes float [N, C], the student's first, and gives one number for each of
the N; gradients flow into both.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "binary_kl",
    "correlation_distance",
    "decoupled",
    "decoupled_kl",
    "softmax_kl",
    "squared_distance",
    "standardised",
]

SMALLEST_STD = 1e-7  # of logits; the paper's code adds it
SMALLEST_NORMS = 1e-8  # of the product of two norms, for a column or row without variation


def softmax_kl(student_NC: Tensor, teacher_NC: Tensor, temperature: float) -> Tensor:
    """T^2 KL(p_teacher || p_student), p = softmax(z / T): float [N].

    It is summed over classes, as a divergence is. T^2 keeps its gradient of one size over temperatures.
    Source: Hinton et al. 2015, section 2.
    """
    student, teacher = (torch.log_softmax(z / temperature, dim=-1) for z in (student_NC, teacher_NC))
    return temperature**2 * _divergence(student, teacher)


def binary_kl(student_NC: Tensor, teacher_NC: Tensor, temperature: float) -> Tensor:
    """T^2 KL between the sigmoids of each label, averaged over labels as their default loss is: float [N]."""
    return temperature**2 * _of_two(
        *(torch.nn.functional.logsigmoid(sign * z / temperature) for z in (student_NC, teacher_NC) for sign in (1, -1))
    ).mean(dim=-1)


def squared_distance(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """Squared differences, averaged over outputs: float [N]. Source: Kim et al. 2021."""
    return (student_NC - teacher_NC).square().mean(dim=-1)


def decoupled_kl(
    student_NC: Tensor,
    teacher_NC: Tensor,
    label_N: Tensor,
    temperature: float,
    *,
    target_weight: float,
    rest_weight: float,
) -> Tensor:
    """T^2 (target_weight * TCKD + rest_weight * NCKD): float [N]. label_N: int64, the column of the label.

    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation".
    """
    target, rest = decoupled(student_NC, teacher_NC, label_N, temperature)
    return temperature**2 * (target_weight * target + rest_weight * rest)


def decoupled(student_NC: Tensor, teacher_NC: Tensor, label_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD without T^2, float [N] each.

    TCKD is the KL of (p, 1 - p) with p the probability of the label, NCKD that of the softmax over all other classes.
    Source: Zhao et al. 2022, section 3.
    """
    is_label = torch.nn.functional.one_hot(label_N, student_NC.shape[-1]).bool()
    logs: list[Tensor] = []
    others: list[Tensor] = []
    for z in (student_NC / temperature, teacher_NC / temperature):
        rest = z[~is_label].unflatten(0, (len(z), z.shape[-1] - 1))
        whole = z.logsumexp(dim=-1)
        logs += [z[is_label] - whole, rest.logsumexp(dim=-1) - whole]
        others.append(torch.log_softmax(rest, dim=-1))
    return _of_two(*logs), _divergence(*others)


def correlation_distance(
    student_NC: Tensor, teacher_NC: Tensor, temperature: float, *, rows: float, columns: float
) -> Tensor:
    """T^2 (rows * (1 - mean r of rows) + columns * (1 - mean r of columns)), r Pearson's of the softmaxes: a scalar.

    rows, columns: the paper's beta and gamma. A column varies over examples, so of a single one only rows are left.
    Source: Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher".
    """
    student, teacher = (torch.softmax(z / temperature, dim=-1) for z in (student_NC, teacher_NC))
    found = rows * (1 - _pearson(student, teacher, dim=1).mean())
    if len(student) > 1:
        found = found + columns * (1 - _pearson(student, teacher, dim=0).mean())
    return temperature**2 * found


def standardised(z_NC: Tensor) -> Tensor:
    """The logits of each example with mean 0 and standard deviation 1 over two classes or more.

    Source: Sun et al. 2024, "Logit Standardization in Knowledge Distillation"; the unbiased deviation is its code's.
    """
    return (z_NC - z_NC.mean(dim=-1, keepdim=True)) / (z_NC.std(dim=-1, keepdim=True) + SMALLEST_STD)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of log-probabilities over the last axis."""
    return (teacher.exp() * (teacher - student)).sum(dim=-1)


def _of_two(student: Tensor, student_rest: Tensor, teacher: Tensor, teacher_rest: Tensor) -> Tensor:
    """KL between two events, of the logarithms of their probabilities."""
    return teacher.exp() * (teacher - student) + teacher_rest.exp() * (teacher_rest - student_rest)


def _pearson(one: Tensor, other: Tensor, dim: int) -> Tensor:
    one, other = (x - x.mean(dim=dim, keepdim=True) for x in (one, other))
    norms = torch.linalg.vector_norm(one, dim=dim) * torch.linalg.vector_norm(other, dim=dim)
    correlation: Tensor = (one * other).sum(dim=dim) / norms.clamp_min(SMALLEST_NORMS)
    return correlation
