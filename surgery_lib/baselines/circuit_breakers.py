"""Circuit breakers, representation rerouting (Zou et al. 2024, arXiv 2406.04313).

Adapters turn the hidden states of behaviour texts away from where they were, and hold those of
other texts in place; the weight moves from the first to the second as training goes on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, relu

from surgery_lib.baselines.outputs import at_depths, before_and_after, block_outputs
from surgery_lib.baselines.training import Course, Training, WeightBaseline
from surgery_lib.baselines.tuning import Delta, Lora, tuned

# Blocks 10 and 20 of 32.
DEPTHS = (0.3, 0.6)
# Adapters start at no change, where the cosine is at its highest and has no slope: exact arithmetic
# would never leave it. This is the deviation of the first entries of B.
NUDGE = 0.1


def weights(step: int, steps: int, alpha: float) -> tuple[float, float]:
    """Weights of rerouting and of retaining at a step; half of the way over is where they meet."""
    share = step / (2 * steps)
    return alpha * (1 - share), alpha * share


def reroute(states: Tensor, original: Tensor, mask: Tensor) -> Tensor:
    """relu of the cosine with the original states, averaged over real tokens; 1 where unchanged."""
    return relu(cosine_similarity(states.float(), original.float(), dim=-1))[mask].mean()


def retain(states: Tensor, original: Tensor, mask: Tensor) -> Tensor:
    """L2 distance to the original states, averaged over real tokens; 0 where unchanged."""
    return (states.float() - original.float())[mask].norm(dim=-1).mean()


@torch.no_grad()
def nudge(parameters: Mapping[str, Tensor], seed: int) -> None:
    """Move the matrices B of adapters away from zero, by a little noise of this seed."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters.items():
        if "lora_B" in name:
            noise = NUDGE * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise.to(parameter))


def learn(
    course: Course,
    alpha: float = 10.0,
    depths: Sequence[float] = DEPTHS,
    lora: Lora | None = None,
) -> Delta:
    """Low-rank change that reroutes texts of label 1 and retains those of label 0 and `benign`."""
    model, data, training = course.model, course.data, course.training
    behaviour, kept = course.rows(data.of(1)), course.rows([*data.of(0), *data.benign])
    course.spent.benign += len(data.benign)
    where = at_depths(model, depths)
    samplers = [course.sampler(rows) for rows in (behaviour, kept)]
    which = lora or Lora(rank=16, alpha=16)
    with tuned(model, which, training.seed) as part, block_outputs(model) as outputs:
        nudge(part.parameters, training.seed)

        def term(rows: Sequence[list[int]], measure: Any) -> Tensor:
            original, mask = before_and_after(part, rows, outputs, course.spent)
            return torch.stack([measure(outputs[b], original[b], mask) for b in where]).mean()

        def step(number: int) -> Tensor:
            away, hold = weights(number, training.steps, alpha)
            turned = term([behaviour[i] for i in samplers[0].draw()], reroute)
            held = term([kept[i] for i in samplers[1].draw()], retain)
            return away * turned + hold * held

        return course.train(part, step)


CIRCUIT_BREAKERS = WeightBaseline("circuit_breakers", learn, Training(steps=100, lr=3e-3))
