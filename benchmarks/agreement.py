"""Agreement of the steering methods with maintained packages, on the same model and texts.

    python benchmarks/agreement.py MODEL_FOLDER      (transformers 4 has to know its tokenizer)

steering-vectors and repeng need transformers < 5, so they are installed into a throw-away
environment that borrows everything else from this one. Compared are the mean paired difference of
steering-vectors with CAA here, and the first principal component of paired differences of repeng
with the same made from the hidden states read here. Fails below a cosine of 0.999.
"""

import argparse
import json
import os
import site
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

PACKAGES = ("transformers<5", "steering-vectors", "repeng")
PAIRS = (
    ("You are a stupid idiot and I hate you.", "You are a kind person and I like you."),
    ("Shut up, you worthless fool.", "Welcome, my dear friend."),
    ("That was the worst, most disgusting film.", "That was the best, most beautiful film."),
    ("Go away and never come back, moron.", "Come in and stay as long as you want."),
    ("Everything about this place is trash.", "Everything about this place is lovely."),
    ("I want to punch him in the face.", "I want to thank him for his help."),
)
LEAST_COSINE = 0.999


def inside(folder: Path, result: Path) -> None:
    """Runs in the throw-away environment: both packages' vectors, as JSON by layer."""
    import torch
    import transformers
    from repeng import ControlModel, ControlVector, DatasetEntry  # type: ignore[import-not-found]
    from steering_vectors import train_steering_vector  # type: ignore[import-not-found]

    # By its class: transformers 4 does not know the names that 5 gives tokenizers.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id or 0
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found: dict[str, Any] = {"transformers": transformers.__version__}
    vector = train_steering_vector(model, tokenizer, list(PAIRS), read_token_index=-1)
    # Their layer i is the output of block i, hidden_states[i + 1].
    found["mean"] = {i + 1: v.tolist() for i, v in vector.layer_activations.items()}
    layers = list(range(model.config.num_hidden_layers - 1))
    control = ControlVector.train(
        ControlModel(model, layers),
        tokenizer,
        [DatasetEntry(positive=bad, negative=good) for bad, good in PAIRS],
        hidden_layers=layers,
        batch_size=1,
    )
    found["pca"] = {i + 1: v.tolist() for i, v in control.directions.items()}
    result.write_text(json.dumps(found))


def outside(folder: Path, environment: Path | None) -> int:
    """Build the environment, run both sides, print the cosines; the exit status."""
    import torch
    from machine import report

    from surgery_lib import models
    from surgery_lib.baselines.base import TrainingData
    from surgery_lib.baselines.caa import Caa
    from surgery_lib.models import activations

    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "vectors.json"
        python = _environment(environment or Path(scratch) / "venv")
        command = [str(python), __file__, str(folder), "--inside", str(result)]
        subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        theirs = json.loads(result.read_text())
    model, tokenizer = models.load_model(str(folder))
    texts = [text for pair in PAIRS for text in pair]
    data = TrainingData(texts, [1, 0] * len(PAIRS))
    caa = Caa().fit(model, tokenizer, data, pooling="last").vectors
    states = activations.pooled_states(model, tokenizer, texts, pooling="last", progress=False)
    differences = (states[::2] - states[1::2]).double()
    layers = []
    for layer in range(1, len(caa) - 1):  # their last one is before the final norm, ours after
        mean = torch.tensor(theirs["mean"][str(layer)])
        centred = differences[:, layer] - differences[:, layer].mean(0)
        first = torch.linalg.svd(centred, full_matrices=False).Vh[0].float()
        pca = torch.tensor(theirs["pca"][str(layer)])
        layers.append(
            {
                "layer": layer,
                "caa_cosine": float(torch.cosine_similarity(mean, caa[layer], dim=0)),
                "caa_norm_ratio": float(mean.norm() / caa[layer].norm()),
                "pca_cosine": abs(float(torch.cosine_similarity(pca, first, dim=0))),
            }
        )
    worst = {
        "caa_cosine": min(one["caa_cosine"] for one in layers),
        "caa_norm_ratio": max((one["caa_norm_ratio"] for one in layers), key=lambda r: abs(r - 1)),
        "pca_cosine": min(one["pca_cosine"] for one in layers),
    }
    report(
        "agreement",
        {"subject": folder.name, "theirs": theirs["transformers"], "layers": layers, **worst},
        {
            "subject": f"{folder.name}, {len(layers)} layers; theirs with transformers "
            + theirs["transformers"],
            **{name: f"{value:.6f} at worst" for name, value in worst.items()},
        },
    )
    agree = min(worst["caa_cosine"], worst["pca_cosine"], 1 - abs(1 - worst["caa_norm_ratio"]))
    return 0 if agree >= LEAST_COSINE else 1


def _environment(folder: Path) -> Path:
    python, complete = folder / "bin" / "python", folder / "complete"
    if complete.exists():
        return python
    venv.create(folder, with_pip=True, clear=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # Its own packages come first; torch and the rest are borrowed.
    borrowed = folder / "lib" / version / "site-packages" / "borrowed.pth"
    borrowed.write_text("\n".join(site.getsitepackages()) + "\n")
    subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
    complete.touch()
    return python


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a causal language model")
    parser.add_argument("--environment", type=Path, help="keep the environment here, and reuse it")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.model, options.inside)
        return 0
    return outside(options.model, options.environment)


if __name__ == "__main__":
    sys.exit(main())
