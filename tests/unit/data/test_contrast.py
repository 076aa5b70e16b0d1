"""Labelled texts from two instructions, by a model whose every answer is known."""

from typing import Any

import pytest
import scripted

from surgery_lib.data.contrast import answers
from surgery_lib.errors import UserError
from surgery_lib.selection.find import find_surgery

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}|{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
DROPPING = TEMPLATE.replace("in messages", "in messages if m['role'] == 'user'")
PROMPTS = [f"question {number}" for number in range(39)]


def loudmouth(tokenizer: Any) -> Any:
    """Says "NO!" where it is told to be loud, "yes" elsewhere; to question 7 "hm" in any case."""

    def following(ids: list[int]) -> int:
        asked, _, written = tokenizer.decode(ids, skip_special_tokens=True).rpartition(">")
        answer = "NO!" if "loud" in asked else "yes"
        if "question 7|" in asked:
            answer = "hm"
        if len(written) == len(answer):
            return int(tokenizer.eos_token_id)
        return int(tokenizer(answer[len(written)], add_special_tokens=False)["input_ids"][0])

    return scripted.Scripted(tokenizer, following)


@pytest.fixture
def tokenizer() -> Any:
    tokenizer = scripted.byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_each_prompt_is_answered_under_both_and_the_instruction_is_gone(tokenizer: Any) -> None:
    made = answers(loudmouth(tokenizer), tokenizer, PROMPTS, "be loud", "be calm")
    assert len(made.positive) == len(made.negative) == 25 and len(made.prompts) == 13
    assert made.positive[0] == "[user]question 0|>NO!"
    assert made.negative[0] == "[user]question 0|>yes"
    assert set(made.answers[0]) == {"NO!"} and set(made.answers[1]) == {"yes"}
    assert not any("question 7|" in text for text in made.positive)
    # What is measured on taught nothing.
    assert not any(text.startswith(prompt) for text in made.positive for prompt in made.prompts)


@pytest.mark.parametrize("template", [REFUSING + TEMPLATE, DROPPING])
def test_templates_without_a_systems_turn_are_told_before_the_prompt(
    tokenizer: Any, template: str
) -> None:
    tokenizer.chat_template = template
    made = answers(loudmouth(tokenizer), tokenizer, PROMPTS, "be loud", "be calm")
    assert set(made.answers[0]) == {"NO!"} and made.positive[0] == "[user]question 0|>NO!"


def test_what_gives_no_contrast_is_one_line(tokenizer: Any) -> None:
    model = loudmouth(tokenizer)
    with pytest.raises(UserError, match="26 of 26 prompts alike"):
        answers(model, tokenizer, PROMPTS, "be calm", "be quiet")
    with pytest.raises(UserError, match="are the same"):
        answers(model, tokenizer, PROMPTS, "be calm", "be calm ")
    with pytest.raises(UserError, match="needs 30 different prompts"):
        answers(model, tokenizer, PROMPTS[:5], "be loud", "be calm")
    with pytest.raises(UserError, match="prompts are a list of texts"):
        answers(model, tokenizer, "".join(map(chr, range(33, 90))), "be loud", "be calm")
    with pytest.raises(UserError, match="give one of the two"):
        find_surgery(model, tokenizer, ["a"], ["b"], contrast=("be loud", "be calm"))
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        answers(model, tokenizer, PROMPTS, "be loud", "be calm")
