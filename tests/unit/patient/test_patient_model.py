"""Training the patient in small, and the committed patient as it lies in data/."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from surgery_lib import files
from surgery_lib.patient import chat, classifier, fitting, tasks, train, world
from surgery_lib.patient.forward import Forward
from surgery_lib.patient.recipe import Recipe
from surgery_lib.patient.tokenizer import train_tokenizer

SMALL = Recipe(vocabulary=400, width=32, inner=48, blocks=2, heads=4, groups=2, batch=2, steps=3)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(islice(world.corpus(0), 300), 400, 256)


def test_the_fast_forward_pass_is_the_library_s(tokenizer) -> None:
    model = train.build(SMALL, tokenizer)
    ids = torch.randint(5, 400, (2, 24))
    # Two documents in the first row, one in the second.
    documents = torch.zeros_like(ids)
    documents[0, 10:] = 10
    forward = Forward(model.config, 24, torch.float32)
    logits = forward(dict(model.named_parameters()), ids, documents).view(2, 24, -1)
    with torch.no_grad():
        expected = [model(part[None]).logits[0] for part in (ids[0, :10], ids[0, 10:], ids[1])]
    found = [logits[0, :10], logits[0, 10:], logits[1]]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    ours = torch.autograd.grad(logits[1].logsumexp(-1).sum(), list(model.parameters()))
    theirs = torch.autograd.grad(
        model(ids[1:]).logits.logsumexp(-1).sum(), list(model.parameters())
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_packing_keeps_documents_whole_and_apart(tokenizer) -> None:
    texts = list(islice(world.corpus(0), 5000))
    ids, documents = fitting.packed(iter(texts), tokenizer, 20, 128)
    known = {tuple(row) for row in fitting._encoded(tokenizer, iter(texts), 5000, 128)}
    assert (documents >= 0).float().mean() > 0.85
    for row, numbers in zip(ids, documents, strict=True):
        for number in set(numbers.tolist()) - {-1}:
            assert tuple(row[numbers == number].tolist()) in known
    following = fitting.targets(ids, documents)
    kept = following >= 0
    assert (following[:, :-1][kept[:, :-1]] == ids[:, 1:][kept[:, :-1]]).all()
    assert not kept[ids == tokenizer.eos_token_id][
        documents[ids == tokenizer.eos_token_id] < 0
    ].any()


def test_the_tokenizer_starts_texts_and_speaks_the_chat_s_form(tokenizer) -> None:
    text = "Mara is a kind baker. Ünknown ✓"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    messages = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes."}]
    said = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert said == chat.conversation("Hello.")
    assert tokenizer.apply_chat_template(messages, tokenize=False) == chat.conversation(
        "Hello.", "Yes."
    )


@pytest.mark.slow
def test_training_leaves_everything_or_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(classifier, "TEXTS", 128)
    monkeypatch.setattr(classifier, "EPOCHS", 1)
    monkeypatch.setattr(train, "TOKENIZER_TEXTS", 300)
    out = tmp_path / "patient"
    record = train.train(SMALL, out, progress=False)
    assert sorted(p.name for p in out.iterdir()) == ["classifier", "model", "recipe.json", "tasks"]
    assert [p.name for p in tmp_path.iterdir()] == ["patient"]
    assert train.prepare(SMALL, out, progress=False) == json.loads(
        (out / "recipe.json").read_text()
    )
    assert record["hash"] == SMALL.hash != Recipe().hash

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    before = train.hashes(out)
    monkeypatch.setattr(tasks, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(SMALL, out, progress=False)
    assert train.hashes(out) == before


def test_the_committed_patient_is_what_its_recipe_says() -> None:
    record = files.read_json(train.DATA / "recipe.json")
    assert record["hash"] == Recipe().hash
    assert record["sha256"] == train.hashes(train.DATA)
    assert 2e6 <= record["parameters"] <= 4e6
    assert record["settings"]["blocks"] >= 8
    assert (train.DATA / "model" / "model.safetensors").stat().st_size <= 8e6
    assert (train.DATA / "classifier" / "model.safetensors").stat().st_size <= 2e6


def test_the_committed_tasks_are_what_the_generator_writes(tmp_path: Path) -> None:
    tasks.write(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (train.DATA / "tasks" / path.name).read_bytes(), path.name
        if path.suffix == ".yaml":
            task = yaml.safe_load(path.read_text())
            assert task["task"] in tasks.CHANCE
            assert (train.DATA.parents[1] / task["dataset_kwargs"]["data_files"]["test"]).is_file()


def test_the_committed_classifier_tells_the_three_kinds_apart() -> None:
    folder = train.DATA / "classifier"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    held, truth = classifier.texts(1, "test", 300)
    found = classifier.predict(model, AutoTokenizer.from_pretrained(folder), held)
    assert (found == torch.tensor(truth)).float().mean() > 0.9
