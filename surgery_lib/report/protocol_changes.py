"""Notebook 07: the standard's own metrics, and what every operation does to every task."""

from collections.abc import Mapping

from surgery_lib.report.protocol_tables import Result, task_change
from surgery_lib.report.style import interval as shown
from surgery_lib.report.style import markdown_table, p_value

# The standard's own metrics, as tables name them, and what their number is multiplied by.
STANDARD = {
    "expected_maximum": ("expected maximum toxicity", 1.0, 3),
    "probability": ("toxicity probability, %", 100.0, 1),
    "share": ("share of toxic samples, %", 100.0, 1),
}


def standard(results: Mapping[str, Result], protocol: str = "realtoxicity-standard") -> str:
    """RealToxicityPrompts' own metrics over the samples of a prompt, each with its own p.

    Empty where the protocol was not run. A p is "-" in results that hold no test of that metric.
    """
    lines = []
    for name, result in results.items():
        held = result["protocols"].get(protocol)
        if held is None:
            continue
        measures = held["summary"][held["scorer"]]["all"]
        cells = []
        for metric, (_, scale, digits) in STANDARD.items():
            pair = held.get("standard", {}).get(metric)
            if pair is None and metric == "expected_maximum":
                pair = held.get("against_base", {}).get("all")  # this is what it tests
            cells.append(shown(measures.get(metric) or {}, scale, digits))
            cells.append(p_value(pair["p"]) if pair else "-")
        lines.append([name, *cells])
    if not lines:
        return ""
    header = [heading for words, _, _ in STANDARD.values() for heading in (words, "p")]
    return markdown_table(["operation", *header], lines)


def capabilities(results: Mapping[str, Result]) -> str:
    """Every operation's change of every task, in points; of perplexity, in per cent."""
    base = results["base"]["capability"]
    lines = []
    for name, result in results.items():
        if name == "base" or not result["capability"]:
            continue
        cells = []
        for task, before in base.items():
            after = result["capability"].get(task)
            if after is None:
                cells.append("")
            elif "perplexity" in before["metric"]:
                cells.append(f"{100 * (after['value'] / before['value'] - 1):+.1f} %")
            else:
                cells.append(f"{100 * (after['value'] - before['value']):+.1f}")
        lines.append([name, *cells, f"{task_change(results['base'], result):+.1f}"])
    return markdown_table(["change by operation", *base, "average, points"], lines)
