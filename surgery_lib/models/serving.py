"""A checkpoint served by vLLM, where text is generated and lm-eval's tasks are answered.

    with served("edited-model") as model:
        generate(model, tokenizer, prompts, max_new_tokens=20)
        capability(model, tokenizer, ["mmlu"])

It stands in for a live model in `generation.generate`, in the protocols and in
`evaluation.capability`: the same prompts, token by token, the same ends, the same tasks. Greedy
text is the live model's but where two tokens tie to within rounding, log-likelihoods are equal to
rounding; sampled text is other draws of the same distribution. `benchmarks/serving.py` measures
both. Hidden states, divergences and perplexity stay with the live model, which gives its logits.
"""

import gc
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from surgery_lib.errors import UserError
from surgery_lib.models.sampling import Decoding
from surgery_lib.profile import EvaluationSettings


class Served:
    """A checkpoint under vLLM. `harness` is lm-eval's model of it, whose engine writes text too."""

    def __init__(self, folder: Path | str, **options: Any) -> None:
        if find_spec("vllm") is None:
            raise UserError(
                "vLLM is not installed; pip install 'model-surgery[vllm]', or leave the engine at "
                "transformers"
            )
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} is no checkpoint: it has no config.json")
        from lm_eval.models.vllm_causallms import VLLM

        # Where networks are shut off, vLLM's count of its users only waits for a timeout.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        self.config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        try:
            self.generation_config = GenerationConfig.from_pretrained(folder)
        except OSError:
            self.generation_config = GenerationConfig()
        # In the dtype of its files: left to itself, vLLM halves float32. The model's own sampling
        # settings are set aside, as `generate` does.
        dtype = str(getattr(self.config, "dtype", None) or "auto").removeprefix("torch.")
        settings: dict[str, Any] = {"dtype": dtype, "generation_config": "vllm", **options}
        self.harness: Any = VLLM(pretrained=str(folder), **settings)

    def write(self, rows: Sequence[Sequence[int]], decoding: Decoding) -> list[list[list[int]]]:
        """New tokens for each row of prompt tokens (`generation.Engine`)."""
        from vllm import SamplingParams

        wanted = [
            SamplingParams(
                n=decoding.samples,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                seed=seed if decoding.temperature > 0 else None,
                max_tokens=decoding.max_new_tokens,
                stop=list(decoding.stop) or None,
                include_stop_str_in_output=True,
                stop_token_ids=list(decoding.ends),
            )
            for seed in decoding.seeds
        ]
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        found = self.harness.model.generate(
            prompts, wanted, use_tqdm=decoding.progress, lora_request=self.harness.lora_request
        )
        return [[list(one.token_ids) for one in answer.outputs] for answer in found]

    def close(self) -> None:
        """End the engine and give its memory back."""
        engine = self.harness.model.llm_engine.engine_core
        engine.shutdown()
        del self.harness
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def served(folder: Path | str, **options: Any) -> Iterator[Served]:
    """A checkpoint under vLLM for the time of the block; `options` are vLLM's own.

    `gpu_memory_utilization=0.5` leaves room for a live model beside it, `tensor_parallel_size=2`
    spreads it over two cards, `lora_local_path` is a surgery as an adapter (`adapter`), beside the
    unedited checkpoint. UserError where vLLM is not installed or the folder is no checkpoint.
    """
    engine = Served(folder, **options)
    try:
        yield engine
    finally:
        engine.close()


def engine(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, evaluation: EvaluationSettings
) -> AbstractContextManager[Any]:
    """The model as it now is, edits and all, behind the engine that a profile asks for.

    For vLLM it is written to a temporary folder and served from there in its own dtype.
    """
    if evaluation.engine == "transformers":
        return nullcontext(model)
    return _copied(model, tokenizer, evaluation.engine_options)


@contextmanager
def _copied(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
) -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="served-") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with served(folder, **options) as found:
            yield found
