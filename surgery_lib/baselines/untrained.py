"""The methods that need no gradient, by name."""

from surgery_lib.baselines import surgery
from surgery_lib.baselines.ablation import Ablation
from surgery_lib.baselines.aura import Aura
from surgery_lib.baselines.base import Baseline
from surgery_lib.baselines.caa import Caa
from surgery_lib.baselines.covariance import Covariance
from surgery_lib.baselines.feature_subtraction import FeatureSubtraction
from surgery_lib.baselines.iti import Iti
from surgery_lib.baselines.norm_preserving import NormPreserving
from surgery_lib.baselines.profs import Profs
from surgery_lib.baselines.ridge_ablation import RidgeAblation
from surgery_lib.baselines.safe_activation import SafeActivation
from surgery_lib.baselines.wanda import Wanda

_METHODS: tuple[Baseline, ...] = (
    surgery.SURGERY,
    surgery.SURGERY_PAPER,
    surgery.RANDOM_ROWS,
    surgery.RANDOM_DIRECTION,
    Covariance(),
    Caa(),
    Ablation(),
    Iti(),
    FeatureSubtraction(),
    SafeActivation(),
    Wanda(),
    RidgeAblation(),
    Profs(),
    Aura(),
    NormPreserving(),
)

UNTRAINED: dict[str, Baseline] = {method.name: method for method in _METHODS}
