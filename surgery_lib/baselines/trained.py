"""The methods that are trained by gradient."""

from surgery_lib.baselines.contract import Baseline

TRAINED: dict[str, Baseline] = {}
