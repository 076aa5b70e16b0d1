"""GMT, gradient-mask tuning, on the gate rows and under the budget of surgery (Li et al. 2025).

arXiv 2406.15330: only the weights with the largest accumulated gradient are trained. The mask is
computed once, and applied to the gradient as well as to the resulting change: an optimiser with
momentum or decay turns a masked gradient into a change everywhere.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surgery_lib.baselines import dpo, pairs
from surgery_lib.baselines.training import Course, Training, WeightBaseline, cross_entropy
from surgery_lib.baselines.tuning import Delta, tuned
from surgery_lib.models import layout
from surgery_lib.surgery import region

# The paper's 16,384 of 352,256 rows.
RATIO = 16_384 / 352_256
ACCUMULATED = 16

Objective = Literal["preference", "texts"]


def row_view(tensor: Tensor, rows: layout.Rows, parameter: Tensor) -> Tensor:
    """The rows of one matrix in a tensor laid out as its parameter is: (rows, width), a view."""
    offset = rows.weight.storage_offset() - parameter.storage_offset()
    return tensor.as_strided(rows.weight.shape, rows.weight.stride(), offset)


def row_masks(model: nn.Module, gradients: Mapping[str, Tensor], ratio: float) -> dict[str, Tensor]:
    """True on the gate rows with the largest gradient norm, in one ranking over all layers."""
    parameters = dict(model.named_parameters())
    found = layout.weight_rows(model)
    views = [row_view(gradients[r.parameter], r, parameters[r.parameter]) for r in found]
    norms = torch.cat([view.norm(dim=1).cpu() for view in views])
    chosen = norms.topk(region.row_count(float(ratio), len(norms))).indices.sort().values
    masks = {name: torch.zeros_like(g, dtype=torch.bool) for name, g in gradients.items()}
    for number, local, _ in layout.split_by_matrix([len(view) for view in views], chosen):
        rows = found[number]
        row_view(masks[rows.parameter], rows, parameters[rows.parameter])[local] = True
    return masks


def element_masks(
    model: nn.Module, gradients: Mapping[str, Tensor], ratio: float
) -> dict[str, Tensor]:
    """True on the gate weights with the largest gradient, the same share of each matrix."""
    parameters = dict(model.named_parameters())
    masks = {name: torch.zeros_like(g, dtype=torch.bool) for name, g in gradients.items()}
    for rows in layout.weight_rows(model):
        parameter = parameters[rows.parameter]
        sizes = row_view(gradients[rows.parameter], rows, parameter).abs().flatten()
        flat = torch.zeros_like(sizes, dtype=torch.bool)
        flat[sizes.topk(region.row_count(float(ratio), len(sizes))).indices] = True
        row_view(masks[rows.parameter], rows, parameter).copy_(flat.view(rows.weight.shape))
    return masks


# How the mask is drawn: whole rows as surgery selects them, or single weights as in the paper.
UNITS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "rows": row_masks,
    "weights": element_masks,
}


def learn(
    course: Course,
    ratio: float = RATIO,
    unit: Literal["rows", "weights"] = "rows",
    objective: Objective = "preference",
    beta: float = 0.1,
    **making: Any,
) -> Delta:
    """The change of the share `ratio` of gate rows (or of their weights) that the gradient selects.

    The objective is preference (DPO) or the likelihood of texts of label 0; the paper has both.
    """
    names = {rows.parameter for rows in layout.weight_rows(course.model)}
    model = course.model
    loss = _OBJECTIVES[objective](course, beta, making)
    with tuned(model, names) as part:
        for _ in range(ACCUMULATED):
            (loss() / ACCUMULATED).backward()
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in part.parameters.items()
        }
        masks = UNITS[unit](model, gradients, ratio)
        hooks = [
            parameter.register_hook(lambda gradient, mask=masks[name]: gradient * mask)
            for name, parameter in part.parameters.items()
        ]
        try:
            return course.train(part, lambda _: loss()).masked(masks)
        finally:
            for hook in hooks:
                hook.remove()


def _preference(course: Course, beta: float, making: Mapping[str, Any]) -> Callable[[], Tensor]:
    model, spent, size = course.model, course.spent, course.training.batch
    found = pairs.make(course, **making)
    with torch.no_grad():
        parts = [found[i : i + size] for i in range(0, len(found), size)]
        reference = torch.cat([dpo.margins(model, part, spent) for part in parts])
    sampler = course.sampler(found)

    def loss() -> Tensor:
        drawn = sampler.draw()
        policy = dpo.margins(model, [found[i] for i in drawn], spent)
        return dpo.loss(policy, reference[drawn], beta)

    return loss


def _texts(course: Course, beta: float, making: Mapping[str, Any]) -> Callable[[], Tensor]:
    rows = course.rows(course.data.of(0))
    sampler = course.sampler(rows)
    return lambda: cross_entropy(course.model, [rows[i] for i in sampler.draw()], course.spent)


_OBJECTIVES: dict[str, Callable[..., Callable[[], Tensor]]] = {
    "preference": _preference,
    "texts": _texts,
}

GMT = WeightBaseline("gmt", learn, Training(steps=100, lr=1e-3))
