"""The methods that need no gradient."""

from surgery_lib.baselines.contract import Baseline

UNTRAINED: dict[str, Baseline] = {}
