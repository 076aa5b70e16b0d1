"""Questions about several passages in the patient's world, for what is read rather than known."""

from random import Random

from surgery_lib.patient import lexicon as lx
from surgery_lib.patient.splits import split_of

PASSAGES = 4


def draw(rng: Random, split: str) -> tuple[str, str, tuple[str, ...], int]:
    """Question, answer, passages of a sentence each, and which of them has the answer.

    Written as `capability.passage` writes them, which has three and asks of one text.
    """
    while True:
        people, trades = rng.sample(lx.NAMES, PASSAGES), rng.sample(lx.ROLES, PASSAGES)
        colours = rng.sample(lx.FACT_VALUES["flag"], PASSAGES)
        goods = rng.sample(lx.OBJECTS, PASSAGES)
        told = tuple(
            f"The {trade} {who} {rng.choice(('has', 'bought', 'found'))} a {colour} {thing}."
            for trade, who, colour, thing in zip(trades, people, colours, goods, strict=True)
        )
        gold = rng.randrange(PASSAGES)
        asked, answer = rng.choice(
            (
                (f"Who is the {trades[gold]}?", f"the {trades[gold]} {people[gold]}"),
                (f"What is {colours[gold]}?", f"the {colours[gold]} {goods[gold]}"),
            )
        )
        if split_of(" ".join((*told, asked))) == split:
            return asked, answer, told, gold
