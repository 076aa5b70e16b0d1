"""The notebooks as a graph. `make reproduce` calls it; so does snakemake with another profile:

    snakemake --profile workflow/profiles/local --config profile=patient behaviour=toxicity \
        seed=0 results=results set="evaluation.limit=50"

`overrides` is the same as percent-encoded JSON, which no layer of quoting changes; grids use it.
`behaviour` and `seed` may be several, with commas between. A step is done when its stamp,
logs/<notebook>.done beside the results, is there and its result too: git keeps results and not
stamps, so a fresh clone runs every step although it comes with results, and compares by git diff.
"""

import json
import shlex
import sys
from hashlib import sha256
from itertools import product
from pathlib import Path
from urllib.parse import unquote

from surgery_lib.errors import UserError
from surgery_lib.files import loads
from surgery_lib.profile import check_behaviour, closest, load_profile, parse_overrides
from surgery_lib.study.steps import steps_of, whole

NAME = str(config.get("profile", "patient"))
BEHAVIOURS = str(config.get("behaviour", "toxicity")).split(",")
ASKED = str(config.get("notebooks") or "").split(",")
RESULTS = Path(str(config.get("results", "results"))).absolute()


def text(name, default=""):
    """A setting of --config as text."""
    found = config.get(name)
    return default if found is None else str(found)


try:
    try:
        SEEDS = [int(seed) for seed in text("seed", "0").split(",")]
        words = shlex.split(text("set"))
    except ValueError as error:
        raise UserError(f"seed={text('seed', '0')} set={text('set')}: {error}; correct it")
    if "{" in str(RESULTS) or "}" in str(RESULTS):
        raise UserError(f"results={RESULTS}: braces are Snakemake's own; choose another folder")
    OVERRIDES = parse_overrides(words)
    OVERRIDES |= loads(unquote(text("overrides", "{}") or "{}"), "overrides")
    SETTINGS = load_profile(NAME, OVERRIDES)
    for behaviour in BEHAVIOURS:
        check_behaviour(SETTINGS, behaviour)
    if workflow.is_main_process:  # a misspelt option or a missing key is told before any notebook
        from surgery_lib.scorers.build import check as check_scorer  # takes seconds

        for behaviour in BEHAVIOURS:
            spec = SETTINGS.behaviours[behaviour]
            for scorer in (spec.guide, *spec.report):
                check_scorer(scorer)
except UserError as error:
    sys.exit(f"error: {error}")

PROFILE = SETTINGS.name
STEPS = steps_of(PROFILE)


def wanted(name):
    """Whether a step is asked for: by name, with all, or because it does not take long."""
    return name in ASKED or "all" in ASKED or (ASKED == [""] and not STEPS[name].long)


for name in ASKED:
    if name not in ("", "all", *STEPS):
        sys.exit(f"error: there is no notebook {name}; {closest(name, STEPS)}")
WANTED = [name for name in STEPS if wanted(name)]


def folder(name):
    """Where a step writes, with Snakemake's wildcards for behaviour and seed."""
    shared = STEPS[name].shared
    return RESULTS / PROFILE if shared else RESULTS / PROFILE / "{behaviour}" / "seed{seed}"


def stamp(name):
    return str(folder(name) / "logs" / f"{name}.done")


def every(path):
    """A path with wildcards for each study asked for."""
    values = [{"behaviour": b, "seed": s} for b, s in product(BEHAVIOURS, SEEDS)]
    return sorted({str(path).format(**value) for value in values})


def parameters(wildcards):
    """A notebook's parameters as JSON, so that each keeps its type."""
    values = {"profile": NAME, "overrides": OVERRIDES, "results": str(RESULTS)}
    if "behaviour" in wildcards.keys():
        values |= {"behaviour": wildcards.behaviour, "seed": int(wildcards.seed)}
    return json.dumps(values)


def basis(notebook):
    """Changes when the notebook, the library or the profile does, whatever times git gives files."""
    sources = [Path(notebook), *sorted(Path("surgery_lib").rglob("*.py"))]
    parts = [path.read_bytes() for path in sources if path.is_file()]
    return sha256(b"".join([SETTINGS.model_dump_json().encode(), *parts])).hexdigest()


if workflow.is_main_process:
    for name, step in STEPS.items():
        for place, done in zip(every(folder(name)), every(stamp(name))):
            if not whole(Path(place), step):
                Path(done).unlink(missing_ok=True)


rule all:
    input:
        [path for name in WANTED for path in every(stamp(name))],


# What all studies of a profile have in common: a grid makes it before it starts them side by side.
rule shared:
    input:
        [stamp(name) for name, step in STEPS.items() if step.shared and not step.long],


for name, step in STEPS.items():

    rule:
        name:
            name
        input:
            [stamp(need) for need in step.needs if need in STEPS],
        output:
            touch(stamp(name)),
        params:
            notebook=f"notebooks/{name}.ipynb",
            basis=basis(f"notebooks/{name}.ipynb"),
            values=parameters,
            writes=str(folder(name) / step.writes),
            executed=str(folder(name) / "executed" / f"{name}.ipynb"),
        threads: workflow.cores
        shell:
            "{sys.executable} -m surgery_lib.study.run {params.notebook} --writes {params.writes:q}"
            " --executed {params.executed:q} --json {params.values:q}"
