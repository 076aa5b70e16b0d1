"""Virtual tokens: nothing where there are none, gradients where they belong, safe padding."""

from random import Random
from typing import Any

import pytest
import torch

from surgery_lib import files
from surgery_lib.baselines.training import Training
from surgery_lib.diagnostics import answers, retrieval
from surgery_lib.diagnostics.retrieval import Form, Question, Reader
from surgery_lib.experiments.retrieval import state_hash
from surgery_lib.patient import passages

SHORT = Form(each="[{n}] {p} ", tail="", asked="Q: {q} A:", end="")
ASKED = [
    Question("who", ("me", "I"), ("one is here", "two", "three is long enough"), 2),
    Question("what now", ("it",), ("four", "five"), 0),
    Question("why", ("so",), (), 0),
]


@pytest.fixture
def reader(tiny: tuple[Any, Any]) -> Reader:
    return Reader(*tiny, SHORT, longest=120)


def rows(reader: Reader) -> list[retrieval.Row]:
    reader.longest = 100
    return [reader.row(question, question.answers[0]) for question in ASKED]


def tokens(model: Any, k: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(k, model.config.hidden_size)


@torch.no_grad()
def test_no_tokens_are_the_model_itself_bit_for_bit(tiny: tuple[Any, Any], reader: Reader) -> None:
    model, _ = tiny
    for row in rows(reader):
        (found,) = retrieval.answer_logits(model, [row], tokens(model, 0))
        ids = [*row.before, *row.after, *row.answer]
        whole = model(torch.tensor([ids])).logits[0]
        assert torch.equal(found, whole[-len(row.answer) - 1 : -1])


def test_tokens_stand_between_passages_and_question(tiny: tuple[Any, Any], reader: Reader) -> None:
    model, _ = tiny
    row, virtual = rows(reader)[0], tokens(model, 3)
    at = len(row.before)
    (between,) = retrieval.embedded(model, [row], virtual)
    (front,) = retrieval.embedded(model, [row], virtual, "front")
    assert torch.equal(between[at : at + 3], virtual) and torch.equal(front[:3], virtual)
    assert torch.equal(between[:at], front[3 : at + 3])
    assert reader.tokenizer.decode(row.after) == "Q: who A:"
    assert reader.tokenizer.decode(row.answer) == " me</s>"
    assert reader.tokenizer.decode(row.before).endswith("[3] three is long enough ")


def test_gradients_reach_the_first_k_alone(tiny: tuple[Any, Any], reader: Reader) -> None:
    model, _ = tiny
    virtual = tokens(model, 5).requires_grad_()
    retrieval.answer_losses(model, rows(reader), virtual[:2]).sum().backward()
    assert virtual.grad is not None
    assert virtual.grad[:2].abs().sum() > 0 and virtual.grad[2:].abs().sum() == 0
    assert all(parameter.grad is None for parameter in model.parameters())


@torch.no_grad()
def test_the_first_tokens_do_not_depend_on_later_ones(
    tiny: tuple[Any, Any], reader: Reader
) -> None:
    model, _ = tiny
    virtual = tokens(model, 5)
    other = torch.cat([virtual[:2], torch.randn(3, virtual.shape[1])])
    before = retrieval.answer_losses(model, rows(reader), virtual[:2])
    assert torch.equal(before, retrieval.answer_losses(model, rows(reader), other[:2]))
    # And what passages and first tokens become does not see the later ones.
    at = len(rows(reader)[0].before) + 2
    states = [
        model(inputs_embeds=retrieval.embedded(model, rows(reader)[:1], e)[0][None]).logits[0, :at]
        for e in (virtual, other)
    ]
    assert torch.equal(*states)


@torch.no_grad()
def test_padding_changes_nothing(tiny: tuple[Any, Any], reader: Reader) -> None:
    model, tokenizer = tiny
    virtual, made = tokens(model, 2), rows(reader)
    together = retrieval.answer_losses(model, made, virtual)
    alone = torch.cat([retrieval.answer_losses(model, [row], virtual) for row in made])
    assert torch.allclose(together, alone, atol=1e-5)
    options = (virtual, "between", 5)
    said = answers.written(model, tokenizer, made, *options)
    each = [answers.written(model, tokenizer, [row], *options)[0] for row in made]
    assert said == each


def test_training_leaves_the_weights_and_lowers_the_loss(
    tiny: tuple[Any, Any], reader: Reader, tmp_path: Any
) -> None:
    model, _ = tiny
    before = state_hash(model)
    asked = [Question("who", ("me",), ("it is me",), 0)]
    training = Training(steps=30, lr=0.1, batch=1, progress=False)
    virtual, losses = retrieval.learn(model, reader, asked, training, length=4)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert virtual.shape == (4, 32)
    assert state_hash(model) == before
    files.write_tensors(tmp_path / "tokens.safetensors", {"embeddings": virtual}, {})
    assert torch.equal(files.read_tensors(tmp_path / "tokens.safetensors")["embeddings"], virtual)


def test_the_rival_has_about_as_many_parameters(tiny: tuple[Any, Any], reader: Reader) -> None:
    model, _ = tiny
    before = state_hash(model)
    lora = retrieval.closest_lora(model, 400)
    asked = [Question("who", ("me",), ("it is me",), 0)]
    delta, count = retrieval.learn_lora(
        model, reader, asked, Training(steps=2, batch=1, progress=False), lora
    )
    assert 200 <= count <= 800
    assert delta.touched > 0 and state_hash(model) == before


def test_the_passage_with_the_answer_stays_at_its_place() -> None:
    question = ASKED[0]
    assert question.shown(2, 1).passages == ("one is here", "three is long enough")
    assert question.shown(3, 0).passages[0] == question.passages[question.gold]
    assert question.shown(0).passages == ()
    assert question.shown(1).passages == ("three is long enough",)


def test_a_long_text_loses_its_beginning(tiny: tuple[Any, Any]) -> None:
    reader = Reader(*tiny, SHORT, longest=40)
    row = reader.row(ASKED[0], "me")
    assert len(row.before) + len(row.after) + len(row.answer) == 40
    assert row.before[0] == reader.tokenizer.bos_token_id
    assert reader.tokenizer.decode(row.after) == "Q: who A:"


def test_answers_are_compared_as_squad_does() -> None:
    assert answers.exact("The Fox!", ["fox"]) == 1.0
    assert answers.contained("it was a fox, surely", ["the fox"]) == 1.0
    assert answers.contained("foxes", ["fox"]) == 0.0
    assert answers.overlap("the red fox", ["fox den"]) == pytest.approx(0.5)
    assert answers.overlap("cat", ["fox"]) == 0.0


def test_the_patients_questions_have_their_answer_in_the_gold_passage() -> None:
    for split in ("train", "test"):
        asked, answer, told, gold = passages.draw(Random(split), split)
        assert len(told) == passages.PASSAGES
        assert all(word in told[gold] for word in answer.split()[1:])
        assert asked.endswith("?")
