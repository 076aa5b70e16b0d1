"""The methods that are trained by gradient."""

from surgery_lib.baselines.base import Baseline
from surgery_lib.baselines.circuit_breakers import CIRCUIT_BREAKERS
from surgery_lib.baselines.dinm import DINM
from surgery_lib.baselines.dpo import DPO
from surgery_lib.baselines.gmt import GMT
from surgery_lib.baselines.lora import LORA
from surgery_lib.baselines.lorra import LORRA
from surgery_lib.baselines.spring import SPRING
from surgery_lib.baselines.task_vector import TASK_VECTOR

_METHODS: tuple[Baseline, ...] = (
    LORA,
    DPO,
    TASK_VECTOR,
    DINM,
    GMT,
    SPRING,
    LORRA,
    CIRCUIT_BREAKERS,
)

TRAINED: dict[str, Baseline] = {method.name: method for method in _METHODS}
