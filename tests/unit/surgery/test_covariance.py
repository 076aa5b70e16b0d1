"""Covariance-aware surgery: streamed moments, the solve, and scores against finite differences."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from architectures import TEXTS, Letters, build

from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.surgery import covariance

BAD = ["zyxz", "zzyzx", "xyzzyx", "yzyzz", "zx", "zyzyzyx"]
GOOD = [text for text in TEXTS if len(text) > 1]
DENSE = ["llama", "llama-biased", "gemma", "qwen3", "phi3", "gpt2", "gpt_neox"]


def inputs_of(model: Any, block: int, texts: list[str]) -> torch.Tensor:
    """MLP inputs of a block over all tokens but each text's first, one text at a time."""
    found = []
    module = layout.mlp_module(layout.blocks(model)[block])
    handle = module.register_forward_pre_hook(lambda _m, args: found.append(args[0][0, 1:]))
    with torch.no_grad():
        for text in texts:
            model(torch.tensor(Letters()([text])["input_ids"]))
    handle.remove()
    return torch.cat(found)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_moments_are_those_of_every_token_but_the_first(name: str) -> None:
    model = build(name)
    found = covariance.statistics(model, Letters(), BAD, GOOD)
    for block, one in enumerate(found):
        spared, bad = inputs_of(model, block, GOOD), inputs_of(model, block, BAD)
        expected = spared.double().t() @ spared.double() / len(spared)
        assert one.spared.tokens == len(spared)
        torch.testing.assert_close(one.spared.second, expected.float(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.mean, bad.mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.spared.mean, spared.mean(0), atol=1e-5, rtol=1e-4)


def test_one_block_at_a_time_gives_the_same() -> None:
    model = build("llama")
    together = covariance.statistics(model, Letters(), BAD, GOOD)
    for block, one in enumerate(together):
        (alone,) = covariance.statistics(model, Letters(), BAD, GOOD, blocks=[block])
        assert torch.equal(alone.spared.second, one.spared.second)
        assert torch.equal(alone.response, one.response)


def test_the_direction_moves_spared_inputs_least_for_the_same_push() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 12, generator=generator) * torch.logspace(-1, 1, 12)
    m = torch.randn(12, generator=generator)
    second = x.t() @ x / len(x)
    p = covariance.solve(second, m, 1e-6)
    p = p / (p @ m)
    spent = float((x @ p).square().mean())
    for _ in range(50):  # nothing of the same push, p . m = 1, is cheaper
        other = p + 0.1 * torch.randn(12, generator=generator) * p.abs().mean()
        other = other / (other @ m)
        assert float((x @ other).square().mean()) >= spent * (1 - 1e-4)
    plain = m / (m @ m)
    assert float((x @ plain).square().mean()) > 5 * spent


def test_a_large_ridge_gives_back_the_mean() -> None:
    second = torch.diag(torch.tensor([1.0, 100.0]))
    m = torch.tensor([1.0, 1.0])
    found = covariance.solve(second, m, 1e6)
    torch.testing.assert_close(found / found.norm(), m / m.norm(), atol=1e-3, rtol=1e-3)
    tight = covariance.solve(second, m, 1e-6)
    torch.testing.assert_close(tight[0] / tight[1], torch.tensor(100.0), atol=0.1, rtol=1e-3)


@pytest.mark.parametrize("name", DENSE)
def test_scores_are_what_a_small_step_does(name: str) -> None:
    model = build(name)
    blocks = covariance.statistics(model, Letters(), BAD, GOOD)
    p = torch.stack([one.direction(0.5) for one in blocks])
    write = torch.randn(layout.hidden_width(model), generator=torch.Generator().manual_seed(1))
    unit = write / write.norm()
    scores = covariance.scores(model, blocks, p, write)
    start = 0
    for block in range(len(blocks)):
        x = inputs_of(model, block, BAD)
        module = layout.mlp_module(layout.blocks(model)[block])
        rows = layout.weight_rows(model)[block].weight
        for row in (0, 7, 21):
            out = []
            for step in (1e-2, -1e-2):
                kept = rows[row].clone()
                rows[row] += step * p[block]
                with torch.no_grad():
                    out.append(float((module(x[None])[0].double() @ unit.double()).mean()))
                rows[row] = kept
            slope = (out[0] - out[1]) / 2e-2
            assert slope == pytest.approx(float(scores[start + row]), abs=2e-3, rel=2e-2)
        start += len(rows)


def test_the_planned_edit_takes_the_lowest_scores_with_a_direction_a_block() -> None:
    model = build("llama")
    blocks = covariance.statistics(model, Letters(), BAD, GOOD)
    write = torch.ones(layout.hidden_width(model))
    edit = covariance.plan(model, blocks, write, strength=1.0, k=9, ridge=0.3, read="difference")
    p = torch.stack([one.direction(0.3, "difference") for one in blocks])
    scores = covariance.scores(model, blocks, p, write)
    assert edit.rows.tolist() == sorted(scores.argsort()[:9].tolist())
    torch.testing.assert_close(edit.direction, p)


def test_completions_alone_count_where_a_start_is_given() -> None:
    model = build("llama")
    texts = ["abcdzzzz", "abczzzzz"]
    (one, *_) = covariance.statistics(model, Letters(), texts, GOOD, behaviour_starts=[4, 3])
    full = [inputs_of(model, 0, [text]) for text in texts]
    expected = torch.cat([full[0][3:], full[1][2:]]).mean(0)
    torch.testing.assert_close(one.mean, expected, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(UserError, match="dense MLPs only"):
        covariance.statistics(build("mixtral"), Letters(), BAD, GOOD)
    with pytest.raises(UserError, match="no token after the first"):
        covariance.statistics(build("llama"), Letters(), BAD, ["a"])
    with pytest.raises(UserError, match="must be above 0"):
        covariance.solve(torch.eye(2), torch.ones(2), 0.0)


def test_a_norm_behind_the_mlp_counts_by_its_gain() -> None:
    model = build("gemma3")
    blocks = covariance.statistics(model, Letters(), BAD, GOOD)
    p = torch.stack([one.direction(0.3) for one in blocks])
    write = torch.randn(p.shape[1], generator=torch.Generator().manual_seed(5))
    before = covariance.scores(model, blocks, p, write)
    for block in layout.blocks(model):
        # Gemma multiplies by 1 + weight: this makes the gain of every number twice what it was.
        norm = block.post_feedforward_layernorm
        norm.weight.data.mul_(2).add_(1)
    again = [replace(one, after=2 * one.after) for one in blocks if one.after is not None]
    assert len(again) == len(blocks)
    torch.testing.assert_close(covariance.scores(model, again, p, write), 2 * before)
    doubled = covariance.statistics(model, Letters(), BAD, GOOD)
    assert doubled[0].after is not None and blocks[0].after is not None
    torch.testing.assert_close(doubled[0].after, 2 * blocks[0].after)
    assert covariance.statistics(build("llama"), Letters(), BAD, GOOD)[0].after is None
