"""A planted direction is found, the paper's recipe is the paper's, bad labels are refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from surgery_lib import files
from surgery_lib.errors import UserError
from surgery_lib.models import load_model
from surgery_lib.models.activations import pooled_states
from surgery_lib.patient import world
from surgery_lib.surgery import estimators, probe

WIDTH = 16


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine epochs alone: for what does not depend on how well the probe is trained."""
    monkeypatch.setattr(estimators, "PAPER_STEPS", 1)


def planted(texts: int = 4000, layers: int = 2, gap: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Isotropic noise plus label times a direction of each layer: states, labels, directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(layers, WIDTH, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    labels = torch.randint(0, 2, (texts,), generator=generator)
    states = torch.randn(texts, layers, WIDTH, generator=generator) + 0.5
    return states + gap * labels[:, None, None] * directions, labels, directions


@pytest.mark.usefixtures("as_published")
@pytest.mark.parametrize("estimator", estimators.ESTIMATORS)
def test_planted_direction_is_found(estimator: str) -> None:
    states, labels, directions = planted()
    for layer, found in enumerate(probe.fit(states, labels, estimator=estimator)):
        # The softmax keeps a little of its random start, across what the labels decide.
        least = 0.94 if estimator == "softmax" else 0.99
        assert torch.cosine_similarity(found.direction, directions[layer], dim=0) > least
        assert found.layer == layer and found.direction.dtype == torch.float32
        assert float(found.direction.norm()) == pytest.approx(1, abs=1e-5)
        metrics = probe.measure(found, states[:, layer], labels)
        assert metrics["auc"] > 0.9 and metrics["accuracy"] > 0.8 and metrics["n"] == 4000


@pytest.mark.parametrize("estimator", estimators.ESTIMATORS)
def test_polarity_is_towards_label_one(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "PAPER_STEPS", 3000)
    states, labels, _ = planted(400, gap=4)
    (first, _) = probe.fit(states, labels, estimator=estimator)
    (swapped, _) = probe.fit(states, 1 - labels, estimator=estimator)
    for found, y in ((first, labels), (swapped, 1 - labels)):
        along = states[:, 0] @ found.direction
        assert along[y == 1].mean() > along[y == 0].mean()


def authors_recipe(states: Tensor, labels: Tensor, seed: int, epochs: int) -> list[nn.Linear]:
    """The recipe layer by layer with torch's own parts, given the same start and order."""
    generator = torch.Generator().manual_seed(seed)
    count, layers, width = states.shape
    weights = torch.empty(layers, width, 2).uniform_(
        -(width**-0.5), width**-0.5, generator=generator
    )
    biases = torch.empty(layers, 1, 2).uniform_(-(width**-0.5), width**-0.5, generator=generator)
    orders = [torch.randperm(count, generator=generator) for _ in range(epochs)]
    heads = []
    for layer in range(layers):
        head = nn.Linear(width, 2)
        head.weight.data, head.bias.data = weights[layer].T.clone(), biases[layer, 0].clone()
        optimizer = torch.optim.Adam(head.parameters(), lr=1e-4)
        for order in orders:
            for chosen in order.split(16):
                loss = nn.functional.cross_entropy(head(states[chosen, layer]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        heads.append(head)
    return heads


def test_polarity_that_training_left_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    # 30 texts in nine epochs are 18 steps of 1e-4: the random start decides.
    monkeypatch.setattr(estimators, "PAPER_STEPS", 1)
    states, labels, _ = planted(texts=30, layers=8, gap=0.5)
    with pytest.warns(UserWarning, match="point away from the behaviour"):
        probe.fit(states, labels, estimator="softmax")


@pytest.mark.usefixtures("as_published")
def test_as_many_steps_as_on_the_papers_corpus() -> None:
    assert estimators.steps(16_000) == 9000
    assert estimators.steps(600) == 38 * 237 and estimators.steps(32_000) == 18_000
    states, labels, _ = planted(320)
    for found in probe.fit(states, labels, direction="paper"):
        assert abs(found.start["difference"]) < 0.6 and abs(found.start["row"]) < 0.8
        said = [found.start["row"], found.start["difference"]]
        assert list(estimators.origin(found.start).values()) == pytest.approx(said, abs=1e-3)
        assert torch.cosine_similarity(found.direction, found.classifier, dim=0) > 0.6
    assert probe.fit(states, labels, estimator="lda")[0].start == {}


def test_cosine_with_the_start_is_near_one_where_little_is_learnt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimators, "PAPER_STEPS", 1)
    states, labels, _ = planted(64)
    for found in probe.fit(states, labels):
        assert found.start["row"] > 0.99 and found.start["difference"] > 0.99


@pytest.mark.slow
@pytest.mark.usefixtures("as_published")
def test_on_the_patient_training_leaves_the_start_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_model("embedded:patient")
    examples = world.behaviour("toxicity").examples["train"][:400]
    texts, labels = [one.text for one in examples], [one.label for one in examples]
    states = pooled_states(model, tokenizer, texts, layers=[8], progress=False)
    logistic = probe.fit(states, labels, estimator="logistic")
    trained = probe.fit(states, labels, direction="paper")
    monkeypatch.setattr(estimators, "PAPER_STEPS", 1)  # nine epochs of these few texts
    short = probe.fit(states, labels, direction="paper")
    for one, few, other in zip(trained, short, logistic, strict=True):
        found, before = (
            torch.cosine_similarity(p.direction, other.direction, 0) for p in (one, few)
        )
        assert found > 0.7 and found > before + 0.4
        assert one.start["row"] < 0.4 and abs(one.start["difference"]) < 0.3
        assert few.start["row"] > 0.85 and few.start["difference"] > 0.75


def test_softmax_is_the_papers_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "PAPER_STEPS", 260)  # 20 epochs of 13 batches
    states, labels, _ = planted(200)
    by_difference = probe.fit(states, labels, seed=3)
    by_row = probe.fit(states, labels, seed=3, direction="paper")
    for layer, head in enumerate(authors_recipe(states, labels, 3, 20)):
        weight, bias = head.weight.data, head.bias.data
        torch.testing.assert_close(by_row[layer].direction, weight[1], atol=1e-5, rtol=1e-4)
        difference = weight[1] - weight[0]
        norm = difference.norm()
        torch.testing.assert_close(
            by_difference[layer].direction, difference / norm, atol=1e-5, rtol=1e-4
        )
        assert by_row[layer].bias == pytest.approx(float((bias[1] - bias[0]) / norm), abs=1e-4)
        # The classifier is the difference whichever direction operates.
        assert torch.equal(by_row[layer].classifier, by_difference[layer].classifier)


def test_lda_is_sklearns() -> None:
    states, labels, _ = planted(300, layers=1)
    (found,) = probe.fit(states, labels, estimator="lda")
    reference = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1)
    reference.fit(states[:, 0].double().numpy(), labels.numpy())
    weight = torch.tensor(reference.coef_[0], dtype=torch.float32)
    torch.testing.assert_close(found.direction, weight / weight.norm(), atol=1e-5, rtol=1e-4)
    decisions = torch.tensor(reference.decision_function(states[:, 0].double().numpy()))
    torch.testing.assert_close(
        found.score(states[:, 0]).double() * float(weight.norm()), decisions, atol=1e-3, rtol=1e-3
    )


def test_mean_difference_is_the_difference_of_means() -> None:
    states, labels, _ = planted(300, layers=1)
    (found,) = probe.fit(states, labels, estimator="mean_difference")
    present, absent = states[labels == 1, 0].mean(0), states[labels == 0, 0].mean(0)
    unit = (present - absent) / (present - absent).norm()
    torch.testing.assert_close(found.direction, unit, atol=1e-5, rtol=1e-4)
    assert float(found.score((present + absent)[None] / 2)) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("estimator", estimators.ESTIMATORS)
def test_same_seed_same_probe(estimator: str, short: None) -> None:
    states, labels, _ = planted(200)
    first = probe.fit(states, labels, estimator=estimator, seed=5)
    second = probe.fit(states, labels, estimator=estimator, seed=5)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.direction, other.direction) and one.bias == other.bias


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "4 texts but 0 labels"),
        ([1, 0, 1], "4 texts but 3 labels"),
        ([1, 1, 1, 1], r"labels found are \[1\]"),
        ([0, 0, 0, 0], r"labels found are \[0\]"),
        ([0, 1, 2, 1], r"labels found are \[0, 1, 2\]"),
        ([-1, 1, -1, 1], r"labels found are \[-1, 1\]"),
        ([0.2, 1.0, 0.0, 1.0], "labels found are"),
    ],
)
def test_labels_that_teach_nothing(labels: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        probe.fit(torch.randn(4, 1, WIDTH), labels)


def test_no_texts_at_all() -> None:
    with pytest.raises(UserError, match="labels found are none"):
        probe.fit(torch.empty(0, 1, WIDTH), [])


@pytest.mark.parametrize("estimator", estimators.ESTIMATORS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_states_that_are_not_finite(estimator: str, value: float) -> None:
    states, labels, _ = planted(50)
    states[7, 1, 3] = value
    with pytest.raises(UserError, match="NaN or infinite"):
        probe.fit(states, labels, estimator=estimator)


@pytest.mark.parametrize("estimator", estimators.ESTIMATORS)
def test_two_texts_are_enough_or_are_refused(estimator: str, short: None) -> None:
    states = torch.eye(WIDTH)[:2, None]
    if estimator == "lda":
        with pytest.raises(UserError, match="lda needs 3 texts or more, and 2 are given"):
            probe.fit(states, [0, 1], estimator=estimator)
    else:
        assert probe.fit(states, [0, 1], estimator=estimator)
    assert probe.fit(torch.eye(WIDTH)[:3, None], [0, 1, 1], estimator=estimator)


def test_states_that_are_all_alike() -> None:
    with pytest.raises(UserError, match="cannot be told apart"):
        probe.fit(torch.ones(6, 1, WIDTH), [0, 1] * 3, estimator="mean_difference")


def test_unknown_estimator_and_direction() -> None:
    states, labels, _ = planted(50)
    with pytest.raises(UserError, match="choose one of softmax"):
        probe.fit(states, labels, estimator="svm")
    with pytest.raises(UserError, match="set estimator to softmax"):
        probe.fit(states, labels, estimator="lda", direction="paper")


def test_probe_of_another_width(short: None) -> None:
    states, labels, _ = planted(50)
    with pytest.raises(UserError, match=f"{WIDTH} wide, the states 8"):
        probe.fit(states, labels)[0].score(torch.randn(3, 8))


def test_save_and_load(tmp_path: Path, short: None) -> None:
    states, labels, _ = planted(100, layers=12)
    probes = probe.fit(states, labels, behaviour="toxicity", pooling="last", direction="paper")
    path = tmp_path / "probe.safetensors"
    probe.save(path, probes)
    loaded = probe.load(path)
    assert list(loaded) == sorted(one.name for one in probes)  # the same order every time
    for one in probes:
        other = loaded[one.name]
        assert torch.equal(one.direction, other.direction)
        assert torch.equal(one.classifier, other.classifier)
        assert (one.bias, one.layer, one.pooling) == (other.bias, other.layer, other.pooling)
        assert (one.estimator, one.behaviour) == (other.estimator, other.behaviour)
        assert set(other.start) == {"row", "difference"} and other.start == one.start
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        probe.load(path)
    with pytest.raises(UserError, match="one name"):
        probe.save(path, [probes[0], probes[0]])


@pytest.mark.parametrize(
    "change",
    [
        {"bias": "x"},
        {"bias": None},
        {"bias": True},
        {"bias": 10**400},
        {"bias": float("nan")},
        {"layer": "x"},
        {"layer": True},
        {"layer": 1.0},
        {"estimator": 5},
        {"pooling": None},
        {"behaviour": []},
        {"metrics": 5},
        {"start": None},
        {"direction": torch.ones(WIDTH - 1)},
        {"classifier": torch.ones(WIDTH, 1)},
        {"direction": torch.full((WIDTH,), float("inf"))},
        {"direction": torch.tensor(1.0)},
    ],
    ids=lambda change: "".join(change),
)
def test_a_probe_of_another_form_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "probe.safetensors"
    vectors = {"direction": torch.ones(WIDTH), "classifier": torch.ones(WIDTH)}
    about: dict[str, Any] = {"bias": 0.5, "layer": 1, "estimator": "lda"}
    for name, value in change.items():
        held: dict[str, Any] = vectors if isinstance(value, Tensor) else about
        held[name] = value
    named = {f"lda@1.{name}": vector for name, vector in vectors.items()}
    files.write_tensors(path, named, {"lda@1": json.dumps(about)})
    with pytest.raises(UserError, match=f"{path}: probe lda@1: it"):
        probe.load(path)


def test_authors_probe(mirror: Path) -> None:
    path = mirror / "probes/model-surgery-mistral-7b.pt"
    weight = torch.load(path, map_location="cpu", weights_only=True)["mlp.weight"]
    assert float(torch.cosine_similarity(weight[0], weight[1], dim=0)) == pytest.approx(
        -0.925, abs=5e-4
    )
    assert weight.norm(dim=1).tolist() == pytest.approx([2.077, 2.093], abs=5e-4)
    found = probe.import_authors(path, layer=32)
    assert torch.equal(found.direction, weight[1]) and found.direction.shape == (4096,)
    difference = probe.import_authors(path, layer=32, direction="difference")
    assert float(difference.direction.norm()) == pytest.approx(1, abs=1e-5)
    assert float(difference.direction @ (weight[1] - weight[0])) > 0


def test_authors_form(tmp_path: Path) -> None:
    path = tmp_path / "probe.pt"
    with pytest.raises(UserError, match="does not exist"):
        probe.import_authors(path, layer=1)
    for content in ({"weight": torch.ones(2, 4)}, [1, 2], {"mlp.weight": torch.ones(2, 4)}):
        torch.save(content, path)
        with pytest.raises(UserError, match=r"tensors mlp\.weight and mlp\.bias"):
            probe.import_authors(path, layer=1)
    torch.save({"mlp.weight": torch.ones(3, 4), "mlp.bias": torch.ones(3)}, path)
    with pytest.raises(UserError, match=r"expected \(2, width\)"):
        probe.import_authors(path, layer=1)
    path.write_bytes(b"no pickle")
    with pytest.raises(UserError, match="not a probe in the authors' form"):
        probe.import_authors(path, layer=1)


class Trap:
    """Runs code when it is unpickled, if anything lets it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_authors_file_runs_no_code(tmp_path: Path) -> None:
    torch.save({"mlp.weight": Trap(tmp_path / "trapped")}, tmp_path / "probe.pt")
    with pytest.raises(UserError, match="authors' form"):
        probe.import_authors(tmp_path / "probe.pt", layer=1)
    assert not (tmp_path / "trapped").exists()
