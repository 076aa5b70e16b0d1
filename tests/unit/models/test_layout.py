"""Every architecture's rows are found, as views of the model, or it is refused by name."""

import architectures as tiny
import pytest
import torch

from surgery_lib.errors import UserError
from surgery_lib.models import layout


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_rows_of_every_architecture(name: str) -> None:
    model = tiny.build(name)
    found = layout.weight_rows(model)
    assert [len(rows.weight) for rows in found] == tiny.GATE_ROWS[name]
    assert {rows.weight.shape[1] for rows in found} == {tiny.WIDTH}
    assert [rows.block for rows in found] == sorted(rows.block for rows in found)
    assert layout.total_rows(model) == sum(tiny.GATE_ROWS[name]) == len(layout.row_blocks(model))
    assert layout.hidden_width(model) == tiny.WIDTH
    assert len(layout.blocks(model)) == 3


@pytest.mark.parametrize("matrix", ["gate", "up", "down", "q", "k", "v", "o"])
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_rows_are_views_or_refused(name: str, matrix: str) -> None:
    model = tiny.build(name)
    try:
        found = layout.weight_rows(model, matrix)
    except UserError as error:  # fused attention, or no gate: what was looked for is named
        assert "looked for" in str(error) and matrix in str(error)
        return
    for number, rows in enumerate(found):
        rows.weight.fill_(number + 1000.0)
    for number, rows in enumerate(found):  # none overlaps another
        assert (rows.weight == number + 1000.0).all()
    held = sum(int((tensor >= 1000).sum()) for tensor in model.parameters())
    assert held == sum(rows.weight.numel() for rows in found)
    assert all((model.get_parameter(rows.parameter) >= 1000).any() for rows in found)


def test_gate_half_of_fused_and_stacked() -> None:
    phi = tiny.build("phi3")
    fused = phi.model.layers[1].mlp.gate_up_proj.weight
    assert torch.equal(layout.weight_rows(phi)[1].weight, fused[: tiny.UNITS])
    mixture = tiny.build("mixtral")
    stacked = mixture.model.layers[0].mlp.experts.gate_up_proj
    assert torch.equal(layout.weight_rows(mixture)[2].weight, stacked[2, : tiny.UNITS])
    gpt2 = tiny.build("gpt2")
    assert torch.equal(layout.weight_rows(gpt2)[0].weight, gpt2.transformer.h[0].mlp.c_fc.weight.T)


def test_mixture_numbers_experts_and_dense_blocks() -> None:
    found = layout.weight_rows(tiny.build("qwen3_moe"))
    assert [(rows.block, rows.expert) for rows in found] == [
        *((0, expert) for expert in range(tiny.EXPERTS)),
        (1, None),
        *((2, expert) for expert in range(tiny.EXPERTS)),
    ]


@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral", "qwen3_moe"])
def test_gate_rows_decide_what_their_unit_writes(name: str) -> None:
    """Gate row r, up row r and down row r belong to one unit: without them its part is gone."""
    model = tiny.build(name)
    ids = torch.randint(0, tiny.VOCABULARY, (1, 40))
    for rows in layout.weight_rows(model, "gate"):
        rows.weight.zero_()
    with torch.no_grad():
        silent = model(ids).logits
    for rows in layout.weight_rows(model, "down"):
        rows.weight.zero_()
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, silent, atol=1e-6)  # act(0) = 0


@pytest.mark.parametrize("name", tiny.UNKNOWN)
def test_unknown_architecture_lists_what_was_looked_for(name: str) -> None:
    with pytest.raises(UserError, match="looked for") as caught:
        layout.weight_rows(tiny.build(name))
    assert "layout.py" in str(caught.value) and "\n" not in str(caught.value)


def test_no_blocks_at_all() -> None:
    with pytest.raises(UserError, match=r"no decoder blocks found \(looked for layers"):
        layout.blocks(torch.nn.Linear(2, 2))


def test_unknown_matrix() -> None:
    with pytest.raises(UserError, match="choose one of gate, up"):
        layout.weight_rows(tiny.build("llama"), "gates")


def test_weights_that_cannot_be_edited() -> None:
    meta = tiny.build("llama").to("meta")
    with pytest.raises(UserError, match="not in memory"):
        layout.weight_rows(meta)
    quantized = tiny.build("llama")
    gate = quantized.model.layers[0].mlp.gate_proj
    gate.weight = torch.nn.Parameter(gate.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(UserError, match="quantized"):
        layout.weight_rows(quantized)


def test_split_by_matrix() -> None:
    parts = list(layout.split_by_matrix([3, 2, 4], torch.tensor([0, 2, 5, 8])))
    assert [(n, local.tolist()) for n, local, _ in parts] == [(0, [0, 2]), (2, [0, 3])]
    assert [part for *_, part in parts] == [slice(0, 2), slice(2, 4)]
