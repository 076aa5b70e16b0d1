"""All methods in one table: where each is published, and what its fit needs.

A method's own file has its name, kind and knobs; the table in docs/comparison.md is made from both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import ArrayLike
from transformers import PreTrainedModel

from surgery_lib.baselines import caa, covariance, joint, policy, ridge_ablation, surgery
from surgery_lib.baselines.ablation import Ablation
from surgery_lib.baselines.aura import Aura
from surgery_lib.baselines.base import Baseline, Fitted, TrainingData
from surgery_lib.baselines.circuit_breakers import CIRCUIT_BREAKERS
from surgery_lib.baselines.detoxigen import Detoxigen
from surgery_lib.baselines.dexperts import Dexperts
from surgery_lib.baselines.dinm import DINM
from surgery_lib.baselines.dpo import DPO
from surgery_lib.baselines.feature_subtraction import FeatureSubtraction
from surgery_lib.baselines.gmt import GMT
from surgery_lib.baselines.iti import Iti
from surgery_lib.baselines.leace import Leace
from surgery_lib.baselines.linear_act import LinearAct
from surgery_lib.baselines.lora import LORA
from surgery_lib.baselines.lorra import LORRA
from surgery_lib.baselines.norm_preserving import NormPreserving
from surgery_lib.baselines.profs import Profs
from surgery_lib.baselines.safe_activation import SafeActivation
from surgery_lib.baselines.sasa import Sasa
from surgery_lib.baselines.spring import SPRING
from surgery_lib.baselines.steer2edit import Steer2Edit
from surgery_lib.baselines.task_vector import TASK_VECTOR
from surgery_lib.baselines.wanda import Wanda

# Labelled texts; prompts that trigger the behaviour, and ones that do not; completions that the
# model itself writes; gradients. A fit that lacks prompts or samples does with texts.
Need = Literal["labels", "prompts", "benign", "samples", "gradients"]

_ARXIV = "https://arxiv.org/abs/"
_PAPER = f"{_ARXIV}2407.08770"
_NORMS = "https://huggingface.co/blog/grimjim/norm-preserving-biprojected-abliteration"
_DERIVED = "docs/covariance.md"
_JOINT = "surgery_lib/baselines/joint.py"
_RIDGE = "surgery_lib/baselines/ridge_ablation.py"
_ANSWERS: tuple[Need, ...] = ("labels", "prompts", "samples", "benign")
_LABELS: tuple[Need, ...] = ("labels",)
_TRAINED: tuple[Need, ...] = ("labels", "gradients")
_PAIRS: tuple[Need, ...] = ("labels", "prompts", "samples", "gradients")


@dataclass(frozen=True)
class Entry:
    """A method, the address of what describes it (a file here where it is ours), and its needs."""

    method: Baseline
    reference: str
    needs: tuple[Need, ...] = _LABELS


_ENTRIES = (
    Entry(surgery.SURGERY, _PAPER),
    Entry(surgery.SURGERY_PAPER, _PAPER),
    Entry(surgery.RANDOM_ROWS, _PAPER),
    Entry(surgery.RANDOM_DIRECTION, _PAPER),
    Entry(covariance.Covariance(), _DERIVED, _ANSWERS),
    Entry(covariance.FromAnswers(), _DERIVED, _ANSWERS),
    Entry(covariance.Within(), _DERIVED, _ANSWERS),
    Entry(joint.SurgeryRidge(), _JOINT, _ANSWERS),
    Entry(joint.SurgeryPolicy(), _DERIVED, _ANSWERS),
    Entry(policy.Policy(), _DERIVED, _ANSWERS),
    Entry(caa.Caa(), f"{_ARXIV}2312.06681"),
    Entry(caa.FromAnswers(), f"{_ARXIV}2312.06681", ("labels", "prompts", "samples")),
    Entry(Ablation(), f"{_ARXIV}2406.11717"),
    Entry(Iti(), f"{_ARXIV}2306.03341"),
    Entry(FeatureSubtraction(), f"{_ARXIV}2401.01967"),
    Entry(SafeActivation(), f"{_ARXIV}2203.14680"),
    Entry(Wanda(), f"{_ARXIV}2401.10862"),
    Entry(ridge_ablation.RidgeAblation(), _RIDGE, ("labels", "benign")),
    Entry(ridge_ablation.FromAnswers(), _RIDGE, _ANSWERS),
    Entry(Profs(), f"{_ARXIV}2405.13967"),
    Entry(Aura(), f"{_ARXIV}2407.12824"),
    Entry(NormPreserving(), _NORMS),
    Entry(Leace(), f"{_ARXIV}2306.03819"),
    Entry(LinearAct(), f"{_ARXIV}2410.23054"),
    Entry(Steer2Edit(), f"{_ARXIV}2602.09870"),
    Entry(Sasa(), f"{_ARXIV}2410.03818"),
    Entry(Dexperts(), f"{_ARXIV}2105.03023", _TRAINED),
    Entry(Detoxigen(), f"{_ARXIV}2401.06947", _PAIRS),
    Entry(LORA, f"{_ARXIV}2106.09685", _TRAINED),
    Entry(DPO, f"{_ARXIV}2305.18290", _PAIRS),
    Entry(TASK_VECTOR, f"{_ARXIV}2212.04089", _TRAINED),
    Entry(DINM, f"{_ARXIV}2403.14472", (*_PAIRS, "benign")),
    Entry(GMT, f"{_ARXIV}2406.15330", _PAIRS),
    Entry(SPRING, f"{_ARXIV}2405.19670", _PAIRS),
    Entry(LORRA, f"{_ARXIV}2310.01405", _TRAINED),
    Entry(CIRCUIT_BREAKERS, f"{_ARXIV}2406.04313", (*_TRAINED, "benign")),
)

METHODS: dict[str, Entry] = {entry.method.name: entry for entry in _ENTRIES}
BASELINES: dict[str, Baseline] = {name: entry.method for name, entry in METHODS.items()}


def fit(
    name: str,
    model: PreTrainedModel,
    tokenizer: Any,
    data: TrainingData,
    *,
    score: Callable[[Sequence[str]], ArrayLike],
    seed: int = 0,
) -> Fitted:
    """The method fitted; those that learn from the model's own completions tell them apart alike.

    `score` is higher for texts that show more of the behaviour; without training prompts nothing
    asks it.
    """
    own = "samples" in METHODS[name].needs and bool(data.prompts)
    fixed = {"score": score} if own else {}
    return BASELINES[name].fit(model, tokenizer, data, seed=seed, **fixed)
