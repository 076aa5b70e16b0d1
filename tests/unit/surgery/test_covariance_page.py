"""The algorithm of docs/covariance.md, written from that page alone, gives the package's edit."""

from typing import Any

import pytest
import torch
from architectures import TEXTS, Letters, build
from torch import Tensor

from surgery_lib.baselines.own import LEAST, MOST, Own, advantages
from surgery_lib.models import layout
from surgery_lib.surgery import covariance, likelihood, region

BAD = ["zyxz", "zzyzx", "xyzzyx", "yzyzz", "zx", "zyzyzyx"]
GOOD = [text for text in TEXTS if len(text) > 1]
STRENGTH, K, RIDGE, SAMPLES = 0.7, 0.05, 0.3, 2


def page(
    model: Any,
    behaviour: list[list[int]],
    spared: list[list[int]],
    completions: list[list[int]],
    starts: list[int],
    scores: list[float],
    form: str,
) -> tuple[Tensor, list[Tensor]]:
    """Selected rows over all blocks, and every block's edited gate."""
    layers, caught = model.model.layers, {}
    for number, block in enumerate(layers):
        block.mlp.register_forward_pre_hook(
            lambda _module, args, number=number: caught.update({number: args[0][0]})
        )
    output, gain = model.lm_head.weight, model.model.norm.weight
    slopes = []
    for ids, start in zip(completions, starts, strict=True):
        q = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].softmax(-1)
        slopes.append((gain * (output[torch.tensor(ids[start:])] - q @ output)).mean(0))
    ranking = torch.tensor(scores).argsort(descending=True)
    n = torch.stack(slopes)[ranking]
    w = n[: len(n) // 4].mean(0) - n[-(len(n) // 2) :].mean(0)
    if form == "within":
        by_prompt = [scores[at : at + SAMPLES] for at in range(0, len(scores), SAMPLES)]
        means = [sum(own) / SAMPLES for own in by_prompt for _ in own]
        w = sum((scores[i] - means[i]) * slopes[i] for i in range(len(scores)))
    w = w / w.norm()

    def inputs(texts: list[list[int]], firsts: list[int]) -> list[Tensor]:
        read = []
        for ids, first in zip(texts, firsts, strict=True):
            model(input_ids=torch.tensor([ids]))
            read.append([caught[number][first:] for number in range(len(layers))])
        return [torch.cat(of_block) for of_block in zip(*read, strict=True)]

    def texts_of(rows: list[list[int]]) -> list[Tensor]:
        return inputs([ids[:100] for ids in rows], [1] * len(rows))

    best = ranking[: len(ranking) // 4].tolist()
    shown = (
        inputs([completions[i] for i in best], [starts[i] - 1 for i in best])
        if form != "texts"
        else texts_of(behaviour)
    )
    directions, ranked = [], []
    for block, x, c in zip(layers, shown, texts_of(spared), strict=True):
        mlp, second = block.mlp, (c.double().T @ c.double()) / len(c)
        ridge = RIDGE * second.trace() / len(second) * torch.eye(len(second))
        p = torch.linalg.solve(second + ridge, x.double().mean(0))
        directions.append((p / p.norm()).float())
        gates = mlp.gate_proj(x)
        with torch.enable_grad():
            free = gates.detach().requires_grad_()
            (slope,) = torch.autograd.grad(mlp.act_fn(free).sum(), free)
        response = (slope * mlp.up_proj(x)).T @ x / len(x)
        ranked.append((response @ directions[-1]) * (mlp.down_proj.weight.T @ w))
    all_scores = torch.cat(ranked)
    rows = all_scores.argsort()[: round(K * len(all_scores))].sort().values
    edited = [block.mlp.gate_proj.weight.clone() for block in layers]
    step = STRENGTH * torch.cat(edited).norm(dim=1).mean()
    for row in rows.tolist():
        block, at = divmod(row, len(edited[0]))
        edited[block][at] += step * directions[block]
    return rows, edited


@pytest.mark.parametrize("form", ["texts", "answers", "within"])
def test_the_page_gives_the_same_edit(form: str) -> None:
    model = build("llama")
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if "norm" in name:  # no gain that would go unnoticed
            weight.data = 1 + 0.3 * torch.rand(weight.shape, generator=generator)
    tokenize = Letters()
    bad, good = (tokenize(texts)["input_ids"] for texts in (BAD, GOOD))
    # Some beyond the 100 tokens at which texts are cut: completions are not.
    completions = [ids * (3 if form == "texts" else 40) for ids in [*bad, *good[:6]]]
    starts = [max(2, len(ids) // 3) for ids in completions]
    scores = torch.rand(len(completions), generator=generator).tolist()
    order = torch.tensor(scores).argsort(descending=True)
    slopes = likelihood.gradients(model, completions, starts)[order]
    most, least = (int(share * len(order)) for share in (MOST, LEAST))
    best = order[:most].tolist()
    shown = BAD if form == "texts" else [completions[i] for i in best]
    firsts = None if form == "texts" else [starts[i] - 1 for i in best]
    blocks = covariance.statistics(model, tokenize, shown, GOOD, behaviour_starts=firsts)
    write = slopes[:most].mean(0) - slopes[-least:].mean(0)
    if form == "within":
        tails = [ids[start:] for ids, start in zip(completions, starts, strict=True)]
        told = Own([], tails, torch.tensor(scores), SAMPLES, 0, 0, 0)
        write = advantages(told)[order] @ slopes
    options = {"k": K, "ridge": RIDGE, "row_norm": region.mean_row_norm(model)}
    plan = covariance.plan(model, blocks, write, strength=STRENGTH, **options)
    with torch.no_grad():
        rows, edited = page(model, bad, good, completions, starts, scores, form)
    assert len(rows) > 3 and torch.equal(plan.rows, rows)
    with plan.applied(model):
        for block, gate in zip(layout.blocks(model), edited, strict=True):
            torch.testing.assert_close(block.mlp.gate_proj.weight.data, gate, atol=1e-5, rtol=1e-4)
