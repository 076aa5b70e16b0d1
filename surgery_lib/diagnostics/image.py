"""A fingerprint that people can tell apart by eye: near fingerprints give near images.

HuRef (arXiv 2312.04828) pools the invariant terms to 512 numbers, standardises them, and lets
StyleGAN2 draw a dog from them. The pooling here is the authors' own form without training: the
terms of the last two blocks, one after another, in 512 equal parts, the mean of each. StyleGAN's
weights are not free to use, so a fixed, seeded, smooth generator stands in for it: a small random
network from a pixel's place and the 512 numbers to its colour (a compositional pattern-producing
network). It was never trained, draws patterns and no dogs, and keeps what matters, that it is
smooth.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from surgery_lib.diagnostics.fingerprint import LAST, Fingerprint

SIZE = 512
SIDE = 96
SEED = 100  # the authors' own


def pooled(fingerprint: Fingerprint, last: int = LAST, size: int = SIZE) -> Tensor:
    """The standardised terms of the last blocks in `size` equal parts, the mean of each, (size,).

    Each term's entries count row after row. Terms are never formed: a row's mean is enough, as long
    as each part is cut between rows; where it is not, a row's mean stands for its entries.
    """
    n, found = len(fingerprint.basis), []
    kinds = dict.fromkeys(kind for _, kind in fingerprint.terms)
    for block in range(max(0, fingerprint.blocks - last), fingerprint.blocks):
        for kind in kinds:
            mean, norm = fingerprint.moments((block, kind))
            term = fingerprint.terms[block, kind].double()
            rows = fingerprint.basis @ (term @ fingerprint.ones) / n
            found.append((rows - mean) * n / max(norm, 1e-300))
    line = torch.cat(found)
    edges = np.linspace(0, len(line), size + 1)
    sums = np.concatenate([[0.0], line.cumsum(0).numpy()])
    at = np.interp(edges, np.arange(len(line) + 1), sums)
    return torch.from_numpy(np.diff(at) / np.diff(edges))


def standardised(vector: Tensor) -> Tensor:
    """The vector with mean 0 and standard deviation 1."""
    return (vector - vector.mean()) / vector.std(correction=0).clamp_min(1e-12)


def draw(vector: Tensor, side: int = SIDE, seed: int = SEED, width: int = 24) -> np.ndarray:
    """The image of a standardised vector: (side, side, 3), in [0, 1], smooth in the vector.

    The same vector gives the same image everywhere: weights come from a seeded generator of numpy.
    """
    generator = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, side)
    x, y = np.meshgrid(axis, axis)
    places = np.stack([x, y, np.hypot(x, y), np.ones_like(x)], axis=-1)
    latent = vector.double().numpy()
    latent = latent / np.sqrt(len(latent))
    # The vector turns, shifts and bends the first layer's waves; two more layers mix them.
    waves = generator.normal(0, 3.0, (4, width))
    by_vector = generator.normal(0, 2.0, (len(latent), 4, width))
    hidden = np.sin(places @ (waves + np.tensordot(latent, by_vector, axes=1)))
    for _ in range(2):
        shift = latent @ generator.normal(0, 1.0, (len(latent), width))
        hidden = np.sin(hidden @ generator.normal(0, 1.6 / np.sqrt(width), (width, width)) + shift)
    colours = hidden @ generator.normal(0, 3.0 / np.sqrt(width), (width, 3))
    return np.asarray(1 / (1 + np.exp(-colours)))


def portrait(fingerprint: Fingerprint, last: int = LAST) -> np.ndarray:
    """The image of a model."""
    return draw(standardised(pooled(fingerprint, last)))


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Root of the mean squared difference of two images, 0 for the same one."""
    return float(np.sqrt(np.mean((first - second) ** 2)))


def distances(images: Sequence[np.ndarray]) -> list[list[float]]:
    """Distance of every pair."""
    return [[distance(a, b) for b in images] for a in images]
