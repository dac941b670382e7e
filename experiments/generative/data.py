"""Which points does the generator imitate, and how is a point of its own judged?"""

import functools
from dataclasses import dataclass

import numpy as np
from vision.data import load_digits

from xtrainer.errors import ConfigError, did_you_mean

RING_MODES = 8
RING_DEVIATION = 0.05
"""Of the Gaussians, whose centers lie on a circle of radius 1."""
RING_SIZES = {"train": 16384, "val": 2048, "test": 2048}


@dataclass(frozen=True)
class Target:
    """Points of several modes, and what a generated point is compared with.

    Attributes:
        sets: The points of ``train``, ``val`` and ``test``, float32 ``[count, features]``.
        references: Points of which every good one is near to one, float32 ``[number, features]``.
        labels: The mode of each reference, from 0, int32 ``[number]``.
        radius: How far from a reference is still near.
    """

    sets: dict[str, np.ndarray]
    references: np.ndarray
    labels: np.ndarray
    radius: float

    @property
    def features(self) -> int:
        """Numbers of a point."""
        return self.references.shape[1]

    @property
    def modes(self) -> int:
        """How many modes there are."""
        return int(self.labels.max()) + 1


@functools.cache
def load_target(name: str) -> Target:
    """Returns the points of a name: ``ring`` or ``digits``.

    Raises:
        ConfigError: For any other name.
        MissingDependencyError: If the digits are asked for and scikit-learn is not installed.
    """
    if name not in _TARGETS:
        raise ConfigError(f"target: found {name!r}. {did_you_mean(name, _TARGETS)}")
    return _TARGETS[name]()


def make_sets(name: str, latent_size: int) -> dict[str, dict[str, np.ndarray]]:
    """Returns ``inputs`` and ``latents`` for each set.

    The latents are what evaluations generate from: one for each point, so that neither batch size
    nor devices change what is evaluated. Training draws new ones.
    """
    sets, seeds = load_target(name).sets, {"train": 1, "val": 2, "test": 3}
    return {
        which: {
            "inputs": points,
            "latents": np.random.default_rng(seeds[which])
            .normal(size=(len(points), latent_size))
            .astype(np.float32),
        }
        for which, points in sets.items()
    }


def _ring() -> Target:
    angles = 2 * np.pi * np.arange(RING_MODES) / RING_MODES
    centers = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    rng = np.random.default_rng(0)
    sets = {}
    for name, count in RING_SIZES.items():
        chosen = centers[rng.integers(RING_MODES, size=count)]
        noise = RING_DEVIATION * rng.normal(size=chosen.shape)
        sets[name] = (chosen + noise).astype(np.float32)
    return Target(sets, centers, np.arange(RING_MODES, dtype=np.int32), 3 * RING_DEVIATION)


def _digits() -> Target:
    images = load_digits()
    sets = {name: data["inputs"].reshape(len(data["inputs"]), -1) for name, data in images.items()}
    known = sets["train"]
    gaps = np.linalg.norm(sets["val"][:, None] - known[None], axis=-1).min(axis=1)
    # As far as all but a few real images of another set are from those of training.
    return Target(sets, known, images["train"]["targets"], float(np.quantile(gaps, 0.95)))


_TARGETS = {"ring": _ring, "digits": _digits}
