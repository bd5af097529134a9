"""Draws that are functions of a name and a number: SplitMix64, as batches/ has it in the graph."""

import numpy as np

GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def numpy_mix(x: np.ndarray) -> np.ndarray:
    """Hashes uint64 to uint64: a step of SplitMix64."""
    x = x + np.uint64(GAMMA)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
    return x ^ (x >> np.uint64(31))
