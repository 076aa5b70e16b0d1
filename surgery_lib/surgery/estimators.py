"""How a probe's two rows are found: the paper's recipe, and three that need no learning rate."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from surgery_lib.errors import UserError

# The authors' recipe (Table 14).
PAPER_LEARNING_RATE = 1e-4
PAPER_BATCH = 16
PAPER_EPOCHS = 9
# What these epochs come to on the paper's corpus, some 16,000 comments. A small rate needs steps,
# not epochs: fewer texts are read again until there were as many.
PAPER_STEPS = 9000
# Adam's own defaults.
BETAS, EPSILON = (0.9, 0.999), 1e-8
# Shrinkage of the within-class covariance: without it, whitening prefers directions of least noise.
LDA_SHRINKAGE = 0.1
LDA_TEXTS = 3  # two texts say nothing of how classes vary

# What a `start` is of, as the paper writes it.
STARTED = {"row": "W1", "difference": "W1 − W0"}


@dataclass(frozen=True)
class Solution:
    """Two rows (2, width) and two biases (2,), as of a softmax head.

    `start`, where training began at random: cosine of the second row ("row") and of the difference
    of both ("difference") with what each was before training; near 1, nothing was learnt.
    """

    rows: Tensor
    biases: Tensor
    start: Mapping[str, float] = field(default_factory=dict)


def origin(start: Mapping[str, float]) -> dict[str, float]:
    """The `start` of a solution or probe in the words of tables and cards; empty where it is."""
    return {f"cosine of {STARTED[row]} with its start": round(at, 3) for row, at in start.items()}


def steps(texts: int) -> int:
    """Optimiser steps of the paper's recipe on so many texts: whole epochs of minibatches."""
    batches = math.ceil(texts / PAPER_BATCH)
    return batches * max(PAPER_EPOCHS, math.ceil(PAPER_STEPS / batches))


@torch.no_grad()
def _softmax(states: Tensor, y: Tensor, seed: int) -> list[Solution]:
    """The paper's recipe, for all layers side by side: each sees the same batches in order.

    The gradient of a linear head is written out and Adam with it: thousands of steps on a few
    numbers would otherwise be spent in bookkeeping.
    """
    generator = torch.Generator().manual_seed(seed)
    count, layers, width = states.shape
    bound = width**-0.5  # nn.Linear's own start
    weight = torch.empty(layers, width, 2).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(layers, 1, 2).uniform_(-bound, bound, generator=generator)
    head = torch.cat([weight, bias], 1)  # the bias as the weight of a constant 1
    start = head.clone()
    by_layer = torch.cat([states, states.new_ones(count, layers, 1)], 2).transpose(0, 1)
    by_layer = by_layer.contiguous()
    target = torch.nn.functional.one_hot(y, 2).to(head)
    mean, square, step = torch.zeros_like(head), torch.zeros_like(head), 0
    while step < steps(count):
        order = torch.randperm(count, generator=generator)
        batches = by_layer[:, order].split(PAPER_BATCH, dim=1)
        for inputs, wanted in zip(batches, target[order].split(PAPER_BATCH), strict=True):
            step += 1
            error = torch.softmax(inputs @ head, -1).sub_(wanted)
            gradient = (inputs.mT @ error).div_(len(wanted))
            mean.lerp_(gradient, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            scale = square.sqrt().div_((1 - BETAS[1] ** step) ** 0.5).add_(EPSILON)
            head.addcdiv_(mean, scale, value=-PAPER_LEARNING_RATE / (1 - BETAS[0] ** step))
    return [
        Solution(
            found[:-1].T.contiguous(),
            found[-1].clone(),
            {
                "row": _cosine(found[:-1, 1], before[:-1, 1]),
                "difference": _cosine(
                    found[:-1, 1] - found[:-1, 0], before[:-1, 1] - before[:-1, 0]
                ),
            },
        )
        for found, before in zip(head, start, strict=True)
    ]


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one, other, dim=0))


def _one_row(direction: np.ndarray | Tensor, bias: float) -> Solution:
    row = torch.as_tensor(direction, dtype=torch.float32).flatten()
    return Solution(torch.stack([torch.zeros_like(row), row]), torch.tensor([0.0, bias]))


def _mean_difference(states: Tensor, y: Tensor, seed: int) -> list[Solution]:
    exact = states.double()  # means of many near-equal vectors: cancellation costs float32 digits
    present, absent = exact[y == 1].mean(0), exact[y == 0].mean(0)
    differences = present - absent
    return [
        _one_row(differences[layer], -float(differences[layer] @ (present + absent)[layer] / 2))
        for layer in range(states.shape[1])
    ]


def _sklearn(make: Callable[[], Any]) -> Callable[[Tensor, Tensor, int], list[Solution]]:
    def solve(states: Tensor, y: Tensor, seed: int) -> list[Solution]:
        solutions = []
        for layer in range(states.shape[1]):
            model = make_pipeline(StandardScaler(), make())
            model.fit(states[:, layer].double().numpy(), y.numpy())
            scaler, linear = model[0], model[1]
            raw = linear.coef_[0] / scaler.scale_  # back from standardised to raw coordinates
            solutions.append(_one_row(raw, float(linear.intercept_[0] - raw @ scaler.mean_)))
        return solutions

    return solve


def _lda(states: Tensor, y: Tensor, seed: int) -> list[Solution]:
    if len(y) < LDA_TEXTS:
        raise UserError(
            f"lda needs {LDA_TEXTS} texts or more, and {len(y)} are given; give more, or take "
            "the estimator mean_difference"
        )
    solutions = []
    for layer in range(states.shape[1]):
        # Not standardised: shrinkage towards the identity is what keeps large-variance axes large.
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=LDA_SHRINKAGE)
        model.fit(states[:, layer].double().numpy(), y.numpy())
        solutions.append(_one_row(model.coef_[0], float(model.intercept_[0])))
    return solutions


ESTIMATORS: dict[str, Callable[[Tensor, Tensor, int], list[Solution]]] = {
    "softmax": _softmax,
    "logistic": _sklearn(lambda: LogisticRegression(max_iter=1000)),
    "mean_difference": _mean_difference,
    "lda": _lda,
}
