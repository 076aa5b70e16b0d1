"""The notebooks as steps: what each needs and writes, for the graph and for the site."""

from dataclasses import dataclass
from pathlib import Path

from surgery_lib import files
from surgery_lib.errors import UserError


@dataclass(frozen=True)
class Step:
    """One notebook.

    `needs` are the notebooks before it; `writes` is the file that says that it is done; `shared`
    where it belongs to a whole profile, not to one behaviour and seed; `profile` the only profile
    that it is for; `long` where it runs only if asked for by name or with `notebooks=all`.
    """

    name: str
    writes: str
    needs: tuple[str, ...] = ()
    shared: bool = False
    long: bool = False
    profile: str | None = None


STEPS = {
    step.name: step
    for step in (
        Step("00_patient", "patient.json", shared=True, profile="patient"),
        Step("01_probe", "probe.json", ("00_patient",)),
        Step("02_region", "region.json", ("01_probe",)),
        Step("03_surgery", "surgery/surgery.json", ("02_region",)),
        Step("04_evaluate", "evaluation.json", ("03_surgery",)),
        Step("05_compare", "comparison.json", ("03_surgery",), long=True),
        Step("06_ablate", "ablation.json", ("03_surgery",), long=True),
        Step("07_protocols", "protocols.json", ("00_patient",), shared=True, long=True),
        Step("08_fingerprint", "fingerprint.json", ("03_surgery",), long=True),
        Step("09_drift", "drift.json", ("03_surgery",), long=True),
        Step("10_attack", "attack.json", ("03_surgery",), long=True),
        Step("11_code", "code.json", ("03_surgery",), long=True),
        Step("12_retrieval", "retrieval.json", ("03_surgery",), long=True),
    )
}


# What a result is of no use without, beside it.
BESIDE = {
    "probe.json": "probe.safetensors",
    "region.json": "region.safetensors",
    "surgery/surgery.json": "surgery/surgery.safetensors",
}


def whole(folder: Path, step: Step) -> bool:
    """Whether what a step wrote into a folder is there, readable, and with what belongs to it."""
    try:
        document = files.read_json(folder / step.writes)
    except UserError:
        return False
    beside = BESIDE.get(step.writes)
    if not isinstance(document, dict) or "result" not in document:
        return False
    if beside is None:
        return True
    try:
        files.read_metadata(folder / beside)
    except UserError:
        return False
    return True


def steps_of(profile: str) -> dict[str, Step]:
    """The steps that a profile has."""
    return {name: step for name, step in STEPS.items() if step.profile in (None, profile)}
