"""The paper's numbers as data: numeric, complete, and consistent where they should be."""

import pandas as pd
import pytest

from surgery_lib.errors import UserError
from surgery_lib.report import paper

TASKS = ["gsm8k", "bbh", "mmlu", "tydiqa"]
NAMES = sorted(path.stem for path in paper.PAPER.glob("*.csv"))


@pytest.mark.parametrize("name", NAMES)
def test_columns_of_numbers_hold_numbers(name: str) -> None:
    found = paper.table(name)
    assert len(found)
    for column in found.columns:
        if column in paper.WORDS:
            assert found[column].notna().all()
        else:
            assert pd.api.types.is_numeric_dtype(found[column]), column
            assert found[column].notna().any()


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_names_every_table(name: str) -> None:
    assert f"`{name}`" in (paper.PAPER / "README.md").read_text(encoding="utf-8")


def test_every_table_that_the_protocols_need_is_there() -> None:
    for number in (*range(1, 18),):
        assert len(paper.table(number))
    assert paper.table(3).equals(paper.table(4))


@pytest.mark.parametrize("number", [2, 7])
def test_averages_are_those_of_the_four_tasks(number: int) -> None:
    found = paper.table(number)
    assert (found[TASKS].mean(axis=1) - found["average"]).abs().max() < 0.06


def test_averages_agree_between_tables() -> None:
    for detailed, short in ((16, 3), (17, 5)):
        for row in paper.table(detailed).itertuples():
            method = {"Model Surgery (positive)": "Model Surgery"}.get(row.method, row.method)
            number = 6 if method == "Model Surgery (negative)" else short
            method = method.replace(" (negative)", "").replace("LoRA FT (positive)", "LoRA FT")
            mean = (row.gsm8k + row.bbh + row.mmlu + row.tydiqa) / 4
            assert paper.value(number, method, "average") == pytest.approx(mean, abs=0.06)


def test_categories_of_equal_size_give_the_overall_refusal() -> None:
    for row in paper.table(15).itertuples():
        mean = (row.hate + row.misinformation + row.security + row.substance + row.unlawful) / 5
        assert paper.value(3, row.method, "refusal") == pytest.approx(mean, abs=0.07)


def test_drops_are_those_of_the_text() -> None:
    base, edited = (paper.row(2, method) for method in ("base", paper.EDITED))
    assert 1 - edited["rtp"] / base["rtp"] == pytest.approx(0.899, abs=0.001)
    # 49.2 % in the abstract; its own table gives 49.6 %.
    assert 1 - edited["toxigen"] / base["toxigen"] == pytest.approx(0.496, abs=0.001)
    large = [paper.row(7, method, "LLaMA2-70B")["toxigen"] for method in ("base", paper.EDITED)]
    assert 1 - large[1] / large[0] == pytest.approx(0.196, abs=0.001)
    # "4.8 times faster" in the text.
    hours = [paper.value(2, method, "hours") or 0.0 for method in ("DPO", paper.EDITED)]
    assert hours[0] / hours[1] == pytest.approx(13.8)


def test_the_share_of_rows_is_that_of_the_text() -> None:
    rows = paper.table(14)["rows"]
    assert set(rows) == {16_384}
    share = rows[0] / (32 * 11_008)
    assert share == pytest.approx(0.0465, abs=1e-4)


def test_a_row_that_is_not_there_is_an_error_that_says_what_is() -> None:
    with pytest.raises(UserError, match="CodeLLaMA-7B"):
        paper.row(7, "base")
    with pytest.raises(UserError, match="table02"):
        paper.table(99)
    with pytest.raises(UserError, match="wikitext"):
        paper.value(2, "base", "rouge")
    assert paper.value(2, "Safe Activation", "hours") is None
