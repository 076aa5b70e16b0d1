"""Every committed profile: valid, documented, and the paper's settings sound on 32 layers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
import yaml
from pydantic import ValidationError

from surgery_lib.errors import UserError
from surgery_lib.files import home
from surgery_lib.models import activations, layout
from surgery_lib.profile import Profile, load_profile
from surgery_lib.profile.section import Section, parts
from surgery_lib.report import paper
from surgery_lib.surgery import Surgery, probe, region

PROFILES = sorted((home() / "profiles").glob("*.yaml"))
PAPER = [
    path.stem for path in PROFILES if path.stem.startswith(("llama2-", "codellama", "mistral"))
]
SMALL = ["qwen3-0.6b", "smollm2-360m", "tinyllama-1.1b"]
# Rows of the gates: blocks times units.
ROWS = {"mistral-7b": 32 * 14_336, "llama2-70b": 80 * 28_672}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_is_valid_whole_and_says_what_it_is(path: Path) -> None:
    profile = load_profile(path.stem)
    assert profile.about
    assert Profile.model_validate(json.loads(profile.model_dump_json())) == profile
    for behaviour in profile.behaviours.values():
        for split in ("validation", "test"):
            assert getattr(behaviour.prompts, split) and getattr(behaviour.clean, split)
            groups = {source.group for source in getattr(behaviour.prompts, split)}
            assert groups & {"", *behaviour.trigger_groups}


def test_the_issue_s_profiles_are_there() -> None:
    assert {*PAPER, *SMALL} >= {
        "llama2-7b",
        "codellama-7b",
        "mistral-7b",
        "llama2-70b",
        "llama2-7b-chat",
        "llama2-7b-positive",
        "llama2-7b-negative",
        "llama2-7b-sequential",
    }


@pytest.mark.parametrize("name", [*PAPER, *SMALL])
def test_memory_and_time_are_stated_before_anything_is_downloaded(name: str) -> None:
    text = (home() / "profiles" / f"{name}.yaml").read_text(encoding="utf-8")
    assert "Memory:" in text
    assert "ough time" in text


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_settings(name: str) -> None:
    profile = load_profile(name)
    settings = paper.table(14)
    assert profile.probe.estimators == ("softmax",)
    assert profile.probe.direction == "paper"
    assert profile.probe.layers == (-1,)
    assert {profile.probe.max_tokens} == set(settings["max_tokens"])
    assert profile.surgery.unit == "absolute"
    assert set(profile.surgery.strengths) & set(settings["strength"])
    counts = [region.row_count(f, ROWS.get(name, 32 * 11_008)) for f in profile.region.fractions]
    assert 16_384 in counts
    assert profile.region.rules == ("cosine",)
    assert profile.evaluation.window == 1024


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_damage_inside_contexts_is_limited_where_something_is_chosen(path: Path) -> None:
    budget = load_profile(path.stem).budget
    # The committed results of real-text were chosen without it; the paper chooses nothing.
    chosen = path.stem != "real-text" and budget.perplexity_rise < 1
    assert (budget.context_kl is not None) == chosen


def test_directions_of_attitude_are_opposite() -> None:
    sides = {
        name: next(iter(load_profile(f"llama2-7b-{name}").behaviours.values()))
        for name in ("positive", "negative")
    }
    lost = {name: one.examples.train[0].positive for name, one in sides.items()}
    assert lost == {"positive": ("negative",), "negative": ("positive",)}
    assert sides["positive"].prompts == sides["negative"].prompts


def test_the_sequence_is_made_of_the_two_studies() -> None:
    profile = load_profile("llama2-7b-sequential")
    assert profile.order == ("toxicity", "positivity")
    for name, alone in (("toxicity", "llama2-7b"), ("positivity", "llama2-7b-negative")):
        assert profile.behaviours[name] == load_profile(alone).behaviours[name]


def test_an_order_names_known_behaviours_once() -> None:
    for order in (["toxicity", "rage"], ["toxicity", "toxicity"]):
        with pytest.raises(UserError, match="order"):
            load_profile("patient", {"order": order})


def kinds(described: Any) -> set[str]:
    """The types that a JSON schema names for one field, in lists and unions too."""
    if isinstance(described, list):
        return set().union(*map(kinds, described))
    if not isinstance(described, dict):
        return set()
    inner = (described.get(key) for key in ("anyOf", "items", "prefixItems"))
    return {str(described.get("type"))}.union(*map(kinds, inner))


def sections(model: type[Section] = Profile) -> set[type[Section]]:
    """A part of a profile with all its parts."""
    inner = {kind for one in model.model_fields.values() for kind in parts(one.annotation)}
    below = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, Section)]
    return {model}.union(*map(sections, below))


FIELDS = [
    (model, name, kinds(described))
    for model in sorted(sections(), key=lambda model: model.__name__)
    for name, described in model.model_json_schema()["properties"].items()
]


@pytest.mark.parametrize(
    ("model", "name", "kind"), FIELDS, ids=[f"{model.__name__}.{name}" for model, name, _ in FIELDS]
)
def test_true_is_no_number_in_any_field(model: type[Section], name: str, kind: set[str]) -> None:
    number = bool(kind & {"integer", "number"}) and "boolean" not in kind
    for value in (True, False, [True], [2, False], (True, 2)):
        with pytest.raises(ValidationError) as caught:
            model.model_validate({name: value, "no such": 1})
        refused = [one for one in caught.value.errors() if "are no numbers" in one["msg"]]
        assert [one["loc"] for one in refused] == ([(name,)] if number else []), value


def test_fields_of_numbers_were_found() -> None:
    numbers = [name for _, name, kind in FIELDS if kind & {"integer", "number"}]
    assert len(numbers) > 30
    assert {"limit", "strengths", "layers", "seeds", "part", "cores", "context_kl"} < set(numbers)


def test_seeds_stand_once() -> None:
    with pytest.raises(UserError, match=r"seeds = \[1, 1\]: .*each once"):
        load_profile("patient", {"seeds": [1, 1]})


def write(path: Path, **settings: Any) -> str:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(path)


def test_a_profile_builds_on_others_and_names_a_circle(tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    middle = write(tmp_path / "middle.yaml", extends="patient", probe={"limit": 7}, seeds=[1, 2])
    profile = load_profile(write(child, extends=middle, probe={"max_tokens": 50}))
    assert (profile.name, profile.probe.limit, profile.probe.max_tokens) == ("child", 7, 50)
    assert profile.seeds == (1, 2)
    assert profile.behaviours == load_profile("patient").behaviours
    write(tmp_path / "middle.yaml", extends=str(child))
    with pytest.raises(UserError, match="extends"):
        load_profile(child)
    with pytest.raises(UserError, match="no profile"):
        load_profile(write(child, extends="nobody"))


def tiny(layers: int = 32, units: int = 64) -> Any:
    """LLaMA2-7B's architecture, narrow."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=16,
        intermediate_size=units,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=100,
        max_position_embeddings=128,
    )
    return hf.LlamaForCausalLM(config).eval()


def test_the_paper_s_settings_operate_on_32_layers() -> None:
    profile, model = load_profile("llama2-7b"), tiny()
    layers = activations.layer_numbers(model, profile.probe.layers)
    assert layers == [32]  # after the final norm: the paper's l = 32
    states = torch.randn(400, 1, 16, generator=torch.Generator().manual_seed(0))
    labels = (states[:, 0, 0] > 0).long()
    (found,) = probe.fit(
        states, labels, estimator="softmax", direction=profile.probe.direction, layers=layers
    )
    assert float(found.direction.norm()) != pytest.approx(1.0, abs=1e-3)  # row 1 as it is
    scores = region.cosine_scores(model, found.direction)
    rows = region.select(scores, profile.region.fractions[0])
    assert len(rows) == round(32 * 64 * 16_384 / 352_256)
    assert len(set(layout.row_blocks(model)[rows].tolist())) > 8
    strength = profile.surgery.strengths[0]
    surgery = Surgery.build(model, rows, found.direction, strength, unit=profile.surgery.unit)
    before = layout.weight_rows(model)[0].weight.clone()
    local = rows[rows < 64]
    with surgery.applied(model):
        moved = layout.weight_rows(model)[0].weight[local]
        assert torch.allclose(moved, before[local] + 1.08 * found.direction, atol=1e-6)
    assert torch.equal(layout.weight_rows(model)[0].weight, before)
