"""A grid of studies: what it names, what it refuses, what is gathered."""

import pytest

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.files import home
from surgery_lib.report import grid as report
from surgery_lib.study.grid import Grid, gather


def written(tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return path


def test_the_grid_of_the_patient_is_all_its_studies():
    grid = Grid.load("workflow/grids/patient.yaml")
    assert len(grid.folders()) == 9
    assert grid.folders()[0] == "patient/toxicity/seed0"
    assert grid.first("patient") == ("toxicity", 0)
    assert all((home() / "profiles" / f"{name}.yaml").is_file() for name in grid.settings)


def test_without_behaviours_and_seeds_a_profile_has_its_own(tmp_path):
    grid = Grid.load(written(tmp_path, "profiles: [patient]"))
    profile = grid.settings["patient"]
    assert len(grid.folders()) == len(profile.behaviours) * len(profile.seeds)


def test_overrides_reach_the_profiles(tmp_path):
    grid = Grid.load(written(tmp_path, "profiles: [patient]\noverrides: {job.cores: 7}"))
    assert grid.settings["patient"].job.cores == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("profiles: [patient]\nbehaviors: [toxicity]", "did you mean behaviours"),
        ("profiles: [patiemt]", "no profile"),
        ("profiles: [patient]\nbehaviours: [toxicty]", "did you mean toxicity"),
        ("profiles: [patient]\nseeds: [one]", "whole numbers"),
        ("profiles: [patient]\noverrides: {job.core: 2}", "job"),
        ("seeds: [1]", "names no profiles"),
        ("profiles: [", "not valid YAML"),
        ("profiles: [patient]\n5: 5", "has no key 5"),
    ],
)
def test_mistakes_are_named_before_a_job_starts(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        Grid.load(written(tmp_path, text))


@pytest.mark.parametrize("name", ["$(touch x){a}", "a b", ".a", "x" * 65])
def test_a_grids_name_is_part_of_paths(tmp_path, name):
    path = tmp_path / f"{name}.yaml"
    path.write_text("profiles: [patient]")
    with pytest.raises(UserError, match="rename it"):
        Grid.load(path)


def test_a_grid_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="there is no grid"):
        Grid.load(tmp_path / "none.yaml")


def reading(value):
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 200}


@pytest.fixture
def half_done(tmp_path):
    """A grid of four studies, of which three are done, and its folder of results."""
    text = "profiles: [patient]\nbehaviours: [toxicity, attitude]\nseeds: [0, 1]"
    grid = Grid.load(written(tmp_path, text))
    for number, folder in enumerate(grid.folders()[:3]):
        variants = {
            "base": {"draws": [{"rate": reading(0.5)}]},
            "edited": {"draws": [{"rate": reading(0.1 * number + 0.1), "perplexity_rise": 0.02}]},
        }
        payload = {"result": {"scorers": ["exact"], "variants": variants}}
        files.write_json(tmp_path / folder / "evaluation.json", payload)
    return grid, tmp_path


def test_what_is_done_is_gathered_and_the_rest_is_named(half_done):
    grid, results = half_done
    gathered = gather(grid, results)
    assert [each["done"] for each in gathered] == [True, True, True, False]
    assert gathered[1]["edited"]["value"] == pytest.approx(0.2)
    table = report.table(gathered)
    assert "| patient | attitude | 1 | not done |" in table
    assert "50.0 [45.0, 55.0]" in table


def test_seeds_are_summed_up_by_their_spread(half_done):
    grid, results = half_done
    summary = report.summary(gather(grid, results))
    assert "| patient | toxicity | 2 of 2 | 50.0 | 15.0 (10.0 to 20.0) |" in summary
    assert "| patient | attitude | 1 of 2 | 50.0 | 30.0 |" in summary


def test_a_figure_is_drawn_of_what_there_is(half_done, tmp_path):
    grid, results = half_done
    figure = report.figure(gather(grid, results))
    assert len(figure.axes) == 1
    empty = report.figure(gather(Grid.load("workflow/grids/patient.yaml"), tmp_path / "nothing"))
    assert "no study" in empty.axes[0].get_title()
