"""LEACE, linear-AcT and Steer2Edit: what each formula promises, and fitting in order."""

import numpy as np
import pytest
import torch
from architectures import Letters, build, same_bits, state
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cosine_similarity

from surgery_lib.baselines import sequence, tools
from surgery_lib.baselines.base import TrainingData
from surgery_lib.baselines.leace import Eraser, Leace, eraser
from surgery_lib.baselines.linear_act import LinearAct, transport
from surgery_lib.baselines.steer2edit import Steer2Edit, components, elastic
from surgery_lib.errors import UserError
from surgery_lib.models import layout

BAD = ["zyxz", "zzyzx", "xyzzyx", "yzyzz", "zx", "zyzyzyx", "xxz", "yyzx"]
GOOD = ["abca", "bbacab", "acabb", "caab", "ab", "cabcabc", "bca", "aacb"]
DATA = TrainingData(BAD + GOOD, [1] * 8 + [0] * 8, benign=GOOD[:4])
METHODS = [Leace(), LinearAct(), Steer2Edit()]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated states (300, 6), and labels of equal number that they tell well."""
    x = noise(300, 6) @ noise(6, 6, seed=1) + 5
    hidden = x @ noise(6, seed=2) + noise(300, seed=3)
    return x, (hidden > hidden.median()).long()


def fitted_eraser(x: torch.Tensor, z: torch.Tensor) -> Eraser:
    apart = x[z == 1].double().mean(0) - x[z == 0].double().mean(0)
    return eraser(x.double().mean(0), torch.cov(x.double().t(), correction=0), apart)


def accuracy(x: torch.Tensor, z: torch.Tensor) -> float:
    probe = LogisticRegression(C=1e6, max_iter=5000).fit(x.double().numpy(), z.numpy())
    return float(probe.score(x.double().numpy(), z.numpy()))


def test_leace_leaves_a_linear_probe_no_better_than_a_constant() -> None:
    x, z = labelled()
    erased = fitted_eraser(x, z)(x, 1.0)
    assert accuracy(x, z) > 0.85
    assert accuracy(erased, z) == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(erased[z == 1].mean(0), erased[z == 0].mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(erased.mean(0), x.mean(0), atol=1e-4, rtol=0)


def test_leace_changes_least_of_all_projections_that_erase() -> None:
    x, z = labelled()
    one = fitted_eraser(x, z)
    white = torch.linalg.cholesky(torch.linalg.inv(torch.cov(x.double().t())))

    def moved(right: torch.Tensor) -> tuple[float, float]:
        """Mean squared change of the projection along d that reads `right`, whitened and plain."""
        right = right / (right @ one.left)
        change = (Eraser(one.mean, one.left, right)(x, 1.0) - x).double()
        return float((change @ white).square().sum(1).mean()), float(change.square().sum(1).mean())

    least = moved(one.right)
    for right in [one.left, *(one.right + 0.1 * noise(6, seed=seed) for seed in range(20))]:
        assert all(ours < other for ours, other in zip(least, moved(right), strict=True))


def test_leace_erases_half_at_half_and_survives_flat_dimensions() -> None:
    x, z = labelled()
    x = torch.cat([x, torch.full((300, 1), 3.0), x[:, :1]], dim=1)  # constant, and twice the same
    one = fitted_eraser(x, z)
    torch.testing.assert_close(one(x, 0.5), (x + one(x, 1.0)) / 2)
    assert torch.equal(one(x, 0.0), x)
    assert float((one(x, 1.0)[z == 1].mean(0) - one(x, 1.0)[z == 0].mean(0)).abs().max()) < 1e-4


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma2", "mixtral"])
def test_scrubbing_leaves_no_layer_anything_a_line_could_tell(architecture: str) -> None:
    model = build(architecture)
    fitted = Leace().fit(model, Letters(), DATA)
    with fitted.applied(model, 1.0):
        for norm in sequence.norms_before(model):
            seen = tokens_of(model, norm)
            scale = float(seen[0].std(0).max())
            assert float((seen[0].mean(0) - seen[1].mean(0)).abs().max()) < 1e-3 * scale


def tokens_of(model: torch.nn.Module, norm: torch.nn.Module) -> list[torch.Tensor]:
    """What a norm gives out at all tokens of texts without and with the behaviour."""
    found: list[torch.Tensor] = []
    handle = norm.register_forward_hook(lambda _module, _args, output: found.append(output[0]))
    with handle, torch.no_grad():
        for text in DATA.texts:
            model(input_ids=torch.tensor(Letters()([text])["input_ids"]))
    return [torch.cat(found[8:]), torch.cat(found[:8])]


def test_linear_act_carries_a_gaussian_onto_another() -> None:
    source = noise(400, 5) * torch.arange(1, 6) + torch.arange(5)
    target = noise(400, 5, seed=1) * torch.tensor([3.0, 0.5, 1, 2, 0.1]) - 4
    one = transport(source, target)
    carried = one(source, 1.0)
    torch.testing.assert_close(carried.mean(0), target.mean(0), atol=1e-4, rtol=1e-4)
    # Sorted, two Gaussian samples are a line but for chance.
    torch.testing.assert_close(carried.std(0), target.std(0), rtol=0.02, atol=0)
    assert torch.equal(one(source, 0.0), source)
    torch.testing.assert_close(one(source, 0.5), (source + carried) / 2)


def test_linear_act_is_the_authors_least_squares_within_its_support() -> None:
    source, target = noise(30, 3).exp(), noise(20, 3, seed=1)
    one = transport(source, target)
    for j in range(3):
        a, b = (np.sort(values[:20, j].double().numpy()) for values in (source, target))
        omega, beta = np.polyfit(a, b, 1)
        assert float(one.omega[j]) == pytest.approx(omega, rel=1e-4)
        assert float(one.beta[j]) == pytest.approx(beta, rel=1e-4)
        assert (float(one.low[j]), float(one.high[j])) == pytest.approx((a[0], a[-1]))
    outside = torch.full((1, 3), 1e3)
    assert torch.equal(one(outside, 1.0), outside)
    assert not torch.equal(transport(source, target, support=False)(outside, 1.0), outside)
    flat = transport(torch.ones(4, 1), torch.tensor([[2.0], [3], [4], [5]]))
    assert float(flat(torch.ones(1, 1), 1.0)) == 3.5


def test_every_map_is_fitted_behind_those_before_it() -> None:
    model = build("llama")
    fitted = LinearAct().fit(model, Letters(), DATA, support=False)
    norms = sequence.norms_behind(model)
    assert len(fitted.maps) == len(norms) == 6
    before = {i: pooled(model, norm) for i, norm in enumerate(norms)}
    for last in range(len(norms)):
        handles = [
            tools.on_output(norm, lambda x, one=one: one(x, 1.0))
            for norm, one in zip(norms[:last], fitted.maps, strict=False)
        ]
        with tools.hooked(handles):
            now = pooled(model, norms[last])
        again = transport(now[:8], now[8:])
        torch.testing.assert_close(fitted.maps[last].omega, again.omega, atol=1e-3, rtol=1e-3)
        assert (last == 0) == torch.allclose(now, before[last])


def pooled(model: torch.nn.Module, norm: torch.nn.Module) -> torch.Tensor:
    """Mean output of a norm over each text's tokens: (texts, width)."""
    found: list[torch.Tensor] = []
    handle = norm.register_forward_hook(lambda _module, _args, out: found.append(out[0].mean(0)))
    with handle, torch.no_grad():
        for text in DATA.texts:
            model(input_ids=torch.tensor(Letters()([text])["input_ids"]))
    return torch.stack(found)


def test_norms_are_those_that_read_and_gemma_s_that_write() -> None:
    model = build("gemma2")
    block = layout.blocks(model)[0]
    before, behind = sequence.norms_before(model), sequence.norms_behind(model)
    assert before[:2] == [block.input_layernorm, block.pre_feedforward_layernorm]
    assert behind[:2] == [block.post_attention_layernorm, block.post_feedforward_layernorm]
    with pytest.raises(UserError, match="no norm found"):
        sequence._found(torch.nn.Linear(2, 2), sequence.BEFORE)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_done_is_undone_bit_for_bit(method, dtype) -> None:
    model = build("llama-biased", dtype)
    before, ids = state(model), torch.arange(12)[None]
    with torch.no_grad():
        base = model(input_ids=ids).logits
        fitted = method.fit(model, Letters(), DATA)
        assert torch.equal(model(input_ids=ids).logits, base)
        with fitted.applied(model, 1.0) as changed:
            after = changed(input_ids=ids).logits
        assert after.dtype == base.dtype and after.isfinite().all()
        assert not torch.equal(after, base)
        assert torch.equal(model(input_ids=ids).logits, base)
    assert all(same_bits(before[name], tensor) for name, tensor in model.state_dict().items())


def test_too_few_texts_are_refused() -> None:
    few = TrainingData(["zyxz", "abca"], [1, 0])
    with pytest.raises(UserError, match="8 tokens do not give a covariance of 32 dimensions"):
        Leace().fit(build("llama"), Letters(), few)
    with pytest.raises(UserError, match="at least 2 with and 2 without"):
        LinearAct().fit(build("llama"), Letters(), few)


def test_steer2edit_edits_what_writes_along_the_vector_and_nothing_else() -> None:
    weight, without, with_it = noise(5, 6), noise(6, seed=1), noise(6, seed=2)
    one = components(weight, without, with_it, 3)
    mean = (without + with_it) / 2
    assert torch.allclose(
        one.write, torch.nn.functional.normalize(weight @ (without - with_it), dim=0)
    )
    for i in range(3):
        block = weight[:, 2 * i : 2 * i + 2]
        written = block @ mean[2 * i : 2 * i + 2]
        assert float(one.gains[i]) == pytest.approx(float(cosine_similarity(one.write, written, 0)))
        read = block.t() @ one.write
        torch.testing.assert_close(one.reads[i], read / read.norm())
    gains = torch.tensor([0.5, -0.4, 0.1])
    # rho a = .2 and rho (1 - a) = .2.
    torch.testing.assert_close(elastic(gains, 0.4, 0.5), torch.tensor([1.5, -1.0, 0.0]))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_steer2edit_s_weights_are_its_formula(architecture: str) -> None:
    model = build(architecture)
    fitted = Steer2Edit().fit(model, Letters(), DATA)
    block = layout.blocks(model)[1]
    before = [
        tools.writes(m).clone() for m in (tools.attention_output(block), tools.mlp_output(block))
    ]
    knobs = {"rho_heads": 0.4, "rho_units": 0.6, "share": 0.5}
    with fitted.applied(model, 2.0, **knobs):
        after = [tools.writes(tools.attention_output(block)), tools.writes(tools.mlp_output(block))]
        for old, new, (one, factors) in zip(
            before, after, fitted.edits(**knobs)[1::3], strict=True
        ):
            change = 2 * torch.outer(one.write, (factors[:, None] * one.reads).flatten())
            torch.testing.assert_close(new, old + change)
    whole = fitted.cost(**knobs, strength=2.0).parameters
    assert 0 < fitted.cost(**{**knobs, "share": 0.9}).parameters < whole
