"""Models for tests: random ones on disk, ones whose every answer is known, a byte tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers as tk
import torch
import transformers as hf
from transformers.modeling_outputs import CausalLMOutput


def byte_tokenizer(*, special: bool = True) -> Any:
    """One token a byte. With `special`: pad 0, begin 1 (put before every text), end 2.

    Without: no pad and no begin token, id 0 is a real one ("!"), and the end token comes last.
    """
    letters = sorted(tk.pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<s>", "</s>", *letters] if special else [*letters, "</s>"]
    made = tk.Tokenizer(tk.models.BPE({name: i for i, name in enumerate(names)}, []))
    made.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tk.decoders.ByteLevel()
    if special:
        made.post_processor = tk.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    options = {"pad_token": "<pad>", "bos_token": "<s>"} if special else {}
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", **options)


def save_llama(folder: Path, tokenizer: Any, *, std: float | None = None, **sizes: int) -> None:
    """Write a Llama with random weights, always the same, and its tokenizer.

    `sizes` are of its configuration. Weights of deviation `std`, where given, are wide enough that
    no two logits are nearly equal.
    """
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        **sizes,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = hf.LlamaForCausalLM(config)
    for parameter in model.parameters() if std else ():
        torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


Next = Callable[[list[int]], int]


class Scripted(hf.PreTrainedModel, hf.GenerationMixin):
    """Gives all probability to the token that a function of the ids so far names."""

    config_class = hf.LlamaConfig
    main_input_name = "input_ids"

    def __init__(self, tokenizer: Any, following: Next):
        super().__init__(hf.LlamaConfig(num_hidden_layers=1))
        self.size = len(tokenizer)
        self.following = following
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.generation_config = hf.GenerationConfig(eos_token_id=tokenizer.eos_token_id)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: Any = None, **_: Any
    ) -> Any:
        """All ids each step: the script looks at everything written."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(
        self, input_ids: torch.Tensor, attention_mask: Any = None, **_: Any
    ) -> CausalLMOutput:
        """Logits of the last position, zero and minus infinity."""
        logits = torch.full((*input_ids.shape, self.size), -1e9)
        for row, ids in enumerate(input_ids):
            mask = torch.ones_like(ids) if attention_mask is None else attention_mask[row]
            logits[row, -1, self.following(ids[mask.bool()].tolist())] = 0.0
        return CausalLMOutput(logits=logits)


def echo(tokenizer: Any) -> Scripted:
    """Repeats what stands before "|", and ends."""
    bar = tokenizer("|", add_special_tokens=False)["input_ids"][0]

    def following(ids: list[int]) -> int:
        split = ids.index(bar)
        prompt = [i for i in ids[:split] if i != tokenizer.bos_token_id]
        written = len(ids) - split - 1
        return prompt[written] if written < len(prompt) else tokenizer.eos_token_id

    return Scripted(tokenizer, following)


def says(tokenizer: Any, answer: str) -> Scripted:
    """Answers everything that ends in "|" with the same words."""
    bar = tokenizer("|", add_special_tokens=False)["input_ids"][0]
    target = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    def following(ids: list[int]) -> int:
        return target[len(ids) - 1 - max(i for i, token in enumerate(ids) if token == bar)]

    return Scripted(tokenizer, following)


class Uniform(hf.PreTrainedModel):
    """Every next token alike; with `favourite`, that one gets half of the probability."""

    config_class = hf.LlamaConfig

    def __init__(self, size: int, favourite: int | None = None):
        super().__init__(hf.LlamaConfig(num_hidden_layers=1))
        self.head = torch.nn.Linear(1, size)
        self.logits = torch.zeros(size)
        if favourite is not None:
            self.logits[favourite] = torch.log(torch.tensor(size - 1.0))

    def get_output_embeddings(self) -> torch.nn.Linear:
        """A head of the right width."""
        return self.head

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
        """The same logits everywhere."""
        return CausalLMOutput(logits=self.logits.expand(*input_ids.shape, -1))
