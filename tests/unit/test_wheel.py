"""The wheel, outside the repository: core dependencies alone, with data/ and profiles/ inside."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What the core must not need: none of these can be imported in the child.
EXTRAS = {
    "jupyterlab",
    "papermill",
    "IPython",
    "ipywidgets",
    "nbformat",
    "nbclient",
    "nbconvert",
    "snakemake",
    "optuna",
    "lm_eval",
    "datasets",
    "peft",
    "matplotlib",
    "seaborn",
    "mistune",
    "bleach",
    "psutil",
}
CHILD = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # not found, whoever asks
sys.path.insert(0, {folder!r})
import surgery_lib
assert surgery_lib.__file__.startswith({folder!r})
import surgery_lib.selection.find, surgery_lib.cli, surgery_lib.checkpoint
from surgery_lib import Surgery, fit_probes, load_model, pooled_states, select_rows
from surgery_lib.profile import load_profile
assert load_profile("patient").name == "patient"
model, tokenizer = load_model("embedded:patient")
texts, labels = ["You are a fool.", "You are kind.", "What an idiot.", "A fine day."], [1, 0, 1, 0]
states = pooled_states(model, tokenizer, texts, progress=False)
direction = fit_probes(states, labels, estimator="mean_difference")[2].direction
rows = select_rows(model, direction, 0.05)
with Surgery.build(model, rows, direction, strength=1.0).applied(model):
    print(tokenizer.decode(model.generate(**tokenizer("You are", return_tensors="pt"))[0]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"  # building leaves files beside what it builds
    subprocess.run(["git", "clone", "-q", str(ROOT), str(copy)], check=True)
    for name in ("pyproject.toml", "setup.py"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(folder), str(copy)], check=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_data_and_profiles_are_inside_and_extras_are_not_needed(
    wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(n for n in names if n.endswith("METADATA"))
        required = [
            line
            for line in archive.read(metadata).decode().splitlines()
            if line.startswith("Requires-Dist") and "extra ==" not in line
        ]
        archive.extractall(tmp_path / "site")
    assert "surgery_lib/bundled/profiles/patient.yaml" in names
    assert "surgery_lib/bundled/data/patient/model/config.json" in names
    assert not [line for line in required for name in ("jupyterlab", "lm-eval") if name in line]
    code = CHILD.format(blocked=EXTRAS, folder=str(tmp_path / "site"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
