"""Methods that edit weights or hook modules: identity, exact bakes, whitelists, undo."""

from dataclasses import replace

import architectures
import numpy as np
import pytest
import torch
from architectures import Letters, build, same_bits, state
from sklearn.linear_model import LogisticRegression

from surgery_lib.baselines import feature_subtraction, iti
from surgery_lib.baselines.ablation import Ablation
from surgery_lib.baselines.base import TrainingData
from surgery_lib.baselines.caa import Caa
from surgery_lib.baselines.feature_subtraction import FeatureSubtraction
from surgery_lib.baselines.iti import Iti
from surgery_lib.baselines.registry import BASELINES, METHODS
from surgery_lib.baselines.safe_activation import SafeActivation
from surgery_lib.baselines.surgery import PAPER, SURGERY_PAPER, SurgeryMethod
from surgery_lib.baselines.wanda import Wanda, lowest
from surgery_lib.errors import UserError
from surgery_lib.models import activations, layout
from surgery_lib.surgery import region
from surgery_lib.surgery.effects import effect_scores

BAD = ["zyxz", "zzyzx", "xyzzyx", "yzyzz", "zx", "zyzyzyx", "xxz", "yyzx"]
GOOD = ["abca", "bbacab", "acabb", "caab", "ab", "cabcabc", "bca", "aacb"]
# Without prompts: nothing here generates, for which letters are no tokenizer.
DATA = TrainingData(BAD + GOOD, [1] * 8 + [0] * 8, benign=GOOD[:4])
UNTRAINED = {n: one.method for n, one in METHODS.items() if "gradients" not in one.needs}
IN_PLACE = [name for name, method in UNTRAINED.items() if method.kind in ("weights", "hook")]
STRONG = {"wanda": 0.3, "ablation": 1.0, "safe_activation": 6.0}
# A layer of the architecture table that has biases, tied embeddings and Conv1D, beside a Llama.
MODELS = ["llama", "llama-biased", "gpt2", "gpt_neox", "qwen2"]
BAKED = [
    (Caa(), {"baked": True}),
    (Iti(), {"baked": True, "heads": 0.5}),
    (FeatureSubtraction(), {"baked": True}),
    (SafeActivation(), {"baked": True}),
]


def logits(model):
    ids = torch.arange(24).view(2, 12) % 26
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture(scope="module")
def fitted():
    model = build("llama")
    return model, {name: UNTRAINED[name].fit(model, Letters(), DATA) for name in IN_PLACE}


@pytest.mark.parametrize("name", IN_PLACE)
def test_strength_zero_is_the_model_itself(fitted, name):
    model, methods = fitted
    before, base = state(model), logits(model)
    with methods[name].applied(model, 0.0) as changed:
        assert all(same_bits(before[key], tensor) for key, tensor in model.state_dict().items())
        assert torch.equal(logits(changed), base)


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_strength_changes_the_output_and_undo_restores_every_bit(fitted, name):
    model, methods = fitted
    before, base = state(model), logits(model)
    with methods[name].applied(model, STRONG.get(name, 1.0)) as changed:
        assert not torch.allclose(logits(changed), base, atol=1e-4)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(same_bits(before[key], after[key]) for key in before)
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("name", IN_PLACE)
def test_undo_happens_though_the_block_fails(fitted, name):
    model, methods = fitted
    base = logits(model)
    with pytest.raises(RuntimeError), methods[name].applied(model, 0.5):
        raise RuntimeError
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("name", IN_PLACE)
def test_only_the_stated_tensors_change(fitted, name):
    model, methods = fitted
    stated = {
        "wanda": ("self_attn.",),
        "ablation": ("embed_tokens", "o_proj", "down_proj"),
        "ridge_ablation": ("o_proj", "down_proj"),
        "ridge_own": ("o_proj", "down_proj"),
        "norm_preserving": ("o_proj", "down_proj"),
        "profs": ("down_proj",),
        "aura": ("down_proj",),
        "steer2edit": ("o_proj", "down_proj"),
        **{key: ("gate_proj",) for key in IN_PLACE if key.startswith("surgery")},
        "surgery_ridge": ("gate_proj", "o_proj", "down_proj"),
        "surgery_policy": ("gate_proj", "o_proj", "down_proj"),
        "policy": ("o_proj", "down_proj"),
    }.get(name, ())
    before = state(model)
    with methods[name].applied(model, STRONG.get(name, 1.0)):
        changed = {k for k, v in model.state_dict().items() if not same_bits(before[k], v)}
    assert bool(changed) == bool(stated)
    assert all(any(part in key for part in stated) for key in changed)


@pytest.mark.parametrize("name", IN_PLACE)
def test_the_same_seed_fits_the_same(fitted, name):
    model, methods = fitted
    again = UNTRAINED[name].fit(model, Letters(), DATA)
    with methods[name].applied(model, STRONG.get(name, 1.0)):
        first = logits(model)
    with again.applied(model, STRONG.get(name, 1.0)):
        assert torch.equal(logits(model), first)


@pytest.mark.parametrize("name", IN_PLACE)
def test_the_cost_is_stated(fitted, name):
    _, methods = fitted
    cost = methods[name].cost()
    assert cost.forward_tokens > 0 and cost.parameters > 0
    assert cost.backward_tokens == 0 and not cost.needs_gradients
    assert {"strength"} <= set(UNTRAINED[name].knobs) and BASELINES[name] is UNTRAINED[name]


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize(("method", "knobs"), BAKED, ids=lambda item: getattr(item, "name", ""))
def test_the_hook_equals_the_weights(method, knobs, architecture):
    model = build(architecture)
    found = method.fit(model, Letters(), DATA)
    strength = STRONG.get(method.name, 1.5)
    with found.applied(model, strength, **{**knobs, "baked": False}):
        hooked = logits(model)
    before = state(model)
    with found.applied(model, strength, **knobs):
        baked = logits(model)
    assert torch.allclose(hooked, baked, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(hooked, logits(model), atol=1e-3)
    assert all(same_bits(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("architecture", [*MODELS, "mixtral", "phi3"])
def test_full_ablation_as_hooks_equals_the_weights_even_with_tied_embeddings(architecture):
    model = build(architecture)
    found = Ablation().fit(model, Letters(), DATA)
    with found.applied(model, 1.0, form="hook"):
        hooked = logits(model)
    with found.applied(model, 1.0, form="weights"):
        assert torch.allclose(logits(model), hooked, atol=5e-4, rtol=1e-3)
    tied = model.config.tie_word_embeddings
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    assert (inputs.weight is outputs.weight) == tied


def test_ablated_states_have_nothing_along_the_direction():
    model = build("llama")
    found = Ablation().fit(model, Letters(), replace(DATA, prompts=BAD[:4]), source="prompts")
    with found.applied(model, 1.0, depth=0.5):
        states = activations.pooled_states(model, Letters(), BAD, layers=[1, 2], progress=False)
    direction = found.directions[2]
    assert (states @ direction).abs().max() < 1e-5 * states.norm(dim=-1).max()


def test_ablation_from_prompts_wants_benign_ones():
    with pytest.raises(UserError, match="benign"):
        Ablation().fit(
            build("llama"), Letters(), TrainingData(BAD + GOOD, DATA.labels), source="prompts"
        )


def test_steering_moves_the_state_by_the_vector():
    model = build("llama")
    found = Caa().fit(model, Letters(), DATA)
    before = activations.pooled_states(model, Letters(), BAD, layers=[2], progress=False)
    # The layer's own state is read where the block receives it, after the hook that moves it.
    with found.applied(model, 0.5, depth=2 / 3, baked=True):
        after = activations.pooled_states(model, Letters(), BAD, layers=[2], progress=False)
    moved = (after - before)[:, 0]
    assert torch.allclose(moved, (-0.5 * found.vectors[2]).expand_as(moved), atol=1e-4)


def test_grouped_heads_are_read_as_query_heads():
    model = build("llama")  # four query heads, two key heads
    found = Iti().fit(model, Letters(), DATA)
    assert found.accuracy.shape == (3, 4)
    assert found.shifts["probe"].shape == (3, 4, 8)
    assert found.count(0.5) == 6
    assert int((found.chosen(0.5, "probe").unflatten(1, (4, 8)).norm(dim=-1) > 0).sum()) == 6


def test_head_probes_are_logistic_regressions_of_the_last_token():
    model = build("llama")
    found = Iti().fit(model, Letters(), DATA)
    states = []
    for text in DATA.texts:
        seen = []
        attention = model.model.layers[1].self_attn.o_proj
        handle = attention.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0])
        )
        with torch.no_grad():
            model(input_ids=torch.tensor(Letters()([text])["input_ids"]))
        handle.remove()
        states.append(seen[0][0, -1, 8:16])
    x = torch.stack(states)
    mass = x[:8].mean(0) - x[8:].mean(0)
    unit = mass / mass.norm()
    expected = unit * (x @ unit).std()
    assert torch.allclose(found.shifts["mass_mean"][1, 1], expected, atol=1e-5)
    # The probe of that very head: fitted without the texts held out, scored on them alone.
    labels = np.asarray(DATA.labels)
    held = iti._held_out(labels, 0)
    assert held.sum() == 4
    values = x.double().numpy()
    theirs = LogisticRegression(max_iter=1000).fit(values[~held], labels[~held])
    unit = torch.from_numpy(theirs.coef_[0]).float()
    unit = unit / unit.norm()
    expected = unit * (x @ unit).std()
    torch.testing.assert_close(found.shifts["probe"][1, 1], expected, atol=1e-5, rtol=1e-3)
    assert float(found.accuracy[1, 1]) == pytest.approx(theirs.score(values[held], labels[held]))
    # And of no other head.
    assert not torch.allclose(found.shifts["probe"][1, 2], expected, atol=1e-3)


def test_the_singular_vector_of_value_vectors_does_not_hear_the_longest():
    model = build("llama")
    found = FeatureSubtraction().fit(model, Letters(), DATA).vectors
    with torch.no_grad():  # a value vector of another direction, and a hundred times as long
        model.model.layers[0].mlp.down_proj.weight[:, 3] *= 100
    after = feature_subtraction._values(model, found["probe"])
    assert torch.cosine_similarity(found["svd"], after["svd"], dim=0) > 0.999


def test_wanda_zeroes_the_lowest_fraction_of_each_row():
    weight = torch.tensor([[1.0, -5.0, 2.0, 0.1], [3.0, 0.2, -0.1, 9.0]])
    norms = torch.tensor([10.0, 1.0, 1.0, 100.0])
    expected = torch.tensor([[0, 0, 1, 0], [0, 1, 1, 0]], dtype=torch.bool)
    assert torch.equal(lowest(weight, norms, 0.25)[0], expected[0])
    assert torch.equal(lowest(weight, norms, 0.5)[1], expected[1])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_wanda_reads_the_norm_of_the_inputs(architecture):
    model = build(architecture)
    found = Wanda().fit(model, Letters(), DATA)
    name = next(iter(found.norms))
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0][0].double())
    )
    for text in GOOD:
        with torch.no_grad():
            model(input_ids=torch.tensor(Letters()([text])["input_ids"]))
    handle.remove()
    expected = torch.cat(seen).norm(dim=0).float()
    assert torch.allclose(found.norms[name], expected, rtol=1e-4)
    assert all("mlp" not in key for key in found.norms)


def test_surgery_is_the_same_edit_as_the_operation_itself():
    model = build("llama")
    found = SURGERY_PAPER.fit(model, Letters(), DATA)
    direction = found.directions["paper"][3]
    rows = region.select(region.cosine_scores(model, direction), 0.0465)
    gates = torch.cat([rows_.weight for rows_ in layout.weight_rows(model)]).clone()
    unit = direction / direction.norm() * region.mean_row_norm(model)
    with found.applied(model, 1.5):
        edited = torch.cat([rows_.weight for rows_ in layout.weight_rows(model)])
    gates[rows] += 1.5 * unit
    assert torch.allclose(edited, gates, atol=1e-6)
    assert found.cost().parameters == len(rows) * architectures.WIDTH
    assert set(SURGERY_PAPER.knobs) == {"strength"}


@pytest.mark.slow
@pytest.mark.usefixtures("as_published")
def test_the_paper_s_form_and_its_control_of_random_rows_stand_on_a_trained_probe(fitted):
    model, methods = fitted
    ours, control = (
        UNTRAINED[name].fit(model, Letters(), DATA)
        for name in ("surgery_paper", "surgery_random_rows")
    )
    assert torch.equal(ours.directions["paper"], control.directions["paper"])
    for one in (ours, control):
        assert one.start == one.starts["paper"][-1] and one.start["difference"] < 0.7
    about = ours.plan(model, 1.0, **PAPER).about  # what a card says
    assert about["cosine of W1 with its start"] == pytest.approx(ours.start["row"], abs=1e-3)
    assert not methods["surgery"].start and not methods["surgery_random_direction"].start


def test_a_depth_window_keeps_the_edit_in_its_blocks():
    model = build("llama")
    found = SurgeryMethod().fit(model, Letters(), DATA)
    before = state(model)
    with found.applied(model, 1.0, window="second half", rule="cosine", direction="lda", k=0.05):
        changed = {k for k, v in model.state_dict().items() if not same_bits(before[k], v)}
    assert changed and all(".layers.2." in key for key in changed)


def test_effect_rule_is_the_library_s():
    model = build("llama")
    found = SurgeryMethod().fit(model, Letters(), DATA)
    direction = found.directions["lda"][2]
    expected = effect_scores(model, Letters(), BAD, direction[None], progress=False)[0]
    assert torch.allclose(found.effects["lda"][2], expected, rtol=1e-4, atol=1e-7)
    with pytest.raises(UserError, match="rule"), found.applied(model, 1.0, rule="best"):
        pass


def test_labels_of_one_kind_are_refused():
    with pytest.raises(UserError, match="both"):
        TrainingData(GOOD, [0] * 8)
