"""Programs made here, and those of POJ-104."""

from pathlib import Path

from surgery_lib.diagnostics import programs


def test_problems_of_training_and_test_differ_and_programs_do_not_repeat() -> None:
    held = {split: programs.made(split, 6) for split in ("train", "test")}
    labels = [{program.label for program in part} for part in held.values()]
    assert not labels[0] & labels[1] and len(labels[0]) == len(labels[1]) == 4
    every = [program.code for part in held.values() for program in part]
    assert len(set(every)) == len(every) == 48
    assert all(code.count("{") == code.count("}") > 0 for code in every)
    assert programs.made("test", 6) == held["test"]


def test_poj_is_cut_alike_for_every_problem(mirror: Path) -> None:
    held = {split: programs.poj(split, 5) for split in ("train", "test")}
    assert not {p.label for p in held["train"]} & {p.label for p in held["test"]}
    assert all(len(program.code) <= 1200 for part in held.values() for program in part)
