"""The methods that leave the weights alone and change what is sampled, by name."""

from surgery_lib.baselines.base import Baseline
from surgery_lib.baselines.detoxigen import Detoxigen
from surgery_lib.baselines.dexperts import Dexperts
from surgery_lib.baselines.sasa import Sasa

_METHODS: tuple[Baseline, ...] = (Sasa(), Dexperts(), Detoxigen())

DECODERS: dict[str, Baseline] = {method.name: method for method in _METHODS}
