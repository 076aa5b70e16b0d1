"""The methods that surgery is compared with, one file each; `registry` is their table."""

from surgery_lib.baselines.base import Baseline, Cost, Fitted, SearchRange, TrainingData
from surgery_lib.baselines.registry import BASELINES, METHODS

__all__ = ["BASELINES", "METHODS", "Baseline", "Cost", "Fitted", "SearchRange", "TrainingData"]
