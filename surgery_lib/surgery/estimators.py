"""How a probe's two rows are found: the paper's recipe, and three that need no learning rate."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

# The authors' recipe (Table 14).
PAPER_LEARNING_RATE = 1e-4
PAPER_BATCH = 16
PAPER_EPOCHS = 9
# Shrinkage of the within-class covariance: without it, whitening prefers directions of least noise.
LDA_SHRINKAGE = 0.1

# Two rows and two biases, as of a softmax head: (2, width) and (2,).
Solution = tuple[Tensor, Tensor]


def _softmax(states: Tensor, y: Tensor, seed: int) -> list[Solution]:
    """The paper's recipe, for all layers side by side: each sees the same batches in order."""
    generator = torch.Generator().manual_seed(seed)
    count, layers, width = states.shape
    bound = width**-0.5  # nn.Linear's own start
    weight = torch.empty(layers, width, 2).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(layers, 1, 2).uniform_(-bound, bound, generator=generator)
    weight.requires_grad_(), bias.requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=PAPER_LEARNING_RATE)
    by_layer = states.transpose(0, 1).contiguous()
    for _ in range(PAPER_EPOCHS):
        for chosen in torch.randperm(count, generator=generator).split(PAPER_BATCH):
            logits = torch.baddbmm(bias, by_layer[:, chosen], weight)
            targets = y[chosen].expand(layers, -1)
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), reduction="sum"
            ) / len(chosen)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    rows = weight.detach().transpose(1, 2)
    return [(rows[layer].contiguous(), bias.detach()[layer, 0]) for layer in range(layers)]


def _one_row(direction: np.ndarray | Tensor, bias: float) -> Solution:
    row = torch.as_tensor(direction, dtype=torch.float32).flatten()
    return torch.stack([torch.zeros_like(row), row]), torch.tensor([0.0, bias])


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
