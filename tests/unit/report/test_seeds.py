"""Several seeds of a comparison: rates side by side, differences over prompts."""

import numpy as np

from surgery_lib.report.seeds import seeds_table


def result(seed: int, left: float, budget: float = 0.05) -> dict:
    """A result of notebook 05 with two methods on forty prompts, one of them only at 0.1."""
    rng = np.random.default_rng(seed)

    def point(share: float, at: float) -> dict:
        flags = (rng.random(40) < share).astype(int).tolist()
        return {"measure": "both", "budget": at, "flags": {"reporter": flags}}

    return {
        "scorer": "reporter",
        "base": {"flags": {"reporter": [1] * 30 + [0] * 10}},
        "outcomes": [
            {"name": "surgery_covariance", "points": [point(left, budget), point(left, 0.1)]},
            {"name": "dpo", "points": [point(0.9, 0.1)]},
        ],
    }


def test_differences_are_of_each_prompts_share_over_the_seeds() -> None:
    results = [result(seed, 0.1) for seed in range(3)]
    table = seeds_table(results, ["surgery_covariance", "dpo"])
    lines = {line.split("|")[1].strip(): line.split("|")[2:4] for line in table.splitlines()}
    assert "% of 40 prompts, 3 seeds" in lines
    shares = [float(one) for one in lines["surgery covariance"][1].split("/")]
    assert len(shares) == 3
    first = float(lines["surgery covariance less no edit"][1].split("[")[0])
    assert abs(first - (np.mean(shares) - 75.0)) < 0.1
    assert lines["dpo"][0].strip() == "-" and lines["dpo less no edit"][0].strip() == "-"
    assert lines["surgery covariance less dpo"][0].strip() == "-"
    assert float(lines["surgery covariance less dpo"][1].split("[")[0]) < -60
