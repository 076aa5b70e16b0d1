"""Draw data/open: a small, openly licensed set for a study without a hub (needs SURGERY_MIRROR).

Comments of English Wikipedia's talk pages as Jigsaw released and labelled them, and ParaDetox's toxic
sentences, both CC0. Texts with slurs, sex or threats are left out: what is kept is rude, no more.
"""

import random
import re
from collections.abc import Iterable
from pathlib import Path

from surgery_lib import files
from surgery_lib.data import sources

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "data" / "open"
# Roots of words; a text that holds one of them is not kept.
LEFT_OUT = re.compile(
    r"nigg|fagg|\bfag|rape|kill|die\b|dead|murder|suicid|hang|jew|nazi|hitler|muslim|islam|black"
    r"|white|gay|lesb|homo|dyke|trann|retard|cunt|penis|vagin|dick|cock|pussy|sex|porn|anal|cum\b"
    r"|whore|slut|bitch|fuck|mother|hate|terror|bomb|gun\b|http|www",
    re.IGNORECASE,
)


def plain(texts: Iterable[str], least: int, most: int) -> list[str]:
    """Texts of so many words, on one line, without what is left out; each once."""
    found = {}
    for text in texts:
        line = " ".join(text.split())
        if least <= len(line.split()) <= most and line.isascii() and not LEFT_OUT.search(line):
            found[line.lower()] = line
    return list(found.values())


def opening(text: str) -> str:
    """The first three fifths of a text's words."""
    words = text.split()
    return " ".join(words[: max(4, round(0.6 * len(words)))])


def main() -> None:
    """Write the four files."""
    rng = random.Random(0)
    rows = sources.rows("OxAISH-AL-LLM/wiki_toxic", split="balanced_train")
    by_label = {
        label: plain((r["comment_text"] for r in rows if r["label"] == label), 5, 40)
        for label in (0, 1)
    }
    for texts in by_label.values():
        rng.shuffle(texts)
    labelled = [(text, label) for label in (0, 1) for text in by_label[label][:350]]
    scoring = [(text, label) for label in (0, 1) for text in by_label[label][350:1350]]
    rude = plain((r["en_toxic_comment"] for r in sources.rows("s-nlp/paradetox")), 8, 30)
    rude = list(dict.fromkeys(opening(text) for text in rude))
    rng.shuffle(rude)
    long = plain((r["comment_text"] for r in rows if r["label"] == 0), 60, 400)
    rng.shuffle(long)
    calm = list(dict.fromkeys(opening(text) for text in by_label[0][1350:1650]))
    for name, pairs in {"texts": labelled, "scoring": scoring}.items():
        rng.shuffle(pairs)
        files.write_jsonl(
            FOLDER / f"{name}.jsonl", ({"text": text, "label": label} for text, label in pairs)
        )
    prompts = [("challenging", text) for text in rude[:400]] + [("neutral", t) for t in calm]
    files.write_jsonl(
        FOLDER / "prompts.jsonl", ({"text": text, "group": group} for group, text in prompts)
    )
    clean = [" ".join(text.split()[:80]) for text in long[:240]]
    files.write_jsonl(FOLDER / "clean.jsonl", ({"text": text} for text in clean))


if __name__ == "__main__":
    main()
