"""What the protocols found of one operation, and what of it goes into the result file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surgery_lib.evaluation.damage import Damage
from surgery_lib.evaluation.protocols import against
from surgery_lib.evaluation.standard import against_standard

BASE = "base"  # the operation that changes nothing


@dataclass(frozen=True)
class OperationResult:
    """`protocols` by name, completions included; `capability` by task, its items included."""

    protocols: Mapping[str, Mapping[str, Any]]
    capability: Mapping[str, Mapping[str, Any]]
    damage: Damage


def payload(results: Mapping[str, OperationResult]) -> dict[str, Any]:
    """Operation → its results without completions and items.

    Each protocol of an edited model carries its paired comparison with the base, by group.
    """
    found = {}
    for name, result in results.items():
        kept: dict[str, Any] = {"protocols": {}, "damage": result.damage.as_dict()}
        for protocol, held in result.protocols.items():
            kept["protocols"][protocol] = {k: v for k, v in held.items() if k != "rows"}
            base = results[BASE].protocols.get(protocol)
            if name != BASE and base is not None:
                judged = (base, held, held["scorer"], held["threshold"])
                kept["protocols"][protocol]["against_base"] = against(*judged)
                if held["settings"]["samples"] > 1:
                    kept["protocols"][protocol]["standard"] = against_standard(*judged)
        kept["capability"] = {
            task: {k: v for k, v in one.items() if k != "items"}
            for task, one in result.capability.items()
        }
        found[name] = kept
    return found
