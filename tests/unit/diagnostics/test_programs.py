"""Programs made here, and the sentence encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surgery_lib.diagnostics import programs
from surgery_lib.diagnostics.encoder import SentenceEncoder
from surgery_lib.errors import UserError


def test_problems_of_training_and_test_differ_and_programs_do_not_repeat() -> None:
    held = {split: programs.made(split, 6) for split in ("train", "test")}
    labels = [{program.label for program in part} for part in held.values()]
    assert not labels[0] & labels[1] and len(labels[0]) == len(labels[1]) == 4
    every = [program.code for part in held.values() for program in part]
    assert len(set(every)) == len(every) == 48
    assert all(code.count("{") == code.count("}") > 0 for code in every)
    assert programs.made("test", 6) == held["test"]


def test_poj_is_cut_alike_for_every_problem(mirror: Path) -> None:
    held = {split: programs.poj(split, 5) for split in ("train", "test")}
    assert not {p.label for p in held["train"]} & {p.label for p in held["test"]}
    assert all(len(program.code) <= 1200 for part in held.values() for program in part)


def test_a_text_is_encoded_alike_in_any_company(tmp_path: Path) -> None:
    import transformers as hf
    from scripted import byte_tokenizer

    tokenizer = byte_tokenizer()
    config = hf.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=256,
    )
    hf.BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder: Any = SentenceEncoder(str(tmp_path))
    together = encoder(["short", "a much longer sentence"])
    assert together.shape == (2, 16)
    assert np.allclose(together[0], encoder(["short"])[0], atol=1e-5)


def test_an_encoder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        SentenceEncoder(str(tmp_path))
