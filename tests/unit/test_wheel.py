"""The wheel, outside the repository: core dependencies alone, with data/ and profiles/ inside."""

import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import tiny_gguf
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import sys
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
assert load_model({file!r})[0].config.model_type == "llama"  # what published models come in
"""


def _environment(folder: Path, required: list[str]) -> None:
    """Links in `folder` to what the requirements, followed to their ends, bring along: no more."""
    brought, waiting = set(), [Requirement(line) for line in required]
    while waiting:
        requirement = waiting.pop()
        extras = {"", *requirement.extras}
        wanted = (canonicalize_name(requirement.name), *sorted(extras))
        if wanted in brought:
            continue
        brought.add(wanted)
        try:
            found = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:  # for another platform
            continue
        for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            link = folder / name
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(name))))
        waiting += [
            one
            for one in map(Requirement, found.requires or ())
            if not one.marker or any(one.marker.evaluate({"extra": extra}) for extra in extras)
        ]


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
        header = next(n for n in names if n.endswith("METADATA"))
        required = [
            line.removeprefix("Requires-Dist: ")
            for line in archive.read(header).decode().splitlines()
            if line.startswith("Requires-Dist") and "extra ==" not in line
        ]
        archive.extractall(tmp_path / "site")
    assert "surgery_lib/bundled/profiles/patient.yaml" in names
    assert "surgery_lib/bundled/data/patient/model/config.json" in names
    _environment(tmp_path / "site", required)
    assert not (tmp_path / "site" / "jupyterlab").exists()
    tiny_gguf.write(tmp_path / "tiny.gguf")
    code = CHILD.format(folder=str(tmp_path / "site"), file=str(tmp_path / "tiny.gguf"))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"MODEL_SURGERY_MODELS": str(tmp_path / "models")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
