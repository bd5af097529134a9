"""Draws that are functions of a name and numbers: SplitMix64, as batches/ has it in the graph."""

import zlib

import numpy as np

GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def numpy_mix(x: np.ndarray) -> np.ndarray:
    """Hashes uint64 to uint64: a step of SplitMix64."""
    x = x + np.uint64(GAMMA)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
    return x ^ (x >> np.uint64(31))


def stream(name: str) -> int:
    """Returns the number that sets the draws called `name` apart from all others."""
    return zlib.crc32(name.encode()) << 1  # the lowest bit is free: second texts set it


def numpy_keys(seed: int, epochs_B: np.ndarray, ids_B: np.ndarray, name: str) -> np.ndarray:
    """Returns what all draws called `name` for an example in an epoch derive from, uint64 [B]."""
    keys_B = numpy_mix(np.full(len(ids_B), seed % 2**64, np.uint64))
    for part_B in (epochs_B, ids_B, np.full(len(ids_B), stream(name))):
        keys_B = numpy_mix(keys_B ^ np.asarray(part_B).astype(np.uint64))
    return keys_B


def numpy_unit(bits: np.ndarray) -> np.ndarray:
    """Returns float64 in [0, 1) from uint64."""
    return (bits >> np.uint64(11)).astype(np.float64) / 2.0**53
