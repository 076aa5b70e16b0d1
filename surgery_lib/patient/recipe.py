"""Everything that decides what the patient becomes."""

from dataclasses import asdict, dataclass
from itertools import islice

from surgery_lib import files
from surgery_lib.patient import world

FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the patient becomes."""

    seed: int = 0
    vocabulary: int = 1024
    width: int = 192
    inner: int = 512
    blocks: int = 8
    heads: int = 6
    groups: int = 2
    context: int = 256
    length: int = 128
    batch: int = 16
    steps: int = 1500
    primer: int = 250
    warmup: int = 60
    decay: float = 0.5
    rate: float = 0.002
    embedding_rate: float = 0.004
    weight_decay: float = 0.02

    @property
    def hash(self) -> str:
        """Changes with the settings and with the world: its mixture and what it writes first."""
        return files.fingerprint(
            FORMAT,
            asdict(self),
            world.MIXTURE,
            world.PRIMER,
            list(islice(world.corpus(self.seed), 2000)),
        )
