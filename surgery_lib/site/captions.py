"""What each figure shows and the finding in its title, as captions and as alternative text."""

import re
from html import unescape
from pathlib import Path

CAPTIONS = {
    "overview": "The study in one picture: the probe, the rows it picks, what the edit changed",
    "00_training": "How the patient's loss fell while it was trained",
    "00_behaviours": "How often the patient shows each behaviour, by kind of prompt",
    "00_capabilities": "What the patient can do, beside guessing",
    "probe_layers": "How well the behaviour can be read off each layer, by estimator (ROC AUC)",
    "probe_scores": "Scores of validation texts with and without the behaviour, by the best probe",
    "direction_agreement": "Cosines between the directions of different estimators at one layer",
    "cosines": "Cosines of the rows with the direction, beside random directions'",
    "thresholds": "How far rows lie against every probe's direction, beside random directions",
    "rows_per_block": "Where in the depth of the model the selected rows are",
    "sieve": "Behaviour left after one fixed edit, by layer and estimator of the probe",
    "frontier": "Behaviour left against the rise of perplexity, on validation prompts",
    "variants": "Behaviour and perplexity of base, edited model and controls, with intervals",
    "capability": "Capability tasks before and after, with intervals",
    "pareto_first_token_kl": "Behaviour against damage to the first token, all methods",
    "pareto_context_kl": "Behaviour against damage inside triggering contexts, all methods",
    "budgets_first_token_kl": "Behaviour left by every method at budgets of first-token damage",
    "budgets_context_kl": "Behaviour left by every method at budgets of damage in context",
    "budgets_both": "Behaviour left by every method, both measures of damage held at once",
}
BOLD = re.compile(r"<text[^>]*font:[^>]*\bbold\b[^>]*>([^<]+)</text>")


def caption(name: str) -> str:
    """A figure's caption by its file name, without the ending."""
    if name in CAPTIONS:
        return CAPTIONS[name]
    if name.startswith("ablate_"):
        return f"Ablation: {name.removeprefix('ablate_').replace('_', ' ')}"
    return name.replace("_", " ")


def alternative(path: Path) -> str:
    """The caption and, of a vector figure whose text is text, the title that says the finding."""
    words = caption(path.stem)
    if path.suffix == ".svg":
        titles = BOLD.findall(path.read_text(encoding="utf-8", errors="replace"))
        words = ". ".join([words, *(" ".join(unescape(one).split()) for one in titles)])
    return words
