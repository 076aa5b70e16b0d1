"""Reading hidden states: ours against repeng and steering-vectors, on the same texts and model.

    SURGERY_MIRROR=<mirror> python benchmarks/libraries.py

Both want transformers < 5 and numpy < 2, so they run in an environment of their own, which this
script builds below a temporary folder (or finds, with --environment) and deletes. Each library
reads every layer for pairs of texts in the way its documentation shows, in batches of 32 and of
one; ours pools over all tokens as well, which theirs do not. Ours and theirs take turns.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from machine import report, timed

from surgery_lib import files
from surgery_lib.models import activations

PACKAGES = ("repeng", "steering-vectors", "transformers<5", "numpy<2")
MAX_TOKENS = 100
BATCHES = (1, 32)

# Runs in the other environment: texts come in as JSON, seconds go out as JSON, a line a round.
OTHERS = """
import importlib.metadata, json, sys, time
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from repeng.extract import batched_get_hiddens
from steering_vectors import train_steering_vector
folder, source = sys.argv[1:]
torch.set_num_threads(int(sys.stdin.readline()))
texts = json.load(open(source))
model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
layers = list(range(model.config.num_hidden_layers))
pairs = list(zip(texts[::2], texts[1::2]))

def repeng(size):
    batched_get_hiddens(model, tokenizer, texts, layers, size)

def steering(size):
    train_steering_vector(model, tokenizer, pairs, batch_size=size)

names = ("repeng", "steering-vectors", "transformers", "torch", "numpy")
print(json.dumps({name: importlib.metadata.version(name) for name in names}), flush=True)
for line in sys.stdin:
    name, size = line.split()
    start = time.perf_counter()
    {"repeng": repeng, "steering-vectors": steering}[name](int(size))
    print(time.perf_counter() - start, flush=True)
"""


def subject(count: int, folder: Path) -> tuple[str, Path, list[str]]:
    """Name, model folder and texts of at most MAX_TOKENS tokens: neither library cuts them."""
    mirror = os.environ.get("SURGERY_MIRROR")
    if not mirror:
        sys.exit("set SURGERY_MIRROR: this comparison wants a trained tokenizer and real texts")
    model = Path(mirror) / "models/local--real-text-6m"
    tokenizer = hf.AutoTokenizer.from_pretrained(model)
    rows = files.read_jsonl(
        Path(mirror) / "datasets/OxAISH-AL-LLM--wiki_toxic/balanced_train.jsonl"
    )
    comments = [row["comment_text"] for row in rows if row["comment_text"].strip()][:count]
    cut = [ids[: MAX_TOKENS - 2] for ids in tokenizer(comments, add_special_tokens=False).input_ids]
    texts = tokenizer.batch_decode(cut)
    # An older transformers reads the same files, but does not know the newest tokenizer's class.
    made = folder / "model"
    made.mkdir()
    for path in model.iterdir():
        shutil.copyfile(path, made / path.name)
    config = files.read_json(made / "tokenizer_config.json")
    files.write_json(
        made / "tokenizer_config.json", {**config, "tokenizer_class": "PreTrainedTokenizerFast"}
    )
    return "local/real-text-6m on wiki_toxic", made, texts


def build(folder: Path) -> Path:
    """An environment with both libraries; returns its python."""
    print("building an environment for repeng and steering-vectors", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin/python"
    packages = (*PACKAGES, f"torch=={torch.__version__.partition('+')[0]}")
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--environment", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="surgery-libraries-") as name:
        folder = Path(name)
        given = arguments.environment
        python = given / "bin/python" if given else build(folder / "environment")
        subject_name, model, texts = subject(arguments.texts, folder)
        files.write_json(folder / "texts.json", texts)
        measured, versions = measure(python, model, texts, folder, arguments.rounds)
    seconds = {way: statistics.median(taken) for way, taken in measured.items()}
    ratios = {
        way: statistics.median(a / b for a, b in zip(taken, measured["ours"], strict=True))
        for way, taken in measured.items()
        if way != "ours"
    }
    report(
        "libraries",
        {
            "subject": subject_name,
            "texts": len(texts),
            "seconds": measured,
            "over_ours": ratios,
            "their_versions": versions,
        },
        {
            "subject": f"{subject_name}: {len(texts)} texts, all layers",
            **{
                way: f"{taken:8.2f} s   {ratios.get(way, 1.0):6.2f} x ours"
                for way, taken in seconds.items()
            },
        },
    )


def measure(
    python: Path, folder: Path, texts: list[str], scratch: Path, rounds: int
) -> tuple[dict[str, list[float]], Any]:
    """Seconds of every way in every round, ours and theirs in turn; their versions."""
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    others = subprocess.Popen(
        [str(python), "-c", OTHERS, str(folder), str(scratch / "texts.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert others.stdin is not None and others.stdout is not None

    def ask(line: str) -> str:
        assert others.stdin is not None and others.stdout is not None
        others.stdin.write(line + "\n")
        others.stdin.flush()
        return others.stdout.readline()

    def ours() -> None:
        activations.pooled_states(model, tokenizer, texts, max_tokens=MAX_TOKENS, progress=False)

    versions = json.loads(ask(str(torch.get_num_threads())))
    theirs = [(name, size) for name in ("repeng", "steering-vectors") for size in BATCHES]
    measured: dict[str, list[float]] = {"ours": []}
    ours()
    for _ in range(rounds):
        measured["ours"].append(timed(ours))
        for name, size in theirs:
            seconds = float(ask(f"{name} {size}"))
            measured.setdefault(f"{name}, batches of {size}", []).append(seconds)
    others.stdin.close()
    others.wait()
    return measured, versions


if __name__ == "__main__":
    main()
