"""Blends of Kokoro's five styles: each number is a voice of its own, all of them speak with one model."""

import numpy as np

STYLES = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")
_EXTRAPOLATED_SHARE = 0.3
_MOST_EXTRAPOLATED = 0.2


def blend_weights(name: str) -> np.ndarray:
    """How much of each style a voice has: "kumo" is all jm_kumo, "blend-N" is drawn from its number.

    They sum to 1, and none is below -0.2: further out the model makes no speech, and at last numbers that are none.
    """
    if name == "kumo":
        return np.eye(len(STYLES))[STYLES.index("jm_kumo")]
    rng = np.random.default_rng([20261127, int(name.partition("-")[2])])
    weights = rng.dirichlet(np.full(len(STYLES), 0.7))
    if rng.random() < _EXTRAPOLATED_SHARE:
        away, less = rng.integers(len(STYLES)), _MOST_EXTRAPOLATED * rng.random()
        weights[away] = 0
        weights *= (1 + less) / weights.sum()
        weights[away] = -less
    return weights
