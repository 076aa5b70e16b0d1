"""What the five diagnostics of an edited model found, a sentence with its numbers each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from surgery_lib.report.style import interval, markdown_table, percent

Result = Mapping[str, Any]
# The edit that is spoken of: the first of these that a diagnostic was run on.
EDITS = ("surgery, covariance", "surgery")


@dataclass(frozen=True)
class Question:
    """One diagnostic: what it asks, its notebook, whose system it is, its result, its sentence."""

    asks: str
    notebook: str
    system: str
    writes: str
    says: Callable[[Result], str]


@dataclass(frozen=True)
class Answer:
    """A question and what each study that asked it found."""

    question: Question
    said: Mapping[str, str]


def _edit(held: Mapping[str, Any]) -> str:
    return next((name for name in EDITS if name in held), "")


def _fingerprint(result: Result) -> str:
    facts = result["facts"]
    text = (
        f"ICS with the base (of 100): edits {facts['lowest_edit']:.1f} or more, models of another "
        f"start {max(0.0, facts['highest_unrelated']):.1f} or less"
    )
    touched = facts.get("touch", {})
    if edit := _edit(touched):
        touch = touched[edit]
        named = touch["edited"] - len(touch["missed"])
        text += (
            f"; {named} of {touch['edited']} blocks of {edit} named, {len(touch['false'])} falsely"
        )
    return text


def _drift(result: Result) -> str:
    before = result["edits"]["base"]["frozen"]
    text = f"AUC {interval(before, 1.0, 3)} on the unedited model"
    if edit := _edit(result["edits"]):
        after = result["edits"][edit]["frozen"]
        text += f", {interval(after, 1.0, 3)} after {edit} with the same probe"
    return f"{text} (n = {before['n']}); an untrained model {result['untrained']['value']:.2f}"


def _attack(result: Result) -> str:
    edit = _edit(result["gaps"])
    gap = result["gaps"].get(edit, {}).get("transferred")
    base = result["matrix"]["against base"]["base"]["best"]["value"]
    fixed = result["matrix"]["other queries"]["base"]["best"]["value"]
    text = f"log p of the answer, nats a token: trained attackers {base:.2f} on the unedited model"
    if gap:
        text += f", {gap['edited']:.2f} on {edit} (p {gap['p']:.3f}, n = {gap['n']})"
    return f"{text}; fixed queries reach {fixed:.2f}"


def _code(result: Result) -> str:
    words, plain = (result["base"][name] for name in ("its summary", "encoder on the code"))
    text = (
        f"clones told by the model's words: AUC {words['auc']:.2f}, by the code {plain['auc']:.2f}"
    )
    if edit := _edit(result["edits"]):
        held = result["edits"][edit]
        text += (
            f"; {edit} words {percent(1 - held['same'], 0)} of the summaries otherwise, "
            f"the AUC class by class changes by {interval(held['lost'], 1.0, 2)}"
        )
    return text


def _retrieval(result: Result) -> str:
    last = list(result["between"])[-1]
    readings = {
        "without virtual tokens": result["base"],
        f"with {last}": result["between"][last],
        "with LoRA": result["lora"],
    }
    told = ", ".join(f"{percent(one['em']['value'], 0)} {name}" for name, one in readings.items())
    return (
        f"exact answers: {told} (n = {result['base']['em']['n']}, "
        f"{result['sizes']['steps']} training steps: too few to tell)"
        if result["sizes"]["steps"] < 100
        else f"exact answers: {told} (n = {result['base']['em']['n']})"
    )


QUESTIONS = (
    Question(
        "Is it still the same model, and where was it touched?",
        "08_fingerprint",
        "HuRef",
        "fingerprint.json",
        _fingerprint,
    ),
    Question(
        "Can one still read that a text turned it from its task?",
        "09_drift",
        "TaskTracker",
        "drift.json",
        _drift,
    ),
    Question(
        "Can an attacker bring the behaviour back?",
        "10_attack",
        "Atoxia",
        "attack.json",
        _attack,
    ),
    Question("What else broke?", "11_code", "zsLLMCode", "code.json", _code),
    Question(
        "Could one have left the weights alone?",
        "12_retrieval",
        "SPRING",
        "retrieval.json",
        _retrieval,
    ),
)


def answers(studies: Mapping[str, Callable[[str], Result | None]]) -> list[Answer]:
    """Every question with the sentences of the studies that asked it.

    `studies` maps a study's name to what gives one of its results by file name, or None.
    """
    found = []
    for question in QUESTIONS:
        results = {study: result(question.writes) for study, result in studies.items()}
        said = {study: question.says(one) for study, one in results.items() if one is not None}
        found.append(Answer(question, said))
    return found


def table(studies: Mapping[str, Callable[[str], Result | None]]) -> str:
    """The questions as Markdown, a column a study that asked any of them."""
    found = answers(studies)
    asked = [study for study in studies if any(study in one.said for one in found)]
    lines = [
        [
            one.question.asks,
            f"[{one.question.notebook.replace('_', ' ')}](notebooks/{one.question.notebook}.ipynb)",
            one.question.system,
            *(one.said.get(study, "not run yet") for study in asked),
        ]
        for one in found
    ]
    return markdown_table(["question", "notebook", "system", *asked], lines)
