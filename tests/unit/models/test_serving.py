"""Engines in place of a live model: the same tokens in, the same text out; and vLLM itself."""

from pathlib import Path
from typing import Any

import pytest
import scripted
import torch

from surgery_lib.behaviour import Prompt
from surgery_lib.checkpoint.adapter import export_adapter
from surgery_lib.errors import UserError
from surgery_lib.evaluation.capability import capability
from surgery_lib.evaluation.completions import complete
from surgery_lib.models import load_model, serving
from surgery_lib.models.generation import generate
from surgery_lib.models.serving import engine, served
from surgery_lib.profile import EvaluationSettings
from surgery_lib.surgery import Surgery

PROMPTS = ["a", "Once upon a time", "b c d", "zz", "The quick brown fox jumps", "", "!", "a"]
SPACE = {"enforce_eager": True, "max_model_len": 128}


class Typewriter:
    """An engine over a live model, one prompt at a time, as transformers decodes by itself."""

    def __init__(self, model: Any):
        self.model = model
        self.config, self.generation_config = model.config, model.generation_config
        self.seeds: list[int] = []

    def write(self, rows: Any, decoding: Any) -> Any:
        self.seeds.extend(decoding.seeds)
        written = []
        for row in rows:
            ids = torch.tensor([row])
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=decoding.max_new_tokens,
                pad_token_id=0,
            )
            written.append([output[0, len(row) :].tolist()] * decoding.samples)
        return written


def test_an_engine_reads_the_same_tokens_and_its_text_ends_alike(tiny: Any) -> None:
    model, tokenizer = tiny
    for stop in ((), ("e",)):
        usual = generate(model, tokenizer, PROMPTS, max_new_tokens=12, stop=stop)
        other = generate(Typewriter(model), tokenizer, PROMPTS, max_new_tokens=12, stop=stop)
        assert other == usual


def test_equal_prompts_draw_from_seeds_of_their_own(tiny: Any) -> None:
    model, tokenizer = tiny
    first, again, other = (Typewriter(model) for _ in range(3))
    options: dict[str, Any] = {"max_new_tokens": 2, "samples": 2, "temperature": 1.0}
    generate(first, tokenizer, PROMPTS, **options)
    generate(again, tokenizer, PROMPTS, **options)
    generate(other, tokenizer, PROMPTS, seed=1, **options)
    assert len(set(first.seeds)) == len(PROMPTS) and first.seeds == again.seeds
    assert not set(first.seeds) & set(other.seeds)


def test_completions_of_an_engine_are_kept_and_taken_up_again(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    prompts = [Prompt(id=str(i), text=text, group="g") for i, text in enumerate(PROMPTS)]
    options: dict[str, Any] = {"settings": {"max_new_tokens": 4}, "path": tmp_path / "rows.jsonl"}
    found = complete(Typewriter(model), tokenizer, prompts, **options)
    none = Typewriter(model)
    assert complete(none, tokenizer, prompts, **options) == found and none.seeds == []


def test_without_vllm_the_error_says_how_to_get_it(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"model-surgery\[vllm\]"), served(tiny_folder):
        pass


def test_the_live_model_is_its_own_engine(tiny: Any) -> None:
    model, tokenizer = tiny
    with engine(model, tokenizer, EvaluationSettings()) as found:
        assert found is model


@pytest.fixture
def vllm() -> None:
    """The engine itself; the test is skipped, and says so, without it."""
    pytest.importorskip("vllm", reason="VLLM IS NOT INSTALLED: nothing was tested on it")


@pytest.mark.usefixtures("vllm")
def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"), served(tmp_path):
        pass


@pytest.mark.usefixtures("vllm")
def test_vllm_writes_and_answers_as_the_live_edited_model(
    tmp_path: Path,
    tasks: Path,
) -> None:
    # Its attention knows no heads of fewer than 32.
    sizes = {"hidden_size": 64, "intermediate_size": 48, "num_attention_heads": 2}
    limits = {"num_hidden_layers": 2, "max_position_embeddings": 128}
    scripted.save_llama(tmp_path / "m", scripted.byte_tokenizer(), std=0.3, **sizes, **limits)
    model, tokenizer = load_model(str(tmp_path / "m"))
    edit = Surgery.build(model, torch.arange(0, 96, 3), torch.ones(64), strength=2.0)
    before = generate(model, tokenizer, PROMPTS, max_new_tokens=12)
    options: dict[str, Any] = {"include_path": tasks}
    with edit.applied(model):
        live = generate(model, tokenizer, PROMPTS, max_new_tokens=12)
        cut = generate(model, tokenizer, PROMPTS, max_new_tokens=12, stop=("e",))
        answers = capability(model, tokenizer, ["tiny_choice", "tiny_write"], **options)
        with engine(
            model, tokenizer, EvaluationSettings(engine="vllm", engine_options=SPACE)
        ) as other:
            assert generate(other, tokenizer, PROMPTS, max_new_tokens=12) == live != before
            assert generate(other, tokenizer, PROMPTS, max_new_tokens=12, stop=("e",)) == cut
            drawn = [
                generate(
                    other, tokenizer, PROMPTS, max_new_tokens=8, samples=3, temperature=1.0, seed=s
                )
                for s in (0, 0, 1)
            ]
            assert drawn[0] == drawn[1] != drawn[2]
            # The same prompt twice, and three samples of each: six different texts.
            assert len({*drawn[0][0], *drawn[0][-1]}) == 6
            found = capability(other, tokenizer, ["tiny_choice", "tiny_write"], **options)
    export_adapter(edit, model, tmp_path / "adapter")
    with served(tmp_path / "m", lora_local_path=str(tmp_path / "adapter"), **SPACE) as other:
        assert generate(other, tokenizer, PROMPTS, max_new_tokens=12) == live
    assert found["tiny_choice"]["items"] == answers["tiny_choice"]["items"]
    assert found["tiny_write"]["items"] == answers["tiny_write"]["items"]
