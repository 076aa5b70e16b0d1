"""Closed-form methods in their published form: what each formula promises, on tiny models."""

import contextlib
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from architectures import Letters, build
from sklearn.metrics import roc_auc_score

from surgery_lib.baselines import caa, own, ridge_ablation, tools
from surgery_lib.baselines.aura import Aura, auroc
from surgery_lib.baselines.base import Lesson, TrainingData, count_tokens
from surgery_lib.baselines.covariance import Covariance, FromAnswers, Within
from surgery_lib.baselines.joint import UNIT, SurgeryRidge, units
from surgery_lib.baselines.norm_preserving import NormPreserving, ablated, projected
from surgery_lib.baselines.profs import Profs, subspace
from surgery_lib.baselines.ridge_ablation import read_out
from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.surgery import covariance, likelihood

BAD = ["zyxz", "zzyzx", "xyzzyx", "yzyzz", "zx", "zyzyzyx", "xxz", "yyzx"]
GOOD = ["abca", "bbacab", "acabb", "caab", "ab", "cabcabc", "bca", "aacb"]
DATA = TrainingData(BAD + GOOD, [1] * 8 + [0] * 8, prompts=BAD[:4], benign=GOOD[:4])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_ridge_ablation_without_beta_and_ridge_is_ablation() -> None:
    x, weight, v = noise(200, 6), noise(4, 6, seed=1), noise(4, seed=2)
    v = v / v.norm()
    moment = x.t() @ x / len(x)
    a = read_out(weight, v, moment, moment, 0.0, 1e-9)
    torch.testing.assert_close(a, weight.t() @ v, atol=1e-4, rtol=1e-4)


def test_ridge_ablation_minimises_what_it_says() -> None:
    bad, good = noise(300, 6), noise(300, 6, seed=3) * torch.arange(1, 7)
    weight, v = noise(4, 6, seed=1), noise(4, seed=2)
    v = v / v.norm()
    s_b, s_c = bad.t() @ bad / 300, good.t() @ good / 300
    beta, ridge = 2.0, 0.1
    size = ridge * s_b.diagonal().mean()

    def objective(a: torch.Tensor) -> float:
        left = bad @ (weight.t() @ v - a)
        return float(
            left.square().mean() + beta * (good @ a).square().mean() + size * a.square().sum()
        )

    a = read_out(weight, v, s_b, s_c, beta, ridge)
    for seed in range(20):
        assert objective(a) < objective(a + 0.02 * noise(6, seed=seed))


def test_profs_finds_the_planted_direction_and_writes_nothing_along_it() -> None:
    common, planted = torch.eye(8)[0], torch.eye(8)[3]
    plus = 10 * common + 0.01 * noise(20, 8)
    minus = 10 * common + 0.01 * noise(20, 8, seed=1) + 2 * planted
    assert float((subspace(plus, minus, 1)[0] @ planted).abs()) > 0.999
    model = build("mixtral")
    fitted = Profs().fit(model, Letters(), DATA)
    with fitted.applied(model, 1.0, rank=3, start=0.5):
        for rows in layout.weight_rows(model, "down"):
            along = (rows.weight @ fitted.subspaces[rows.block, :3].t()).abs().max()
            assert (float(along) < 1e-5) == (rows.block >= 2)


def test_aura_scales_by_the_area_under_the_curve() -> None:
    values, labels = noise(16, 5).round(decimals=1), torch.tensor(DATA.labels)
    expected = [roc_auc_score(labels.numpy(), values[:, j].numpy()) for j in range(5)]
    torch.testing.assert_close(auroc(values, labels), torch.tensor(expected).float())
    model = build("llama")
    fitted = Aura().fit(model, Letters(), DATA)
    before = [rows.weight.clone() for rows in layout.weight_rows(model, "down")]
    with fitted.applied(model, 1.0):
        for old, rows, lost in zip(
            before, layout.weight_rows(model, "down"), fitted.dampening, strict=True
        ):
            torch.testing.assert_close(rows.weight, old * (1 - lost)[:, None])
    assert 0 < float((fitted.dampening > 0).float().mean()) < 1


def test_norm_preserving_writes_nothing_along_v_and_keeps_every_norm() -> None:
    columns, v = noise(20, 8), noise(8, seed=1)
    v = v / v.norm()
    found = ablated(columns, v, 1.0)
    assert float((found @ v).abs().max()) < 1e-6
    torch.testing.assert_close(found.norm(dim=1), columns.norm(dim=1))
    raw, benign = noise(3, 8, seed=2), noise(3, 8, seed=3)
    assert float((projected(raw, benign) * benign).sum(1).abs().max()) < 1e-5
    model = build("gpt2")
    fitted = NormPreserving().fit(model, Letters(), DATA)
    with fitted.applied(model, 1.0, depth=0.5):
        v = fitted.directions[tools.block_at(model, 0.5)]
        for block in layout.blocks(model):
            assert float((v @ tools.writes(tools.attention_output(block))).abs().max()) < 1e-5


def test_covariance_writes_against_what_the_score_calls_the_behaviour(tiny: Any) -> None:
    model, tokenizer = tiny
    data = TrainingData(BAD + GOOD, DATA.labels, prompts=["tell me", "you are"], benign=GOOD[:4])
    many = Covariance().fit(model, tokenizer, data, score=lambda texts: [len(t) for t in texts])
    few = Covariance().fit(model, tokenizer, data, score=lambda texts: [-len(t) for t in texts])
    assert float(torch.cosine_similarity(many.write, few.write, dim=0)) < 0
    cost = many.cost()
    assert (cost.prompts, cost.samples, cost.benign) == (2, 16, 4)
    alone = Covariance().fit(model, tokenizer, TrainingData(BAD + GOOD, DATA.labels))
    assert alone.cost().samples == 0
    assert alone.write.shape == many.write.shape


def test_from_answers_reads_the_behaviour_off_the_answers_that_score_most(tiny: Any) -> None:
    model, tokenizer = tiny
    data = TrainingData(BAD + GOOD, DATA.labels, prompts=["tell me", "you are"], benign=GOOD[:4])
    score = lambda texts: [len(t) for t in texts]  # noqa: E731
    found = FromAnswers().fit(model, tokenizer, data, score=score)
    other = FromAnswers().fit(
        model,
        tokenizer,
        TrainingData([t[::-1] for t in BAD] + GOOD, DATA.labels, data.prompts, data.benign),
        score=score,
    )
    texts = Covariance().fit(model, tokenizer, data, score=score)
    for one, same, unlike in zip(found.blocks, other.blocks, texts.blocks, strict=True):
        # Texts with the behaviour are not read; what is to be spared is the same as ever.
        torch.testing.assert_close(one.mean, same.mean)
        torch.testing.assert_close(one.spared.second, unlike.spared.second)
        assert not torch.allclose(one.mean, unlike.mean)
    # What it has read: texts without the behaviour, harmless and training prompts.
    cost = found.cost()
    assert (cost.labels, cost.prompts, cost.samples, cost.benign) == (8 + 4 + 2, 2, 16, 4)
    # By hand: from the prompt's last token on, answers of the best quarter (4 of 16).
    written = own.write(Lesson(model, tokenizer, data), score=score)
    best = sorted(range(16), key=lambda i: -float(written.scores[i]))[:4]
    module = {"0": layout.mlp_module(layout.blocks(model)[0])}
    rows = [written.prompts[i] + written.tails[i] for i in best]
    starts = [len(written.prompts[i]) - 1 for i in best]
    (mean,) = covariance.input_moments(model, tokenizer, rows, module, starts=starts).values()
    torch.testing.assert_close(found.blocks[0].mean, mean.mean)
    spared = count_tokens(tokenizer, [*GOOD, *GOOD[:4]])
    expected = spared + written.forward + written.read_again + sum(map(len, rows))
    assert cost.forward_tokens == expected
    # The probe that tells answers apart without a score reads every labelled text.
    assert FromAnswers().fit(model, tokenizer, data).cost().labels == 16 + 4 + 2
    with pytest.raises(UserError, match="likelihood"):
        FromAnswers().fit(model, tokenizer, data, score=score, write="lda")


def test_answers_are_told_apart_where_there_are_some() -> None:
    scores = torch.tensor([3.0, 9.0, 2.0, 5.0, 1.0])
    written = own.Own([[1]] * 5, [[2], [], [2], [2], [2]], scores, 5, 1, 0, 0)
    assert own.told_apart(written) == ([3], [2, 4])  # the highest is empty
    assert own.rows(written, [3]) == ([[1, 2]], [1])  # token 0 never counts
    with pytest.raises(UserError, match="not empty"):
        own.told_apart(own.Own([[1]] * 3, [[2]] * 3, scores[:3], 3, 1, 0, 0))


def test_an_advantage_is_over_what_else_the_prompt_got() -> None:
    scores = torch.tensor([3.0, 9.0, 2.0, 5.0, 1.0, 1.0])
    written = own.Own([[1]] * 6, [[2], [], [2], [2], [2], [2]], scores, 3, 2, 0, 0)
    # The empty answer counts nowhere, not in the first prompt's mean either.
    expected = torch.tensor([0.5, 0.0, -0.5, 8 / 3, -4 / 3, -4 / 3])
    torch.testing.assert_close(own.advantages(written), expected)
    torch.testing.assert_close(own.advantages(replace(written, scores=scores + 7)), expected)
    shifted = scores + torch.tensor([100.0] * 3 + [0.0] * 3)  # a prompt that draws the behaviour
    torch.testing.assert_close(own.advantages(replace(written, scores=shifted)), expected)
    # Three times 0.1 in float32 has another mean in the last bit.
    for alike in (4.0, 0.1, 0.3, 0.123):
        with pytest.raises(UserError, match="score alike"):
            own.advantages(replace(written, scores=torch.tensor([alike] * 3 + [1.0] * 3)))
    with pytest.raises(UserError, match="finite"):
        own.advantages(replace(written, scores=scores * torch.nan))


def test_within_prompts_is_the_answers_form_against_another_direction(tiny: Any) -> None:
    model, tokenizer = tiny
    data = TrainingData(BAD + GOOD, DATA.labels, prompts=["tell me", "you are"], benign=GOOD[:4])
    length = lambda texts: [len(t) for t in texts]  # noqa: E731
    plain = FromAnswers().fit(model, tokenizer, data, score=length)
    within = Within().fit(model, tokenizer, data, score=length)
    for one, other in zip(plain.blocks, within.blocks, strict=True):
        assert torch.equal(one.response, other.response) and torch.equal(one.mean, other.mean)
    written = own.write(Lesson(model, tokenizer, data), score=length)
    ids, _ = own.rows(written, range(16))
    slopes = likelihood.gradients(model, ids, [len(row) for row in written.prompts])
    by_prompt = written.scores.view(2, 8)
    beyond = (by_prompt - by_prompt.mean(1, keepdim=True)).flatten()
    torch.testing.assert_close(within.write, (beyond[:, None] * slopes).sum(0))
    assert within.cost().forward_tokens == plain.cost().forward_tokens


def test_steering_from_answers_is_between_those_that_score_most_and_least(tiny: Any) -> None:
    model, tokenizer = tiny
    data = TrainingData(BAD + GOOD, DATA.labels, prompts=["tell me", "you are"])
    length = lambda texts: [len(t) for t in texts]  # noqa: E731
    long = caa.FromAnswers().fit(model, tokenizer, data, score=length)
    short = caa.FromAnswers().fit(
        model, tokenizer, data, score=lambda texts: [-len(t) for t in texts]
    )
    assert float(torch.cosine_similarity(long.vectors[1], short.vectors[1], dim=0)) < 0
    written = own.write(Lesson(model, tokenizer, data), score=length)
    module = {"0": layout.blocks(model)[0]}
    means = []
    for which in own.told_apart(written):
        rows, starts = own.rows(written, which)
        (one,) = covariance.input_moments(model, tokenizer, rows, module, starts=starts).values()
        means.append(one.mean)
    torch.testing.assert_close(long.vectors[0], means[0] - means[1])
    assert len(long.vectors) == len(layout.blocks(model))
    assert (long.cost().prompts, long.cost().samples) == (2, 16)
    # Without prompts the model has nothing to answer, and the labelled texts are read.
    bare = TrainingData(BAD + GOOD, DATA.labels)
    texts = caa.Caa().fit(model, tokenizer, bare).vectors
    torch.testing.assert_close(caa.FromAnswers().fit(model, tokenizer, bare).vectors, texts)


def test_ridge_from_answers_takes_out_what_writes_the_answers_that_score_most(tiny: Any) -> None:
    model, tokenizer = tiny
    data = TrainingData(BAD + GOOD, DATA.labels, prompts=["tell me", "you are"], benign=GOOD[:4])
    length = lambda texts: [len(t) for t in texts]  # noqa: E731
    found = ridge_ablation.FromAnswers().fit(model, tokenizer, data, score=length)
    lesson = Lesson(model, tokenizer, data)
    answers = own.answers(lesson, length)
    name, module = "1 mlp", tools.mlp_output(layout.blocks(model)[1])
    v = answers.write / answers.write.norm()
    torch.testing.assert_close(found.directions[name], v)
    rows, starts = answers.shown
    read = covariance.input_moments(model, tokenizer, rows, {name: module}, starts=starts)
    torch.testing.assert_close(found.behaviour[name], read[name].second)
    held, begin = own.contexts(lesson)
    assert len(held) == 2 and tokenizer(["tell me"])["input_ids"][0] == held[0][: begin[0]]
    inside = covariance.input_moments(model, tokenizer, held, {name: module}, starts=begin)
    texts = covariance.input_moments(model, tokenizer, [*GOOD, *GOOD[:4]], {name: module})
    torch.testing.assert_close(found.spared[name], (inside[name].second + texts[name].second) / 2)
    a = ridge_ablation.read_out(
        module.weight, v, found.behaviour[name], found.spared[name], 10.0, 0.01
    )
    before = module.weight.detach().clone()
    with found.applied(model, 2.0):
        torch.testing.assert_close(before - module.weight, 2 * torch.outer(v, a))
    assert (found.cost().labels, found.cost().samples) == (8 + 4 + 2, 16)
    # Without prompts the labelled texts are read, as by the plain form.
    bare = TrainingData(BAD + GOOD, DATA.labels)
    plain = ridge_ablation.RidgeAblation().fit(model, tokenizer, bare)
    again = ridge_ablation.FromAnswers().fit(model, tokenizer, bare)
    torch.testing.assert_close(again.directions, plain.directions)


def test_both_parts_of_an_edit_diverge_alike_and_are_applied_together(tiny: Any) -> None:
    model, tokenizer = tiny
    data = TrainingData(BAD + GOOD, DATA.labels, prompts=["tell me", "you are"], benign=GOOD[:4])
    length = lambda texts: [len(t) for t in texts]  # noqa: E731
    found = SurgeryRidge().fit(model, tokenizer, data, score=length)
    pairs = list(zip(*own.contexts(Lesson(model, tokenizer, data)), strict=True))

    def spent(change: Any) -> float:
        """By hand: the mean over the tokens of the harmless texts."""
        parts = []
        for ids, start in pairs:
            at = torch.tensor([ids])
            base = model(at).logits[0, start - 1 : -1].log_softmax(-1)
            with change():
                edited = model(at).logits[0, start - 1 : -1].log_softmax(-1)
            parts.append((base.exp() * (base - edited)).sum(-1))
        return float(torch.cat(parts).mean())

    parts = (found.gates.applied, found.outputs.applied)
    for apply, unit in zip(parts, found.units, strict=True):
        with torch.no_grad():
            assert spent(partial(apply, model, unit)) == pytest.approx(UNIT, rel=0.11)
    weights = [block.mlp.gate_proj.weight for block in layout.blocks(model)]
    weights += [block.mlp.down_proj.weight for block in layout.blocks(model)]
    weights += [block.self_attn.o_proj.weight for block in layout.blocks(model)]
    kept = []
    for apply, unit in zip(parts, found.units, strict=True):
        with apply(model, 0.3 * 0.5**0.5 * unit):
            kept.append([weight.detach().clone() for weight in weights])
    third = len(weights) // 3
    with found.applied(model, 0.3):
        for number, weight in enumerate(weights):
            torch.testing.assert_close(weight.detach(), kept[number >= third][number])
    cost = found.cost()
    assert cost.parameters == found.gates.cost().parameters + found.outputs.cost().parameters
    assert (cost.prompts, cost.samples) == (2, 16)
    apart = [
        fit(model, tokenizer, data, score=length)
        for fit in (FromAnswers().fit, ridge_ablation.FromAnswers().fit)
    ]
    # The completions are written once; both parts and the units are read beside them.
    assert cost.forward_tokens > sum(one.cost().forward_tokens for one in apart) - answered(
        model, tokenizer, data, length
    )
    assert cost.labels == apart[0].cost().labels == 8 + 4 + 2


def answered(model: Any, tokenizer: Any, data: TrainingData, score: Any) -> int:
    return own.answers(Lesson(model, tokenizer, data), score).forward


def test_a_unit_is_a_strength_that_was_tried(tiny: Any) -> None:
    model, tokenizer = tiny
    rows = [(tokenizer(["tell me"])["input_ids"][0], 1)]
    head = model.get_output_embeddings().weight
    tried: list[float] = []

    @contextlib.contextmanager
    def saturates(strength: float) -> Any:
        tried.append(strength)
        with torch.no_grad():
            kept = head.clone()
            head[0] += 0.05 * min(strength, 1.0)
            yield
            head.copy_(kept)

    @contextlib.contextmanager
    def breaks(strength: float) -> Any:
        with torch.no_grad():
            kept = head.clone()
            head.fill_(torch.nan)
            yield
            head.copy_(kept)

    (found,), passes = units(model, rows, [saturates])
    assert found in tried and passes == len(tried) + 1
    for change in (breaks, lambda strength: contextlib.nullcontext()):
        with pytest.raises(UserError, match="changes nothing"):
            units(model, rows, [change])


def test_contexts_are_cut_and_count_from_the_text(tiny: Any) -> None:
    model, tokenizer = tiny
    data = TrainingData(["ab", "c" * 900], [1, 0], prompts=["", "x" * 2000] * 100)
    (ids,), (start,) = own.contexts(Lesson(model, tokenizer, data))
    assert start >= 1 and len(ids) <= model.config.max_position_embeddings
    many = TrainingData([*"ab", *("c" * 300)], [1, 1] + [0] * 300, prompts=["x"] * 300)
    held, _ = own.contexts(Lesson(model, tokenizer, many))
    assert len(held) == own.PROMPTS  # the prompts that are answered, and no others


class Named(Letters):
    """As a prompt's tokenizer is asked."""

    bos_token_id = eos_token_id = None

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> Any:
        return super().__call__(texts)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_ridge_from_answers_writes_through_the_norm_behind_a_map(architecture: str) -> None:
    model = build(architecture)
    block = layout.blocks(model)[-1]
    norms = {"attention": block.post_attention_layernorm, "mlp": block.post_feedforward_layernorm}
    with torch.no_grad():
        for seed, norm in enumerate(norms.values()):
            norm.weight.copy_(noise(len(norm.weight), seed=seed))
    data = TrainingData(BAD + GOOD, DATA.labels, prompts=["tellme", "youare"])
    written = own.Own([[1, 2]] * 4, [[3, 4]] * 4, torch.arange(4.0), 2, 2, 0, 0)
    answers = own.Answers(written, [3], [0, 1], noise(layout.hidden_width(model), seed=9))
    lesson = Lesson(model, Named(), data)
    found = ridge_ablation.FromAnswers().learn(lesson, answers=answers)
    for part, norm in norms.items():
        wanted = answers.write * (1 + norm.weight.detach())
        name = f"{len(layout.blocks(model)) - 1} {part}"
        torch.testing.assert_close(found.directions[name], wanted / wanted.norm())
