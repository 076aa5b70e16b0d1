"""Rewards by hand, baselines that sum to zero, copying barred, and a whole small siege."""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from surgery_lib.baselines.training import Training
from surgery_lib.baselines.tuning import Delta
from surgery_lib.diagnostics import attack, attack_ladders
from surgery_lib.diagnostics import attack_reward as reward
from surgery_lib.diagnostics.attack_policy import Policy, parse
from surgery_lib.diagnostics.attack_reward import Attempt, Target, Victim

TARGET = Target("t", "a b c d e f g h", "why not")


def by_hand(victim: Victim, prompt: str, opening: str, answer: str) -> float:
    """Token by token, each with a forward pass of its own."""
    ids = victim.tokenizer(prompt)["input_ids"]
    given = victim.tokens(opening)[: len(victim.tokens(answer)) // 4] if opening else []
    rest = victim.tokens(answer)[len(given) :]
    ids, total = [*ids, *given], 0.0
    for token in rest:
        logits = victim.model(torch.tensor([ids])).logits[0, -1]
        total += float(logits.log_softmax(-1)[token])
        ids.append(token)
    return total / len(rest)


def test_a_reward_is_the_mean_log_probability_by_hand(tiny: tuple[Any, Any]) -> None:
    victim = Victim(*tiny)
    attempts = [Attempt("why not"), Attempt("go on", "zz"), Attempt("x", "far too long an opening")]
    found = reward.rewards(victim, [TARGET] * 3, attempts, batch=2)
    for value, attempt in zip(found, attempts, strict=True):
        wanted = by_hand(victim, attempt.query, attempt.opening, TARGET.answer)
        assert math.isclose(value, wanted, abs_tol=1e-4)


def test_openings_are_cut_to_a_quarter(tiny: tuple[Any, Any]) -> None:
    victim = Victim(*tiny)
    opening = victim.opening(TARGET, Attempt("x", "a b c d e f g h"))
    assert len(opening) == len(victim.tokens(TARGET.answer)) // 4
    row, start = victim.row(TARGET, Attempt("x", "a b c d e f g h"))
    assert row[start:] == victim.tokens(TARGET.answer)[len(opening) :]


def test_chat_queries_go_through_the_template(tiny: tuple[Any, Any]) -> None:
    assert Victim(*tiny, chat=True).prompt("hello").endswith("[user]hello\n[assistant]")


def test_copying_is_barred(tiny: tuple[Any, Any]) -> None:
    assert reward.copied("a b c d", "x A B C y") == 0.75
    assert reward.copied("a b c d", "a x b") == 0.25
    copying, fair, empty = Attempt("say a b c d e now"), Attempt("say a b c d now"), Attempt("")
    assert reward.barred(TARGET, copying) and not reward.barred(TARGET, fair)
    assert reward.barred(TARGET, Attempt("say a b c", "d e f"))  # query and opening together
    found = reward.rewards(Victim(*tiny), [TARGET] * 3, [copying, fair, empty])
    assert [math.isnan(value) for value in found] == [True, False, True]


def test_the_baseline_leaves_one_out() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    found = attack.leave_one_out(values)
    assert torch.allclose(found.sum(1), torch.zeros(2), atol=1e-6)
    assert float(found[0, 2]) == 6.0 - 1.5


def test_barred_attempts_are_worth_less_than_any_that_counts() -> None:
    filled = attack.filled(torch.tensor([-3.0, math.nan, -1.0]))
    assert filled.tolist() == [-3.0, -4.0, -1.0]
    assert attack.filled(torch.tensor([math.nan])).tolist() == [0.0]


def test_the_best_of_more_is_never_worse() -> None:
    values = np.random.default_rng(0).normal(size=(5, 8))
    values[0, :3] = np.nan
    found = attack.best_of(values)
    assert (np.diff(found[1:], axis=1) >= 0).all()
    assert np.isneginf(found[0, :3]).all() and np.isfinite(found[0, 3:]).all()
    assert np.array_equal(found[1:, -1], values[1:].max(1))


def test_an_edit_of_strength_zero_leaves_no_gap(tiny: tuple[Any, Any]) -> None:
    victim = Victim(*tiny)
    attempts = [Attempt("why"), Attempt("go", "a")]
    before = reward.rewards(victim, [TARGET] * 2, attempts)
    name = "model.layers.0.mlp.gate_proj.weight"
    change = Delta({name: torch.ones_like(victim.model.get_parameter(name))})
    with change.applied(victim.model, 0.0):
        assert reward.rewards(victim, [TARGET] * 2, attempts) == before
    with change.applied(victim.model, 1.0):
        assert reward.rewards(victim, [TARGET] * 2, attempts) != before


def test_a_ladder_always_leaves_a_token_to_say(tiny: tuple[Any, Any]) -> None:
    victim = Victim(*tiny)
    length = len(victim.tokens(TARGET.answer))
    prefixes = (0, 2, length - 1, length + 5)
    found = attack_ladders.ladder(victim, [TARGET], ["why not", "go on"], prefixes)
    assert found.shape == (4, 1, 2) and np.isfinite(found).all()
    assert math.isclose(found[0, 0, 0], by_hand(victim, "why not", "", TARGET.answer), abs_tol=1e-4)
    assert np.array_equal(found[2], found[3])


def test_what_was_written_is_read_again() -> None:
    assert parse(" why so?\nOpening: Sure\nmore") == Attempt("why so?", "Sure")
    assert parse(" why so?") == Attempt("why so?", "")


def test_a_training_moves_the_attacker_alone(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    policy = Policy(model, tokenizer, length=12)
    pairs = [Target(str(i), f"answer {i}", f"ask {i}") for i in range(4)]
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    losses = policy.warm_up(pairs, Training(steps=12, lr=1e-2, batch=4, progress=False))
    assert losses[-1] < losses[0]
    warm = {name: value.clone() for name, value in policy.model.state_dict().items()}
    settings = attack.Settings(steps=2, batch=2, samples=2, lr=1e-2)
    found = attack.learn(policy, Victim(model, tokenizer), pairs, settings, nullcontext())
    assert len(found.rewards) == len(found.kl) == 2
    assert abs(found.kl[0]) < 1e-5  # the first attempts are the warm start's own
    assert found.delta.touched > 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name])
    for name, value in policy.model.state_dict().items():
        assert torch.equal(value, warm[name])


def test_attempts_depend_on_the_seed_alone(tiny: tuple[Any, Any]) -> None:
    policy = Policy(*tiny, length=8)
    first = policy.write([TARGET], 3, seed=1)
    assert first == policy.write([TARGET], 3, seed=1)
    assert first != policy.write([TARGET], 3, seed=2)
    assert attack.diversity([[Attempt("a"), Attempt("a"), Attempt("b"), Attempt("c")]]) == 0.75
