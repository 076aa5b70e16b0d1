"""The methods that surgery is compared with, one file each, by name."""

from surgery_lib.baselines.base import Baseline, Cost, Fitted, Knob, Labelled
from surgery_lib.baselines.decoders import DECODERS
from surgery_lib.baselines.trained import TRAINED
from surgery_lib.baselines.untrained import UNTRAINED

BASELINES: dict[str, Baseline] = {**UNTRAINED, **DECODERS, **TRAINED}

__all__ = ["BASELINES", "Baseline", "Cost", "Fitted", "Knob", "Labelled"]
