"""What blocks write, moved along the policy gradient of the model's own answers, in closed form.

At the end of the residual stream the gradient of an answer's likelihood is known (`likelihood`),
and what a block writes is added to that stream. So for a map W that ends attention or MLP, with
inputs a_t where the answers' tokens y_t are written from and an advantage A of each answer,

    G = sum_t A_t d_t a_t',   d_t = J_t' (u_y - sum_v q_v u_v),

is the gradient of the mean log-likelihood of a token, each answer weighing its advantage (A_t is
that over the answer's tokens; Williams 1992), but for what later blocks make of it. J_t is the
derivative of the norms on the way: the final one, and one behind the map (`gains.BEHIND`). In
the last block's MLP it is exact for RMS norms; means that norms take away, caps and scales of
logits are left out. The step is along the natural gradient (Amari 1998) with the
curvature of the divergence on what is to be spared in Kronecker factors (Martens & Grosse 2015),

    W <- W - strength (F + mu I)^-1 G (S + lambda I)^-1,   F = E_c[d d'], S = E_c[a a'],

tokens y for F drawn from the model; mu and lambda in units of the mean diagonals. Texts to spare
count from position 0 on, whose inputs can be far larger than others': frozen so. Blocks of the
first half are left alone: behind them too much is left out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery_lib.baselines import own, tools
from surgery_lib.baselines.base import Cost, Lesson, Method, Read, SearchRange, strength_range
from surgery_lib.errors import UserError
from surgery_lib.models import layout
from surgery_lib.models.activations import MAX_TOKENS
from surgery_lib.models.tokens import tokenize
from surgery_lib.surgery import gains, likelihood

FIRST = 0.5  # of the depth, from which on blocks are changed
RIDGE = 0.1  # lambda and mu
STEP = 0.001  # of the norm of all weights that are changed, at strength 1
TOKENS_PER_BATCH = 2048
Rows = tuple[Sequence[Sequence[int]], Sequence[int]]  # token ids, and the first that counts


@dataclass(frozen=True, eq=False)
class FittedPolicy(Read):
    """By map, its step (outputs, inputs), which strength 1 takes away once."""

    steps: Mapping[str, Tensor]

    @contextmanager
    def applied(self, model: PreTrainedModel, strength: float) -> Iterator[Any]:
        """The maps of the upper half, each less its step times `strength`."""
        if strength == 0:
            yield model
            return
        maps = _maps(model)
        weights = {name: tools.writes(maps[name]) for name in self.steps}
        with tools.restored(list(weights.values())):
            for name, weight in weights.items():
                weight.copy_(weight.float() - strength * self.steps[name].to(weight.device))
            yield model

    def cost(self, **_: Any) -> Cost:
        """Every number of both maps of the upper half's blocks."""
        return self.price(sum(step.numel() for step in self.steps.values()))


class Policy(Method[FittedPolicy], name="policy", kind="weights"):
    """One natural step of the policy gradient on what blocks write."""

    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": strength_range(1.0, high=64.0, low=0.02)
    }

    @torch.no_grad()
    def learn(
        self,
        lesson: Lesson,
        score: own.Score | None = None,
        answers: own.Answers | None = None,
    ) -> FittedPolicy:
        """From the model's answers; from labelled texts without training prompts.

        `answers` are those that another fit has had written. UserError for mixtures of experts.
        """
        model, data = lesson.model, lesson.data
        maps = _maps(model)  # before any answer is written
        asked, samples, forward = 0, 0, 0
        if data.prompts:
            answers = answers or own.answers(lesson, score, within=True)
            asked, samples, forward = answers.own.asked, len(answers.own.tails), answers.forward
            weights = own.advantages(answers.own)
            kept = weights.nonzero()[:, 0].tolist()
            ids, _ = own.rows(answers.own, kept)
            shown: Rows = ids, [max(1, len(answers.own.prompts[i])) for i in kept]
            read, weights = answers.texts(data), weights[kept]
        else:
            shown, marks = _texts(lesson, data.texts, data.labels)
            read, weights = data.texts, marks / marks.mean() - (1 - marks) / (1 - marks).mean()
        spared, _ = _texts(lesson, [*data.of(0), *data.benign])
        inside = _counted(*own.contexts(lesson))
        behaviour = gradient(model, maps, *shown, weights)
        moments = [factors(model, maps, *rows, seed=lesson.seed) for rows in (spared, inside)]
        steps = {}
        for name, found in behaviour.items():
            outputs, inputs = (
                _ridged(torch.stack([one[name][side] for one in moments]).mean(0))
                for side in (0, 1)
            )
            half = torch.linalg.solve(outputs, found.double())
            steps[name] = torch.linalg.solve(inputs, half.t()).t().float()
        size = math.hypot(*(float(step.norm()) for step in steps.values()))
        if not 0 < size < math.inf:
            raise UserError("the step is nothing, or not finite; give other texts or prompts")
        sizes = (float(tools.writes(maps[name]).float().norm()) for name in steps)
        scale = STEP * math.hypot(*sizes) / size
        return FittedPolicy(
            steps={name: scale * step for name, step in steps.items()},
            labels=len(read) + len(data.benign) + asked,
            benign=len(data.benign),
            prompts=asked,
            samples=samples,
            tokens=forward + sum(len(ids) for rows, _ in (shown, spared, inside) for ids in rows),
        )


def gradient(
    model: PreTrainedModel,
    maps: Mapping[str, nn.Module],
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    weights: Tensor,
) -> dict[str, Tensor]:
    """G of every map (outputs, inputs): texts weigh `weights` (texts,), tokens of each alike."""
    counts = torch.tensor([len(ids) - start for ids, start in zip(rows, starts, strict=True)])
    share = weights / counts
    found: dict[str, Tensor] = {}
    for which, slopes in _read(model, maps, rows, starts):
        for name, (inputs, slope) in slopes.items():
            part = (slope * share[which, None].to(slope.device)).t() @ inputs
            found[name] = found[name] + part if name in found else part
    return {name: one.cpu() for name, one in found.items()}


def factors(
    model: PreTrainedModel,
    maps: Mapping[str, nn.Module],
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    *,
    seed: int = 0,
) -> dict[str, tuple[Tensor, Tensor]]:
    """F (outputs, outputs) and S (inputs, inputs) of every map over the texts' tokens."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for _, slopes in _read(model, maps, rows, starts, generator):
        for name, (inputs, slope) in slopes.items():
            parts = slope.t() @ slope, inputs.t() @ inputs
            held = found.get(name)
            found[name] = (held[0] + parts[0], held[1] + parts[1]) if held else parts
    count = sum(len(ids) - start for ids, start in zip(rows, starts, strict=True))
    return {name: (a.cpu() / count, b.cpu() / count) for name, (a, b) in found.items()}


def _read(
    model: PreTrainedModel,
    maps: Mapping[str, nn.Module],
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]]:
    """By batch, text numbers (n,) and by map its inputs (n, inputs) and the slopes d (n, outputs).

    At the positions before each token that counts; the slopes are of that token's likelihood, or
    of one that the model draws there.
    """
    head, last = model.get_output_embeddings(), likelihood.final_norm(model)
    if last is None:
        raise UserError("no final norm was found; use another method on this architecture")
    blocks, seen = layout.blocks(model), dict[str, Tensor]()
    width = layout.hidden_width(model)
    norms = {name: gains.norm_after(blocks[int(name.split()[0])], _part(name)) for name in maps}
    gain = gains.gain_of(last, width)

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        seen[name], seen[f"{name} out"] = args[0], output

    hooks = [one.register_forward_hook(partial(keep, name)) for name, one in maps.items()]
    hooks.append(last.register_forward_hook(partial(keep, "final")))
    try:
        for batch in likelihood.states_before(model, head, rows, starts, TOKENS_PER_BATCH):
            which, tokens, states, wanted = batch
            here = {n: one[:, :-1][wanted.to(one.device)].float() for n, one in seen.items()}
            slope = likelihood.surplus(head, states, tokens, generator).to(states.device)
            slope = gains.pulled_back(gain, here["final"], slope)
            found = {}
            for name, norm in norms.items():
                own_slope = slope
                if norm is not None:
                    after = gains.gain_of(norm, width)
                    own_slope = gains.pulled_back(after, here[f"{name} out"], slope)
                found[name] = here[name], own_slope.to(here[name].device)
            yield which, found
    finally:
        for hook in hooks:
            hook.remove()


def _texts(
    lesson: Lesson, texts: Sequence[str], labels: Sequence[int] | None = None
) -> tuple[Rows, Tensor]:
    """Texts as rows that count from the second token on, and their labels; shorter ones dropped."""
    ids = tokenize(lesson.model, lesson.tokenizer, texts, MAX_TOKENS)
    long = [i for i, one in enumerate(ids) if len(one) > 1]
    marks = torch.tensor(labels if labels is not None else [0] * len(ids))[long].float()
    return ([ids[i] for i in long], [1] * len(long)), marks


def _counted(rows: Sequence[list[int]], starts: Sequence[int]) -> Rows:
    """Rows that have a token to count, none of them the first."""
    kept = [
        (ids, max(1, at)) for ids, at in zip(rows, starts, strict=True) if len(ids) > max(1, at)
    ]
    return [ids for ids, _ in kept], [at for _, at in kept]


def _ridged(second: Tensor) -> Tensor:
    exact = second.double()
    return exact + RIDGE * exact.diagonal().mean() * torch.eye(len(exact), dtype=torch.float64)


def _part(name: str) -> Literal["mlp", "attention"]:
    return "mlp" if name.endswith("mlp") else "attention"


def _maps(model: nn.Module) -> dict[str, nn.Module]:
    """What ends attention and MLP of the upper half's blocks, by "block kind"."""
    found: dict[str, nn.Module] = {}
    blocks = layout.blocks(model)
    for number in range(round(FIRST * len(blocks)), len(blocks)):
        found[f"{number} attention"] = tools.attention_output(blocks[number])
        found[f"{number} mlp"] = tools.mlp_output(blocks[number])
    return found
