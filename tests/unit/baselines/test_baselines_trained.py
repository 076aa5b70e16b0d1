"""The trained methods: what they change, that it is undone, and what their losses start from."""

import copy
import math
from typing import Any

import architectures
import peft
import pytest
import torch

from surgery_lib.baselines import circuit_breakers, dinm, dpo, gmt, lorra, pairs, spring
from surgery_lib.baselines.base import TrainingData
from surgery_lib.baselines.outputs import at_depths, block_outputs
from surgery_lib.baselines.registry import METHODS
from surgery_lib.baselines.training import (
    Course,
    Sampler,
    Spent,
    Training,
    cross_entropy,
    encode,
    finetune,
    read,
)
from surgery_lib.baselines.tuning import Delta, Lora, tuned
from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.models.activations import model_hash
from surgery_lib.models.generation import generate

CIVIL = ["the cat sat here", "a good day to you", "we like the sea", "thanks, my friend"]
BAD = ["the cur sat there", "a foul day to you", "we hate the sea", "curses, you worm"]
DATA = TrainingData(CIVIL + BAD, [0] * 4 + [1] * 4, prompts=["the ", "a day", "we", "you"])
QUICK = Training(steps=3, lr=1e-2, batch=2, max_tokens=24, progress=False)
FAST: dict[str, Any] = {"steps": 3, "batch": 2, "max_tokens": 24, "progress": False}
# Settings that keep the fit of a method small, beside those of the training.
SMALL: dict[str, dict[str, Any]] = {
    "dpo": {"samples": 2, "new_tokens": 4},
    "dinm": {"samples": 2, "new_tokens": 4, "examples": 2},
    "gmt": {"source": "texts"},
    "spring": {"length": 4, "samples": 2, "new_tokens": 4},
}
TRAINED = {
    name: entry.method
    for name, entry in METHODS.items()
    if "gradients" in entry.needs and entry.method.kind != "decoding"
}
DELTAS = sorted(set(TRAINED) - {"spring"})


def fit(name: str, model: Any, tokenizer: Any, **fixed: Any) -> Any:
    return TRAINED[name].fit(model, tokenizer, DATA, **{**FAST, **SMALL.get(name, {}), **fixed})


def logits(model: Any, ids: torch.Tensor, **given: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, **given).logits


def some_ids(tokenizer: Any) -> torch.Tensor:
    return torch.tensor([tokenizer("the sea, my friend")["input_ids"]])


def changed_names(before: dict[str, torch.Tensor], model: Any) -> set[str]:
    return {n for n, w in model.state_dict().items() if not torch.equal(w, before[n])}


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_fit_leaves_the_model_and_every_strength_is_undone(name: str, tiny: Any) -> None:
    model, tokenizer = tiny
    before, ids = model_hash(model), some_ids(tokenizer)
    modules = [type(module) for module in model.modules()]
    plain = logits(model, ids)
    fitted = fit(name, model, tokenizer)
    assert model_hash(model) == before
    assert [type(module) for module in model.modules()] == modules
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    with fitted.applied(model, strength=0.0) as same:
        assert torch.equal(logits(same, ids), plain)
    with pytest.raises(RuntimeError, match="stop"), fitted.applied(model, strength=1.0) as changed:
        assert logits(changed, ids).shape == plain.shape
        assert not torch.equal(logits(changed, ids), plain)
        raise RuntimeError("stop")
    assert model_hash(model) == before
    assert torch.equal(logits(model, ids), plain)
    cost = fitted.cost()
    assert cost.needs_gradients and cost.labels > 0 and cost.parameters > 0
    assert 0 < cost.backward_tokens <= cost.forward_tokens
    assert cost.ordinary_checkpoint == (name != "spring")


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_one_seed_gives_one_result(name: str, tiny: Any) -> None:
    model, tokenizer = tiny
    ids = some_ids(tokenizer)
    found = []
    for seed in (1, 1, 2):
        torch.rand(seed)  # the global generator's state must not matter
        with (
            TRAINED[name]
            .fit(model, tokenizer, DATA, seed=seed, **{**FAST, **SMALL.get(name, {})})
            .applied(model, 1.0) as changed
        ):
            found.append(logits(changed, ids))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


WHITELIST = {
    "lora": "_proj.",
    "dpo": "_proj.",
    "circuit_breakers": "_proj.",
    "dinm": "mlp.down_proj.",
    "gmt": "mlp.gate_proj.",
    "lorra": "self_attn.",
    "task_vector": "",
}


@pytest.mark.parametrize("name", DELTAS)
def test_only_the_stated_tensors_change(name: str, tiny: Any) -> None:
    model, tokenizer = tiny
    before = state(model)
    with fit(name, model, tokenizer).applied(model, 1.0):
        changed = changed_names(before, model)
    assert changed and all(WHITELIST[name] in each for each in changed)
    if name == "dinm":
        assert len(changed) == 1
    if name == "lorra":
        assert all("q_proj" in each or "v_proj" in each for each in changed)


@pytest.mark.parametrize("name", ["lora", "task_vector", "dpo", "dinm", "lorra", "spring"])
def test_training_lowers_the_loss(name: str, tiny: Any) -> None:
    model, tokenizer = tiny
    fitted = fit(name, model, tokenizer, steps=20, batch=4, lr=1e-2)
    losses = fitted.prompt.losses if name == "spring" else fitted.delta.losses
    assert len(losses) == 20
    assert sum(losses[-4:]) < sum(losses[:4])


def test_task_vector_makes_the_behaviour_less_likely(tiny: Any) -> None:
    model, tokenizer = tiny
    rows = encode(model, tokenizer, BAD, 24)
    fitted = fit("task_vector", model, tokenizer, steps=10, lr=1e-3, batch=4)
    found = []
    for strength in (0.0, 0.5, 1.0):
        with torch.no_grad(), fitted.applied(model, strength):
            found.append(float(cross_entropy(model, rows, Spent())))
    assert found[0] < found[1] < found[2]


def test_a_delta_keeps_what_it_does_not_touch_and_refuses_another_model(tiny: Any) -> None:
    model, _ = tiny
    name = "model.layers.0.mlp.gate_proj.weight"
    weight = model.get_parameter(name)
    weight.data[0] = -0.0
    step = torch.zeros_like(weight)
    step[1] = 1.0
    before = weight.data.clone()
    with Delta({name: step}).applied(model, 2.0):
        assert torch.equal(torch.signbit(weight[0]), torch.signbit(before[0]))
        assert torch.equal(weight[1], before[1] + 2)
        assert torch.equal(weight[2:], before[2:])
    assert torch.equal(weight, before)
    assert Delta({name: step}).touched == weight.shape[1]
    with pytest.raises(UserError, match="fit the method on this model"):
        Delta({"no.such": step}).applied(model, 1.0).__enter__()


def test_our_adapters_are_those_of_peft_merged(tiny: Any) -> None:
    model, tokenizer = tiny
    delta = finetune(model, tokenizer, CIVIL, which=Lora(rank=4), training=QUICK)
    # peft by itself: the same steps on a model of its own, merged by peft.
    copy_ = copy.deepcopy(model)
    torch.manual_seed(QUICK.seed)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(copy_, config).eval()
    rows = encode(model, tokenizer, CIVIL, QUICK.max_tokens)
    sampler = Sampler(len(rows), QUICK.batch, QUICK.seed)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=QUICK.lr, weight_decay=0.0)
    for share in (1.0, 1.0, 0.5):
        optimiser.param_groups[0]["lr"] = QUICK.lr * share
        optimiser.zero_grad()
        cross_entropy(adapted, [rows[i] for i in sampler.draw()], Spent()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
    merged = adapted.merge_and_unload().state_dict()
    with delta.applied(model, 1.0):
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(weight, merged[name], atol=1e-5, rtol=1e-5)


class _Letters:
    """Any text as token ids below the vocabulary of the tiny architectures."""

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1, *(ord(c) % 90 + 5 for c in text)] for text in texts]}


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3", "mixtral"])
@pytest.mark.parametrize("which", [Lora(), Lora(targets=lorra.QUERY_VALUE), "full"])
def test_other_architectures_are_trained_and_restored(name: str, which: Any) -> None:
    model = architectures.build(name)
    rows, before = encode(model, _Letters(), CIVIL, 24), model_hash(model)
    delta = finetune(model, _Letters(), CIVIL, which=which, training=QUICK)
    assert model_hash(model) == before
    with torch.no_grad():
        plain = cross_entropy(model, rows, Spent())
        with delta.applied(model, 1.0):
            assert cross_entropy(model, rows, Spent()) < plain
    assert model_hash(model) == before


def test_preference_loss_starts_at_log_two_and_the_reference_is_the_original(tiny: Any) -> None:
    model, tokenizer = tiny
    found = pairs.from_texts(Course(model, tokenizer, DATA, training=QUICK))
    original = dpo.margins(model, found, Spent())
    with tuned(model, Lora(), 0) as part:
        policy = dpo.margins(part.model, found, Spent())
        assert float(dpo.loss(policy, original, 0.1)) == pytest.approx(math.log(2), abs=1e-6)
        with torch.no_grad():
            for parameter in part.parameters.values():
                parameter.add_(0.1)
        assert not torch.allclose(dpo.margins(part.model, found, Spent()), original)
        with part.model.disable_adapter():
            torch.testing.assert_close(dpo.margins(part.model, found, Spent()), original)
    assert fit("dpo", model, tokenizer).delta.losses[0] == pytest.approx(math.log(2), abs=1e-5)


def test_pairs_of_own_completions_rank_by_the_score_given(tiny: Any) -> None:
    model, tokenizer = tiny
    found = pairs.make(
        Course(model, tokenizer, DATA, training=QUICK),
        source="own",
        samples=4,
        new_tokens=6,
        score=lambda texts: [text.count("e") + len(text) for text in texts],
    )
    assert len(found) == 2  # the half that differs most
    for pair in found:
        assert pair.chosen[: pair.start] == pair.rejected[: pair.start]
        assert pair.start < min(len(pair.chosen), len(pair.rejected))
    with pytest.raises(UserError, match="no training prompts"):
        unprompted = TrainingData(CIVIL + BAD, DATA.labels)
        pairs.make(Course(model, tokenizer, unprompted, training=QUICK), source="own")


def test_pairs_of_texts_share_what_they_begin_with(tiny: Any) -> None:
    model, tokenizer = tiny
    data = TrainingData(["you are kind", "you are bad"], [0, 1])
    (pair,) = pairs.from_texts(Course(model, tokenizer, data, training=QUICK))
    assert tokenizer.decode(pair.chosen[: pair.start], skip_special_tokens=True) == "you are "


def test_dinm_without_steps_is_identity_and_starts_without_divergence(tiny: Any) -> None:
    model, tokenizer = tiny
    assert fit("dinm", model, tokenizer, steps=0).delta.touched == 0
    rows = encode(model, tokenizer, CIVIL, 24)
    with torch.no_grad():
        found, ids, lengths = read(model, rows, Spent())
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    assert float(dinm.divergence(found, found.clone(), mask)) == 0.0
    assert float(dinm.divergence(found * 1.5, found, mask)) > 0
    one = fit("dinm", model, tokenizer, examples=1, source="texts")
    pair = pairs.from_texts(Course(model, tokenizer, DATA, training=QUICK))[0]
    with torch.no_grad():  # the first loss is the likelihood's share alone
        safe = cross_entropy(model, [pair.chosen], Spent(), [pair.start])
    assert one.delta.losses[0] == pytest.approx(dinm.EDIT_WEIGHT * float(safe), rel=1e-4)
    assert one.cost().parameters <= model.model.layers[0].mlp.down_proj.weight.numel()
    fixed = fit("dinm", model, tokenizer, block=1)
    assert list(fixed.delta.tensors) == ["model.layers.1.mlp.down_proj.weight"]


@pytest.mark.parametrize("relative", [False, True])
def test_dinm_locates_alike_whatever_the_padding(
    relative: bool, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny
    data = TrainingData(["a", "a much longer foul text"], [0, 1])
    found = pairs.from_texts(Course(model, tokenizer, data, training=QUICK))
    plain = dinm.distances(model, found, Spent(), relative)
    monkeypatch.setattr(torch, "zeros", _zeros_as_sevens(torch.zeros))
    torch.testing.assert_close(dinm.distances(model, found, Spent(), relative), plain)


def _zeros_as_sevens(zeros: Any) -> Any:
    """Token ids, and they alone, are padded with 7 instead of 0."""
    return lambda *size, **given: (
        zeros(*size, **given) + (7 if given.get("dtype") == torch.long else 0)
    )


@pytest.mark.parametrize("unit", ["rows", "weights"])
@pytest.mark.parametrize("objective", ["preference", "texts"])
def test_masked_tuning_changes_exactly_its_share(unit: Any, objective: Any, tiny: Any) -> None:
    model, tokenizer = tiny
    before, ratio = state(model), 0.125
    fitted = fit("gmt", model, tokenizer, unit=unit, objective=objective, ratio=ratio)
    gates = [f"model.layers.{i}.mlp.gate_proj.weight" for i in range(3)]
    with fitted.applied(model, 1.0):
        changed = {name: model.state_dict()[name] != before[name] for name in gates}
        assert changed_names(before, model) <= set(gates)
    if unit == "rows":
        rows = torch.cat([mask.any(1) for mask in changed.values()])
        assert int(rows.sum()) == round(ratio * len(rows)) == 18
        assert sum(int(mask.sum()) for mask in changed.values()) == 18 * 32
    else:
        assert all(int(mask.sum()) == round(ratio * mask.numel()) for mask in changed.values())


def test_masked_tuning_of_everything_is_plain_training(tiny: Any) -> None:
    model, tokenizer = tiny
    names = {rows.parameter for rows in layout.weight_rows(model)}
    masked = fit("gmt", model, tokenizer, ratio=1.0, objective="texts").delta
    training = Training(**{**FAST, "lr": TRAINED["gmt"].training.lr})  # type: ignore[attr-defined]
    rows = encode(model, tokenizer, CIVIL, training.max_tokens)
    sampler = Sampler(len(rows), training.batch, 0)
    for _ in range(gmt.ACCUMULATED):
        sampler.draw()
    with tuned(model, names) as part:
        from surgery_lib.baselines.training import optimise

        optimise(
            part.parameters.values(),
            lambda _: cross_entropy(model, [rows[i] for i in sampler.draw()], Spent()),
            training,
        )
        plain = part.change()
    assert all(torch.equal(masked.tensors[name], plain[name]) for name in names)


@pytest.mark.parametrize("name", ["gpt2", "phi3", "mixtral"])
@pytest.mark.parametrize("masks", [gmt.row_masks, gmt.element_masks])
def test_masks_reach_gate_rows_in_every_layout(name: str, masks: Any) -> None:
    model = architectures.build(name)
    parameters = dict(model.named_parameters())
    found = layout.weight_rows(model)
    names = {rows.parameter for rows in found}
    gradients = {n: torch.randn_like(parameters[n]) for n in names}
    drawn = masks(model, gradients, 0.25)
    inside = 0
    for rows in found:
        view = gmt.row_view(drawn[rows.parameter], rows, parameters[rows.parameter])
        inside += int(view.sum())
    total = sum(rows.weight.numel() for rows in found)
    assert inside == sum(int(mask.sum()) for mask in drawn.values()) == total // 4


def soft_prompt(model: Any, tokenizer: Any) -> spring.SoftPrompt:
    rows = encode(model, tokenizer, CIVIL, 24)
    course = Course(model, tokenizer, DATA, training=QUICK)
    return spring.train(course, rows, [5] * len(rows), length=4)


def test_no_virtual_tokens_is_the_model_itself_and_weights_stay(tiny: Any) -> None:
    model, tokenizer = tiny
    before, ids = model_hash(model), some_ids(tokenizer)
    plain = logits(model, ids)
    prompt = soft_prompt(model, tokenizer)
    assert model_hash(model) == before
    with prompt.applied(model, 0):
        assert torch.equal(logits(model, ids), plain)
    with prompt.applied(model, 2):
        two = logits(model, ids)
    assert not torch.allclose(two, plain, atol=1e-3)
    assert torch.equal(logits(model, ids), plain)
    longer = spring.SoftPrompt(torch.cat([prompt.embeddings[:2], torch.randn(5, 32)]))
    with longer.applied(model, 2):  # the first k do not depend on those after them
        assert torch.equal(logits(model, ids), two)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    with prompt.applied(model), pytest.raises(UserError, match="from a text's start"):
        logits(model, ids[:, -1:], past_key_values=cache)
    with pytest.raises(UserError, match="there are 4 virtual tokens"):
        prompt.applied(model, 5).__enter__()


def test_gradient_reaches_the_virtual_tokens_in_use_and_nothing_else(tiny: Any) -> None:
    model, tokenizer = tiny
    virtual = torch.nn.Parameter(torch.randn(4, 32))
    with spring.prepended(model, virtual[:2]):
        cross_entropy(model, encode(model, tokenizer, CIVIL, 24), Spent()).backward()
    assert virtual.grad is not None
    assert bool(virtual.grad[:2].any()) and not bool(virtual.grad[2:].any())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_virtual_tokens_are_read_like_real_ones(name: str) -> None:
    model = architectures.build(name)
    ids = torch.randint(5, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    embeddings = model.get_input_embeddings().weight.detach()[[11, 12, 13]]
    prefixed = torch.cat([torch.tensor([[11, 12, 13]] * 2), ids], dim=1)
    prompt = spring.SoftPrompt(embeddings)
    with prompt.applied(model):
        found = model(input_ids=ids, output_hidden_states=True)
        close = {"atol": 1e-5, "rtol": 1e-4}
        torch.testing.assert_close(found.logits, logits(model, ids), **close)
        assert found.hidden_states[-1].shape[1] == 7
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], dim=1)
        mask = (torch.arange(10) >= 3).long().expand(2, -1)
        left = logits(model, padded, attention_mask=mask)[:, 3:]
        written = model.generate(
            input_ids=padded, attention_mask=mask, max_new_tokens=6, do_sample=False
        )[:, 10:]
        uncached = model.generate(
            input_ids=ids, max_new_tokens=6, do_sample=False, use_cache=False
        )[:, 7:]
    torch.testing.assert_close(found.logits, logits(model, prefixed)[:, 3:], **close)
    torch.testing.assert_close(left, found.logits, **close)
    plain = model.generate(input_ids=prefixed, max_new_tokens=6, do_sample=False)[:, 10:]
    assert torch.equal(written, plain) and torch.equal(uncached, plain)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_virtual_tokens_stand_after_padding_and_the_start_token(name: str) -> None:
    model = architectures.build(name)
    start = model.config.bos_token_id
    short, long = [start, 20, 21, 22], [start, 30, 31, 32, 33, 34]
    virtual = [11, 12, 13]
    prompt = spring.SoftPrompt(model.get_input_embeddings().weight.detach()[virtual])
    padded = torch.tensor([[0, 0, *short], long])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    with prompt.applied(model):
        found = logits(model, padded, attention_mask=mask)
        options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
        written = model.generate(input_ids=padded, attention_mask=mask, **options)[:, 6:]
    for row, ids in enumerate((short, long)):
        whole = torch.tensor([[start, *virtual, *ids[1:]]])
        expected = logits(model, whole)[0]
        expected = torch.cat([expected[:1], expected[4:]])
        torch.testing.assert_close(found[row, -len(ids) :], expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(written[row], model.generate(input_ids=whole, **options)[0, -5:])


def test_only_the_completion_is_learnt(tiny: Any) -> None:
    model, tokenizer = tiny
    rows = encode(model, tokenizer, CIVIL, 24)
    # Other prompts of the same lengths and completions change what is read, never what is predicted
    # first: the loss of a row whose completion is one token is that token's alone.
    starts = [len(ids) - 1 for ids in rows]
    one = Training(steps=1, lr=0.0, batch=4, progress=False)
    course = Course(model, tokenizer, DATA, training=one)
    found = spring.train(course, rows, starts, length=2, any_k=False)
    with torch.no_grad(), found.applied(model):
        read_ = [logits(model, torch.tensor([ids]))[0, -2].log_softmax(-1)[ids[-1]] for ids in rows]
    assert found.losses[0] == pytest.approx(-float(sum(read_)) / len(rows), rel=1e-4)


def test_generation_with_virtual_tokens_does_not_depend_on_the_batch(tiny: Any) -> None:
    model, tokenizer = tiny
    prompt = spring.SoftPrompt(torch.randn(3, 32))
    prompts = ["the", "a very long day at the sea"]
    options: dict[str, Any] = {"max_new_tokens": 5, "progress": False}
    with prompt.applied(model):
        together = generate(model, tokenizer, prompts, **options)
        alone = [generate(model, tokenizer, [one], **options)[0] for one in prompts]
    assert together == alone
    assert together != generate(model, tokenizer, prompts, **options)


def test_rerouting_starts_at_one_and_retaining_at_zero(tiny: Any) -> None:
    model, tokenizer = tiny
    rows = encode(model, tokenizer, BAD, 24)
    with tuned(model, Lora()) as part, block_outputs(model) as outputs, torch.no_grad():
        with part.model.disable_adapter():
            _, ids, lengths = read(part.model, rows, Spent())
            original = list(outputs)
        read(part.model, rows, Spent())
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        for now, then in zip(outputs, original, strict=True):
            assert float(circuit_breakers.reroute(now, then, mask)) == pytest.approx(1, abs=1e-5)
            assert float(circuit_breakers.retain(now, then, mask)) == 0.0
    assert circuit_breakers.weights(0, 150, 10.0) == (10.0, 0.0)
    assert circuit_breakers.weights(150, 150, 10.0) == (5.0, 5.0)
    losses = fit("circuit_breakers", model, tokenizer).delta.losses
    assert losses[0] == pytest.approx(10, rel=0.2)


def test_rerouting_leaves_its_starting_point_though_the_cosine_is_flat_there(tiny: Any) -> None:
    model, tokenizer = tiny
    rows = encode(model, tokenizer, BAD, 24)
    with block_outputs(model) as outputs, torch.no_grad():
        _, ids, lengths = read(model, rows, Spent())
        before = list(outputs)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]

    def turned(**settings: Any) -> list[float]:
        fitted = fit("circuit_breakers", model, tokenizer, batch=4, **settings)
        with block_outputs(model) as outputs, torch.no_grad(), fitted.applied(model, 1.0):
            read(model, rows, Spent())
            where = at_depths(model, circuit_breakers.DEPTHS)
            return [float(circuit_breakers.reroute(outputs[b], before[b], mask)) for b in where]

    # The nudge alone turns states a little; training turns them away.
    nudged, trained = turned(steps=0), turned(steps=20)
    assert min(nudged) > 0.9 and max(trained) < min(nudged) - 0.1


def test_the_target_of_lorra_is_the_shifted_original(tiny: Any) -> None:
    model, tokenizer = tiny
    rows = {0: encode(model, tokenizer, CIVIL, 24), 1: encode(model, tokenizer, BAD, 24)}
    shift = lorra.contrast(model, rows, [1], Spent())[1]
    with torch.inference_mode():
        means = [
            torch.stack(
                [
                    model(input_ids=torch.tensor([ids]), output_hidden_states=True)
                    .hidden_states[2][0]
                    .mean(0)
                    for ids in rows[label]
                ]
            ).mean(0)
            for label in (0, 1)
        ]
    torch.testing.assert_close(shift, means[0] - means[1], atol=1e-5, rtol=1e-4)
    # Before the first step the states are the original's, alpha |shift| away from their target.
    fitted = fit("lorra", model, tokenizer, alpha=2.0, depths=(0.5,))
    assert fitted.delta.losses[0] == pytest.approx(2 * float(shift.norm()), rel=1e-4)


def test_errors_say_what_to_do(tiny: Any) -> None:
    model, tokenizer = tiny
    with pytest.raises(UserError, match="nothing to train on"):
        finetune(model, tokenizer, [], training=QUICK)
    with pytest.raises(UserError, match="check their names"):
        finetune(model, tokenizer, CIVIL, which=["no.such"], training=QUICK)
    with pytest.raises(UserError, match=r"Lora\.targets"):
        finetune(model, tokenizer, CIVIL, which=Lora(targets=("nothing",)), training=QUICK)
    with pytest.raises(UserError, match="lower the learning rate"):
        finetune(
            model, tokenizer, CIVIL, training=Training(steps=5, lr=1e30, batch=2, progress=False)
        )
