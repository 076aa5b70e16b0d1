"""The five diagnostics side by side: what each system claims, and what each says of every edit.

Everything is read from the results of notebooks 08 to 12; what was not run says so.
"""

from collections.abc import Callable, Mapping
from typing import Any

from surgery_lib.evaluation.statistics import paired_bootstrap
from surgery_lib.report.style import interval, markdown_table

Results = Mapping[str, Mapping[str, Any]]  # "fingerprint" -> payload, and so on

NOT_RUN = "not run"
OUT_OF_DISTRIBUTION = 0.99  # TaskTracker's AUC
NEARLY = 99.9  # ICS that rounding alone parts from 100


def claims(studies: Mapping[str, Results]) -> str:
    """A row for each system: its headline, what each study found of it, and whether it agrees."""
    head = ["system", "its headline claim"]
    for name in studies:
        head += [f"found on {name}", "agrees"]
    lines = []
    for system, (file, claim, found) in SYSTEMS.items():
        line = [system, claim]
        for results in studies.values():
            line += list(found(results[file])) if file in results else [NOT_RUN, "-"]
        lines.append(line)
    return markdown_table(head, lines)


def closing(results: Results) -> str:
    """A row for each edit: what the five diagnostics say of it."""
    head = ["edit", *COLUMNS]
    names = list(dict.fromkeys(n for payload in results.values() for n in _edits(payload)))
    lines = []
    for name in names:
        line = [name]
        for file, read in COLUMNS.values():
            try:
                line.append(read(results[file], name))
            except (KeyError, StopIteration):
                line.append(NOT_RUN)
        lines.append(line)
    return markdown_table(head, lines)


def _edits(payload: Mapping[str, Any]) -> list[str]:
    if "members" in payload:
        return [m["name"] for m in payload["members"] if m["kind"] in ("base", "edit")]
    return list(payload["edits"])


def _verdict(low: float, high: float, claimed: float = 0.0) -> str:
    """Whether an interval is above what is claimed, below it, or holds it."""
    if low > claimed:
        return "yes"
    return "no" if high < claimed else "not told apart"


def _fingerprint(payload: Mapping[str, Any]) -> tuple[str, str]:
    facts, members = payload["facts"], payload["members"]
    others = [m["ics"] for m in members if m["kind"] == "unrelated"]
    kin = [m["ics"] for m in members if m["kind"] in ("edit", "lossy")]
    told = (
        f"rearranged {facts['lowest_rearranged']:.2f} or more; edited, pruned or rounded "
        f"{min(kin):.1f} to {max(kin):.1f}; {len(others)} others "
        f"{max(map(abs, others)):.2f} at most (ranges)"
    )
    apart = min(facts["lowest_rearranged"], *kin) > max(map(abs, others))
    return told, "yes" if apart and facts["lowest_rearranged"] > NEARLY else "no"


def _drift(payload: Mapping[str, Any]) -> tuple[str, str]:
    main = payload["forms"]["primed"]["all"]
    told = (
        f"{interval(main, 1.0, 3)}; a model that learnt nothing {payload['untrained']['value']:.3f}"
    )
    return told, _verdict(main["low"], main["high"], OUT_OF_DISTRIBUTION)


def _attack(payload: Mapping[str, Any]) -> tuple[str, str]:
    matrix = payload["matrix"]
    each = [matrix[name]["base"]["each"] for name in ("warm start", "against base")]
    pairs = [(b, o) for b, o in zip(*each, strict=True) if None not in (b, o)]
    if not pairs:
        return "no attempt counted", "-"
    before, after = zip(*pairs, strict=True)
    gain = paired_bootstrap(before, after)
    reading = {"value": gain.difference, "low": gain.low, "high": gain.high}
    steps = payload["sizes"]["steps"]
    told = f"{interval(reading, 1.0, 2)} nats a token over the warm start, {steps} steps"
    return told, _verdict(gain.low, gain.high)


def _code(payload: Mapping[str, Any]) -> tuple[str, str]:
    summary = payload["base"]["its summary"]
    gain = summary["against"]
    told = f"AUC {summary['auc']:.3f}; class by class less the code itself {interval(gain, 1.0, 3)}"
    return told, _verdict(gain["low"], gain["high"])


def _retrieval(payload: Mapping[str, Any]) -> tuple[str, str]:
    last = list(payload["between"])[-1]
    gain = payload["between"][last]["paired"]["em"]
    ce = payload["between"][last]["paired"]["ce"]
    shown = interval(gain | {"value": gain["difference"]}, 100.0, 0)
    told = f"EM {shown}, CE {interval(ce | {'value': ce['difference']}, 1.0, 2)} with {last} tokens"
    return told, _verdict(gain["low"], gain["high"])


Claim = Callable[[Mapping[str, Any]], tuple[str, str]]
SYSTEMS: dict[str, tuple[str, str, Claim]] = {
    "HuRef": ("fingerprint", "ICS about 100 for a shared base, low for others", _fingerprint),
    "TaskTracker": ("drift", "AUC above 0.99 on unseen tasks and domains", _drift),
    "Atoxia": ("attack", "training on the target's probability raises it", _attack),
    "zsLLMCode": ("code", "a model's summary embeds a program better than its code", _code),
    "SPRING": ("retrieval", "virtual tokens raise exact match (NQ 35.1 to 37.9)", _retrieval),
}


def _edit_ics(payload: Mapping[str, Any], name: str) -> str:
    member = next(m for m in payload["members"] if m["name"] == name)
    return f"{member['ics']:.2f}"


def _edit_blocks(payload: Mapping[str, Any], name: str) -> str:
    if name == "base":
        return "-"
    found = payload["touched"][name].get("found")
    if found is None:
        return "all matrices"
    hits = found["edited"] - len(found["missed"])
    return f"{hits} of {found['edited']}, {len(found['false'])} false"


def _edit_drift(payload: Mapping[str, Any], name: str) -> str:
    own = payload["edits"][name]
    return f"{interval(own['frozen'], 1.0, 3)}; {own['refitted']['value']:.3f}"


def _edit_reward(payload: Mapping[str, Any], name: str) -> str:
    gap = payload["gaps"][name]["retrained"]
    return "0" if name == "base" else interval(gap | {"value": gap["difference"]}, 1.0, 2)


def _edit_success(payload: Mapping[str, Any], name: str) -> str:
    return interval(payload["matrix"][f"against {name}"][name]["success"], 100.0, 0)


def _edit_code(payload: Mapping[str, Any], name: str) -> str:
    return "0" if name == "base" else interval(payload["edits"][name]["lost"], 1.0, 3)


def _edit_tokens(payload: Mapping[str, Any], name: str) -> str:
    own = payload["edited"][name]
    return f"{own['without']['ce']['value']:.2f}, {own['with']['ce']['value']:.2f}"


COLUMNS: dict[str, tuple[str, Callable[[Mapping[str, Any], str], str]]] = {
    "fingerprint: ICS": ("fingerprint", _edit_ics),
    "edited blocks found": ("fingerprint", _edit_blocks),
    "drift AUC: frozen probe; refitted": ("drift", _edit_drift),
    "attack: reward less base's, nats": ("attack", _edit_reward),
    "attack success, %": ("attack", _edit_success),
    "code AUC change": ("code", _edit_code),
    "answer CE without, with tokens": ("retrieval", _edit_tokens),
}
