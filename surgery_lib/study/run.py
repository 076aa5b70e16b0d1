"""Run one notebook without a screen.

    python -m surgery_lib.study.run NOTEBOOK --writes FILE -p seed=1

Papermill does the running. What it lets pass is checked here: a misspelt parameter, a notebook that
ends early, a kernel that dies. An executed notebook is a log; the result file alone says done.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import DeadKernelError

from surgery_lib.errors import UserError
from surgery_lib.files import loads
from surgery_lib.profile import closest, parse_overrides
from surgery_lib.study.locks import alone


def run_notebook(
    notebook: Path | str,
    parameters: Mapping[str, Any],
    *,
    writes: Path | str,
    executed: Path | str,
    progress: bool = True,
) -> None:
    """Execute `notebook` with `parameters`, keep the executed copy, and see that `writes` is new.

    `parameters` are what JSON knows. A second run of the same result waits for the first to end.
    UserError, in one line, for an unknown parameter, an error in a cell, a dead kernel, or a
    notebook that ended without writing its result.
    """
    notebook, writes, executed = Path(notebook), Path(writes), Path(executed)
    values = _plain(parameters)
    check_parameters(notebook, values)
    with alone(executed.with_suffix(".lock"), executed.stem, wait=True):
        before = _signature(writes)
        _execute(notebook, values, executed, progress)
        if _signature(writes) in (before, None):
            raise UserError(
                f"{notebook.name} ended without writing {writes.name}; see the log {executed}"
            )


def check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """UserError where the notebook's cell `parameters` does not define one of `parameters`."""
    if not notebook.is_file():
        raise UserError(f"there is no notebook {notebook}; see notebooks/")
    known = list(papermill.inspect_notebook(notebook))
    if parameters and not known:
        raise UserError(f"{notebook.name} has no cell tagged parameters; tag one")
    for name in parameters:
        if name not in known:
            raise UserError(f"{notebook.name} has no parameter {name}; {closest(name, known)}")


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has them: papermill would turn everything else into text without a word."""
    try:
        return dict(json.loads(json.dumps(parameters)))
    except TypeError as error:
        raise UserError(
            f"a parameter is not what JSON knows ({error}); convert it first"
        ) from error


def _execute(notebook: Path, parameters: dict[str, Any], executed: Path, progress: bool) -> None:
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(
            notebook,
            executed,
            parameters=parameters,
            cwd=notebook.parent,
            progress_bar={"desc": notebook.stem, "unit": "cell"} if progress else False,
            extra_arguments=["--log-level=CRITICAL"],
        )
    except papermill.PapermillExecutionError as error:
        if error.ename == "UserError":
            raise UserError(str(error.evalue)) from error
        reason = (str(error.evalue).splitlines() or [""])[0]
        raise UserError(
            f"{notebook.name} failed in cell [{error.exec_count}] with {error.ename}: {reason}; "
            f"see the log {executed}"
        ) from error
    except OSError as error:
        raise UserError(
            f"the log {executed} could not be written ({error.strerror or error}); free some space "
            "or choose another results folder, then start again"
        ) from error
    except DeadKernelError as error:
        raise UserError(
            f"the kernel of {notebook.name} died, most often for want of memory (a smaller "
            f"evaluation.tokens_per_batch needs less); see the log {executed}"
        ) from error


def _signature(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written anew: every write is a rename, so the inode does."""
    if not path.is_file():
        return None
    state = path.stat()
    return state.st_ino, state.st_mtime_ns


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 when the result is written."""
    parser = argparse.ArgumentParser(prog="python -m surgery_lib.study.run", description=__doc__)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--writes", type=Path, required=True, help="the result that must be new")
    parser.add_argument("--executed", type=Path, help="the executed copy, a log")
    parser.add_argument("--json", default="{}", help="all parameters as one JSON object")
    parser.add_argument("-p", action="append", default=[], metavar="KEY=VALUE", help="YAML value")
    given = parser.parse_args(arguments)
    executed = given.executed or given.writes.parent / "executed" / given.notebook.name
    try:
        whole = loads(given.json, "--json")
        if not isinstance(whole, dict):
            raise UserError('--json is not one JSON object; write {"name": value}')
        values = {**whole, **parse_overrides(given.p)}
        run_notebook(given.notebook, values, writes=given.writes, executed=executed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("MODEL_SURGERY_HEADLESS", "1")  # the panel as a still picture
    sys.exit(main())
