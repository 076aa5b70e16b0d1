"""TaskTracker's metric probe: a small network in which poisoned texts lie far from the task.

Anchor is the state with the task alone, positive with a clean text, negative with a poisoned one;
cosine distance, margin 0.3. The authors convolve over 4,096 wide states; their kernels do not fit
narrow models, so each layer has a branch width -> 256 -> 128 instead.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

MARGIN = 0.3
BRANCH = (256, 128)
OUT = 256
EPOCHS = 30
BATCH = 64
LEARNING_RATE = 5e-4
DROPOUT = 0.5


class Network(nn.Module):
    """States of some layers (texts, layers, width) to a unit vector each, (texts, 256)."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        middle, narrow = BRANCH
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, middle),
                nn.ReLU(),
                nn.Dropout(DROPOUT),
                nn.Linear(middle, narrow),
            )
            for _ in range(layers)
        )
        self.join = nn.Linear(narrow * layers, OUT)

    def forward(self, states: Tensor) -> Tensor:
        """Embeddings of unit length."""
        parts = [branch(states[:, n]) for n, branch in enumerate(self.branches)]
        return nn.functional.normalize(self.join(torch.cat(parts, dim=1)), dim=1)


def fit(
    asked: Tensor, clean: Tensor, poisoned: Tensor, *, seed: int = 0, epochs: int = EPOCHS
) -> Network:
    """Train on states (triples, layers, width) of the task alone, with clean and poisoned text."""
    torch.manual_seed(seed)
    network = Network(asked.shape[1], asked.shape[2])
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(asked), generator=generator).split(BATCH):
            anchor, near, far = (network(one[chosen]) for one in (asked, clean, poisoned))
            # Every poisoned text of the batch is far from every task: the hardest that is not yet
            # nearer than the clean text counts, as in semi-hard mining.
            own = 1 - (anchor * near).sum(1)
            every = 1 - anchor @ far.t()
            hard = torch.where(every > own[:, None], every, torch.inf).amin(1)
            hard = torch.where(hard.isinf(), every.amax(1), hard)
            loss = (own - hard + MARGIN).clamp_min(0).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()


@torch.no_grad()
def scores(network: Network, asked: Tensor, texts: Sequence[Tensor]) -> np.ndarray:
    """Distance from the task alone, (triples, texts): clean and poisoned in the order given."""
    anchor = network(asked)
    return np.stack([(1 - (anchor * network(one)).sum(1)).numpy() for one in texts], axis=1)
