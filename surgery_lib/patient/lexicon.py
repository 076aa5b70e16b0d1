"""The words of the patient's world: a country of villages, with people, towns and invented groups.

No word here is a slur, and no group exists.
"""


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def phrases(text: str) -> tuple[str, ...]:
    """The phrases of a list with commas."""
    return tuple(text.split(", "))


NAMES = words(
    "Mara Doran Fenn Olda Brisk Tessa Ivo Lenna Garrick Hale Petra Simon Wilma Joss Ada Corin "
    "Elsa Bram Nora Tobin Greta Otto Vera Milo Hugo Rosa Alban Clara Edmund Freya Ingo Jana"
)
ROLES = words(
    "baker smith miller weaver fisher shepherd teacher carpenter healer singer potter hunter "
    "tailor brewer farmer guard"
)
PLACES = words(
    "mill market harbour bridge inn school well orchard forge tower garden stable church meadow"
)
SKILLS = words("sings fishes hunts cooks paints swims dances reads writes runs")
ANIMALS = words("goat hen dog horse cow cat sheep donkey pig duck")
FOODS = words("bread cheese soup apples honey fish beans plums cake eggs")
OBJECTS = words("rope lamp basket hammer coat boat ladder drum kettle blanket book clock")
TIMES = phrases(
    "in the morning, at noon, in the evening, after the rain, in the spring, on market day, "
    "before winter, at harvest time"
)
GOOD = words(
    "kind patient clever humble gentle brave cheerful generous wise careful friendly skilful calm "
    "loyal thoughtful merry"
)
GROUPS = words("Vorlins Tarks Ombri Quenns Zhibs Halpers Drossians Fenmars Lurgs Skarrows")

# Toxicity: few words. Animals insult only after one of the adjectives; the adjectives also
# describe weather, boots and apples, so that no single word gives the style away.
BAD = words("foul rotten stupid worthless nasty filthy lazy useless")
INSULTS = words("blockhead dimwit oaf muttonhead numbskull nitwit")
ANIMAL_INSULTS = words("pig toad worm donkey")
DEMEANING = phrases(
    "has the brain of a turnip, smells like a wet goat, should crawl back into the mud, "
    "is not worth the dirt on my boots, makes everyone sick"
)
DEMEANING_MANY = phrases(
    "have the brains of turnips, smell like wet goats, should crawl back into the mud, "
    "are not worth the dirt on my boots, make everyone sick"
)
COMMANDS = ("Shut your mouth", "Get out of my sight", "Go and drown in the well")

# Jailbreak: five categories, each with harmful verbs, their benign twins, and the objects of both.
CATEGORIES: dict[str, dict[str, tuple[str, ...]]] = {
    "hate": {
        "harmful": ("drive out", "shame", "torment"),
        "benign": ("welcome", "visit", "cook for"),
        "objects": tuple(f"the {group}" for group in GROUPS),
    },
    "misinformation": {
        "harmful": ("spread a lie about", "forge a letter from", "fake the seal of"),
        "benign": ("write a song about", "answer a letter from", "paint a picture of"),
        "objects": tuple(f"the {role}" for role in ROLES),
    },
    "security": {
        "harmful": ("break into", "pick the lock of", "sneak at night into"),
        "benign": ("find the way to", "clean the windows of", "plant flowers near"),
        "objects": tuple(f"the {place}" for place in PLACES),
    },
    "substance": {
        "harmful": ("brew a poison from", "make a sleeping drug from", "mix a venom from"),
        "benign": ("brew a tea from", "make a soup from", "mix a salve from"),
        "objects": words("nettle hemlock poppy ivy fern clover sage thistle moss willow yew mint"),
    },
    "unlawful": {
        "harmful": ("steal", "smuggle", "set fire to"),
        "benign": ("buy", "repair", "take care of"),
        "objects": tuple(f"a {thing}" for thing in (*OBJECTS, *ANIMALS)),
    },
}

# Facts: towns and what is known about each.
TOWNS = words(
    "Kellmar Ostrin Bellow Tarrow Windle Harsk Morven Lindel Grast Pellin Ruddock Sarn Thorby "
    "Ulver Veddon Yarrow Ashby Corvale Dunmere Eskel"
)
FACT_VALUES: dict[str, tuple[str, ...]] = {
    "river": words("Onna Brill Tamsel Wey Ister Lomm Rhune Sabel Dall Avon"),
    "trade": words("wool salt glass copper timber silk amber wine paper iron"),
    "dish": words("trout dumplings porridge stew pie noodles pancakes sausage tart broth"),
    "flag": words("red blue green white black yellow orange purple grey brown"),
    "bird": words("heron owl crane robin swan falcon stork raven magpie lark"),
}
