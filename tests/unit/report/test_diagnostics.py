"""What systems claim and what each edit looks like, from results: verdicts and empty cells."""

from typing import Any

from surgery_lib.report import diagnostics


def reading(value: float, apart: float = 0.01) -> dict[str, Any]:
    return {"value": value, "low": value - apart, "high": value + apart, "n": 9}


def drift(value: float) -> dict[str, Any]:
    both = {"frozen": reading(value), "refitted": reading(value)}
    return {
        "forms": {"primed": {"all": reading(value)}},
        "untrained": {"value": 0.7},
        "edits": {"base": both, "surgery": both},
    }


def fingerprint(lowest: float) -> dict[str, Any]:
    members = [
        {"name": "base", "kind": "base", "ics": 100.0},
        {"name": "surgery", "kind": "edit", "ics": 97.5},
        {"name": "pruned", "kind": "lossy", "ics": 99.0},
        {"name": "other", "kind": "unrelated", "ics": 0.1},
    ]
    found = {"edited": 8, "missed": [3], "false": []}
    return {
        "members": members,
        "facts": {"lowest_rearranged": lowest},
        "touched": {"surgery": {"found": found}},
    }


def cells(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_claim_holds_where_its_interval_is_beyond_it() -> None:
    studies = {
        "one": {"drift": drift(0.999 + 0.002), "fingerprint": fingerprint(100.0)},
        "two": {"drift": drift(0.6), "fingerprint": fingerprint(80.0)},
        "three": {"drift": drift(0.99)},
    }
    table = diagnostics.claims(studies)
    assert cells(table, "TaskTracker")[3::2] == ["yes", "no", "not told apart"]
    assert cells(table, "HuRef")[3::2] == ["yes", "no", "-"]
    assert cells(table, "SPRING")[2:4] == ["not run", "-"]


def test_an_edit_has_a_cell_for_every_diagnostic_and_says_what_was_not_run() -> None:
    table = diagnostics.closing({"drift": drift(0.9), "fingerprint": fingerprint(100.0)})
    line = cells(table, "surgery")
    assert line[:4] == ["surgery", "97.50", "7 of 8, 0 false", "0.900 [0.890, 0.910]; 0.900"]
    assert set(line[4:]) == {"not run"} and len(line) == 1 + len(diagnostics.COLUMNS)


def test_an_attack_is_read_against_its_own_edit() -> None:
    success = {"value": 0.25, "low": 0.1, "high": 0.5}
    own = {"success": success, "each": [-1.0, -2.0, None, -1.5]}
    warm = {"success": success, "each": [-2.0, -3.0, -1.0, -2.5]}
    gap = {"difference": -0.4, "low": -0.6, "high": -0.2}
    payload = {
        "sizes": {"steps": 4},
        "edits": {"base": {}, "surgery": {}},
        "matrix": {
            "warm start": {"base": warm},
            "against base": {"base": own},
            "against surgery": {"surgery": own},
        },
        "gaps": {"surgery": {"retrained": gap}, "base": {"retrained": gap}},
    }
    line = cells(diagnostics.claims({"one": {"attack": payload}}), "Atoxia")
    assert line[2].startswith("1.00 [") and line[3] == "yes"
    line = cells(diagnostics.closing({"attack": payload}), "surgery")
    assert line[4:6] == ["-0.40 [-0.60, -0.20]", "25 [10, 50]"]
