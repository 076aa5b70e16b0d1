"""A model of the same shape that learnt nothing."""

import torch
from architectures import build, state

from surgery_lib.models import untrained


def test_it_has_the_shape_and_none_of_the_weights() -> None:
    model = build("llama").to(torch.bfloat16)
    before = {name: one.clone() for name, one in state(model).items()}
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = untrained(model), untrained(model), untrained(model, seed=1)
    assert torch.equal(torch.rand(3), drawn)  # the generator is left as it was
    for name, one in state(first).items():
        assert one.shape == before[name].shape and one.dtype == torch.bfloat16
        assert torch.equal(one, state(again)[name])
        if "proj" in name:
            assert not torch.equal(one, before[name])
            assert not torch.equal(one, state(other)[name])
    assert all(torch.equal(one, before[name]) for name, one in state(model).items())
