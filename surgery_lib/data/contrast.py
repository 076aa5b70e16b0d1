"""A behaviour from two instructions: a chat model writes the labelled texts itself.

"Answer with disclaimers" against "answer plainly", over the same prompts: each prompt is answered
under both, and the instruction is then taken out of what is kept. What differs between the labels
is the answer alone, and it is the model's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from surgery_lib.errors import UserError
from surgery_lib.models.generation import chat_prompt, generate
from surgery_lib.models.tokens import check_list

TOKENS = 40  # of an answer
NEEDED = 20  # prompts that are answered differently
HELD = 3  # one prompt in so many is not answered: it is kept to measure on


@dataclass(frozen=True)
class Contrast:
    """Texts of both labels, one pair a prompt, as the model reads them.

    `positive` and `negative` are a prompt with its answer, `answers` the answers alone; `prompts`
    are others in the chat template, without an instruction, which taught nothing.
    """

    positive: Sequence[str]
    negative: Sequence[str]
    answers: tuple[Sequence[str], Sequence[str]]
    prompts: Sequence[str]


def answers(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Sequence[str],
    shown: str,
    absent: str,
    *,
    max_new_tokens: int = TOKENS,
    progress: bool = True,
) -> Contrast:
    """Greedy answers under the instruction `shown` and under `absent`, to two prompts in three.

    The third is kept to measure on, as a probe has seen what it is fitted on. Prompts that are
    answered alike under both say nothing and are left out of the pairs.

    Raises UserError without a chat template, and where fewer than `NEEDED` pairs are left.
    """
    check_list(prompts, "prompts")
    asked = list(dict.fromkeys(prompt.strip() for prompt in prompts if prompt.strip()))
    least = NEEDED * HELD // (HELD - 1)
    if len(asked) < least:
        raise UserError(
            f"a contrast needs {least} different prompts, two in three to be answered and the rest "
            f"to measure on, and {len(asked)} are given; give more with prompts="
        )
    if shown.strip() == absent.strip():
        raise UserError("the two instructions of the contrast are the same; give two")
    held = asked[HELD - 1 :: HELD]
    asked = [prompt for number, prompt in enumerate(asked) if number % HELD != HELD - 1]
    plain = [chat_prompt(tokenizer, prompt) for prompt in asked]
    written = []
    for instruction in (shown, absent):
        told = [_told(tokenizer, instruction, prompt) for prompt in asked]
        found = generate(model, tokenizer, told, max_new_tokens=max_new_tokens, progress=progress)
        written.append([texts[0].strip() for texts in found])
    pairs = [
        (prompt, one, other)
        for prompt, one, other in zip(plain, *written, strict=True)
        if one and other and one != other
    ]
    if len(pairs) < NEEDED:
        raise UserError(
            f"the model answers {len(asked) - len(pairs)} of {len(asked)} prompts alike under both "
            f"instructions, and {NEEDED} pairs are needed; write plainer instructions, give more "
            "prompts, or give labelled texts"
        )
    return Contrast(
        positive=[prompt + one for prompt, one, _ in pairs],
        negative=[prompt + other for prompt, _, other in pairs],
        answers=([one for _, one, _ in pairs], [other for *_, other in pairs]),
        prompts=[chat_prompt(tokenizer, prompt) for prompt in held],
    )


def _told(tokenizer: Any, instruction: str, prompt: str) -> str:
    """A prompt under an instruction: as the system's turn, or before the prompt where it has none.

    Some templates refuse such a turn, and some drop it without a word.
    """
    try:
        text = chat_prompt(tokenizer, prompt, system=instruction)
    except UserError:
        return chat_prompt(tokenizer, f"{instruction}\n\n{prompt}")
    if instruction.strip() in text:
        return text
    return chat_prompt(tokenizer, f"{instruction}\n\n{prompt}")
