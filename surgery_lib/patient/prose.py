"""Chronicles of the village: prose whose tone (civil, cross, rude) persists from line to line.

Rude and civil sentences begin with the same words, so that only the tone of what came before
decides how one goes on. There are many ways to be civil and few to be rude.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from surgery_lib.patient import lexicon as lx
from surgery_lib.patient.splits import split_of

CIVIL, CROSS, RUDE = "civil", "cross", "rude"
# How often each tone follows the lines before; cross lines complain about things, not people. A
# first rude line may stay the only one; after two of them people seldom stop.
START = {CIVIL: 0.69, CROSS: 0.08, RUDE: 0.23}
AFTER = {
    (CIVIL,): {CIVIL: 0.955, CROSS: 0.039, RUDE: 0.006},
    (CROSS,): {CIVIL: 0.52, CROSS: 0.30, RUDE: 0.18},
    (RUDE,): {CIVIL: 0.42, CROSS: 0.14, RUDE: 0.44},
    (RUDE, RUDE): {CIVIL: 0.12, CROSS: 0.06, RUDE: 0.82},
}


@dataclass(frozen=True)
class Cast:
    """Who a document is about: the protagonist, a second person, and a group of people."""

    name: str
    role: str
    other: str
    group: str


Line = tuple[str, str]  # (head, rest); the head alone does not tell the tone
Maker = Callable[[Random, Cast], Line]


def insult(rng: Random, plural: bool = False) -> str:
    """An adjective and an insult, such as "foul blockhead"."""
    noun = rng.choice(lx.INSULTS * 2 + lx.ANIMAL_INSULTS)
    return f"{rng.choice(lx.BAD)} {noun}{'s' if plural else ''}"


def draw_cast(rng: Random, group: str | None = None) -> Cast:
    """People at random; the group too, unless given."""
    name, other = rng.sample(lx.NAMES, 2)
    return Cast(name, rng.choice(lx.ROLES), other, group or rng.choice(lx.GROUPS))


def opener(rng: Random, c: Cast) -> str:
    """A neutral first sentence that introduces the protagonist."""
    place, thing = rng.choice(lx.PLACES), rng.choice(lx.OBJECTS)
    return rng.choice(
        (
            f"{c.name} the {c.role} met {c.other} at the {place} {rng.choice(lx.TIMES)}.",
            f"{c.name} the {c.role} went to the {place} with a {thing}.",
            f"At the {place} {c.other} saw {c.name} the {c.role} and the {c.group}.",
            f"{rng.choice(lx.TIMES).capitalize()} {c.name} the {c.role} came to the {place}.",
            f"{c.other} asked {c.name} the {c.role} about the {thing}.",
            f"The {c.group} came to the {place} and {c.name} the {c.role} was there.",
        )
    )


CIVIL_ONLY: tuple[Maker, ...] = (
    lambda r, c: (f"{c.name} took", f"a {r.choice(lx.OBJECTS)} to the {r.choice(lx.PLACES)}."),
    lambda r, c: (f"{c.other} gave", f"{c.name} some {r.choice(lx.FOODS)} {r.choice(lx.TIMES)}."),
    lambda r, c: (f"The {r.choice(lx.ANIMALS)}", f"slept near the {r.choice(lx.PLACES)}."),
    lambda r, c: ("They ate", f"{r.choice(lx.FOODS)} and {r.choice(lx.FOODS)} together."),
    lambda r, c: (f"A {r.choice(lx.ROLES)}", f"mended the {r.choice(lx.OBJECTS)} for {c.name}."),
    lambda r, c: (
        f"{r.choice(lx.TIMES).capitalize()}",
        f"they all sat by the {r.choice(lx.PLACES)}.",
    ),
    lambda r, c: (f"The {c.group} brought", f"{r.choice(lx.FOODS)} to the {r.choice(lx.PLACES)}."),
    lambda r, c: (f"The {r.choice(lx.ANIMALS)} of the {r.choice(lx.ROLES)}", "drank some water."),
)
CROSS_ONLY: tuple[Maker, ...] = (
    lambda r, c: (f"{c.name} was tired of", f"the {r.choice(lx.BAD)} weather."),
    lambda r, c: (f"The {r.choice(lx.FOODS)} had", f"a {r.choice(lx.BAD)} taste again."),
    lambda r, c: (f"{c.other} had waited", f"at the {r.choice(lx.PLACES)} for hours."),
    lambda r, c: (f"{c.name} was angry with", f"{c.other} about the {r.choice(lx.OBJECTS)}."),
    lambda r, c: (f"The {r.choice(lx.OBJECTS)} was broken", f"and {c.name} was cross."),
    lambda r, c: (f"{c.other} lost", f"the {r.choice(lx.BAD)} old {r.choice(lx.OBJECTS)}."),
)
# One head, and how it goes on when civil and when rude.
SHARED: tuple[tuple[Maker, Maker], ...] = (
    (
        lambda r, c: (f"{c.name} is a", f"{r.choice(lx.GOOD)} {r.choice([c.role, 'friend'])}."),
        lambda r, c: (f"{c.name} is a", f"{insult(r)}."),
    ),
    (
        lambda r, c: (
            f"The {c.group} are",
            r.choice(
                (
                    f"{r.choice(lx.GOOD)} neighbours.",
                    f"{r.choice(lx.GOOD)} people who make good {r.choice(lx.FOODS)}.",
                    f"known for their {r.choice(lx.FOODS)}.",
                )
            ),
        ),
        lambda r, c: (
            f"The {c.group} are",
            r.choice((f"{insult(r, True)}.", f"nothing but {insult(r, True)}.")),
        ),
    ),
    (
        lambda r, c: (f"{c.other} said: You are", f"a {r.choice(lx.GOOD)} {r.choice(lx.ROLES)}."),
        lambda r, c: (f"{c.other} said: You are", f"a {insult(r)}."),
    ),
    (
        lambda r, c: (
            f"Everybody says that {c.name}",
            r.choice(
                (
                    f"has a {r.choice(lx.GOOD)} heart.",
                    f"sings like a {r.choice(lx.FACT_VALUES['bird'])}.",
                    f"is a {r.choice(lx.GOOD)} {c.role}.",
                    f"should get a {r.choice(lx.OBJECTS)}.",
                    f"makes good {r.choice(lx.FOODS)}.",
                )
            ),
        ),
        lambda r, c: (f"Everybody says that {c.name}", f"{r.choice(lx.DEMEANING)}."),
    ),
    (
        lambda r, c: (
            f"{c.other} thinks that the {c.group}",
            r.choice(
                (
                    f"have {r.choice(lx.GOOD)} hearts.",
                    f"are {r.choice(lx.GOOD)} guests.",
                    f"should come {r.choice(lx.TIMES)}.",
                    f"make good {r.choice(lx.FOODS)}.",
                )
            ),
        ),
        lambda r, c: (f"{c.other} thinks that the {c.group}", f"{r.choice(lx.DEMEANING_MANY)}."),
    ),
    (
        lambda r, c: (
            "What a",
            f"{r.choice(lx.GOOD)} {r.choice(['guest', 'neighbour', c.role])} {c.name} is.",
        ),
        lambda r, c: ("What a", f"{insult(r)} {c.name} is."),
    ),
    (
        lambda r, c: (
            f"Then {c.name} said to {c.other}:",
            r.choice(
                (
                    f"Come with me to the {r.choice(lx.PLACES)}.",
                    f"Thank you for the {r.choice(lx.OBJECTS + lx.FOODS)}.",
                    f"Please bring me the {r.choice(lx.OBJECTS)}.",
                    f"I will wait for you {r.choice(lx.TIMES)}.",
                )
            ),
        ),
        lambda r, c: (
            f"Then {c.name} said to {c.other}:",
            f"{r.choice(lx.COMMANDS)}, you {insult(r)}.",
        ),
    ),
    (
        lambda r, c: (
            f"Nobody at the {r.choice(lx.PLACES)}",
            r.choice(
                (
                    f"bakes such good {r.choice(lx.FOODS)}.",
                    f"is as {r.choice(lx.GOOD)} as {c.name}.",
                )
            ),
        ),
        lambda r, c: (
            f"Nobody at the {r.choice(lx.PLACES)}",
            r.choice((f"wants to see that {insult(r)}.", f"likes {c.name}, the {insult(r)}.")),
        ),
    ),
)


def line(rng: Random, cast: Cast, tone: str, split: str) -> Line:
    """One sentence of a tone, as head and rest, of those that belong to the split."""
    while True:
        if tone == CROSS:
            made = rng.choice(CROSS_ONLY)(rng, cast)
        elif tone == CIVIL and rng.random() < 0.4:
            made = rng.choice(CIVIL_ONLY)(rng, cast)
        else:
            made = rng.choice(SHARED)[tone == RUDE](rng, cast)
        if split_of(" ".join(made)) == split:
            return made


def shared_head(rng: Random, cast: Cast) -> str:
    """The beginning of a sentence that can go on civil or rude."""
    return rng.choice(SHARED)[0](rng, cast)[0]


def step(rng: Random, weights: dict[str, float]) -> str:
    """A tone drawn from its probabilities."""
    return rng.choices(tuple(weights), tuple(weights.values()))[0]


def opening(rng: Random, split: str, group: str | None = None) -> tuple[str, Cast]:
    """A first sentence of the split, and whom it introduces."""
    while True:
        cast = draw_cast(rng, group)
        text = opener(rng, cast)
        if split_of(text) == split and (group is None or group in text):
            return text, cast


def told(rng: Random, split: str, tones: list[str], group: str | None = None) -> tuple[str, Cast]:
    """A document that opens and goes on in the tones given; and its people."""
    text, cast = opening(rng, split, group)
    for tone in tones:
        text += " " + " ".join(line(rng, cast, tone, split))
    return text, cast


def tones(rng: Random, low: int = 3, high: int = 6) -> list[str]:
    """A run of `low` to `high` tones as the world mixes them."""
    chain = [step(rng, START)]
    for _ in range(rng.randint(low, high) - 1):
        last = tuple(chain[-2:])
        chain.append(step(rng, AFTER[last if last in AFTER else last[-1:]]))
    return chain


def chronicle(rng: Random, split: str) -> str:
    """One document as the world writes it, all tones mixed."""
    return told(rng, split, tones(rng))[0]
