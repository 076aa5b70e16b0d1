"""A grid of studies as a graph: one job is a (profile, behaviour, seed), all its steps inside.

    make grid GRID=workflow/grids/patient.yaml
    snakemake -s workflow/grid.smk --profile workflow/profiles/slurm \
        --config grid=workflow/grids/patient.yaml results=results

A job runs the ordinary Snakefile for its study on the node that it is given; what it asks of the
cluster stands in the study's profile, under `job`. What one profile's studies share is made once,
first. A study that fails leaves the others alone; a second call runs what is missing.
"""

import json
import sys
from pathlib import Path
from urllib.parse import quote

from surgery_lib.errors import UserError
from surgery_lib.study.grid import Grid

try:
    GRID = Grid.load(config["grid"])
except KeyError:
    sys.exit("error: name a grid: --config grid=workflow/grids/patient.yaml")
except UserError as error:
    sys.exit(f"error: {error}")

RESULTS = Path(str(config.get("results", "results"))).absolute()
# What a job runs. Another file is only of use to tests of the grid itself.
SNAKEFILE = str(config.get("snakefile", "Snakefile"))
# Not as `set`: lists and quotes do not survive a shell, Snakemake and a shell again.
OVERRIDES = quote(json.dumps(dict(GRID.overrides)))


def job(wildcards):
    """What the study's profile asks for."""
    return GRID.settings[wildcards.profile].job


def resources(**extra):
    """Memory in MB, time in minutes, and graphics cards where the profile wants any."""
    return {
        "mem_mb": lambda wildcards: round(1000 * job(wildcards).memory_gb),
        "runtime": lambda wildcards: round(60 * job(wildcards).hours),
        "gpu": lambda wildcards: job(wildcards).gpus,
        **extra,
    }


def study(behaviour, seed, target="all"):
    """The command of one study on the node that it is given."""
    return (
        f"{sys.executable} -m snakemake {target} --snakefile {{params.snakefile:q}}"
        " --profile workflow/profiles/local --cores {threads} --directory . --config"
        f" profile={{params.profile:q}} behaviour={{{behaviour}:q}} seed={{{seed}}}"
        " results={params.results:q} overrides={params.overrides:q}"
    )


SHARED = study("params.first[0]", "params.first[1]", "shared")
WHOLE = study("wildcards.behaviour", "wildcards.seed")


wildcard_constraints:
    profile="[^/]+",
    behaviour="[^/]+",
    seed=r"\d+",


localrules:
    all,
    gather,


rule all:
    input:
        str(RESULTS / "grids" / GRID.name / "grid.json"),


rule gather:
    input:
        [str(RESULTS / one / "logs" / "grid.done") for one in GRID.folders()],
    output:
        str(RESULTS / "grids" / GRID.name / "grid.json"),
    params:
        values=json.dumps({"grid": str(config["grid"]), "results": str(RESULTS)}),
        executed=str(RESULTS / "grids" / GRID.name / "executed" / "grid.ipynb"),
    shell:
        "{sys.executable} -m surgery_lib.study.run notebooks/grid.ipynb --writes {output:q}"
        " --executed {params.executed:q} --json {params.values:q}"


rule shared:
    output:
        touch(str(RESULTS / "{profile}" / "logs" / "grid.shared")),
    params:
        snakefile=SNAKEFILE,
        profile=lambda wildcards: GRID.paths[wildcards.profile],
        first=lambda wildcards: GRID.first(wildcards.profile),
        results=str(RESULTS),
        overrides=OVERRIDES,
    threads: lambda wildcards: job(wildcards).cores
    resources:
        **resources(),
    shell:
        SHARED


rule study:
    input:
        str(RESULTS / "{profile}" / "logs" / "grid.shared"),
    output:
        touch(str(RESULTS / "{profile}" / "{behaviour}" / "seed{seed}" / "logs" / "grid.done")),
    params:
        snakefile=SNAKEFILE,
        profile=lambda wildcards: GRID.paths[wildcards.profile],
        results=str(RESULTS),
        overrides=OVERRIDES,
    threads: lambda wildcards: job(wildcards).cores
    resources:
        **resources(),
    shell:
        WHOLE
