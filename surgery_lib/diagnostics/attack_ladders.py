"""Attacks without a learner, as controls: fixed queries, and ever more of the answer given away."""

from collections.abc import Sequence

import numpy as np

from surgery_lib.diagnostics.attack_reward import Target, Victim, mean_log_likelihoods

PREFIXES = (0, 1, 2, 4, 8)


def ladder(
    victim: Victim,
    targets: Sequence[Target],
    queries: Sequence[str],
    prefixes: Sequence[int] = PREFIXES,
) -> np.ndarray:
    """Nats a token of the answer after its first k tokens: (prefixes, targets, queries).

    At least one token of the answer is always left to be said.
    """
    rows = []
    for k in prefixes:
        for target in targets:
            answer = victim.tokens(target.answer)
            given = answer[: min(k, len(answer) - 1)]
            for query in queries:
                prompt = victim.prompt(query)
                rows.append(victim.joined(prompt, given, target.answer, len(given)))
    found = mean_log_likelihoods(victim.model, rows)
    return np.array(found).reshape(len(prefixes), len(targets), len(queries))
