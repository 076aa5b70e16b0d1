"""Decoding methods: identity, exact candidate states, caches, batches, and the rules themselves."""

import copy

import pytest
import torch
from architectures import Letters, build
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from surgery_lib.baselines import decoding
from surgery_lib.baselines.base import TrainingData
from surgery_lib.baselines.detoxigen import FittedDetoxigen, contrast
from surgery_lib.baselines.dexperts import Dexperts, FittedDexperts
from surgery_lib.baselines.registry import BASELINES
from surgery_lib.baselines.sasa import Sasa, candidate_states, discriminant, shift
from surgery_lib.baselines.spring import SoftPrompt
from surgery_lib.errors import UserError

BAD = ["zyxz", "zzyzx", "xyzzyx", "yzyzz", "zx", "zyzyzyx", "xxz", "yyzx"]
GOOD = ["abca", "bbacab", "acabb", "caab", "ab", "cabcabc", "bca", "aacb"]
DATA = TrainingData(BAD + GOOD, [1] * 8 + [0] * 8)
ARCHITECTURES = ["llama", "gpt2", "qwen3", "gpt_neox"]


def fitted(name, model):
    """A fitted method without training, so that only decoding is on trial."""
    if name == "sasa":
        return Sasa().fit(model, Letters(), DATA)
    if name == "dexperts":
        return FittedDexperts(build("llama", seed=1), build("llama", seed=2))
    torch.manual_seed(3)
    return FittedDetoxigen(SoftPrompt(torch.randn(4, model.config.hidden_size)))


DECODERS = [name for name, method in BASELINES.items() if method.kind == "decoding"]
STRENGTHS = {"sasa": 20.0, "dexperts": 0.7, "detoxigen": 2.0}


def ids(rows=3, length=7, seed=0):
    return torch.randint(3, 26, (rows, length), generator=torch.Generator().manual_seed(seed))


def logprobs(model, tokens, **options):
    with torch.no_grad():
        return model(input_ids=tokens, **options).logits.float().log_softmax(-1)


def padded(tokens, extra):
    """The same texts with `extra` padding tokens on the left."""
    rows = len(tokens)
    mask = torch.cat([torch.zeros(rows, extra), torch.ones(tokens.shape)], 1).long()
    filled = torch.cat([torch.full((rows, extra), 5), tokens], 1)
    return filled, mask, (mask.cumsum(-1) - 1).clamp_min(0)


def greedy(model, tokens, mask=None, steps=6):
    out = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens) if mask is None else mask,
        max_new_tokens=steps,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[:, tokens.shape[1] :]


@pytest.mark.parametrize("name", DECODERS)
def test_strength_zero_is_the_model_itself(name):
    model = build("llama")
    base = logprobs(model, ids())
    with fitted(name, model).applied(model, 0.0) as same:
        assert torch.allclose(logprobs(same, ids()), base, atol=1e-6)
    with fitted(name, model).applied(model, 1e-7) as nearly:
        assert torch.allclose(logprobs(nearly, ids()), base, atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_it_changes_the_distribution_and_is_gone_afterwards(name):
    model = build("llama")
    base, hashes = logprobs(model, ids()), copy.deepcopy(model.state_dict())
    with fitted(name, model).applied(model, STRENGTHS[name]) as changed:
        found = logprobs(changed, ids())
    assert not torch.allclose(found, base, atol=1e-2)
    assert torch.isfinite(found).all()
    assert torch.allclose(found.exp().sum(-1), torch.ones(3, 7), atol=1e-5)
    assert torch.equal(logprobs(model, ids()), base)
    assert all(torch.equal(hashes[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", DECODERS)
def test_generation_with_a_cache_takes_what_a_plain_forward_pass_says(name):
    model = build("llama")
    with fitted(name, model).applied(model, STRENGTHS[name]) as changed:
        written = greedy(changed, ids())
        text = torch.cat([ids(), written], 1)
        plain = logprobs(changed, text, use_cache=False)[:, 6:-1]
    assert torch.equal(plain.argmax(-1), written)


@pytest.mark.parametrize("name", DECODERS)
def test_padding_on_the_left_and_the_batch_change_nothing(name):
    model = build("llama")
    method = fitted(name, model)
    tokens, mask, positions = padded(ids(), 4)
    with method.applied(model, STRENGTHS[name]) as changed:
        alone = torch.cat([logprobs(changed, row[None]) for row in ids()])
        together = logprobs(changed, tokens, attention_mask=mask, position_ids=positions)[:, 4:]
        written = greedy(changed, tokens, mask)
        assert torch.equal(greedy(changed, ids()), written)
    # A contrast multiplies the rounding of both models' logits.
    assert torch.allclose(alone, together, atol=2e-3)


@pytest.mark.parametrize("name", DECODERS)
def test_the_last_position_alone_is_the_same(name):
    model = build("llama")
    with fitted(name, model).applied(model, STRENGTHS[name]) as changed:
        whole = logprobs(changed, ids())
        last = logprobs(changed, ids(), logits_to_keep=1)
    assert torch.allclose(whole[:, -1:], last, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pad", [0, 3])
def test_candidate_states_from_the_cache_equal_full_recomputation(architecture, pad):
    model = build(architecture)
    tokens, mask, positions = padded(ids(), pad)
    chosen = torch.randint(3, 26, (3, pad + 7, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=True
        )
    cache = output.past_key_values
    call = decoding.Call(tokens, output.logits, 0, cache, mask, positions)
    found = candidate_states(model, call, chosen)
    assert cache.get_seq_length() == pad + 7
    for row, place, j in [(0, pad, 0), (1, pad + 3, 2), (2, pad + 6, 4)]:
        text = torch.cat([tokens[row, pad : place + 1], chosen[row, place, j : j + 1]])
        with torch.no_grad():
            expected = model.base_model(input_ids=text[None]).last_hidden_state[0, -1]
        assert torch.allclose(found[row, place, j], expected, atol=1e-4)


def test_many_positions_are_branched_in_parts(monkeypatch):
    model = build("llama")
    method = Sasa().fit(model, Letters(), DATA)
    with method.applied(model, 5.0) as changed:
        whole = logprobs(changed, ids())
        monkeypatch.setattr("surgery_lib.baselines.sasa.BRANCHES", 64)
        parts = logprobs(changed, ids())
    assert torch.allclose(whole, parts, atol=1e-5)


def test_the_softmax_shift_is_between_zero_and_beta_and_sums_to_beta():
    found = shift(torch.randn(5, 8) * 4, 3.0, "softmax")
    assert found.min() >= 0 and found.max() <= 3.0
    assert torch.allclose(found.sum(-1), torch.full((5,), 3.0))
    with pytest.raises(UserError, match="mode"):
        shift(torch.zeros(2), 1.0, "hard")


def test_a_large_raw_beta_takes_the_candidate_with_the_largest_margin():
    model = build("llama")
    method = Sasa().fit(model, Letters(), DATA)
    tokens = ids()
    with torch.no_grad():
        output = model(input_ids=tokens, use_cache=True, logits_to_keep=1)
    chosen = output.logits.topk(10).indices
    call = decoding.Call(tokens, output.logits, 0, output.past_key_values, None, None)
    best = method.margins(candidate_states(model, call, chosen)).argmax(-1)
    expected = chosen.gather(-1, best[..., None])[..., 0]
    with method.applied(model, 1e4, mode="margin") as changed:
        assert torch.equal(greedy(changed, tokens, steps=1), expected)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_the_discriminant_is_sklearn_s(shrinkage):
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(0.1, 3, 6)
    x = torch.randn(80, 6, generator=generator) * scales
    y = torch.arange(80) % 2
    x[y == 1] += torch.tensor([0.5, -1, 0, 0.2, 1, 0])
    direction, midpoint = discriminant(x, y.tolist(), shrinkage)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    reference.fit(x.double().numpy(), y.numpy())
    expected = -torch.from_numpy(reference.coef_[0]).float()
    assert torch.allclose(direction, expected / expected.norm(), atol=1e-4)
    scores = (x - midpoint) @ direction
    assert torch.equal(scores < 0, torch.from_numpy(reference.predict(x.double().numpy())) == 1)


def test_fewer_texts_than_the_width_still_give_a_direction():
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    for shrinkage in (0.0, 0.1):
        assert torch.isfinite(discriminant(x, [0, 1] * 3, shrinkage)[0]).all()


def test_a_text_longer_than_the_sliding_window_is_refused():
    model = build("mistral")  # its window is 8
    method = Sasa().fit(model, Letters(), DATA)
    with method.applied(model, 1.0) as changed:
        assert torch.isfinite(logprobs(changed, ids(length=6))).all()
        with pytest.raises(UserError, match="slides"):
            logprobs(changed, ids(length=9))


def test_the_nucleus_is_the_fewest_tokens_with_that_probability():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert decoding.nucleus(logits, 0.6).tolist() == [[True, True, False, False]]
    assert decoding.nucleus(logits, 0.01).tolist() == [[True, False, False, False]]
    assert decoding.nucleus(logits, 1.0).all()


def test_candidates_share_their_own_probability():
    base = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    changed = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    among = decoding.nucleus(base, 0.7)
    found, before = decoding.shared(base, changed, among).exp(), base.softmax(-1)
    assert torch.allclose(found.sum(-1), torch.ones(4))
    assert torch.allclose(found[~among], before[~among])
    for row in range(4):
        inside = among[row]
        expected = changed[row, inside].softmax(-1) * before[row, inside].sum()
        assert torch.allclose(found[row, inside], expected, atol=1e-6)


def test_dexperts_adds_the_difference_of_the_experts():
    model = build("llama")
    method = fitted("dexperts", model)
    with torch.no_grad():
        z, good, bad = (m(input_ids=ids()).logits for m in (model, method.expert, method.anti))
    with method.applied(model, 0.7, top_p=1.0) as changed:
        found = logprobs(changed, ids())
    assert torch.allclose(found, (z + 0.7 * (good - bad)).log_softmax(-1), atol=1e-4)


def test_dexperts_trains_two_models_and_leaves_the_base_alone():
    model = build("llama")
    before = copy.deepcopy(model.state_dict())
    method = Dexperts().fit(model, Letters(), DATA, steps=3, batch=4, progress=False)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    weights = [m.model.layers[0].mlp.gate_proj.weight for m in (model, method.expert, method.anti)]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    cost = method.cost()
    assert cost.needs_gradients and cost.backward_tokens > 0 and not cost.ordinary_checkpoint


def test_detoxigen_reads_the_model_behind_the_soft_prompt():
    model = build("llama")
    method = fitted("detoxigen", model)
    embedded = torch.cat(
        [method.prompt.embeddings.expand(3, -1, -1), model.get_input_embeddings()(ids())], 1
    )
    with torch.no_grad():
        p = model(input_ids=ids()).logits
        q = model(inputs_embeds=embedded).logits[:, 4:]
    expected = contrast(p, q, 2.0).log_softmax(-1)
    with method.applied(model, 2.0, top_p=1.0) as changed:
        assert torch.allclose(logprobs(changed, ids()), expected, atol=1e-4)


def test_contrast_clips_what_falls_below_zero():
    p, q = torch.tensor([0.6, 0.4]).log(), torch.tensor([0.1, 0.9]).log()
    found = contrast(p, q, 1.0).exp()
    assert found[0] == pytest.approx(1.1) and 0 < found[1] < 1e-5


def test_the_loss_of_a_labelled_call_is_that_of_the_changed_logits():
    model = build("llama")
    tokens = ids()
    with fitted("dexperts", model).applied(model, 0.7) as changed, torch.no_grad():
        loss = changed(input_ids=tokens, labels=tokens).loss
        found = logprobs(changed, tokens)
    expected = -found[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["dexperts", "detoxigen"])
def test_a_cache_that_the_companion_has_not_read_is_refused(name):
    model = build("llama")
    with torch.no_grad():
        cache = model(input_ids=ids(), use_cache=True).past_key_values
    with (
        fitted(name, model).applied(model, 1.0) as changed,
        pytest.raises(UserError, match="start"),
    ):
        changed(input_ids=ids(length=1), past_key_values=cache)
