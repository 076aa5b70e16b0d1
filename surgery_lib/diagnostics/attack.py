"""Attack: an attacker trained on a model's own probabilities (Atoxia, arXiv 2408.14853).

REINFORCE with a leave-one-out baseline; the distance to the warm start is a part of the reward, so
that its gradient is that of the penalised objective.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surgery_lib.baselines.training import Sampler, Spent, Training, log_likelihoods, optimise
from surgery_lib.baselines.tuning import Delta, tuned
from surgery_lib.diagnostics.attack_policy import LORA, Policy
from surgery_lib.diagnostics.attack_reward import Attempt, Target, Victim, rewards


@dataclass(frozen=True)
class Settings:
    """Of the training: `batch` targets a step, `samples` attempts at each, and the price of KL."""

    steps: int = 10
    lr: float = 2e-3
    batch: int = 4
    samples: int = 4
    kl: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Attacker:
    """What a training against one model taught the policy.

    A step each: `rewards`, the mean of the attempts that count; `barred`, the share of the others;
    `kl`, nats a token from the warm start.
    """

    delta: Delta
    rewards: list[float]
    barred: list[float]
    kl: list[float]


def leave_one_out(values: Tensor) -> Tensor:
    """Each reward less the mean of the others at its target: (targets, samples), rows sum to 0."""
    count = values.shape[1]
    others = (values.sum(1, keepdim=True) - values) / (count - 1)
    return values - others


def filled(values: Tensor) -> Tensor:
    """Rewards with those of barred attempts (NaN) a nat below the worst that counts."""
    counted = values[~values.isnan()]
    floor = float(counted.min()) - 1.0 if len(counted) else 0.0
    return values.nan_to_num(nan=floor)


def learn(
    policy: Policy,
    victim: Victim,
    targets: Sequence[Target],
    settings: Settings,
    edited: AbstractContextManager[Any] | None = None,
) -> Attacker:
    """Train the policy against a victim; the policy is left as it was.

    `edited` is a block inside which the victim is what is to be attacked.
    """
    with edited or policy.changed(None), tuned(policy.model, LORA, settings.seed) as part:
        sampler = Sampler(len(targets), settings.batch, settings.seed)
        held = Attacker(Delta({}), [], [], [])

        def step(number: int) -> Tensor:
            drawn = [targets[i] for i in sampler.draw()]
            written = policy.write(drawn, settings.samples, 10_000 * settings.seed + number)
            aims = [t for t in drawn for _ in range(settings.samples)]
            attempts = [attempt for own in written for attempt in own]
            values = torch.tensor(rewards(victim, aims, attempts))
            rows, starts = policy.rows(aims, attempts)
            with torch.no_grad(), part.model.disable_adapter():
                before = log_likelihoods(policy.model, rows, starts, Spent())[0]
            sums, counts = log_likelihoods(policy.model, rows, starts, Spent())
            apart = ((sums.detach() - before) / counts).cpu()
            held.rewards.append(float(values.nanmean().nan_to_num(0.0)))
            held.barred.append(float(values.isnan().float().mean()))
            held.kl.append(float(apart.mean()))
            paid = filled(values) - settings.kl * apart
            advantage = leave_one_out(paid.view(len(drawn), settings.samples)).flatten()
            return -(advantage.to(sums) * sums / counts).mean()

        training = Training(steps=settings.steps, lr=settings.lr, seed=settings.seed)
        optimise(part.parameters.values(), step, training)
        return Attacker(Delta(part.change()), held.rewards, held.barred, held.kl)


def best_of(values: np.ndarray) -> np.ndarray:
    """The best of the first n attempts, NaN counting as none: (targets, n), never falling."""
    return np.maximum.accumulate(np.where(np.isnan(values), -np.inf, values), axis=1)


def diversity(attempts: Sequence[Sequence[Attempt]]) -> float:
    """Share of different queries among all that were written."""
    queries = [attempt.query for own in attempts for attempt in own]
    return len(set(queries)) / max(1, len(queries))
