"""The policy gradient of what blocks write: exact where it claims so, and a natural step."""

from functools import partial
from typing import Any

import pytest
import torch
from architectures import build

from surgery_lib.baselines import own, policy, tools
from surgery_lib.baselines.base import Lesson, TrainingData
from surgery_lib.baselines.covariance import Within
from surgery_lib.baselines.joint import HALF, SurgeryPolicy
from surgery_lib.errors import UserError
from surgery_lib.models import layout

BAD = ["zyxz", "zzyzx", "xyzzyx", "yzyzz", "zx", "zyzyzyx", "xxz", "yyzx"]
GOOD = ["abca", "bbacab", "acabb", "caab", "ab", "cabcabc", "bca", "aacb"]
DATA = TrainingData(BAD + GOOD, [1] * 8 + [0] * 8, prompts=["tell me", "you are"], benign=GOOD[:4])


def length(texts: Any) -> list[int]:
    return [len(text) for text in texts]


def gained(architecture: str) -> Any:
    """A tiny model whose norms have gains that would not go unnoticed."""
    model = build(architecture)
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data = weight.data + 0.3 * torch.rand(weight.shape, generator=generator)
    return model


def slopes_of(model: Any, rows: Any, starts: Any, share: Any) -> dict[str, torch.Tensor]:
    """The gradient of the weighted log-likelihood by the last block's maps, by autograd."""
    block = layout.blocks(model)[-1]
    maps = {"attention": tools.attention_output(block), "mlp": tools.mlp_output(block)}
    with torch.enable_grad():
        for module in maps.values():
            module.weight.requires_grad_(True)
        total = torch.zeros(())
        for ids, start, weight in zip(rows, starts, share, strict=True):
            at = torch.tensor([ids])
            told = model(at).logits[0, start - 1 : -1].log_softmax(-1)
            chosen = told[range(len(ids) - start), ids[start:]]
            total = total + weight * chosen.mean()
        found = torch.autograd.grad(total, [module.weight for module in maps.values()])
    for module in maps.values():
        module.weight.requires_grad_(False)
    return dict(zip(maps, found, strict=True))


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gemma3", "qwen3", "phi3", "glm4"])
def test_the_last_blocks_mlp_has_the_gradient_itself(architecture: str) -> None:
    model = gained(architecture)
    rows, starts = [[1, 5, 3, 7, 2], [4, 4, 6], [2, 3, 9, 8]], [2, 1, 3]
    share = torch.tensor([1.0, -0.5, 0.25])
    number = len(layout.blocks(model)) - 1
    maps = {f"{number} mlp": tools.mlp_output(layout.blocks(model)[-1])}
    (found,) = policy.gradient(model, maps, rows, starts, share).values()
    exact = slopes_of(model, rows, starts, share)["mlp"]
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-3)


def test_attention_before_it_has_the_gradient_but_for_the_mlp() -> None:
    model = gained("llama")
    rows, starts, share = [[1, 5, 3, 7, 2], [4, 4, 6]], [2, 1], torch.tensor([1.0, -1.0])
    number = len(layout.blocks(model)) - 1
    maps = {f"{number} attention": tools.attention_output(layout.blocks(model)[-1])}
    (found,) = policy.gradient(model, maps, rows, starts, share).values()
    layout.blocks(model)[-1].mlp.down_proj.weight.data.zero_()  # nothing is left out then
    (same,) = policy.gradient(model, maps, rows, starts, share).values()
    exact = slopes_of(model, rows, starts, share)["attention"]
    torch.testing.assert_close(same, exact, atol=1e-5, rtol=1e-3)
    assert not torch.allclose(found, exact, atol=1e-5, rtol=1e-3)


def test_the_step_is_the_gradient_between_both_inverses(tiny: Any) -> None:
    model, tokenizer = tiny
    found = policy.Policy().fit(model, tokenizer, DATA, score=length)
    lesson = Lesson(model, tokenizer, DATA)
    answers = own.answers(lesson, length, within=True)
    weights = own.advantages(answers.own)
    ids, _ = own.rows(answers.own, range(16))
    starts = [len(prompt) for prompt in answers.own.prompts]
    blocks = layout.blocks(model)
    half = round(policy.FIRST * len(blocks))
    assert set(found.steps) == {
        f"{n} {part}" for n in range(half, len(blocks)) for part in ("attention", "mlp")
    }
    maps = policy._maps(model)
    slopes = policy.gradient(model, maps, ids, starts, weights)
    spared = [one[:100] for one in tokenizer([*GOOD, *GOOD[:4]])["input_ids"]]
    both = [
        policy.factors(model, maps, *rows)
        for rows in ((spared, [1] * len(spared)), own.contexts(lesson))
    ]
    scales = []
    for name, slope in slopes.items():
        outputs, inputs = ((both[0][name][i] + both[1][name][i]).double() / 2 for i in (0, 1))
        for one in (outputs, inputs):
            one += policy.RIDGE * one.diagonal().mean() * torch.eye(len(one), dtype=torch.float64)
        step, taken = outputs.inverse() @ slope.double() @ inputs.inverse(), found.steps[name]
        assert float(torch.cosine_similarity(step.flatten(), taken.flatten(), dim=0)) > 0.999
        scales.append(float(taken.norm() / step.norm()))
    assert max(scales) == pytest.approx(min(scales), rel=0.01)  # one for all maps
    sizes = [tools.writes(policy._maps(model)[one]).norm() for one in found.steps]
    total = torch.stack([one.norm() for one in found.steps.values()]).norm()
    assert float(total) == pytest.approx(policy.STEP * float(torch.stack(sizes).norm()), rel=1e-4)


def test_curvature_is_of_tokens_that_the_model_draws() -> None:
    model = gained("llama")
    maps = {"1 mlp": tools.mlp_output(layout.blocks(model)[1])}
    rows = [[1, 5, 3, 7, 2, 8, 6, 4]] * 400
    (outputs, inputs), *_ = policy.factors(model, maps, rows, [1] * 400).values()
    head, norm = model.lm_head.weight, model.model.norm
    caught: list[torch.Tensor] = []
    hooks = [maps["1 mlp"].register_forward_hook(lambda _m, args, _o: caught.append(args[0][0]))]
    hooks.append(norm.register_forward_hook(lambda _m, args, _o: caught.append(args[0][0])))
    told = model(torch.tensor(rows[:1])).logits[0, :-1].softmax(-1)
    for hook in hooks:
        hook.remove()
    x, h = (one[:-1] for one in caught)
    torch.testing.assert_close(inputs, x.t() @ x / 7)
    exact = torch.zeros_like(outputs)
    for at in range(7):
        jacobian = torch.autograd.functional.jacobian(lambda s: head @ norm(s), h[at])
        fisher = told[at].diag() - torch.outer(told[at], told[at])
        exact += jacobian.t() @ fisher @ jacobian / 7
    assert float(((outputs - exact).norm() / exact.norm()).detach()) < 0.15  # 2,800 draws


def test_less_of_the_behaviour_is_written(tiny: Any) -> None:
    """Strength goes the way of what scores least, by likelihood of held answers."""
    model, tokenizer = tiny
    found = policy.Policy().fit(model, tokenizer, DATA, score=length)
    answers = own.answers(Lesson(model, tokenizer, DATA), length, within=True)
    weights = own.advantages(answers.own)
    ids, _ = own.rows(answers.own, range(16))

    def expected() -> float:
        total = 0.0
        for row, prompt, weight in zip(ids, answers.own.prompts, weights.tolist(), strict=True):
            told = model(torch.tensor([row])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            total += weight * float(told[range(len(told)), row[len(prompt) :]].mean())
        return total

    before = expected()
    with found.applied(model, 1.0):
        assert expected() < before
    assert expected() == before


def test_texts_stand_in_for_answers_and_one_kind_is_refused(tiny: Any) -> None:
    model, tokenizer = tiny
    bare = TrainingData(BAD + GOOD, DATA.labels)
    found = policy.Policy().fit(model, tokenizer, bare)
    assert (found.cost().samples, found.cost().labels) == (0, 16)
    with pytest.raises(UserError, match="score alike"):
        policy.Policy().fit(model, tokenizer, DATA, score=lambda texts: [1.0] * len(texts))


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize("method", [policy.Policy(), SurgeryPolicy()])
def test_mixtures_are_refused_before_an_answer_is_written(
    tiny: Any, method: Any, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "write", lambda *_, **__: pytest.fail("answers were written"))
    with pytest.raises(UserError, match="mixture"):
        method.fit(build(architecture), tiny[1], DATA, score=length)


def test_both_parts_are_of_the_same_answers_and_tell_within_prompts(tiny: Any) -> None:
    model, tokenizer = tiny
    found = SurgeryPolicy().fit(model, tokenizer, DATA, score=length)
    gates = Within().fit(model, tokenizer, DATA, score=length)
    outputs = policy.Policy().fit(model, tokenizer, DATA, score=length)
    torch.testing.assert_close(found.gates.write, gates.write)
    assert set(found.outputs.steps) == set(outputs.steps)
    for name, step in outputs.steps.items():
        torch.testing.assert_close(found.outputs.steps[name], step)
    block = layout.blocks(model)[-1]
    kept = []
    for apply, unit in zip((gates.applied, outputs.applied), found.units, strict=True):
        with partial(apply, model)(0.3 * HALF * unit):
            kept.append([block.mlp.gate_proj.weight.clone(), block.mlp.down_proj.weight.clone()])
    with found.applied(model, 0.3):
        torch.testing.assert_close(block.mlp.gate_proj.weight, kept[0][0])
        torch.testing.assert_close(block.mlp.down_proj.weight, kept[1][1])
