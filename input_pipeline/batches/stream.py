"""Which example stands at which position of the training stream.

Here: the order of examples, a pure function of the seed, the position and the texts' lengths, so
that there is no iterator state to save and every position can be reached at once. Not here: what
becomes of the examples (pipeline.py, the only caller). Position p lies in epoch p // N, and step s
of batch size B covers the positions from s * B on, across the ends of epochs: a run that goes on
with another batch size continues at the same example.

All draws are made here of the 64-bit words of PCG64, seeded with a SeedSequence. NumPy guarantees
that these stay the same in later versions (NEP 19). It does not for the methods of Generator, and
resuming a run must not depend on the version of NumPy.
"""

import functools
from collections.abc import Sequence

import numpy as np


class Stream:
    """An endless sequence of epochs, each a permutation of N examples drawn from the seed.

    The permutation is random under one constraint: runs of neighbours resemble the whole data set
    in length. It walks a scrambled van der Corput sequence (A. B. Owen, Randomly permuted
    (t,m,s)-nets, 1995) over the examples sorted by length, so that every aligned run of 2^k
    positions, k up to log2 N, takes one example from each of 2^k equal quantiles of length. Batches
    of any size then need nearly equal room, whose share of padding `pack` can keep below a tenth;
    with plain shuffling it is a fifth at 16 examples a batch.
    """

    def __init__(self, lengths_N: np.ndarray, *, seed: int):
        """Takes the length of each example, in any unit; constant lengths shuffle plainly.

        Raises:
            ValueError: no examples.
        """
        if not len(lengths_N):
            raise ValueError("the training split is empty: there is nothing to draw batches from")
        self._lengths_N = np.asarray(lengths_N)
        self._seed = seed
        self._permutation = functools.lru_cache(maxsize=4)(self._draw)

    def at(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns index and epoch, int64 each, of the positions `first` to `first + count - 1`."""
        epochs, places = np.divmod(np.arange(first, first + count), len(self._lengths_N))
        indices = np.empty_like(places)
        for epoch in range(epochs[0], epochs[-1] + 1):
            here = epochs == epoch
            indices[here] = self._permutation(epoch)[places[here]]
        return indices, epochs

    def _draw(self, epoch: int) -> np.ndarray:
        num_examples = len(self._lengths_N)
        bits = (num_examples - 1).bit_length()
        words = random_words((self._seed, epoch), num_examples + (1 << bits) // 2)
        # Ties of length are in the order of 53 bits of a word each: those of a float in [0, 1).
        by_length = np.lexsort((words[:num_examples] >> 11, self._lengths_N))
        # The other words are halved, the low half first; the top bit of each half is a flip.
        halves = words[num_examples:, None] >> np.array([31, 63], np.uint64) & 1
        flips = halves.astype(np.int64).ravel()
        place = epoch * num_examples + np.arange(num_examples)  # so that runs align across epochs
        point = np.zeros(num_examples, np.int64)
        for bit in range(bits):
            # Reverses the bits of `place`, and flips each at random given the bits before it. Bit b
            # has a flip for each value of the b bits before it, behind those of earlier bits.
            before = place & ((1 << bit) - 1)
            point = 2 * point + ((place >> bit & 1) ^ flips[before + (1 << bit) - 1])
        permutation = np.empty(num_examples, np.int64)
        permutation[np.argsort(point)] = by_length
        return permutation


def random_words(key: Sequence[int], count: int) -> np.ndarray:
    """Returns the first `count` words of PCG64 for a key of integers from 0 on, uint64."""
    return np.random.PCG64(np.random.SeedSequence(tuple(key))).random_raw(count)
