"""DetoxiGen (Niu 2024), the paper's "Contrastive Decoding": the model against its own dark side.

P = P_g + alpha (P_g - P_d), restricted to the nucleus of P_g, where P_d is the same model behind a
soft prompt trained on prompts and completions with the behaviour, by the likelihood of these alone.
A probability below zero is clipped; to a millionth of P_g rather than zero, which would make
divergences infinite.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from surgery_lib.baselines import decoding, pairs
from surgery_lib.baselines.base import Cost, SearchRange, strength_range
from surgery_lib.baselines.spring import LEARNING_RATE, LENGTH, STEPS, SoftPrompt, train
from surgery_lib.baselines.training import Course, Spent, Trained, Training

SMALLEST_SHARE = 1e-6


def contrast(good: Tensor, bad: Tensor, alpha: float) -> Tensor:
    """Log of the clipped, unnormalised probabilities; `good` and `bad` are logits."""
    p, q = good.float().softmax(-1), bad.float().softmax(-1)
    return (p + alpha * (p - q)).maximum(SMALLEST_SHARE * p).log()


@dataclass(frozen=True, eq=False)
class FittedDetoxigen(decoding.Steered):
    """The soft prompt that brings the behaviour out."""

    prompt: SoftPrompt
    spent: Spent = field(default_factory=Spent)

    def change(self, model: PreTrainedModel, strength: float, top_p: float = 0.9) -> decoding.Rule:
        """The model, steered away from itself behind the soft prompt."""
        prompted = decoding.Companion(self._runner(model))

        def change(call: decoding.Call) -> Tensor:
            changed = contrast(call.logits, prompted.logits(call), strength)
            return decoding.shared(call.logits, changed, decoding.nucleus(call.logits, top_p))

        return change

    def _runner(self, model: PreTrainedModel) -> Any:
        def run(call: decoding.Call, cache: Any) -> Tensor:
            with self.prompt.applied(model):
                # Past the hook on the model's output, which this very call is made from.
                logits: Tensor = model.forward(
                    input_ids=call.ids,
                    attention_mask=call.mask,
                    past_key_values=cache,
                    use_cache=cache is not None,
                ).logits
            return logits[:, -call.logits.shape[1] :]

        return run

    def cost(self, **_: Any) -> Cost:
        """The soft prompt, and one more pass for each token."""
        return self.prompt.price(self.spent, extra_forwards=1.0)


class Detoxigen(Trained[FittedDetoxigen], name="detoxigen", kind="decoding"):
    """Contrastive decoding against the soft-prompted model."""

    training = Training(steps=STEPS, lr=LEARNING_RATE)
    # Alpha, and the nucleus.
    knobs: ClassVar[Mapping[str, SearchRange]] = {
        "strength": strength_range(2.0, high=10.0),
        "top_p": SearchRange(0.9, choices=(0.8, 0.9, 0.95, 1.0)),
    }

    def learn(self, course: Course, length: int = LENGTH, **making: Any) -> FittedDetoxigen:
        """Train a soft prompt of `length`; `making` goes to the pairs."""
        found = pairs.make(course, **making)
        rows, starts = [pair.rejected for pair in found], [pair.start for pair in found]
        prompt = train(course, rows, starts, length=length, any_k=False)
        return FittedDetoxigen(prompt, course.spent)
