"""A study: profile × behaviour × seed, its folder, and the provenance of what is written there."""

import os
import platform
import random
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import transformers

import surgery_lib
from surgery_lib import files, models
from surgery_lib.errors import UserError
from surgery_lib.files import home
from surgery_lib.profile import Behaviour, Profile, check_behaviour, load_profile
from surgery_lib.study.same import difference

SCHEMA = 1


@dataclass(frozen=True)
class Study:
    """The settings of one run and its folder `results/<profile>/<behaviour>/seed<k>/`."""

    profile: Profile
    behaviour: str | None
    seed: int
    folder: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, str] = field(default_factory=dict, compare=False)  # the model's revision

    @classmethod
    def start(
        cls,
        profile: str | Path = "patient",
        behaviour: str | None = "toxicity",
        seed: int = 0,
        overrides: Mapping[str, Any] | None = None,
        results: str | Path = "results",
    ) -> Self:
        """Check everything that is cheap to check, seed every generator, make the folder.

        `behaviour=None` is what all behaviours of a profile share: `results/<profile>/`. A relative
        `results` is taken from the repository's root. UserError for unknown names, wrong settings,
        or a folder that holds another study.
        """
        settings = load_profile(profile, overrides)
        if behaviour is not None:
            check_behaviour(settings, behaviour)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise UserError(f"seed = {seed!r}: give a whole number from 0 to 2³² − 1")
        if not isinstance(results, str | Path) or "\0" in str(results):
            raise UserError(f"results = {results!r} is no folder; give its path")
        folder = home() / results / settings.name
        if behaviour is not None:
            folder = folder / behaviour / f"seed{seed}"
        study = cls(settings, behaviour, seed, folder, dict(overrides or {}))
        held = study._holds_this()  # before a model is converted, which takes minutes
        if not settings.model.id.startswith("embedded:"):  # those are trained by notebook 00
            models.resolve(settings.model.id)
        _check_paths(settings)
        if not held:
            study.write_json("study.json", study.settings())
        set_seeds(seed)
        return study

    @property
    def spec(self) -> Behaviour:
        """The settings of this study's behaviour."""
        if self.behaviour is None:
            raise UserError("this study has no behaviour; start it with behaviour=…")
        return self.profile.behaviours[self.behaviour]

    def load_model(self) -> tuple[Any, Any]:
        """The patient and its tokenizer, as the profile says."""
        wanted = self.profile.model
        model, tokenizer = models.load_model(
            wanted.id,
            revision=wanted.revision,
            dtype=wanted.dtype,
            device=wanted.device,
            quantization=wanted.quantization,
            trust_remote_code=wanted.trust_remote_code,
        )
        if revision := models.resolved_revision(model):
            self.made_with["revision"] = revision
        return model, tokenizer

    @property
    def cache(self) -> Path:
        """Folder for what is expensive and can be made again; not part of the results."""
        return files.cache() / "states"

    def path(self, name: str) -> Path:
        """The path of one of this study's files."""
        return self.folder / name

    def write_json(self, name: str, payload: Any, inputs: Iterable[Path | str] = ()) -> Path:
        """Write a result with its provenance. `inputs` are files that it was made from.

        The same run writes the same bytes: no times, no paths of this machine.
        """
        path = self.path(name)
        wanted = self.profile.model
        # Where the profile leaves the format to the machine, results say what it was.
        used = models.dtype_of(wanted.id, wanted.device) if wanted.dtype == "auto" else None
        files.write_json(
            path,
            {
                "schema": SCHEMA,
                "profile": self.profile.name,
                "behaviour": self.behaviour,
                "seed": self.seed,
                "parameters": self.overrides,
                "settings": files.fingerprint(self.settings()),
                "versions": versions(),
                "commit": commit(),
                **({"dtype": used} if used else {}),
                **self.made_with,
                "inputs": {self._relative(Path(file)): content(Path(file)) for file in inputs},
                "result": payload,
            },
        )
        return path

    def read_json(self, name: str) -> Any:
        """The payload of a result; UserError where it is missing, corrupt or of another version."""
        return unwrap(files.read_json(self.path(name)), self.path(name))

    def write_tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> Path:
        """Write named tensors with the study's name in the header."""
        label = f"{self.profile.name}/{self.behaviour}/seed{self.seed}"
        files.write_tensors(self.path(name), tensors, {"study": label})
        return self.path(name)

    def read_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Named tensors of this study; UserError where the file is missing or truncated."""
        return files.read_tensors(self.path(name))

    def done(self, name: str) -> bool:
        """Whether a result is there and whole."""
        if not self.path(name).is_file():
            return False
        try:
            self.read_json(name)
        except UserError:
            return False
        return True

    def settings(self) -> dict[str, Any]:
        """What the results depend on: the profile without the other behaviours."""
        dump = self.profile.model_dump(mode="json", exclude={"seeds"})
        if self.behaviour is not None:
            dump["behaviours"] = {self.behaviour: dump["behaviours"][self.behaviour]}
        else:
            del dump["behaviours"]
        return dump

    def _holds_this(self) -> bool:
        """Whether the folder has recorded these very settings; UserError where it has others.

        Settings that only one side knows, after the profile's format has grown, do not count.
        """
        path = self.path("study.json")
        if not path.is_file():
            return False
        held = unwrap(files.read_json(path), path)
        if not isinstance(held, dict):
            raise UserError(f"{path} is not a study's settings; delete it and run again")
        if found := difference(held, self.settings(), self.folder):
            raise UserError(
                f"{self.folder} holds another study ({found}); choose another results= or "
                "delete that folder"
            )
        return bool(held == self.settings())

    def _relative(self, path: Path) -> str:
        """A path as it reads on every machine: from the study's folder or from the repository."""
        path = path if path.is_absolute() else home() / path
        if path.is_relative_to(self.folder):
            return path.relative_to(self.folder).as_posix()
        if path.is_relative_to(self.folder.parents[1]):
            return Path(os.path.relpath(path, self.folder)).as_posix()
        return path.relative_to(home()).as_posix() if path.is_relative_to(home()) else path.name


def unwrap(document: Any, path: Path) -> Any:
    """The payload of a result file's contents; UserError where it is none of ours."""
    if not isinstance(document, dict) or "result" not in document:
        raise UserError(f"{path} is not a result of a study; delete it and run again")
    if document.get("schema") != SCHEMA:
        raise UserError(
            f"{path} has schema {document.get('schema')}, this version reads {SCHEMA}; "
            "delete it and run again"
        )
    return document["result"]


def content(path: Path) -> str:
    """A fingerprint of a file: of its payload alone for a result, of its bytes otherwise."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; run the step that writes it first")
    if path.suffix == ".json":
        document = files.read_json(path)
        if isinstance(document, dict) and "schema" in document and "result" in document:
            return files.fingerprint(document["result"])
    return files.sha256(path)[:16]


def set_seeds(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """Versions that numbers may depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "surgery_lib": surgery_lib.__version__,
    }


@cache
def commit() -> str | None:
    """The repository's commit, or None where the package is not in its own repository."""
    root = files.PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _check_paths(profile: Profile) -> None:
    """Fail on files that are not there before anything is loaded."""
    folder = profile.evaluation.capability.include_path
    if folder and not (home() / folder).is_dir():
        raise UserError(
            f"evaluation.capability.include_path = {folder!r} is not a folder; "
            "give one from the repository's root"
        )
    for behaviour in profile.behaviours.values():
        for part in (behaviour.examples, behaviour.prompts, behaviour.benign, behaviour.clean):
            for source in (*part.train, *part.validation, *part.test):
                if source.kind == "file" and not files.is_file(home() / source.id):
                    raise UserError(
                        f"there is no file {source.id}; give its path from the repository's root"
                    )
