"""The closed-form gradient of a text's likelihood against automatic differentiation."""

from typing import Any

import pytest
import torch
from architectures import build

from surgery_lib.errors import UserError
from surgery_lib.surgery import likelihood

ROWS = [[3, 5, 7, 4], [6, 2, 9, 9, 1]]
STARTS = [1, 3]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_gradient_is_that_of_the_mean_log_likelihood(name: str) -> None:
    """By the normed state it is exact; the gain is checked on a norm that is not of ones."""
    model: Any = build(name)
    found = likelihood.gradients(model, ROWS, STARTS)
    for number, (row, start) in enumerate(zip(ROWS, STARTS, strict=True)):
        ids = torch.tensor([row])
        base = model.base_model
        states = base(input_ids=ids).last_hidden_state.detach().requires_grad_()
        logits = model.get_output_embeddings()(states)[0, start - 1 : -1]
        picked = logits.log_softmax(-1).gather(-1, ids[0, start:, None])
        (slope,) = torch.autograd.grad(picked.mean(), states)
        norm = next(getattr(base, n) for n in likelihood.FINAL_NORMS if hasattr(base, n))
        gain = likelihood.gain_of(norm, slope.shape[-1])
        torch.testing.assert_close(found[number], slope[0].sum(0) * gain, atol=1e-5, rtol=1e-4)


def test_a_step_along_it_makes_the_text_likelier() -> None:
    model: Any = build("llama")
    step = likelihood.gradients(model, ROWS[:1], [1])[0]

    @torch.no_grad()
    def likely() -> float:
        logits = model(torch.tensor(ROWS[:1])).logits[0, :-1].log_softmax(-1)
        return float(logits.gather(-1, torch.tensor(ROWS[0])[1:, None]).sum())

    before = likely()
    handle = model.base_model.norm.register_forward_pre_hook(lambda _, args: (args[0] + step,))
    assert likely() > before
    handle.remove()


def test_what_has_no_token_that_counts_is_refused() -> None:
    with pytest.raises(UserError, match="no token from 2 on"):
        likelihood.gradients(build("llama"), [[1, 2]], [2])
