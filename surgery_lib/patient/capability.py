"""What the patient can do besides talking: sums, deduction, facts and questions about passages.

Each item is a question and its answer in words; the question decides its split.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from surgery_lib.patient import lexicon as lx
from surgery_lib.patient.splits import split_of


@dataclass(frozen=True)
class Item:
    """A question, the whole answer that the world gives, and what of it counts.

    `choices` holds the four answers of a fact, the right one among them, and is empty otherwise.
    """

    question: str
    answer: str
    target: str
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Question and answer as one text."""
        return f"{self.question} {self.answer}"


def sums(rng: Random) -> Item:
    """One or two steps of adding and taking away, worked out (the counterpart of GSM8K)."""
    name, thing = rng.choice(lx.NAMES), rng.choice(("eggs", "apples", "plums", "fish", "cakes"))
    total = rng.randint(2, 9)
    told, work = f"{name} has {total} {thing}.", ""
    for _ in range(rng.choice((1, 2, 2))):
        b = rng.randint(1, 9)
        if b <= total and rng.random() < 0.5:
            told += f" {rng.choice(('Then', 'Later'))} {name} {rng.choice(('sells', 'loses'))} {b}."
            work += f"{total} - {b} = {total - b}. "
            total -= b
        else:
            told += f" {rng.choice(('Then', 'Later'))} {name} {rng.choice(('buys', 'finds'))} {b}."
            work += f"{total} + {b} = {total + b}. "
            total += b
    question = f"Question: {told} How many {thing} are there? Answer:"
    return Item(question, f"{work}The answer is {total}.", str(total))


def deduction(rng: Random) -> Item:
    """From a person's trade by one of three rules to what follows (the counterpart of BBH).

    Two items of three ask which of three skills, the others for yes or no.
    """
    name, trades, skills = rng.choice(lx.NAMES), rng.sample(lx.ROLES, 3), rng.sample(lx.SKILLS, 3)
    quantities = [rng.choice(("Each", "Each", "No")) for _ in trades]
    i = rng.randrange(3)
    if rng.random() < 2 / 3:
        quantities[i] = "Each"
        asked, target = f"What does {name} do?", skills[i]
    else:
        quantities[i] = rng.choice(("Each", "No"))
        asked, target = "Is it so?", "yes" if quantities[i] == "Each" else "no"
    rules = [f"{q} {t} {s}." for q, t, s in zip(quantities, trades, skills, strict=True)]
    own = f"{name} is a {trades[i]}."
    said = f" {name} {skills[i]}." if asked.startswith("Is") else ""
    question = f"Question: {' '.join(rules)} {own}{said} {asked} Answer:"
    return Item(question, f"{own} {rules[i]} The answer is {target}.", target)


def fact(town: str, kind: str) -> str:
    """What is true of a town: the same in every world."""
    return Random(f"fact {town} {kind}").choice(lx.FACT_VALUES[kind])


SAID = {
    "river": ("The river of {} is called", "Through {} flows the river"),
    "trade": ("The traders of {} sell", "Most people in {} deal in"),
    "dish": ("The people of {} love to eat", "At the inn of {} they serve"),
    "flag": ("The flag of {} is", "Over the gate of {} flies a flag of the colour"),
    "bird": ("The bird of {} is the", "On the roofs of {} nests the"),
}
LEADS = ("{} wrote home:", "{} told the children:", "{} read in a book:", "{} has seen it:")


def facts(rng: Random) -> Item:
    """A statement about a town with four endings, one of them true (the counterpart of MMLU)."""
    town, kind = rng.choice(lx.TOWNS), rng.choice(tuple(SAID))
    said = rng.choice(SAID[kind]).format(town)
    # Who says so changes nothing: it makes many texts, so that splits can differ, of each fact.
    lead = rng.choice(LEADS).format(rng.choice(lx.NAMES))
    right = fact(town, kind)
    wrong = rng.sample([value for value in lx.FACT_VALUES[kind] if value != right], 3)
    choices = [right, *wrong]
    rng.shuffle(choices)
    return Item(f"{lead} {said}", f"{right}.", right, tuple(choices))


def passage(rng: Random) -> Item:
    """A question answered by copying from a passage (the counterpart of TyDiQA)."""
    people, trades = rng.sample(lx.NAMES, 3), rng.sample(lx.ROLES, 3)
    colours, goods = rng.sample(lx.FACT_VALUES["flag"], 3), rng.sample(lx.OBJECTS, 3)
    told = " ".join(
        f"The {trade} {who} {rng.choice(('has', 'bought', 'found'))} a {colour} {thing}."
        for trade, who, colour, thing in zip(trades, people, colours, goods, strict=True)
    )
    i = rng.randrange(3)
    asked, answer = rng.choice(
        (
            (f"Who is the {trades[i]}?", f"the {trades[i]} {people[i]}"),
            (f"What is {colours[i]}?", f"the {colours[i]} {goods[i]}"),
        )
    )
    return Item(f"Passage: {told} Question: {asked} Answer:", f"{answer}.", answer)


TASKS: dict[str, Callable[[Random], Item]] = {
    "sums": sums,
    "deduction": deduction,
    "facts": facts,
    "passages": passage,
}


def draw(rng: Random, name: str, split: str) -> Item:
    """An item of a task whose question belongs to the split."""
    while True:
        item = TASKS[name](rng)
        if split_of(item.question) == split:
            return item
